"""Metrics equal the field's own implementations or brute force; statistics equal scipy's and the published values."""
from itertools import combinations, pairwise
from statistics import mean

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import trainId2label
from scipy import ndimage, stats
from street_labels import drawn_label, real_label
from torchmetrics.functional import classification as oracle

import common

VOID = 255
SQUARE = np.ones((3, 3), bool)
SWITCHES = [{"count_frame": frame, "count_void_rim": rim} for frame in (True, False) for rim in (True, False)]


def random_pair(rng, n=5, shape=(7, 9)):
    target = rng.choice([*range(n), VOID], shape).astype(np.uint8)
    return rng.integers(0, n, shape).astype(np.uint8), target


def tiny_pairs(count, seed=0):
    """Small maps of few classes: with blobs, absent classes, classes that fill the image, and void."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = tuple(rng.integers(1, 14, 2))
        blocks = rng.choice([0, 1, 2, 3, VOID], (2, *shape), p=rng.dirichlet(np.ones(5))).astype(np.uint8)
        pred, target = (np.kron(b, np.ones((2, 3), np.uint8)) for b in blocks)
        similar = rng.random(target.shape) < rng.random()
        yield np.where(similar & (target != VOID), target, np.where(pred == VOID, 0, pred)), target


def shifted_street():
    """A real label and a prediction that is off by a few pixels."""
    label, n = real_label(240)
    pred = np.roll(label, (2, 3), (0, 1))
    pred[pred == VOID] = 0
    return pred, label, n


# Confusion matrix and what follows from it
def test_confusion_matrix_equals_torchmetrics():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pred, target = random_pair(rng, n=int(rng.integers(2, 20)))
        n = 20
        expected = oracle.multiclass_confusion_matrix(
            torch.from_numpy(pred).long(), torch.from_numpy(target).long(), n, ignore_index=VOID
        )
        cm = common.confusion_matrix(pred, target, n)
        assert cm.dtype == np.int64
        np.testing.assert_array_equal(cm, expected.numpy())


def test_rows_are_the_truth_and_columns_the_prediction():
    cm = common.confusion_matrix(np.array([2, 2, 0]), np.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(cm, [[1, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_arrays_and_tensors_of_any_integer_type_and_device_count_alike():
    pred, target = random_pair(np.random.default_rng(1), shape=(2, 30, 40))
    expected = common.confusion_matrix(pred, target, 5)
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        for dtype in (torch.uint8, torch.int32, torch.int64):
            tensors = (torch.from_numpy(a).to(device, dtype) for a in (pred, target))
            np.testing.assert_array_equal(common.confusion_matrix(*tensors, 5), expected)
    signed = np.where(target == VOID, -1, target.astype(np.int16))
    np.testing.assert_array_equal(common.confusion_matrix(pred, signed, 5, ignore=-1), expected)


def test_void_pixels_do_not_count_whatever_is_predicted_there():
    target = np.array([[0, VOID], [1, VOID]], np.uint8)
    for there in (0, 1, VOID):
        cm = common.confusion_matrix(np.array([[0, there], [1, there]], np.uint8), target, 2)
        np.testing.assert_array_equal(cm, np.eye(2))
    assert common.confusion_matrix(target, np.full_like(target, VOID), 2).sum() == 0


@pytest.mark.parametrize("pred, target, words", [
    ([0, 3], [0, 1], "prediction holds 0..3; classes are 0..2"),
    ([0, 1], [0, 7], "label holds 0..7; classes are 0..2"),
    ([0, 1, 1], [0, 1], "differ in shape"),
])
def test_values_and_shapes_that_cannot_be_counted_are_refused(pred, target, words):
    with pytest.raises(ValueError, match=words):
        common.confusion_matrix(np.array(pred), np.array(target), 3)


FLOATS = np.array([[0.0, 1.9], [0.2, 1.0]])


@pytest.mark.parametrize("values", [FLOATS, FLOATS.astype(np.float16), torch.from_numpy(FLOATS), FLOATS + 0j, FLOATS.astype(object), FLOATS.astype(str)],
                         ids=lambda values: str(values.dtype))
@pytest.mark.parametrize("score", [common.confusion_matrix, common.boundary_f1, common.trimap_iou,
                                   lambda pred, target, n: common.trimap_band(pred, n),
                                   lambda pred, target, n: common.confusion_matrix(target, pred, n),
                                   lambda pred, target, n: common.boundary_f1(pred, target, n, estimator="as_published"),
                                   lambda pred, target, n: common.trimap_iou(target, pred, n, estimator="as_published")])
def test_scores_and_other_numbers_that_are_no_class_indices_are_refused(values, score):
    with pytest.raises(ValueError, match="class indices are integers, not .*: take the argmax of scores, or convert"):
        score(values, np.zeros((2, 2), np.uint8), 2)


@pytest.mark.parametrize(("pred", "target", "words"), [(7, 0, "prediction holds 0..7"), (0, 7, "label holds 0..7"), (-1, 0, "prediction holds -1..0")])
def test_contours_of_values_that_are_no_class_are_refused_as_counting_them_is(pred, target, words):
    maps = [np.pad(np.full((2, 2), value), 2) for value in (pred, target)]
    for metric in (common.confusion_matrix, common.boundary_f1):
        with pytest.raises(ValueError, match=words):
            metric(*maps, 3)
    metric(np.full((4, 4), 200), np.full((4, 4), 255), 3)  # where nothing counts, anything may stand


def test_scores_equal_torchmetrics():
    rng = np.random.default_rng(2)
    pred, target = random_pair(rng, n=6, shape=(40, 50))
    target[target == 4] = 3  # class 4 is predicted only; class 6 is nowhere
    cm = common.confusion_matrix(pred, target, 7)
    tensors = torch.from_numpy(pred).long(), torch.from_numpy(target).long(), 7
    iou = oracle.multiclass_jaccard_index(*tensors, average="none", ignore_index=VOID).double().numpy()
    micro = oracle.multiclass_accuracy(*tensors, average="micro", ignore_index=VOID)
    np.testing.assert_allclose(common.iou_per_class(cm)[:6], iou[:6], rtol=1e-6)
    assert np.isnan(common.iou_per_class(cm)[6])
    assert common.accuracy(cm) == pytest.approx(float(micro), rel=1e-6)
    assert common.miou(cm) == pytest.approx(iou[[0, 1, 2, 3, 5]].mean(), rel=1e-6)
    assert common.miou_official(cm) == pytest.approx(iou[:6].mean(), rel=1e-6)


def test_empty_matrix_has_no_score():
    cm = np.zeros((4, 4), np.int64)
    assert all(np.isnan(score(cm)) for score in (common.accuracy, common.miou, common.miou_official))
    assert np.isnan(common.iou_per_class(cm)).all()


def labelids(trainids):
    table = np.zeros(256, np.uint8)  # void becomes "unlabeled"
    for trainid in range(19):
        table[trainid] = trainId2label[trainid].id
    return table[trainids]


def test_miou_official_is_the_official_evaluation_of_image_files(tmp_path):
    rng = np.random.default_rng(4)
    cm, files = 0, {"pred": [], "truth": []}
    for i in range(3):
        target = drawn_label(64, 128)
        pred = np.where(rng.random(target.shape) < 0.8, target, rng.integers(0, 17, target.shape)).astype(np.uint8)
        pred[target == VOID] = 3
        cm = cm + common.confusion_matrix(pred, target, 19)
        for kind, trainids in (("pred", pred), ("truth", target)):
            files[kind].append(str(tmp_path / f"{kind}{i}.png"))
            assert cv2.imwrite(files[kind][-1], labelids(trainids))
    assert (cm.sum(1)[14:] == 0).all() and (cm.sum(0)[14:17] > 0).all()  # classes that are only predicted
    official.args.evalInstLevelScore, official.args.JSONOutput, official.args.quiet = False, False, True
    results = official.evaluateImgLists(files["pred"], files["truth"], official.args)
    assert common.miou_official(cm) == results["averageScoreClasses"]
    scores = [results["classScores"][trainId2label[c].name] for c in range(19)]
    np.testing.assert_array_equal(common.iou_per_class(cm), scores)
    assert common.miou(cm) > common.miou_official(cm)


def test_miou_official_equals_the_official_average_to_the_last_bit():
    rng = np.random.default_rng(5)
    ids = [trainId2label[c].id for c in range(19)]
    args, pairwise_differs = official.args, 0
    for _ in range(200):
        cm = rng.integers(0, 10 ** rng.integers(1, 9), (19, 19)) * (rng.random((19, 19)) < 0.4)
        cm[rng.random(19) < 0.2] = 0
        big = official.generateMatrix(args)
        big[np.ix_(ids, ids)] = cm
        scores = {label: official.getIouScoreForLabel(label, big, args) for label in args.evalLabels}
        assert common.miou_official(cm) == official.getScoreAverage(scores, args)
        pairwise_differs += np.nanmean(common.iou_per_class(cm)) != common.miou_official(cm)
    assert pairwise_differs  # else the order of the additions would not have been tested


# Boundary F1
def contour(mask, frame):
    eroded = ndimage.binary_erosion(mask, SQUARE, border_value=0 if frame else 1)
    return ndimage.binary_dilation(mask, SQUARE) ^ eroded


def matched_f1(pred, target, tolerance, eps=0.0):
    square = np.ones((2 * tolerance + 1, 2 * tolerance + 1), bool)
    if not pred.any() and not target.any():
        return np.nan
    precision = (pred & ndimage.binary_dilation(target, square)).sum() / (pred.sum() + eps or 1)
    recall = (target & ndimage.binary_dilation(pred, square)).sum() / (target.sum() + eps or 1)
    return 2 * precision * recall / (precision + recall + eps or 1)


def plain_boundary_f1(pred, target, n, tolerance=3, count_frame=True, count_void_rim=True, eps=0.0):
    valid = target != VOID
    counted = np.ones_like(valid) if count_void_rim else ~ndimage.binary_dilation(~valid, SQUARE)
    scores = np.full(n, np.nan)
    for c in range(n):
        if (target == c).any():
            contours = [contour((labels == c) & valid, count_frame) & counted for labels in (pred, target)]
            scores[c] = matched_f1(*contours, tolerance, eps)
    return scores


@pytest.mark.parametrize("switches", SWITCHES)
def test_boundary_f1_of_tiny_maps_equals_scipys_morphology(switches):
    seen = 0
    for pred, target in tiny_pairs(120):
        for tolerance in (1, 3):
            expected = plain_boundary_f1(pred, target, 5, tolerance, **switches)
            np.testing.assert_array_equal(common.boundary_f1(pred, target, 5, tolerance, **switches), expected)
            seen += np.isfinite(expected).sum()
    assert seen > 200


@pytest.mark.parametrize("switches", SWITCHES[::3])
def test_boundary_f1_of_a_street_equals_scipys_morphology(switches):
    pred, target, n = shifted_street()
    scores = common.boundary_f1(pred, target, n, **switches)
    np.testing.assert_array_equal(scores, plain_boundary_f1(pred, target, n, **switches))
    assert 0.2 < np.nanmean(scores) < 0.99


def test_boundary_f1_compares_with_published_numbers():
    for pred, target in tiny_pairs(60, seed=1):
        published = plain_boundary_f1(pred, target, 5, eps=1e-6)
        np.testing.assert_allclose(common.boundary_f1(pred, target, 5), published, atol=2e-6)


def test_boundary_f1_takes_tensors_and_any_void_value():
    pred, target = next(pair for pair in tiny_pairs(50) if (pair[1] == VOID).any() and pair[1].size > 200)
    expected = common.boundary_f1(pred, target, 4)
    tensors = torch.from_numpy(pred).long(), torch.from_numpy(target).long()
    np.testing.assert_array_equal(common.boundary_f1(*tensors, 4), expected)
    signed = np.where(target == VOID, -1, target.astype(np.int64))
    np.testing.assert_array_equal(common.boundary_f1(pred, signed, 4, ignore=-1), expected)


def test_a_right_map_scores_one_and_absent_classes_nothing():
    label = drawn_label(80, 120)
    scores = common.boundary_f1(label, label, 16)
    np.testing.assert_array_equal(scores, [1.0] * 14 + [np.nan] * 2)
    missed = np.where(label == 5, 0, label)
    assert common.boundary_f1(missed, label, 16)[5] == 0


def test_tolerance_is_a_square():
    target = np.zeros((40, 40), np.uint8)
    target[10:20, 10:20] = 1
    for shift, expected in (((3, 3), True), ((0, 4), False)):
        score = common.boundary_f1(np.roll(target, shift, (0, 1)), target, 2, tolerance=3, count_frame=False)[1]
        assert (score == 1) == expected


BUILDING, VEGETATION = 2, 8


def seam_at(column, left=BUILDING, right=VEGETATION):
    label = np.full((60, 80), left, np.uint8)
    label[:, column:] = right
    return label


def test_a_wrong_seam_between_building_and_vegetation_is_seen_per_class_only():
    target, pred = seam_at(40), seam_at(60)
    assert common.boundary_f1(pred, target, 19, estimator="as_published")[0] == 1
    assert np.nanmean(common.boundary_f1(pred, target, 19)) < 0.8
    np.testing.assert_array_equal(common.boundary_f1(pred, target, 19, count_frame=False)[[2, 8]], 0)
    near_seam = (slice(None), slice(37, 43))
    assert common.trimap_band(target, 19)[near_seam].all()
    assert not common.trimap_band(target, 19, estimator="as_published")[10:-10, 10:-10].any()
    road_target, road_pred = seam_at(40, right=0), seam_at(60, right=0)
    assert common.boundary_f1(road_pred, road_target, 19, estimator="as_published")[0] < 0.8


@pytest.mark.parametrize("frame", [True, False])
def test_as_published_is_binary_morphology_of_the_label_map_itself(frame):
    seen = 0
    for pred, target in tiny_pairs(60, seed=2):
        contours = [contour(labels != 0, frame) for labels in (pred, target)]
        score = common.boundary_f1(pred, target, 5, estimator="as_published", count_frame=frame)
        assert score.shape == (1,)
        np.testing.assert_array_equal(score, [matched_f1(*contours, 3)])
        seen += 0 < score[0] < 1
    assert seen > 10


def test_the_frame_gives_free_matches_unless_it_is_not_counted():
    target, pred = seam_at(40), seam_at(50)
    with_frame = common.boundary_f1(pred, target, 19)
    without = common.boundary_f1(pred, target, 19, count_frame=False)
    assert (with_frame[[2, 8]] > 0.5).all() and (without[[2, 8]] == 0).all()
    one_class = np.zeros((20, 20), np.uint8)
    assert common.boundary_f1(one_class, one_class, 1) == 1
    assert np.isnan(common.boundary_f1(one_class, one_class, 1, count_frame=False))


def test_the_rim_of_void_gives_free_matches_unless_it_is_not_counted():
    target, pred = np.full((40, 60), 1, np.uint8), np.full((40, 60), 1, np.uint8)
    target[10:30, 10:30] = VOID
    target[15:25, 45:50], pred[15:25, 52:57] = 2, 2
    free = common.boundary_f1(pred, target, 3, count_frame=False)
    honest = common.boundary_f1(pred, target, 3, count_frame=False, count_void_rim=False)
    assert honest[1] < free[1]
    pred_elsewhere = pred.copy()
    pred_elsewhere[10:30, 10:30] = 2  # what is predicted in void changes nothing
    np.testing.assert_array_equal(common.boundary_f1(pred_elsewhere, target, 3), common.boundary_f1(pred, target, 3))


# Trimap IoU
def plain_band(target, radius):
    height, width = target.shape
    seam = np.zeros(target.shape, bool)
    for y, x in np.ndindex(height, width):
        for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if 0 <= v < height and 0 <= u < width and VOID not in (target[y, x], target[v, u]):
                seam[y, x] |= target[y, x] != target[v, u]
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    return ndimage.binary_dilation(seam, square) & (target != VOID)


def test_trimap_of_tiny_maps_equals_brute_force():
    seen = 0
    for pred, target in tiny_pairs(60, seed=3):
        for radius in (1, 3):
            band = plain_band(target, radius)
            np.testing.assert_array_equal(common.trimap_band(target, 4, radius), band)
            scores = common.trimap_iou(pred, target, 4, radius)
            for c in range(4):
                union = (((pred == c) | (target == c)) & band).sum()
                expected = ((pred == c) & (target == c) & band).sum() / union if union else np.nan
                np.testing.assert_array_equal(scores[c], expected)
                seen += bool(union)
    assert seen > 100


def test_trimap_iou_as_published_counts_within_the_band_of_road_against_the_rest():
    seen = 0
    for pred, target in tiny_pairs(60, seed=4):
        band = ndimage.binary_dilation(contour(target != 0, True), np.ones((7, 7), bool)) & (target != VOID)
        np.testing.assert_array_equal(common.trimap_band(target, 4, estimator="as_published"), band)
        cm = common.confusion_matrix(pred[band], target[band], 4)
        scores = common.trimap_iou(pred, target, 4, estimator="as_published")
        np.testing.assert_array_equal(scores, common.iou_per_class(cm))
        seen += (band != common.trimap_band(target, 4)).any()
    assert seen > 10


def test_band_grows_with_the_radius_to_the_whole_valid_image():
    target = drawn_label(200, 300)
    bands = [common.trimap_band(target, 14, radius) for radius in (1, 3, 8, 300)]
    assert all((narrow <= wide).all() and narrow.sum() < wide.sum() for narrow, wide in pairwise(bands))
    np.testing.assert_array_equal(bands[-1], target != VOID)
    pred = np.roll(target, 1, 1) % 14
    whole = common.iou_per_class(common.confusion_matrix(pred, target, 14))
    np.testing.assert_array_equal(common.trimap_iou(pred, target, 14, radius=300), whole)


def test_neither_void_nor_the_frame_makes_a_band():
    target = np.ones((30, 30), np.uint8)
    target[10:20, 10:20] = VOID
    assert not common.trimap_band(target, 2).any()
    assert np.isnan(common.trimap_iou(np.ones_like(target), target, 2)).all()


def test_trimap_iou_takes_tensors():
    pred, target, n = shifted_street()
    tensors = torch.from_numpy(pred).long(), torch.from_numpy(target).long()
    scores = common.trimap_iou(*tensors, n)
    np.testing.assert_array_equal(scores, common.trimap_iou(pred, target, n))
    assert 0.1 < np.nanmean(scores) < common.miou(common.confusion_matrix(pred, target, n))


@pytest.mark.parametrize("metric", [common.boundary_f1, common.trimap_iou])
def test_unknown_estimator_and_other_size_are_named(metric):
    with pytest.raises(ValueError, match="estimator='mean' is unknown"):
        metric(seam_at(3), seam_at(3), 19, estimator="mean")
    with pytest.raises(ValueError, match="differ in shape"):
        metric(seam_at(3)[1:], seam_at(3), 19)


# Uncertainty: published results of four loss variants, three seeds each, in percent
MIOU = {"A": (81.51, 81.10, 81.24), "B": (81.43, 80.86, 80.99), "C": (81.31, 81.22, 81.14), "D": (81.73, 81.76, 81.57)}
BF1 = {"A": (77.19, 77.31, 77.22), "B": (76.37, 76.50, 76.30), "C": (76.33, 76.74, 76.43), "D": (77.26, 77.37, 77.32)}
TRIMAP = {
    "A": (52.16, 52.23, 52.11), "B": (53.96, 53.83, 53.67), "C": (53.85, 54.09, 53.66), "D": (52.20, 52.41, 52.14)
}


@pytest.mark.parametrize("seeds, published", [
    (MIOU, {"A": (81.28, 0.53), "B": (81.09, 0.74), "C": (81.23, 0.21), "D": (81.69, 0.25)}),
    (BF1, {"A": (77.24, 0.16), "B": (76.39, 0.24), "C": (76.50, 0.54), "D": (77.32, 0.13)}),
    (TRIMAP, {"A": (52.17, 0.14), "B": (53.82, 0.36), "C": (53.87, 0.53), "D": (52.25, 0.36)}),
])
def test_student_interval_gives_the_published_ones(seeds, published):
    for variant, (mean_, half_width) in published.items():
        ours = common.student_interval(seeds[variant])
        assert ours == (pytest.approx(mean_, abs=0.01), pytest.approx(half_width, abs=0.015))  # seeds are rounded


@pytest.fixture(scope="module")
def statistics(notebook):
    """Notebook 06, which defines the paired test and Holm's correction."""
    return notebook("06_kervadec_ablation")


def test_student_interval_equals_scipys():
    values = np.random.default_rng(6).normal(size=7)
    low, high = stats.t.interval(0.9, 6, values.mean(), stats.sem(values))
    center, half_width = common.student_interval(values, confidence=0.9)
    assert (center - half_width, center + half_width) == (pytest.approx(low), pytest.approx(high))


def test_one_run_has_a_mean_but_no_interval(statistics):
    assert common.student_interval([0.5])[0] == 0.5 and np.isnan(common.student_interval([0.5])[1])
    difference, half_width, p = statistics.paired_t([0.5], [0.25])
    assert difference == 0.25 and np.isnan(half_width) and np.isnan(p)


def test_paired_t_equals_scipys(statistics):
    rng = np.random.default_rng(7)
    for count in (2, 3, 10):
        a, b = rng.normal(size=(2, count))
        expected = stats.ttest_rel(a, b)
        difference, half_width, p = statistics.paired_t(a, b)
        low, high = expected.confidence_interval()
        assert p == pytest.approx(expected.pvalue)
        assert (difference - half_width, difference + half_width) == (pytest.approx(low), pytest.approx(high))


def test_paired_t_of_equal_differences(statistics):
    assert statistics.paired_t([1, 2, 3], [1, 2, 3]) == (0, 0, 1)
    assert statistics.paired_t([2, 3, 4], [1, 2, 3]) == (1, 0, 0)


@pytest.mark.parametrize("seeds, published", [
    (MIOU, {"CD": 0.042}),
    (BF1, {"AB": 0.010, "BD": 0.011}),
    (TRIMAP, {"AB": 0.010, "AC": 0.011, "BD": 0.012, "CD": 0.005}),
])
def test_paired_t_with_holm_gives_the_published_significant_pairs(statistics, seeds, published):
    pairs = ["".join(pair) for pair in combinations("ABCD", 2)]
    adjusted = dict(zip(pairs, statistics.holm([statistics.paired_t(seeds[a], seeds[b])[2] for a, b in pairs])))
    assert {pair for pair in pairs if adjusted[pair] < 0.05} == set(published)
    for pair, p in published.items():
        assert adjusted[pair] == pytest.approx(p, abs=0.002)  # seeds are rounded to 0.01


def test_holm_of_a_worked_example(statistics):
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1, 1])
    np.testing.assert_allclose(statistics.holm([0.03]), [0.03])


def test_holm_rejects_what_the_step_down_procedure_rejects(statistics):
    rng = np.random.default_rng(8)
    for _ in range(50):
        p = rng.random(rng.integers(1, 8)) ** 3
        for alpha in (0.01, 0.05, 0.2):
            rejected = set()
            for step, i in enumerate(np.argsort(p)):
                if p[i] > alpha / (len(p) - step):
                    break
                rejected.add(i)
            assert set(np.flatnonzero(statistics.holm(p) <= alpha)) == rejected


def image_matrices(rng, images, gain):
    """Confusion matrices per image of two models on the same images; the first is `gain` better on average."""
    pairs = []
    for _ in range(images):
        target = rng.choice(4, 300, p=rng.dirichlet(np.ones(4)))
        for quality in (0.6 + gain, 0.6):
            pred = np.where(rng.random(300) < quality, target, rng.integers(0, 4, 300))
            pairs.append(common.confusion_matrix(pred, target, 4))
    return np.array(pairs[::2]), np.array(pairs[1::2])


def test_bootstrap_interval_agrees_with_scipys():
    rng = np.random.default_rng(9)
    a = rng.normal(0.5, 0.1, 80)
    b = a - rng.normal(0.02, 0.05, 80)
    expected = stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, method="percentile", n_resamples=5000, random_state=rng
    ).confidence_interval
    difference, low, high, _ = common.paired_bootstrap(a, b, np.mean, repeats=5000)
    assert difference == pytest.approx(mean(a) - mean(b))
    assert (low, high) == (pytest.approx(expected.low, abs=0.001), pytest.approx(expected.high, abs=0.001))


def test_bootstrap_of_matrices_is_the_statistic_of_their_sum():
    a, b = image_matrices(np.random.default_rng(10), 40, gain=0.1)
    difference, low, high, p = common.paired_bootstrap(a, b, common.miou, repeats=500)
    assert difference == common.miou(a.sum(0)) - common.miou(b.sum(0))
    assert low < difference < high and low > 0 and p < 0.01
    backwards = common.paired_bootstrap(b, a, common.miou, repeats=500)
    assert backwards == pytest.approx((-difference, -high, -low, p))
    assert common.paired_bootstrap(a, b, common.miou, repeats=500) == (difference, low, high, p)
    assert common.paired_bootstrap(a, b, common.miou, repeats=500, seed=1)[1:3] != (low, high)


def test_bootstrap_of_equal_models_finds_nothing():
    a, _ = image_matrices(np.random.default_rng(11), 20, gain=0)
    assert common.paired_bootstrap(a, a, common.miou, repeats=200) == (0, 0, 0, 1)


def test_bootstrap_p_values_are_small_as_often_as_they_say():
    rng = np.random.default_rng(12)
    small = 0
    for i in range(200):
        a, b = rng.normal(size=(2, 60))
        small += common.paired_bootstrap(a, b, np.mean, repeats=200, seed=i)[3] < 0.1
    assert 8 <= small <= 36  # 20 expected, within about 3.7 standard deviations


def test_frames_of_one_drive_are_no_more_evidence_than_one():
    a, b = image_matrices(np.random.default_rng(13), 12, gain=0.03)
    alone = common.paired_bootstrap(a, b, common.miou, repeats=400)
    frames = [np.repeat(matrices, 10, axis=0) for matrices in (a, b)]
    drives = np.repeat([f"drive{i:02d}" for i in range(12)], 10)
    assert common.paired_bootstrap(*frames, common.miou, blocks=drives, repeats=400) == pytest.approx(alone)
    _, low, high, _ = common.paired_bootstrap(*frames, common.miou, repeats=400)
    assert high - low < 0.5 * (alone[2] - alone[1])


def test_bootstrap_takes_scores_per_image_and_class():
    rng = np.random.default_rng(14)
    b = rng.random((50, 6))
    b[rng.random(b.shape) < 0.3] = np.nan  # classes that an image lacks
    difference, low, high, p = common.paired_bootstrap(b + 0.1, b, np.nanmean, repeats=300)
    assert (difference, low, high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1)) and p < 0.01


def test_bootstrap_of_a_single_block_makes_no_interval():
    scores = np.random.default_rng(0).random((2, 6))
    difference, *interval = common.paired_bootstrap(*scores, np.mean, blocks=["drive"] * 6, repeats=50)
    assert difference == pytest.approx(scores[0].mean() - scores[1].mean()) and np.isnan(interval).all()


def test_bootstrap_refuses_models_scored_on_different_images():
    with pytest.raises(ValueError, match="different images"):
        common.paired_bootstrap(np.zeros(3), np.zeros(4), np.mean)
