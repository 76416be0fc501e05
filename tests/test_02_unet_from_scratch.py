"""Notebook 02: the network, losses and occlusion against oracles and naive loops, and its stages in every way people run them."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from conftest import ROOT, copy_some, notebook_definitions, run_in_kernel, run_script
from safetensors.torch import load_file
from torch.nn import functional as F

import common
import data_prep
from results import report, runs

NAME = "02_unet_from_scratch"
TINY = {"epochs": 2, "stage_epochs": 1, "images": 8, "size": 32, "width": 4}
SCRATCH = "scratch-width4-size32-epochs2-images8"
TAG = "-width4-size32-epochs2-stage_epochs1-images8"


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


def random_case(seed=0, classes=7, absent=(), dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    present = torch.tensor([c for c in range(classes) if c not in absent])
    label = present[torch.randint(0, len(present), (2, 6, 7), generator=rng)]
    return torch.randn(2, classes, 6, 7, generator=rng, dtype=dtype), label


# the network


def test_the_network_has_the_published_number_of_parameters_and_gives_a_score_per_pixel(nb):
    with torch.device("meta"):
        net, image = nb.UNet(), torch.empty(2, 3, 64, 96)
    assert sum(p.numel() for p in net.parameters()) == 7_703_367
    assert net(image).shape == (2, 7, 64, 96)


def test_three_poolings_with_channels_64_to_512_and_skips_of_the_same_size(nb):
    net, shapes = nb.UNet(), {}
    for name, part in net.named_modules():
        part.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        net.eval()(torch.rand(1, 3, 64, 64))
    assert [shapes[f"down.{i}"] for i in range(3)] == [(64, 64, 64), (128, 32, 32), (256, 16, 16)]
    assert shapes["bottleneck"] == (512, 8, 8)
    assert [shapes[f"up.{i}"] for i in range(3)] == [(256, 16, 16), (128, 32, 32), (64, 64, 64)]
    assert [shapes[f"merge.{i}"] for i in range(3)] == [(256, 16, 16), (128, 32, 32), (64, 64, 64)]
    assert shapes["head"] == (7, 64, 64)


def test_the_upsampled_map_comes_before_the_skip(nb):
    net = nb.UNet(width=4).eval()
    seen = {}
    net.up[-1].register_forward_hook(lambda m, i, out: seen.update(up=out))
    net.merge[-1].register_forward_hook(lambda m, i, out: seen.update(merged=i[0]))
    with torch.no_grad():
        net(torch.rand(1, 3, 16, 16))
    torch.testing.assert_close(seen["merged"][:, :4], seen["up"])


# the loop


def test_the_data_set_built_in_the_notebook_is_the_one_that_the_course_uses(nb, toy):
    frames = common.list_frames(toy, "train")
    ours, theirs = nb.Streets(frames, 32), nb.make_data(frames, 32, 0)
    assert len(ours) == len(theirs) == 8
    for k in range(len(ours)):
        torch.testing.assert_close(ours[k][0], theirs[k]["image"])
        assert torch.equal(ours[k][1], theirs[k]["label"])


def test_the_plain_loop_and_fit_have_the_same_losses_on_the_same_streets_in_the_same_order(nb, toy, tmp_path, one_thread):
    frames, seed, losses = common.list_frames(toy, "train"), 5, []
    torch.manual_seed(0)
    plain = nb.UNet(width=4)
    grown = nb.UNet(width=4)
    grown.load_state_dict(plain.state_dict())
    adam, order = torch.optim.Adam(plain.parameters(), lr=1e-3), common.EpochSampler(len(frames), seed)
    for order.epoch in (1, 2, 3):
        streets = nb.Streets([frames[k] for _, k in order], 32)
        losses.append(nb.train_epoch(plain, torch.utils.data.DataLoader(streets, batch_size=2), adam))
    runs.write_json(tmp_path / "config.json", {"parameters": {"seed": seed, "mode": "quick"}, "method": "", "dataset": "toy", "images": {"train": 8, "val": 3},
                                               "recorded": {"versions": {}, "command": "", "definitions": "", "started": ""}})
    data, val = (nb.make_data(common.list_frames(toy, split), 32, seed) for split in ("train", "val"))
    common.fit(tmp_path, grown, partial(nb.stage_loss, kind="cross_entropy", weights=None), data, val, epochs=3, batch_size=2,
               optimizer=torch.optim.Adam(grown.parameters(), lr=1e-3), precision="fp32")
    assert pd.read_csv(tmp_path / "history.csv")["train_loss"].tolist() == pytest.approx(losses, rel=1e-5)
    image = data[0]["image"][None]
    assert torch.equal(nb.predict(plain, image), nb.predict(grown, image)) and losses[2] < losses[0]


def test_the_confusion_matrix_of_the_plain_loop_is_that_of_the_course(nb, toy):
    frames = common.list_frames(toy, "val")
    net = nb.UNet(width=4)
    _, per_image = common.evaluate(net, nb.make_data(frames, 32, 0))
    np.testing.assert_array_equal(nb.confusion_of(net, nb.Streets(frames, 32)), per_image["confusion"].sum(0))


# the losses


@pytest.mark.parametrize("absent", [(), (4,), (0, 4, 6)])
def test_weighted_cross_entropy_divides_by_the_sum_of_weights(nb, absent):
    logits, label = random_case(absent=absent, dtype=torch.float32)
    weights = nb.inverse_sqrt_weights(nb.FREQUENCIES["1a"])
    log_probs, total, norm = logits.log_softmax(1), 0.0, 0.0
    for b, y, x in np.ndindex(*label.shape):
        c = int(label[b, y, x])
        total, norm = total - weights[c] * log_probs[b, c, y, x], norm + weights[c]
    torch.testing.assert_close(nb.cross_entropy(logits, label, weights), total / norm)


def test_the_weights_are_those_of_the_source(nb):
    published = [2.18, 1.74, 2.24, 3.78, 10, 2.67, 5]
    np.testing.assert_allclose(nb.inverse_sqrt_weights(nb.FREQUENCIES["1a"]), published, atol=0.005)
    later = nb.inverse_sqrt_weights(nb.FREQUENCIES["1b"])
    np.testing.assert_allclose(later * 7 / later.sum(), [0.611, 0.488, 0.627, 1.144, 1.981, 0.749, 1.401], atol=0.001)
    assert torch.isfinite(nb.inverse_sqrt_weights([1.0, 0.0])).all()


@pytest.mark.parametrize("absent", [(), (4,)])
@pytest.mark.parametrize("seed", range(3))
def test_dice_is_the_formula_pixel_by_pixel(nb, seed, absent):
    logits, label = random_case(seed, absent=absent)
    probs = logits.softmax(1)
    for c, ours in enumerate(nb.dice_per_class(probs, label)):
        hits = sum(probs[b, c, y, x] for b, y, x in np.ndindex(*label.shape) if label[b, y, x] == c)
        torch.testing.assert_close(ours, (2 * hits + 1e-6) / (probs[:, c].sum() + (label == c).sum() + 1e-6))


def test_dice_is_smps_where_every_class_occurs(nb):
    import segmentation_models_pytorch as smp

    logits, label = random_case(dtype=torch.float32)
    ours = nb.weighted_dice_loss(logits.softmax(1), label, torch.ones(7))
    torch.testing.assert_close(ours, smp.losses.DiceLoss("multiclass", smooth=0.0)(logits, label), atol=1e-5, rtol=1e-5)


def test_each_stage_pays_the_loss_of_its_kind(nb):
    logits, label = random_case(dtype=torch.float32)
    batch, weights = {"image": logits, "label": label}, nb.inverse_sqrt_weights(nb.FREQUENCIES["1a"])
    plain, weighted = F.cross_entropy(logits, label), F.cross_entropy(logits, label, weight=weights)
    assert abs(plain - weighted) > 1e-3
    torch.testing.assert_close(nb.stage_loss(lambda image: image, batch, "cross_entropy", None), plain)
    torch.testing.assert_close(nb.stage_loss(lambda image: image, batch, "weighted", weights), weighted)


def test_the_loss_of_stage_2_mixes_both_terms_3_to_7(nb):
    logits, label = random_case(dtype=torch.float32)
    weights = nb.inverse_sqrt_weights(nb.FREQUENCIES["1b"])
    mixed = 0.3 * F.cross_entropy(logits, label, weight=weights) + 0.7 * nb.weighted_dice_loss(logits.softmax(1), label, weights)
    torch.testing.assert_close(nb.stage_loss(lambda image: image, {"image": logits, "label": label}, "dice", weights), mixed)


def test_gradients_of_the_dice_loss_are_those_of_finite_differences(nb):
    logits, label = random_case(absent=(4,))
    weights = nb.inverse_sqrt_weights(nb.FREQUENCIES["1b"]).double()
    logits, label = logits[:, :, :2, :2].requires_grad_(), label[:, :2, :2]
    assert torch.autograd.gradcheck(lambda z: nb.weighted_dice_loss(z.softmax(1), label, weights), logits)


def perfect(label, classes=7):
    return F.one_hot(label, classes).movedim(-1, 1).double()


def test_a_class_term_of_weighted_dice_goes_negative_but_the_mean_cannot(nb):
    weights = nb.inverse_sqrt_weights(nb.FREQUENCIES["1b"]).double()
    scaled = weights * 7 / weights.sum()
    assert 1 - 0.999 * scaled[4] == pytest.approx(-0.979, abs=5e-4)
    label = torch.arange(7).repeat(7, 1)[None]
    assert nb.weighted_dice_loss(perfect(label), label, weights).item() == pytest.approx(0.001, abs=1e-9)
    for seed in range(20):
        logits, label = random_case(seed)
        assert nb.weighted_dice_loss((5 * logits).softmax(1), label, weights) >= 0.001 - 1e-12


def test_the_clamp_cuts_the_gradient_of_a_class_that_is_done(nb):
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    probs = perfect(label).requires_grad_()
    nb.weighted_dice_loss(probs, label, torch.ones(7).double()).backward()
    assert (probs.grad[:, 0] == 0).all()
    probs = (0.9 * perfect(label) + 0.1 / 7).requires_grad_()
    nb.weighted_dice_loss(probs, label, torch.ones(7).double()).backward()
    assert (probs.grad[:, 0] != 0).all()


@pytest.mark.parametrize("weight", [0.5, 2.0, 10.0])
def test_an_absent_class_adds_nearly_1_whatever_its_weight_with_next_to_no_gradient(nb, weight):
    logits, label = random_case(absent=(4,))
    weights = torch.ones(7, dtype=torch.float64)
    weights[4] = weight
    probs = logits.softmax(1).requires_grad_()
    dice = nb.dice_per_class(probs, label)
    assert 1 - weight * dice[4].item() == pytest.approx(1, abs=1e-4)
    nb.weighted_dice_loss(probs, label, weights).backward()
    assert probs.grad[:, 4].abs().max() < 1e-5 * probs.grad[:, 0].abs().max()


# occlusion


def people(boxes, shape=(40, 60)):
    label = np.zeros(shape, np.uint8)
    for top, left, height, width in boxes:
        label[top : top + height, left : left + width] = 4
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8), label


CROWD = [(2, 3, 12, 8), (5, 20, 20, 10), (8, 40, 10, 10), (28, 10, 8, 6)]


@pytest.mark.parametrize("seed", range(20))
def test_occlusion_changes_at_most_two_people_inside_their_boxes_and_nothing_else(nb, seed):
    image, label = people(CROWD)
    before, before_label = image.copy(), label.copy()
    out, out_label = nb.occlude(image, label, np.random.default_rng(seed), hide=1.0)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(label, before_label)
    np.testing.assert_array_equal(out_label, before_label)
    changed = (out != image).any(-1)
    assert not changed[label != 4].any() and out.dtype == np.uint8
    touched = [box for box in CROWD if changed[box[0] : box[0] + box[2], box[1] : box[1] + box[3]].any()]
    assert touched == CROWD[:2], "with certainty, the first two in scan order"
    for top, left, height, width in touched:
        rows, columns = (np.flatnonzero(changed[top : top + height, left : left + width].any(axis)) for axis in (1, 0))
        assert 0.3 * height - 1 <= np.ptp(rows) + 1 <= 0.7 * height and 0.3 * width - 1 <= np.ptp(columns) + 1 <= 0.7 * width


def test_occlusion_does_nothing_without_people_or_without_probability(nb):
    image, label = people([])
    np.testing.assert_array_equal(nb.occlude(image, label, np.random.default_rng(0), hide=1.0)[0], image)
    image, label = people(CROWD)
    np.testing.assert_array_equal(nb.occlude(image, label, np.random.default_rng(0), hide=0.0)[0], image)


def test_occlusion_hides_each_person_with_its_probability(nb):
    image, label = people(CROWD[:1])
    hidden = sum((nb.occlude(image, label, np.random.default_rng(k), hide=0.6)[0] != image).any() for k in range(500))
    assert abs(hidden / 500 - 0.6) < 0.07


def test_a_person_too_thin_for_a_box_does_not_use_up_one_of_the_two(nb):
    image, label = people([(1, 1, 2, 1), (1, 5, 1, 2), *((10, x, 20, 10) for x in (5, 20, 40))])
    out, _ = nb.occlude(image, label, np.random.default_rng(0), hide=1.0)
    changed = (out != image).any(-1)
    assert [changed[10:30, x : x + 10].any() for x in (5, 20, 40)] == [True, True, False]


def test_a_box_has_30_to_70_per_cent_of_each_side_anywhere_in_the_bounding_box(nb):
    rng = np.random.default_rng(0)
    sides = [side for _ in range(500) for side in nb.box_within((slice(10, 110), slice(10, 110)), rng)]
    lengths, starts = [s.stop - s.start for s in sides], [s.start for s in sides]
    assert 30 <= min(lengths) < 33 and 66 < max(lengths) <= 70
    assert min(starts) == 10 and max(starts) > 70 and max(s.stop for s in sides) == 110


def test_occlusion_is_black_or_grey_noise_or_uniform_noise(nb):
    image, label = people([(5, 5, 30, 50)])
    out, _ = nb.occlude(image, label, np.random.default_rng(3), hide=1.0, fill="black")
    assert (out[(out != image).any(-1)] == 0).all()
    grey, uniform = (nb.noise((200, 200, 3), np.random.default_rng(0), share).astype(float) for share in (1.0, 0.0))
    assert abs(grey.mean() - 127.5) < 0.5 and abs(grey.std() - 25.5) < 0.3
    assert abs(uniform.mean() - 127.5) < 1 and abs(uniform.std() - 73.6) < 0.6 and uniform.min() == 0 and uniform.max() == 255
    rng = np.random.default_rng(0)
    assert abs(np.mean([nb.noise((20, 20, 3), rng, 0.7).std() < 50 for _ in range(500)]) - 0.7) < 0.07


def test_occlusion_depends_on_seed_epoch_and_index_only(nb, toy):
    frames = common.list_frames(toy, "train")
    data = common.StreetScenes(frames, (64, 64), "streets7", seed=5, augment=partial(nb.occlude, hide=1.0))
    again = common.StreetScenes(frames, (64, 64), "streets7", seed=5, augment=partial(nb.occlude, hide=1.0))
    keys = [(epoch, index) for epoch in (1, 2) for index in range(len(frames))]
    first, second = [data[k]["image"] for k in keys], [again[k]["image"] for k in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    other = common.StreetScenes(frames, (64, 64), "streets7", seed=6, augment=partial(nb.occlude, hide=1.0))
    assert any(not torch.equal(data[k]["image"], other[k]["image"]) for k in keys)
    with_people = [i for i in range(len(frames)) if nb.find_people(data.read(i)[1])]
    assert any(not torch.equal(data[1, i]["image"], data[2, i]["image"]) for i in with_people)


@pytest.mark.parametrize("seed", range(10))
def test_people_are_the_8_connected_groups_in_scan_order(nb, seed):
    label = np.where(np.random.default_rng(seed).random((25, 30)) < 0.25, 4, 1).astype(np.uint8)
    boxes = nb.find_people(label)
    _, _, stats, _ = cv2.connectedComponentsWithStats((label == 4).astype(np.uint8), connectivity=8)
    assert sorted((b[1].start, b[0].start, b[1].stop - b[1].start, b[0].stop - b[0].start) for b in boxes) == \
        sorted(tuple(int(v) for v in row[:4]) for row in stats[1:])
    first_rows = [box[0].start for box in boxes]
    assert first_rows == sorted(first_rows)


# splits and scores


@pytest.mark.parametrize("n", [2, 5, 12, 77, 101, 500])
def test_the_halves_are_scikit_learns_with_its_first_return_as_test(n):
    sklearn = pytest.importorskip("sklearn.model_selection")
    test, val = common.halve(list(range(n)))
    first, second = sklearn.train_test_split(np.arange(n), test_size=0.5, random_state=42)
    assert test == first.tolist() and val == second.tolist()
    assert sorted(test + val) == list(range(n))


def test_the_biased_mean_scores_absent_classes_of_a_batch_zero(nb):
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 50, (5, 7, 7))
    confusion[:2, 4], confusion[:2, :, 4] = 0, 0
    means = []
    for batch in (confusion[:2].sum(0), confusion[2:4].sum(0), confusion[4]):
        scores = []
        for c in range(7):
            union = batch[c].sum() + batch[:, c].sum() - batch[c, c]
            scores.append(batch[c, c] / union if union else 0.0)
        means.append(sum(scores) / 7)
    assert nb.batch_miou(confusion, 2) == pytest.approx(np.mean(means))


def test_the_validation_loss_is_the_mean_over_images(nb, toy):
    torch.manual_seed(0)
    net = nb.UNet(width=4)
    data = nb.make_data(common.list_frames(toy, "val"), 32, 0)
    metrics, _ = nb.evaluate(net, data)
    items = [data[i] for i in range(len(data))]
    with torch.no_grad():
        losses = [F.cross_entropy(net.eval()(item["image"][None]), item["label"][None]).item() for item in items]
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert items[0]["image"].min() >= 0 and items[0]["image"].max() <= 1, "pixels are divided by 255 and nothing else"
    assert (items[0]["label"] < 7).all(), "void is background, trained and scored"


def test_paper_mode_is_the_recipe_of_the_code():
    paper = notebook_definitions(NAME).MODES["paper"]
    assert paper == {"width": 64, "depth": 3, "size": 256, "images": 0, "epochs": 100, "batch_size": 8, "lr": 1e-4,
                     "stage_epochs": 30, "stage_lr": 1e-5, "dice_batch_size": 4, "precision": "auto"}


def test_the_stages_are_those_of_the_source_and_a_control(nb):
    assert nb.STAGES == {
        "scratch": {"parent": "", "loss": "cross_entropy"},
        "continued": {"parent": "scratch", "loss": "cross_entropy"},
        "weighted": {"parent": "scratch", "loss": "weighted", "frequency": "1a"},
        "weighted_occlusion": {"parent": "weighted", "loss": "weighted", "frequency": "1b", "hide": 0.6, "grey": 0.7},
        "dice_occlusion": {"parent": "scratch", "loss": "dice", "frequency": "1b", "hide": 0.8, "grey": 0.9},
    }
    assert nb.FREQUENCIES == {"1a": (0.21, 0.33, 0.20, 0.07, 0.01, 0.14, 0.04), "1b": (0.21, 0.33, 0.20, 0.06, 0.02, 0.14, 0.04)}


def test_measured_shares_are_pixel_counts(nb, toy):
    data = nb.make_data(common.list_frames(toy, "train"), 32, 0)
    labels = np.stack([data.read(i)[1] for i in range(len(data))])
    np.testing.assert_allclose(nb.measured_shares(data), [(labels == c).mean() for c in range(7)])


# its pixels of the seven classes in the training labels, as its notebook prints them
PIXELS = (1306362141, 2036416525, 1260636120, 459059194, 74789586, 879783988, 221979646)


def test_the_reports_pixel_counts_fill_the_official_images():
    classes = common.SCHEMES["streets7"].classes
    assert sum(PIXELS) == 2975 * 1024 * 2048 and len(PIXELS) == len(classes)
    assert round(100 * sum(PIXELS[classes.index(c)] for c in ("road", "building", "vehicle")) / sum(PIXELS), 1) == 60.2


def test_a_stage_is_named_after_what_it_or_one_of_its_parents_reads(nb):
    needs = {"fill": "hide", "frequency": "frequency"}
    for name, recipe in nb.STAGES.items():
        recipes, parent = [recipe], recipe["parent"]
        while parent:
            recipes, parent = [*recipes, nb.STAGES[parent]], nb.STAGES[parent]["parent"]
        expected = {key for key, needed in needs.items() if not any(needed in r for r in recipes)}
        expected |= {"dice_batch_size"} if all(r["loss"] != "dice" for r in recipes) else set()
        expected |= {"stage_epochs", "stage_lr"} if len(recipes) == 1 else set()
        assert set(nb.UNUSED.get(name, ())) == expected, name


def test_the_published_means_are_those_of_the_published_classes():
    published = common.read_published(NAME)
    for method, mean in common.headline(published, "miou").set_index("method")["value"].items():
        classes = published[(published["metric"] == "iou") & (published["method"] == method)]["value"].astype(float)
        assert len(classes) == 7 and classes.mean() == pytest.approx(float(mean), abs=0.006)


# the whole notebook


def run_notebook(out, kernel=False, **parameters):
    """(summaries by folder name, all that the notebook printed) of a run, by papermill in a kernel or as a script."""
    parameters = TINY | {"out_dir": str(out / "results")} | parameters
    if not kernel:
        printed = run_script(NAME, out, **parameters)
        return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}, printed
    run_in_kernel(NAME, out, **parameters)
    cells = json.loads((out / "out.ipynb").read_text())["cells"]
    printed = "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}, printed


def test_all_stages_run_under_papermill_and_leave_complete_results(nb, toy, tmp_path):
    summaries, _ = run_notebook(tmp_path, kernel=True, data_dir=str(toy))
    assert set(summaries) == {f"{SCRATCH}_seed42"} | {f"{stage}{TAG}_seed42" for stage in nb.STAGES if stage != "scratch"}
    for name, summary in summaries.items():
        assert {"accuracy", "miou", "eval_loss", "batch_miou", "iou"} <= set(summary["metrics"])
        assert summary["test"]["miou"] >= 0 and summary["best_by"] == "miou" and summary["selected"] == "best"
        config = json.loads((tmp_path / "results" / NAME / "toy-quick" / name / "config.json").read_text())
        assert bool(config["parent"]) == (not name.startswith("scratch"))
        assert config["changes"] == {key: value for key, value in TINY.items() if key != "stage_epochs" or config["parent"]}
    found = common.find_runs(tmp_path / "results")
    recipes = {common.read_json(folder / "config.json")["recipe"] for folder in found["folder"]}
    assert recipes == set(nb.STAGES) >= set(common.headline(common.read_published(NAME), "miou")["method"]), "reports find the published"
    text, _ = report.report(str(tmp_path / "results"), quick=True)
    assert "| dice_occlusion-width4" in text and "| 78.10 |" in text and "width 4, source 64" in text and "quick mode" in text


def test_a_stage_alone_trains_its_missing_parents_and_says_so(toy, tmp_path):
    summaries, printed = run_notebook(tmp_path, data_dir=str(toy), stage="weighted_occlusion")
    assert set(summaries) == {f"{SCRATCH}_seed42"} | {f"{name}{TAG}_seed42" for name in ("weighted", "weighted_occlusion")}
    for parent in ("scratch", "weighted"):
        assert re.search(rf"\w+ starts from {parent}, which is not trained yet: it comes first", printed)


def test_a_parent_is_reused_and_another_recipe_of_a_child_leaves_it_alone(toy, tmp_path):
    first, _ = run_notebook(tmp_path, data_dir=str(toy), stage="dice_occlusion")
    parent = tmp_path / "results" / NAME / "toy-quick" / f"{SCRATCH}_seed42" / "summary.json"
    before = parent.read_text()
    again, printed = run_notebook(tmp_path, data_dir=str(toy), stage="dice_occlusion", fill="black")
    assert parent.read_text() == before and "comes first" not in printed
    assert set(again) == set(first) | {f"dice_occlusion-fillblack{TAG}_seed42"}


def test_official_cityscapes_is_never_scored_on_its_dummy_test_labels(toy, tmp_path):
    root = tmp_path / "official"
    shutil.copytree(toy, root)
    (root / "dataset.json").unlink()
    for path in root.glob("gtFine/test/*/*_labelIds.png"):
        data_prep.write_png(path, 0 * data_prep.read_label(path))
    summaries, _ = run_notebook(tmp_path, data_dir=str(root), stage="scratch")
    summary = summaries[f"{SCRATCH}_seed42"]
    config = next((tmp_path / "results").rglob("config.json"))
    assert summary["dataset"] == "official" and json.loads(config.read_text())["images"] == {"train": 8, "val": 2, "test": 1}


def test_the_reports_learning_rate_and_the_other_readings_run(toy, tmp_path):
    summaries, _ = run_notebook(tmp_path, data_dir=str(toy), stage="weighted", lr=1e-3, frequency="measured", select="as_published",
                                fill="black")
    weighted = next(s for name, s in summaries.items() if name.startswith("weighted"))
    assert weighted["best_by"] == "batch_miou" and next(s for n, s in summaries.items() if n[:7] == "scratch")["best_by"] == "eval_loss"
    assert "-lr0.001-" in weighted["method"] and "frequencymeasured" in weighted["method"]
    assert "fillblack" not in weighted["method"], "a stage that hides nobody does not read it"
    scratch = next((tmp_path / "results").rglob("scratch*/history.csv"))
    assert set(pd.read_csv(scratch)["lr"]) == {1e-3}


@pytest.mark.parametrize(("parameters", "sentence"), [
    ({"stage": "dice"}, "stage does not know 'dice': use scratch"), ({"size": 30}, "size must be a multiple of 8 with depth 3."),
    ({"fill": "white"}, "fill does not know 'white': use noise or black.")])
def test_a_wrong_parameter_stops_with_one_sentence(toy, tmp_path, parameters, sentence):
    with pytest.raises(common.StreetsError, match=f"^{re.escape(sentence)}"):
        run_notebook(tmp_path, data_dir=str(toy), **parameters)


def train_tiny(root, out, stage, **changes):
    """One stage and its parents as the notebook trains them; returns the folder of the stage."""
    runs.SAVE_SECONDS = 0.0  # a state after every epoch
    nb = notebook_definitions(NAME)
    splits = {split: common.list_frames(root, split) for split in ("train", "val", "test")}
    settings = nb.MODES["course"] | {"width": 4, "size": 32, "epochs": 1, "stage_epochs": 4} | changes
    train = partial(nb.train_stage, settings=settings, splits=splits, frequency="published", fill="noise", select="miou", seed=1)
    jobs = {name: partial(train, recipe=recipe) for name, recipe in nb.STAGES.items()}
    parents = {name: recipe["parent"] for name, recipe in nb.STAGES.items() if recipe["parent"]}
    given = tiny_run.scope(seed=1, out_dir=str(out))
    return common.train_runs(given, jobs, settings, root, splits, wanted=[stage], unused=nb.UNUSED, parents=parents)[stage].folder


def test_parents_come_first_and_only_these(toy, tmp_path):
    train_tiny(toy, tmp_path, "weighted_occlusion", stage_epochs=1)
    configs = sorted(tmp_path.rglob("config.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.parent.name for path in configs] == ["scratch_seed1", "weighted_seed1", "weighted_occlusion_seed1"]
    assert [runs.read_json(path)["parent"] for path in configs] == ["", "scratch_seed1", "weighted_seed1"]


def test_a_stage_starts_from_the_best_weights_of_its_parent(toy, tmp_path):
    folder = train_tiny(toy, tmp_path, "dice_occlusion", stage_lr=0.0, stage_epochs=1)
    parent, child = (load_file(path / "best.safetensors") for path in (folder.with_name("scratch_seed1"), folder))
    learnt = [key for key in parent if "running" not in key and "num_batches" not in key]
    assert learnt and all(torch.equal(parent[key], child[key]) for key in learnt)


def test_a_killed_stage_resumes_and_ends_in_the_same_numbers(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0.0)
    script = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n" \
             "import torch, pathlib, tiny_run, test_02_unet_from_scratch as t\ntorch.set_num_threads(1)\n" \
             f"tiny_run.kill_before('progress.json', 3)\nt.train_tiny(pathlib.Path({str(toy)!r}), pathlib.Path({str(tmp_path / 'killed')!r}), 'dice_occlusion')"
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.parent.name for path in (tmp_path / "killed").rglob("summary.json")] == ["scratch_seed1"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folders = [train_tiny(toy, tmp_path / name, "dice_occlusion") for name in ("killed", "unbroken")]
    torch.set_num_threads(threads)
    resumed, unbroken = (pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in folders)
    pd.testing.assert_frame_equal(resumed, unbroken, check_exact=True)
    assert len(unbroken) == 4 and len({*map(tuple, unbroken.values)}) == 4


@pytest.mark.parametrize("form", ["camvid11", "camvid32"])
def test_the_notebook_runs_on_real_streets(real_data, tmp_path, form):
    data_prep.convert_camvid(copy_some(real_data / form, tmp_path / "source", form, every=8), tmp_path / "camvid")
    summaries, _ = run_notebook(tmp_path, data_dir=str(tmp_path / "camvid"), stage="dice_occlusion", epochs=1, images=16)
    last = next(s for name, s in summaries.items() if name.startswith("dice"))
    assert last["dataset"] == form and last["metrics"]["accuracy"] > 0 and math.isfinite(last["test"]["miou"])


@pytest.mark.parametrize("stage", [
    {"parent": "scratch", "loss": "focal"}, {"parent": "scratch", "loss": "weighted"},
    {"parent": "scratch", "loss": "cross_entropy", "frequency": "1a"}, {"parent": "scratch", "loss": "dice", "frequency": "1c"},
    {"parent": "mine", "loss": "cross_entropy"}, {"loss": "cross_entropy"}, {"parent": "", "loss": "cross_entropy", "hied": 0.6},
    {"parent": "", "loss": "cross_entropy", "hide": 0.6},
])
def test_a_stage_that_cannot_be_trained_as_it_is_written_is_one_sentence(nb, stage):
    with pytest.raises(common.StreetsError, match="STAGES: mine cannot be trained as it is written: "):
        common.check_stages(nb.STAGES | {"mine": stage}, nb.LOSSES, nb.FREQUENCIES)
    mine = {"parent": "weighted", "loss": "dice", "frequency": "1b"}
    common.check_stages(nb.STAGES | {"mine": mine}, nb.LOSSES, nb.FREQUENCIES)
