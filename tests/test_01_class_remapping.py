"""Notebook 01 and the class schemes: which number a pixel gets, what is counted, and how wide things are."""

import itertools
import shutil
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import common

ROOT = Path(__file__).resolve().parent.parent

# labelId: (trainId, class of streets7, class of thin7), typed from the sources' tables; 255 is void
TABLE = {
    -1: (255, 0, 0), 0: (255, 0, 0), 1: (255, 0, 0), 2: (255, 0, 0), 3: (255, 0, 0), 4: (255, 0, 0), 5: (255, 0, 0),
    6: (255, 0, 0), 7: (0, 1, 0), 8: (1, 0, 0), 9: (255, 0, 0), 10: (255, 0, 0), 11: (2, 2, 0), 12: (3, 0, 0),
    13: (4, 0, 1), 14: (255, 0, 0), 15: (255, 0, 0), 16: (255, 0, 0), 17: (5, 0, 4), 18: (255, 0, 0), 19: (6, 0, 6),
    20: (7, 0, 5), 21: (8, 5, 3), 22: (9, 0, 0), 23: (10, 6, 0), 24: (11, 4, 0), 25: (12, 4, 0), 26: (13, 3, 2),
    27: (14, 3, 0), 28: (15, 3, 0), 29: (255, 3, 0), 30: (255, 3, 0), 31: (16, 3, 0), 32: (17, 3, 0), 33: (18, 3, 0),
}  # fmt: skip
SCHEME_NAMES = ("cityscapes19", "streets7", "thin7")
EIGHT_NEIGHBOURS = np.ones((3, 3))


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook("01_class_remapping")


@pytest.fixture
def rng():
    return np.random.default_rng(1)


# The schemes


@pytest.mark.parametrize("column, name", list(enumerate(SCHEME_NAMES)))
def test_every_official_class_goes_where_the_source_sends_it(column, name):
    table = common.SCHEMES[name].table
    assert {i: int(table[i % 256]) for i in TABLE} == {i: row[column] for i, row in TABLE.items()}


@pytest.mark.parametrize("name", SCHEME_NAMES)
def test_numbers_that_are_no_label_id_are_marked_in_every_scheme(name):
    table = common.SCHEMES[name].table
    assert table.shape == (256,) and table.dtype == np.uint8
    assert set(table[34:255].tolist()) == {254}


def test_train_ids_names_and_colours_equal_those_of_cityscapesscripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    scheme = common.SCHEMES["cityscapes19"]
    assert len(labels) == 35
    for label in labels:
        assert scheme.table[label.id % 256] == label.trainId % 256
    evaluated = sorted((label for label in labels if not label.ignoreInEval), key=lambda label: label.trainId)
    assert scheme.classes == [label.name for label in evaluated]
    assert scheme.colors.tolist() == [list(label.color) for label in evaluated]


def test_thin7_is_the_same_from_train_ids():
    thin_of_train_id = {4: 1, 13: 2, 8: 3, 5: 4, 7: 5, 6: 6}
    train_ids = common.SCHEMES["cityscapes19"].table
    for label_id in TABLE:
        expected = thin_of_train_id.get(int(train_ids[label_id % 256]), 0)
        assert common.SCHEMES["thin7"].table[label_id % 256] == expected


def test_the_legend_of_each_scheme_has_the_sources_order():
    assert common.SCHEMES["streets7"].classes == [
        "background", "road", "building", "vehicle", "person", "vegetation", "sky"]  # fmt: skip
    assert common.SCHEMES["thin7"].classes == [
        "background", "fence", "car", "vegetation", "pole", "traffic sign", "traffic light"]  # fmt: skip


@pytest.mark.parametrize("name, groups", [("streets7", "U_NET_REPORT"), ("thin7", "THIN_STRUCTURES")])
def test_the_table_built_in_the_notebook_is_the_one_that_the_course_uses(nb, name, groups):
    assert np.array_equal(nb.table_from_names(getattr(nb, groups)), common.SCHEMES[name].table)


# Ways to remap


@pytest.mark.parametrize("name", SCHEME_NAMES)
@pytest.mark.parametrize("way", ["remap_by_pixel", "remap_by_class"])
def test_all_ways_to_remap_agree_and_leave_their_input_alone(nb, rng, name, way):
    ids = rng.choice([*range(34), 255], size=(23, 31)).astype(np.uint8)
    before, column = ids.copy(), SCHEME_NAMES.index(name)
    remapped = getattr(nb, way)(ids, common.SCHEMES[name].table)
    typed = {i % 256: row[column] for i, row in TABLE.items()}
    assert remapped.tolist() == [[typed[i] for i in row] for row in ids.tolist()]
    assert np.array_equal(ids, before) and not np.shares_memory(ids, remapped)


def test_a_look_up_does_not_chain_where_remapping_in_place_does(nb):
    steps = [(7, 0), (0, 255)]
    table = np.arange(256, dtype=np.uint8)
    for old, new in steps:
        table[old] = new
    ids = np.array([7, 0], np.uint8)
    assert table[ids].tolist() == [0, 255]
    assert nb.remap_in_place(ids.copy(), steps).tolist() == [255, 255]
    assert nb.remap_in_place(ids.copy(), steps[::-1]).tolist() == [0, 255]


def test_back_to_label_ids_in_place_the_road_becomes_a_traffic_sign(nb):
    pairs = sorted((row[0], i) for i, row in TABLE.items() if row[0] < 19)
    answer = np.array([0], np.uint8)
    nb.remap_in_place(answer, pairs)
    assert answer.tolist() == [20]


def test_a_number_that_is_no_id_stops_with_its_value_and_its_place(nb):
    table = common.SCHEMES["cityscapes19"].table
    nb.require_known_ids(np.array([*range(34), 255]), table, "x.png")
    with pytest.raises(common.StreetsError, match=r"x\.png holds \[40, 77\]"):
        nb.require_known_ids(np.array([[7, 40], [77, 40]]), table, "x.png")


# Void


def test_void_survives_remapping_and_resizing_unmixed(nb):
    ids = np.zeros((32, 64), np.uint8)  # unlabeled
    ids[:, 31:] = 7  # road, from the middle of a 2x2 block
    label = common.SCHEMES["cityscapes19"].table[ids]
    assert (label[:, :31] == 255).all() and common.SCHEMES["cityscapes19"].table[255] == 255
    _, small = common.resize_pair(np.zeros((32, 64, 3), np.uint8), label, (16, 32))
    assert np.array_equal(small, label[1::2, 1::2])
    assert np.unique(nb.shrink_and_enlarge(label, 4)).tolist() == [0, 255]


def test_void_is_filled_from_the_nearest_labelled_pixel(nb, rng):
    label = rng.choice([0, 3, 18, 255], p=[0.05, 0.05, 0.05, 0.85], size=(12, 15)).astype(np.uint8)
    filled = nb.fill_void(label)
    known = np.argwhere(label != 255)
    assert len(known) and np.array_equal(filled[label != 255], label[label != 255])
    for pixel in np.argwhere(label == 255):
        distances = ((known - pixel) ** 2).sum(1)
        nearest = {int(label[tuple(k)]) for k in known[distances == distances.min()]}
        assert int(filled[tuple(pixel)]) in nearest


# Counting and weights


def test_pixels_are_counted_as_they_lie_on_disk(nb, toy):
    for frame in common.list_frames(toy, "train"):
        label = cv2.imread(str(frame.label), cv2.IMREAD_UNCHANGED)
        values, counts = np.unique(label, return_counts=True)
        counted = nb.count_ids(frame)
        assert counted.shape == (256,) and counted.sum() == label.size
        assert counted[values].tolist() == counts.tolist()
        assert nb.ids_in(frame).tolist() == values.tolist()


@pytest.mark.parametrize("column, name", list(enumerate(SCHEME_NAMES)))
def test_pixels_per_class_are_sums_of_pixels_per_id_without_void(nb, rng, column, name):
    pixels = rng.integers(0, 1000, (3, 256)) * np.isin(np.arange(256), [*range(34), 255])
    expected = np.zeros((3, len(common.SCHEMES[name].classes)), int)
    for label_id, row in TABLE.items():
        if row[column] != 255:
            expected[:, row[column]] += pixels[:, label_id % 256]
    assert np.array_equal(nb.per_class(pixels, common.SCHEMES[name]), expected)


def test_the_reports_weights_follow_from_its_printed_shares(nb):
    weights = nb.inverse_sqrt_weights(np.array([[21, 33, 20, 7, 1, 14, 4]]))
    assert np.allclose(weights, [2.18, 1.74, 2.24, 3.78, 10, 2.67, 5], atol=0.005)
    assert np.allclose(nb.PRINTED_WEIGHTS, weights, atol=0.005)


def test_the_reports_pixel_counts_fill_the_official_images(nb):
    assert [sum(nb.PRINTED_PIXELS[s]) for s in ("train", "val")] == [2975 * 1024 * 2048, 500 * 1024 * 2048]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", ["inverse_sqrt_weights", "median_frequency_weights"])
def test_a_class_that_never_occurs_gets_no_weight_and_changes_no_other(nb, rule):
    pixels = np.array([[10, 0, 30], [5, 0, 15]])
    weights = getattr(nb, rule)(pixels)
    assert weights[1] == 0 and np.isfinite(weights).all()
    assert np.allclose(weights[[0, 2]], getattr(nb, rule)(pixels[:, [0, 2]]))


def test_median_frequency_counts_only_the_images_that_hold_the_class(nb):
    # class 0: 60 of 200 pixels, class 1: 120 of 200, class 2: 20 of the 100 pixels of the only image with it
    weights = nb.median_frequency_weights(np.array([[40, 40, 20], [20, 80, 0]]))
    assert np.allclose(weights, [0.3 / 0.3, 0.3 / 0.6, 0.3 / 0.2])


def test_where_all_images_hold_all_classes_median_frequency_is_the_balanced_weight_of_scikit_learn(nb, rng):
    compute_class_weight = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    pixels = rng.integers(1, 60, (4, 5))
    labels = np.repeat(np.arange(5), pixels.sum(0))
    ratio = nb.median_frequency_weights(pixels) / compute_class_weight("balanced", classes=np.arange(5), y=labels)
    assert np.allclose(ratio, ratio[0])


def test_the_classes_behind_a_class_add_up(nb):
    pixels = np.zeros(256, int)
    pixels[[26, 33, 24, 255]] = 60, 20, 99, 5
    vehicle = nb.composition(pixels, common.SCHEMES["streets7"], "vehicle")
    assert vehicle.to_dict() == {"car": 0.75, "bicycle": 0.25} and vehicle.index[0] == "car"
    assert nb.composition(pixels, common.SCHEMES["streets7"], "background").to_dict() == {"license plate": 1.0}
    assert nb.composition(pixels, common.SCHEMES["streets7"], "sky").empty


# Sizes of objects


def objects_by_hand(mask):
    """[(area, width)] by flood fill and by trying every disc centre on a grid of half pixels."""
    todo = {tuple(p) for p in np.argwhere(mask)}
    found = []
    double = np.pad(np.kron(mask, np.ones((2, 2), bool)), 1)
    outside = np.argwhere(~double) - 1
    while todo:
        queue, pixels = deque([min(todo)]), []
        todo.remove(queue[0])
        while queue:
            r, c = queue.popleft()
            pixels.append((r, c))
            for near in itertools.product((r - 1, r, r + 1), (c - 1, c, c + 1)):
                if near in todo:
                    todo.remove(near)
                    queue.append(near)
        cells = [(2 * r + a, 2 * c + b) for r, c in pixels for a in (0, 1) for b in (0, 1)]
        found.append((len(pixels), max(np.sqrt(((outside - cell) ** 2).sum(1).min()) for cell in cells)))
    return sorted(found)


def measured(nb, mask):
    return sorted(zip(*(column.tolist() for column in common.object_widths(mask)[1:])))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_objects_and_widths_equal_brute_force_on_tiny_masks(nb, rng, density):
    for _ in range(10):
        mask = rng.random((9, 11)) < density
        assert np.allclose(measured(nb, mask), objects_by_hand(mask), atol=1e-5)


@pytest.mark.parametrize("width", range(1, 9))
def test_a_bar_is_as_wide_as_it_is_whatever_its_parity_place_and_direction(nb, width):
    for top, left in ((3, 5), (0, 0), (10, 32)):  # inside, in a corner, and cut off by the frame
        mask = np.zeros((30, 40), bool)
        mask[top : top + 20, left : left + width] = True
        for view in (mask, mask.T):
            assert measured(nb, view) == [(mask.sum(), float(width))]


@pytest.mark.parametrize("diameter", [11, 17, 31])
def test_a_disc_is_as_wide_as_its_diameter_but_for_its_ragged_rim(nb, diameter):
    y, x = np.mgrid[-20:21, -20:21]
    ((_, width),) = measured(nb, np.hypot(x, y) <= diameter / 2)
    assert diameter - 1.5 <= width <= diameter


def test_pixels_that_touch_at_a_corner_are_one_object_of_one_pixel_width(nb):
    _, areas, widths = common.object_widths(np.eye(6, dtype=bool))
    assert areas.tolist() == [6] and widths.tolist() == [1]


def test_an_empty_mask_holds_no_object_and_a_full_one_ends_at_the_frame(nb):
    assert [len(column) for column in common.object_widths(np.zeros((5, 7), bool))[1:]] == [0, 0]
    assert measured(nb, np.ones((5, 7), bool)) == [(35, 5.0)]


def test_the_quantiles_of_width_count_pixels_not_objects(nb, rng):
    areas, widths = rng.integers(1, 40, 25), rng.integers(1, 15, 25).astype(float)
    expected = np.quantile(np.repeat(widths, areas), (0.25, 0.5, 0.75), method="inverted_cdf")
    assert nb.pixel_quantiles(areas, widths).tolist() == expected.tolist()
    assert nb.pixel_quantiles(np.array([1, 1, 1, 97]), np.array([1.0, 1, 1, 50])).tolist() == [50, 50, 50]


def test_sizes_are_measured_in_image_heights_so_that_they_do_not_depend_on_the_resolution(nb, toy, tmp_path):
    frame = common.list_frames(toy, "val")[0]
    twice = tmp_path / "twice.png"
    cv2.imwrite(str(twice), common.read_label(frame.label).repeat(2, axis=0).repeat(2, axis=1))
    scheme = common.SCHEMES["cityscapes19"]
    small, large = (nb.measure_objects([f], scheme) for f in (frame, frame._replace(label=twice)))
    assert small.keys() == large.keys() and "road" in small
    for name in small:
        (areas, widths), (areas2, widths2) = (map(np.sort, sizes[name]) for sizes in (small, large))
        assert np.allclose(areas, areas2)
        assert np.allclose(widths, widths2, rtol=0.15)  # a disc fits a little better in a finer grid


@pytest.mark.parametrize("width, group", [(0.01, "thin"), (1 / 32, "medium"), (0.1, "medium"), (1 / 8, "large"), (1, "large")])
def test_size_groups_meet_without_a_gap(nb, width, group):
    assert nb.size_group(width) == group


# Resizing


def test_nearest_invents_no_pixel_and_bilinear_invents_at_the_seam(nb):
    label = np.zeros((8, 16), np.uint8)
    label[:, 7:] = 2
    nearest = cv2.resize(label, (8, 4), interpolation=cv2.INTER_NEAREST_EXACT)
    bilinear = cv2.resize(label, (8, 4), interpolation=cv2.INTER_LINEAR)
    assert not nb.invented(nearest, label).any()
    assert np.argwhere(nb.invented(bilinear, label)).tolist() == [[r, 3] for r in range(4)] and (bilinear[:, 3] == 1).all()


def test_invented_pixels_equal_a_loop_over_blocks_also_for_odd_sizes(nb, rng):
    label = rng.integers(0, 4, (9, 11)).astype(np.uint8)
    small = rng.integers(0, 4, (4, 5)).astype(np.uint8)
    expected = [[small[r, c] not in label[2 * r : 2 * r + 2, 2 * c : 2 * c + 2] for c in range(5)] for r in range(4)]
    assert nb.invented(small, label).tolist() == expected


@pytest.mark.parametrize("height, width", [(1, 1), (3, 5), (9, 13)])
def test_the_densest_window_lies_inside_and_holds_the_most_pixels_of_all_windows(nb, rng, height, width):
    mask = rng.random((9, 13)) < 0.3
    held = {
        (r, c): mask[r : r + height, c : c + width].sum() for r in range(10 - height) for c in range(14 - width)
    }
    assert held[tuple(map(int, nb.densest_window(mask, height, width)))] == max(held.values())


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_shrinking_reads_one_pixel_per_cell_and_enlarging_repeats_it(nb, rng, factor):
    label = rng.integers(0, 19, (32, 48)).astype(np.uint8)
    cells = label[factor // 2 :: factor, factor // 2 :: factor]
    assert np.array_equal(nb.shrink_and_enlarge(label, factor), cells.repeat(factor, axis=0).repeat(factor, axis=1))


def test_objects_are_lost_when_no_cell_reads_one_of_their_pixels(nb):
    mask = np.zeros((16, 16), bool)
    mask[2, 2] = mask[:, 8] = True  # cells of 4 read rows and columns 2, 6, 10, 14
    assert nb.objects_left(mask, 1) == (2, 2)
    assert nb.objects_left(mask, 4) == (2, 1)


# On real photos, and as a whole


def test_objects_on_real_labels_agree_with_scipy(nb, real_data):
    label = cv2.imread(str(sorted((real_data / "camvid11" / "trainannot").glob("*.png"))[0]), cv2.IMREAD_UNCHANGED)
    checked = 0
    for value in np.unique(label):
        mask = label == value
        components, n = ndimage.label(mask, EIGHT_NEIGHBOURS)
        _, areas, widths = common.object_widths(mask)
        assert sorted(areas) == sorted(np.bincount(components.ravel())[1:]) and len(areas) == n
        depth = ndimage.distance_transform_edt(np.pad(np.kron(mask, np.ones((2, 2), bool)), 1))[1:-1, 1:-1]
        doubled = np.kron(components, np.ones((2, 2), int))
        assert np.allclose(sorted(widths), sorted(ndimage.maximum(depth, doubled, np.arange(1, n + 1))), rtol=1e-4)
        checked += n
    assert checked > 20


def run_notebook(data_dir, folder):
    """(text of all outputs, table of classes) of notebook 01, run as papermill runs it."""
    import jupytext
    import papermill

    notebook = folder / "01.ipynb"
    jupytext.write(jupytext.read(ROOT / "notebooks" / "01_class_remapping.py"), notebook)
    parameters = {"data_dir": str(data_dir), "out_dir": str(folder / "results")}
    done = papermill.execute_notebook(notebook, folder / "out.ipynb", parameters, cwd=ROOT, progress_bar=False)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "a warning or an error was printed"
    (table,) = folder.glob("results/*")
    assert table.name == "classes_train.csv"
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert shown[-1].count("<tr") == 1 + 19, "the table is shown, too"
    return "".join(output.get("text", "") for output in outputs), pd.read_csv(table, index_col="class")


def test_the_notebook_runs_on_very_small_pictures(toy, tmp_path):
    text, table = run_notebook(toy, tmp_path)
    assert text.count("35 of 35 classes agree, and 256 of 256 entries") == 3
    labels = np.concatenate([common.read_label(f.label).ravel() for f in common.list_frames(toy, "train")])
    ids = sorted((row[0], i) for i, row in TABLE.items() if row[0] < 19)
    assert table.index.tolist() == common.SCHEMES["cityscapes19"].classes
    assert table["pixels"].tolist() == [(labels == i).sum() for _, i in ids]
    assert table["share"].sum() == pytest.approx(1)


def test_the_notebook_runs_on_real_photos_and_gives_absent_classes_no_size_and_no_weight(real_data, tmp_path):
    import data_prep

    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (tmp_path / "source" / folder).mkdir(parents=True)
            for path in sorted((real_data / "camvid11" / folder).iterdir())[:40:8]:
                shutil.copy(path, tmp_path / "source" / folder)
    data_prep.convert_camvid(tmp_path / "source", tmp_path / "camvid")
    _, table = run_notebook(tmp_path / "camvid", tmp_path)
    never = ["wall", "traffic light", "terrain", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert (table.loc[never, ["pixels", "share", "1 / sqrt(f)", "median frequency"]] == 0).all(axis=None)
    assert table.loc[never, ["width", "group"]].isna().all(axis=None)
    assert table.loc["pole", "group"] == "thin" and table.loc["road", "group"] == "large"
