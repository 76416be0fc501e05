"""Notebook 06: its losses against oracles, its network, and the whole notebook in every way people run it."""

import json
import math
import re
import shutil
import subprocess
from functools import partial
from typing import NamedTuple

import cv2
import jupytext
import numpy as np
import pandas as pd
import papermill
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import ROOT, copy_some, run_script
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision.datasets import Cityscapes

import common
import data_prep
from results import checkpoints, extras_06, runs

NAME = "06_kervadec_ablation"
TINY = {"epochs": 2, "images": 8, "height": 32, "weights": "none"}
TAG = "-height32-epochs2-weightsnone-images8_seed42"
RECIPES = ("paper", "author_config")


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


@pytest.fixture(params=["composite_as_written", "composite_loss"])
def composite(nb, request):
    """Both forms of the composite loss."""
    return getattr(nb, request.param)


@pytest.fixture
def in_double(monkeypatch):
    """The composite losses compute in float32, whatever they get; here in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def random_case(classes=5, void=True, absent=True, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 6, 7, generator=rng, dtype=dtype)
    label = torch.randint(0, classes - absent, (2, 6, 7), generator=rng)
    if void:
        label[torch.rand(2, 6, 7, generator=rng) < 0.2] = 255
    return logits, label


# a loss of one's own, as the README shows it: cross-entropy that cares less for what is right already
README_LOSS = re.search(r"```python\n(def focal_loss.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
exec(README_LOSS, loss := {"F": F})
focal_loss = loss["focal_loss"]


def naive_dice(probs, label, smooth=1.0):
    """The formula, one class at a time."""
    valid = (label != 255).to(probs.dtype)
    terms = []
    for c in range(probs.shape[1]):
        p, y = probs[:, c] * valid, (label == c).to(probs.dtype)
        terms.append((2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth))
    return 1 - sum(terms) / len(terms)


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_torchs_mean_over_valid_pixels(nb, seed):
    logits, label = random_case(seed=seed)
    torch.testing.assert_close(nb.cross_entropy(logits.log_softmax(1), label), F.cross_entropy(logits, label, ignore_index=255))


@pytest.mark.parametrize("seed", range(3))
def test_dice_equals_the_formula_in_value_and_gradient(nb, seed):
    logits, label = random_case(seed=seed)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a, b = nb.dice_loss(ours.softmax(1), label), naive_dice(theirs.softmax(1), label)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*torch.autograd.grad(a, ours), *torch.autograd.grad(b, theirs))


def test_dice_equals_smp_where_every_class_occurs(nb):
    logits, label = random_case(void=True, absent=False, dtype=torch.float32)
    assert len(label.unique()) == 6
    oracle = smp.losses.DiceLoss("multiclass", smooth=0.5, ignore_index=255)  # smp doubles what it calls smooth
    torch.testing.assert_close(nb.dice_loss(logits.softmax(1), label), oracle(logits, label), atol=1e-5, rtol=1e-5)


def test_dice_equals_monai_also_with_an_absent_class(nb):
    monai = pytest.importorskip("monai.losses")
    logits, label = random_case(void=False, absent=True, dtype=torch.float32)
    oracle = monai.DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1, batch=True)
    torch.testing.assert_close(nb.dice_loss(logits.softmax(1), label), oracle(logits, label[:, None]), atol=1e-5, rtol=1e-5)


def test_boundary_loss_equals_monai_on_raw_distances(nb):
    losses = pytest.importorskip("monai.losses")
    logits, label = random_case(void=False, absent=False, dtype=torch.float32)
    maps = np.stack([data_prep.signed_distance_maps(one.numpy().astype(np.uint8), 5, norm="none") for one in label])
    oracle = losses.BoundaryLoss(include_background=True, to_onehot_y=True, softmax=True)
    torch.testing.assert_close(nb.boundary_loss(logits.softmax(1), torch.from_numpy(maps), label),
                               oracle(logits, label[:, None]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice_loss", "boundary_loss"])
def test_gradients_are_those_of_finite_differences(nb, loss):
    logits, label = random_case(classes=3)
    logits = logits[:, :, :3, :3].contiguous().requires_grad_()
    label, phi = label[:, :3, :3].contiguous(), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    calls = {"cross_entropy": lambda x: nb.cross_entropy(x.log_softmax(1), label.clamp(max=2)),
             "dice_loss": lambda x: nb.dice_loss(x.softmax(1), label),
             "boundary_loss": lambda x: nb.boundary_loss(x.softmax(1), phi, label)}
    assert torch.autograd.gradcheck(calls[loss], logits)


@pytest.mark.parametrize("variant", "ABCD")
@pytest.mark.parametrize("weighted", [False, True])
def test_void_pixels_get_no_gradient_and_an_all_void_batch_is_finite(nb, composite, variant, weighted):
    logits, label = random_case()
    logits.requires_grad_()
    batch = {"label": label, "phi": torch.randn_like(logits)}
    options = {"terms": nb.loss_terms(variant, "paper", 1.0, 0.2)}
    options |= {"class_weights": torch.linspace(0.5, 2, 5)} if weighted else {}
    composite(logits, batch, **options).backward()
    per_pixel = logits.grad.abs().sum(1)
    assert (per_pixel[label == 255] == 0).all() and (per_pixel[label != 255] > 0).all()
    batch["label"], logits.grad = torch.full_like(label, 255), None
    loss = composite(logits, batch, **options)
    loss.backward()
    assert math.isfinite(loss.item()) and (logits.grad == 0).all()


def test_composite_is_the_weighted_sum_of_its_terms(nb, composite):
    logits, label = random_case(dtype=torch.float32)
    batch = {"label": label, "phi": torch.randn_like(logits)}
    probs = logits.softmax(1)
    expected = (F.cross_entropy(logits, label, ignore_index=255) + 0.7 * nb.dice_loss(probs, label)
                + 0.3 * nb.boundary_loss(probs, batch["phi"], label))
    torch.testing.assert_close(composite(logits, batch, nb.loss_terms("C", "paper", 0.7, 0.3)), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_of_ones_own_is_added_with_its_value_and_gradient(nb, composite, weighted):
    logits, batch = street_batch((2, 5, 40, 30))
    class_weights = torch.linspace(0.5, 2, 5) if weighted else None
    terms, own = {"ce": 1.0, "boundary": 0.2, "focal": 0.5}, {"focal": focal_loss}
    value, gradient = value_and_gradient(composite, logits, batch, terms, class_weights, own)
    without = value_and_gradient(composite, logits, batch, {"ce": 1.0, "boundary": 0.2}, class_weights)
    alone = value_and_gradient(lambda x: 0.5 * focal_loss(x.log_softmax(1), batch["label"]), logits)
    torch.testing.assert_close(value, without[0] + alone[0])
    torch.testing.assert_close(gradient, without[1] + alone[1])
    assert alone[0] > 0.1 and alone[1].abs().max() > 1e-6


def test_a_term_without_a_function_is_refused_and_never_left_out(nb, composite):
    logits, batch = street_batch((1, 5, 6, 7))
    with pytest.raises(KeyError, match="focal"):
        composite(logits, batch, {"ce": 1.0, "focal": 1.0})


@pytest.mark.parametrize(("terms", "said"), [
    (("ce", "bondary"), "E has the term 'bondary', which is none of ce, dice, boundary: define bondary_loss"),
    (("ce", "number"), "E has the term 'number'"),  # number_loss is there, and no function
    (("ce"), r"E must name each of its terms once, such as .*, not 'ce'"), ((), "E must name"), (("ce", "ce"), "E must name"),
])
def test_a_variant_that_cannot_be_trained_as_it_is_written_is_one_sentence(nb, terms, said):
    with pytest.raises(common.StreetsError, match=said):
        common.own_losses(nb.VARIANTS | {"E": terms}, nb.OURS, {"focal_loss": focal_loss, "number_loss": 3})
    found = common.own_losses(nb.VARIANTS | {"E": ("ce", "focal")}, nb.OURS, {"focal_loss": focal_loss})
    assert found == {"focal": focal_loss} and common.own_losses(nb.VARIANTS, nb.OURS, {}) == {}


def test_a_loss_of_ones_own_may_read_any_parameter(nb):
    assert nb.unread(("ce", "focal")) == [] and nb.unread(("ce",)) == ["lambda_b", "norm", "lambda_d"]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_authors_configuration_of_b_is_half_weighted_cross_entropy_and_half_dice(nb, composite, weighted):
    logits, label = random_case(dtype=torch.float32)
    class_weights = torch.tensor([0.2, 1.0, 3.0, 0.7, 0.0]) if weighted else None
    ce, dice = F.cross_entropy(logits, label, class_weights, ignore_index=255), naive_dice(logits.softmax(1), label)
    found = composite(logits, {"label": label}, nb.loss_terms("B", "author_config", 1.0, 0.2), class_weights)
    torch.testing.assert_close(found, 0.5 * ce + 0.5 * dice)


def test_the_terms_of_each_variant_and_recipe(nb):
    terms = {(v, r): nb.loss_terms(v, r, 0.8, 0.2) for v in "ABCD" for r in RECIPES}
    assert terms["A", "paper"] == terms["A", "author_config"] == {"ce": 1.0}
    assert terms["B", "paper"] == {"ce": 1.0, "dice": 0.8} and terms["B", "author_config"] == {"ce": 0.5, "dice": 0.4}
    assert terms["C", "paper"] == {"ce": 1.0, "dice": 0.8, "boundary": 0.2} and terms["D", "paper"] == {"ce": 1.0, "boundary": 0.2}


def test_the_authors_script_weighs_the_terms_otherwise_than_the_text(nb):
    listed = {"A": {"ce": 1.0}, "B": {"ce": 0.5, "dice": 0.5},  # scripts/aggregate_results.py, v0.1.0 to v0.2.2
              "C": {"ce": 0.4, "dice": 0.4, "boundary": 0.2}, "D": {"ce": 0.8, "boundary": 0.2}}
    assert {letter: nb.loss_terms(letter, "author_config", 1.0, 0.2) for letter in listed} == listed


def street_batch(shape, dtype=torch.float32, phi="int8", void=0.2):
    """(logits, batch) of a shape (B, C, H, W) with a share of void and one class absent."""
    rng = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(*shape, generator=rng, dtype=dtype)
    label = torch.randint(0, shape[1] - 1, (shape[0], *shape[2:]), generator=rng)
    label[torch.rand(label.shape, generator=rng) < void] = 255
    maps = torch.randint(-127, 128, shape, generator=rng, dtype=torch.int8)
    return logits, {"label": label, "phi": maps if phi == "int8" else maps.to(dtype) / 127}


def value_and_gradient(loss, logits, *args):
    logits = logits.clone().requires_grad_()
    value = loss(logits, *args)
    return value.detach(), *torch.autograd.grad(value, logits)


def assert_same_loss(nb, ours, logits, *args, rtol=1e-5, atol=1e-5):
    """Value and gradient of `ours` are those of composite_as_written; atol is relative to the largest gradient."""
    value, gradient = value_and_gradient(ours, logits, *args)
    expected, slope = value_and_gradient(nb.composite_as_written, logits, *args)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol)
    torch.testing.assert_close(gradient, slope, rtol=rtol, atol=atol * slope.abs().max().item())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", "ABCD")
def test_strips_give_what_the_formulas_give(nb, in_double, variant, recipe, weighted):
    logits, batch = street_batch((2, 19, 40, 1000), torch.float64)
    class_weights = torch.linspace(0, 2, 19, dtype=torch.float64) if weighted else None
    terms = nb.loss_terms(variant, recipe, 0.9, 0.4)
    assert_same_loss(nb, nb.composite_loss, logits, batch, terms, class_weights, rtol=1e-12, atol=1e-12)
    batch["label"] = torch.full_like(batch["label"], 255)
    assert_same_loss(nb, nb.composite_loss, logits, batch, terms, class_weights, rtol=1e-12, atol=0)


@pytest.mark.parametrize("phi", ["int8", "float"])
@pytest.mark.parametrize(("shape", "strips"), [
    ((2, 5, 6, 7), [6]), ((1, 19, 100, 700), [39, 39, 22]), ((2, 19, 96, 700), [19] * 5 + [1]),
    ((2, 19, 3, 14000), [1, 1, 1]),
])
def test_strips_of_any_height_give_the_same_in_single_precision(nb, shape, strips, phi, monkeypatch):
    logits, batch = street_batch(shape, phi=phi)
    heights, pixel_sums = [], extras_06.pixel_sums
    terms = nb.loss_terms("C", "paper", 1.0, 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(extras_06, "pixel_sums", lambda strip, *rest, **more: heights.append(strip.shape[2]) or pixel_sums(strip, *rest, **more))
        nb.composite_loss(logits, batch, terms)
    assert heights == strips
    assert_same_loss(nb, nb.composite_loss, logits, batch, terms, torch.linspace(0, 2, shape[1]))


def test_int8_and_float_maps_give_the_same(nb, composite):
    logits, batch = street_batch((1, 7, 20, 30))
    terms = nb.loss_terms("D", "paper", 1.0, 0.5)
    floats = batch | {"phi": batch["phi"].float() / 127}
    ours, theirs = (value_and_gradient(composite, logits, one, terms) for one in (batch, floats))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_the_composite_are_those_of_finite_differences(nb, composite, in_double, weighted):
    logits, label = random_case(classes=3)
    logits, label = logits[:, :, :3, :3].contiguous().requires_grad_(), label[:, :3, :3].contiguous()
    assert (label == 255).any()
    batch = {"label": label, "phi": torch.randn(2, 3, 3, 3, dtype=torch.float64)}
    class_weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64) if weighted else None
    terms = nb.loss_terms("C", "paper", 0.7, 0.3)
    assert torch.autograd.gradcheck(lambda x: composite(x, batch, terms, class_weights), logits)


@pytest.fixture(scope="module")
def compiled(nb):
    """The compiled composite loss."""
    found = common.compile_loss(nb.composite_as_written, nb.composite_loss, "yes", "cpu")
    if found is nb.composite_loss:
        pytest.skip("torch.compile finds no compiler here")
    return found


@pytest.mark.parametrize(("variant", "recipe", "phi"), [
    ("C", "paper", "int8"), ("B", "author_config", None), ("D", "paper", "float"), ("own", "paper", "int8"),
])
def test_the_compiled_loss_gives_what_the_formulas_give(nb, compiled, variant, recipe, phi):
    class_weights = torch.linspace(0, 2, 19) if recipe == "author_config" else None
    own = {"focal": focal_loss} if variant == "own" else None
    terms = {"ce": 1.0, "boundary": 0.2, "focal": 1.0} if own else nb.loss_terms(variant, recipe, 1.0, 0.2)
    for shape in ((2, 19, 32, 48), (1, 19, 40, 64)):
        logits, batch = street_batch(shape, phi=phi)
        batch = batch if phi else {"label": batch["label"]}
        assert_same_loss(nb, compiled, logits, batch, terms, class_weights, own)
    batch["label"] = torch.full_like(batch["label"], 255)
    assert_same_loss(nb, compiled, logits, batch, terms, class_weights, own)


def test_where_nothing_compiles_one_line_says_so_and_the_strips_serve(nb, monkeypatch, capsys):
    def pick(wanted):
        return common.compile_loss(nb.composite_as_written, nb.composite_loss, wanted, "cpu")

    assert pick("no") is pick("auto") is nb.composite_loss and not capsys.readouterr().out

    def no_compiler(*args):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function: no_compiler)
    common.say_once.cache_clear()
    assert all(pick("yes") is nb.composite_loss for _ in range(2))
    assert capsys.readouterr().out == "compile_loss: RuntimeError, so the loss runs as it is\n"


def test_the_auxiliary_head_is_trained_on_two_fifths_of_the_whole_sum(nb, composite):
    (main, batch), aux = street_batch((1, 19, 8, 9)), torch.randn(1, 19, 8, 9)
    terms, batch = nb.loss_terms("C", "paper", 1.0, 0.2), batch | {"image": None}
    found = nb.training_loss(lambda image: (main, aux), batch, composite, terms=terms)
    torch.testing.assert_close(found, composite(main, batch, terms) + 0.4 * composite(aux, batch, terms))


def test_frequency_weights_equal_a_count_by_hand(nb, toy):
    train_id = {c.id: c.train_id for c in Cityscapes.classes}
    counts = dict.fromkeys(range(19), 0)
    frames = common.list_frames(toy, "train")[:3]
    for frame in frames:
        for value, times in zip(*np.unique(np.array(Image.open(frame.label)), return_counts=True)):
            if 0 <= train_id[value] < 255:
                counts[train_id[value]] += int(times)
    total = sum(counts.values())
    plain = {c: (n / total) ** -0.5 for c, n in counts.items() if n}
    mean = sum(plain.values()) / len(plain)
    assert 5 < len(plain) < 19
    weights = nb.frequency_weights(frames, common.SCHEMES["cityscapes19"])
    torch.testing.assert_close(weights, torch.tensor([plain.get(c, 0) / mean for c in range(19)]))
    assert weights[weights > 0].mean() == pytest.approx(1) and (weights == 0).sum() == 19 - len(plain)


def test_the_true_label_has_a_lower_boundary_loss_than_any_shift_of_it(nb):
    label = np.zeros((40, 60), np.uint8)
    label[10:30, 20:40], label[5:36, 48:51] = 1, 2
    phi = torch.from_numpy(data_prep.signed_distance_maps(label, 3))[None]
    truth = torch.from_numpy(label.astype(np.int64))[None]

    def loss(shift):
        guess = np.roll(label, shift, (0, 1))
        return nb.boundary_loss(nb.one_hot(torch.from_numpy(guess)[None], 3).float(), phi, truth).item()

    shifted = [loss((dy, dx)) for dy in (-3, -1, 0, 1, 3) for dx in (-3, -1, 0, 1, 3) if dy or dx]
    assert loss((0, 0)) < 0 and min(shifted) > loss((0, 0))


def test_a_distance_map_is_built_from_two_transforms_and_equals_the_fast_one(nb):
    label = np.random.default_rng(0).integers(0, 4, (6, 9)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    label[:4] = 255
    maps = data_prep.signed_distance_maps(label, 4, norm="none")
    for c in range(4):
        np.testing.assert_allclose(nb.signed_distance(label == c), maps[c], atol=1e-5)
    for mask in (np.zeros((4, 5), bool), np.ones((4, 5), bool)):
        assert (nb.signed_distance(mask) == data_prep.signed_distance_maps(1 - mask, 1, ignore=1)[0]).all()


def test_maps_travel_as_int8_within_half_a_step_of_the_exact_loss(nb):
    label = np.zeros((32, 32), np.uint8)
    label[8:20, 8:30] = 1
    exact = torch.from_numpy(data_prep.signed_distance_maps(label, 2))[None]
    sent = nb.distance_targets(label, 2, "clip127")["phi"][None]
    assert sent.dtype == torch.int8
    probs, truth = torch.rand(1, 2, 32, 32).softmax(1), torch.from_numpy(label.astype(np.int64))[None]
    assert abs(nb.boundary_loss(probs, sent, truth) - nb.boundary_loss(probs, exact, truth)) < 0.5 / 127


@pytest.mark.parametrize("norm", ["clip127", "absmax", "signwise", "readme", "none"])
def test_maps_are_flipped_with_the_image(nb, norm):
    label = np.random.default_rng(0).integers(0, 4, (24, 32)).astype(np.uint8)
    phi = nb.distance_targets(label, 5, norm)["phi"]
    flipped = nb.distance_targets(np.ascontiguousarray(label[:, ::-1]), 5, norm)["phi"]
    torch.testing.assert_close(flipped, phi.flip(-1))


def test_augmentation_moves_image_and_label_together_and_leaves_the_input_alone(nb):
    ramp = np.tile(np.arange(64, dtype=np.uint8), (32, 1))
    image = np.stack([ramp * 3] * 3, axis=2)
    for seed in range(20):
        new_image, new_label = nb.augment(image, ramp, np.random.default_rng(seed))
        mirrored = new_label[0, 0] == 63
        np.testing.assert_array_equal(new_label, ramp[:, ::-1] if mirrored else ramp)
        slope = np.sign(new_image[16, 40].astype(int).sum() - new_image[16, 20].astype(int).sum())
        assert slope == (-1 if mirrored else 1)
    assert (image[:, :, 0] == ramp * 3).all() and ramp[0, 0] == 0


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_is_the_share_of_mirrored_images(nb, flip):
    label = np.tile(np.arange(40, dtype=np.uint8), (8, 1))
    image = np.stack([label * 6] * 3, axis=2)
    for seed in range(30):
        _, new = nb.augment(image, label, np.random.default_rng(seed), flip=flip)
        np.testing.assert_array_equal(new, label[:, ::-1] if flip else label)


STILL = {"flip": 0, "jitter": 0, "hue": 0, "blur": 0}


def smooth_photo():
    """A photo (48, 64, 3) of many colours without noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)


def test_without_jitter_hue_and_blur_the_pixels_stay(nb):
    image, label = smooth_photo(), np.zeros((48, 64), np.uint8)
    for seed in range(10):
        same, _ = nb.augment(image, label, np.random.default_rng(seed), **STILL)
        change = np.abs(same.astype(int) - image)
        assert change.max() <= 8 and change.mean() < 1  # what a round trip through HSV in bytes costs


@pytest.mark.parametrize("change", [{"jitter": 0.25}, {"hue": 0.03}, {"blur": 1.0}])
def test_each_magnitude_changes_the_image_and_never_the_label(nb, change):
    image, label = smooth_photo(), np.random.default_rng(1).integers(0, 19, (48, 64), dtype=np.uint8)
    image[::2] //= 2  # rows that a blur mixes
    largest = []
    for seed in range(20):
        new, kept = nb.augment(image, label, np.random.default_rng(seed), **STILL | change)
        np.testing.assert_array_equal(kept, label)
        largest.append(np.abs(new.astype(int) - image).max())
    changed = np.mean(np.array(largest) > 8)
    assert 0.3 < changed < 0.7 if "blur" in change else changed > 0.7


def test_larger_magnitudes_change_more(nb):
    image, label = smooth_photo(), np.zeros((48, 64), np.uint8)

    def change(**magnitudes):
        views = (nb.augment(image, label, np.random.default_rng(seed), **STILL | magnitudes) for seed in range(20))
        return np.mean([np.abs(view.astype(int) - image).mean() for view, _ in views])

    for name, values in {"jitter": (0.05, 0.2, 0.5), "hue": (0.02, 0.1, 0.3), "blur": (0.5, 1.0, 3.0)}.items():
        changes = [change(**{name: value}) for value in values]
        assert changes == sorted(changes) and changes[0] < changes[-1] / 2


def test_the_network_answers_twice_in_training_and_once_in_evaluation(nb):
    net = nb.UPerNetWithAux("tu-convnextv2_atto", 32)
    image = torch.randn(2, 3, 64, 96)
    main, aux = net(image)
    assert main.shape == aux.shape == (2, 19, 64, 96)
    assert net.eval()(image).shape == (2, 19, 64, 96)
    assert net.encoder.out_channels[-2] == net.aux_head[0].in_channels


def test_the_paper_network_has_the_published_size(nb):
    settings = nb_settings("paper")
    with torch.device("meta"):
        net = nb.UPerNetWithAux(settings["encoder"], settings["decoder_width"])
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert count["encoder"] == 87_690_752
    assert count["encoder"] + count["decoder"] + count["head"] == 120_943_379


def nb_settings(mode, network=""):
    import conftest

    nb = conftest.notebook_definitions(NAME)
    network = network or nb.MODES[mode]["network"]
    return nb.MODES[mode] | nb.NETWORKS[network] | {"network": network}


def test_paper_mode_is_the_published_recipe():
    settings = nb_settings("paper")
    assert (settings["lr"], settings["weight_decay"], settings["epochs"]) == (6e-5, 0.01, 160)
    assert (settings["batch_size"], settings["accumulation"], settings["height"]) == (2, 4, 1024)
    assert settings["network"] == "base"


@pytest.mark.parametrize(("text", "epochs", "named"), [
    ("10", 35, [10, 20, 30]), ("10", 9, []), ("1", 3, [1, 2, 3]), ("5,20,80", 80, [5, 20, 80]),
    ("5, 20,80", 50, [5, 20]), ("3,", 9, [3]), ("", 9, []), (4, 9, [4, 8]), ([2, 5, 11], 9, [2, 5]),
])
def test_epochs_named_are_every_nth_or_just_these_up_to_the_last(text, epochs, named):
    assert runs.epochs_named(text, epochs) == named


@pytest.mark.parametrize("text", ["ten", "0", "5,0", "-5", "2.5", "5;20", "1e1", ",", " "])
def test_what_names_no_epochs_is_one_sentence(text):
    with pytest.raises(common.StreetsError, match="does not name epochs: use one number such as 10, or several"):
        runs.epochs_named(text, 100)


def session(nb, injected=""):
    """globals() of the notebook after its parameters were checked; `injected` is what papermill adds."""
    cells = runs.script_cells((ROOT / "notebooks" / f"{NAME}.py").read_text())
    parameters = next(cell for cell in cells if 'tags=["parameters"]' in cell)
    given = {"In": [parameters, f"# Parameters\n{injected}"], "NOTEBOOK": NAME}
    given["settings"] = common.check_parameters(given, nb.MODES, lists={"variant": nb.VARIANTS})
    return given


@pytest.mark.parametrize(("variant", "injected", "name"), [
    ("D", "", "D"),
    ("D", "lambda_b = 0.5\nepochs = 21", "D-lambda_b0.5-epochs21"),
    ("A", 'lambda_b = 0.5\nlambda_d = 2.0\nnorm = "absmax"\nepochs = 21', "A-epochs21"),
    ("B", 'lambda_b = 0.5\nlambda_d = 2.0\nnorm = "absmax"', "B-lambda_d2.0"),
    ("C", 'lambda_b = 0.5\nlambda_d = 2.0\nnorm = "absmax"\nnetwork = "base"', "C-lambda_d2.0-lambda_b0.5-normabsmax-networkbase"),
    ("D", 'recipe = "author_config"\nweights = "none"', "D-recipeauthor_config-weightsnone"),
    ("D", 'network = "lite0"\nheight = 128', "D"),  # the mode's own
    ("D", "flip = 0\nblur = 0.0", "D-flip0.0-blur0.0"),  # not among the parameters shown
])
def test_a_run_is_named_after_what_it_uses_and_what_departs_from_the_mode(nb, variant, injected, name):
    assert runs.run_names(session(nb, injected), {variant: nb.unread(nb.VARIANTS[variant])})[variant] == name


def test_what_the_modes_hold_can_be_set_and_0_is_taken_at_its_word(nb):
    given = session(nb, "flip = 0\naccumulation = 3\nlr = 0.5")
    changed = {"flip": 0.0, "accumulation": 3, "lr": 0.5, "scratch_lr": 0.5}
    assert given["settings"] == nb.MODES["quick"] | changed and isinstance(given["settings"]["flip"], float)


def test_published_numbers_give_the_published_means_and_differences():
    published = common.read_published(NAME)
    mious = published.query("metric == 'miou' and epoch == 'last'")
    for method in "ABCD":
        rows = mious[mious["method"] == method]
        seeds = rows[rows["seed"] != ""]["value"].astype(float)
        stated = rows[(rows["seed"] == "") & rows["note"].str.startswith("v0.2")]
        mean, half = common.student_interval(seeds)
        assert mean == pytest.approx(float(stated["value"].iloc[0]), abs=0.011)
        assert half == pytest.approx(float(stated["half_width"].iloc[0]), abs=0.02)
        classes = published.query("metric == 'iou' and method == @method and seed == ''").set_index("class")
        assert len(classes) == 19 and classes["value"].astype(float).mean() == pytest.approx(mean, abs=0.02)
        of_seeds = published.query("metric == 'iou' and method == @method and seed != ''").astype({"value": float})
        assert len(of_seeds) == 57 and (of_seeds.groupby("class")["value"].mean() - classes["value"].astype(float)).abs().max() < 0.02


CONTOURS = {
    "boundary_f1": common.boundary_f1,
    "boundary_f1_strict": partial(common.boundary_f1, count_frame=False, count_void_rim=False),
    "trimap_iou": common.trimap_iou,
}


def contour_scores(model, data):
    """Mean over images of the mean over classes of each contour score."""
    scores = []
    for item in data:
        with torch.no_grad():
            pred = model(item["image"][None]).argmax(1)[0]
        scores.append({name: np.nanmean(score(pred, item["label"], 19)) for name, score in CONTOURS.items()})
    return {name: np.mean([one[name] for one in scores]) for name in CONTOURS}


def test_the_mean_over_images_leaves_out_images_without_any_score():
    scores = np.array([[0.2, np.nan], [np.nan, np.nan], [0.4, 0.8]])
    assert common.mean_over_images(scores) == pytest.approx(0.4)
    assert common.mean_over_images(scores[1:2]) is None


def with_a_loss_of_ones_own(source):
    """The notebook's script with a fifth variant, for which a student writes one function and one entry."""
    for old, new in {'"D": ("ce", "boundary")}': '"D": ("ce", "boundary"), "E": ("ce", "focal")}',
                     'own = common.own_losses(': f'{README_LOSS}\n\nown = common.own_losses('}.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    return source


class Five(NamedTuple):
    """What a run of all variants and one of one's own left: what it printed, its folders, summaries and histories by letter."""

    printed: str
    folders: dict
    summaries: dict
    histories: dict


@pytest.fixture(scope="module")
def five(toy, tmp_path_factory):
    """The whole notebook, once, beside runs on CamVid as the repository keeps them."""
    out = tmp_path_factory.mktemp("five")
    put_camvid_runs(out / "kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "find_runs", lambda **wanted: runs.find_runs(out / "kept", **wanted))
        printed = run_script(NAME, out, edit=with_a_loss_of_ones_own, variant="all", keep_at="1,", evaluate_at="1",
                             **TINY | {"data_dir": str(toy), "out_dir": str(out / "results")})
    folders = {path.name[0]: path for path in (out / "results" / NAME / "toy-quick").glob("*_seed42")}
    assert sorted(folders) == [*"ABCDE"]
    read = {letter: json.loads((folder / "summary.json").read_text()) for letter, folder in folders.items()}
    return Five(printed, folders, read, {letter: pd.read_csv(folder / "history.csv") for letter, folder in folders.items()})


def test_all_variants_and_one_of_ones_own_run_in_turn_and_leave_complete_results(nb, toy, five):
    for letter, summary in five.summaries.items():
        assert summary["dataset"] == "toy" and summary["mode"] == "quick" and summary["weights"] == "none"
        assert summary["n_train"] == 8 and summary["n_val"] == 3 and summary["n_test"] == 2 and summary["test"]["miou"] > 0
        settings = json.loads((five.folders[letter] / "config.json").read_text())["settings"]
        found = contour_scores(nb.load_variant(five.folders[letter], settings), val_of(toy))
        assert {key: summary["metrics"][key] for key in CONTOURS} == pytest.approx(found, abs=1e-6)
        kept = common.kept_scores(five.folders[letter], "val")
        assert {key: kept[key] for key in CONTOURS} == pytest.approx(found, abs=1e-6) and len(set(found.values())) == 3
    assert len({history["train_loss"][0] for history in five.histories.values()}) == 5, "five variants, five losses"
    weights = [load_file(five.folders[letter] / "last.safetensors") for letter in "AE"]
    assert any(not torch.equal(*(one[name] for one in weights)) for name in weights[0]), "the term acts on the training"


def val_of(root):
    """The validation images as the small runs see them."""
    return common.StreetScenes(common.list_frames(root, "val"), (32, 64), mean=common.LITE0_MEAN, std=common.LITE0_STD)


def test_the_notebook_reaches_its_end_with_its_figures(five):
    assert five.printed.count("<IPython.core.display.Image object>") == 11
    assert "Exercise 6.4: not done yet" in five.printed


def test_the_notebook_writes_a_page_to_look_around_in_its_runs_and_some_streets(five):
    page = five.folders["A"].parent / "viewer.html"
    assert page.stat().st_size > 1e6 and f"open in a browser: {'/'.join(page.parts[-3:])}" in five.printed
    for folder in five.folders.values():
        assert len(list((folder / "predictions/viewer").glob("*_val%20street%20*.png"))) == 3


def test_runs_on_camvid_are_compared_where_there_are_any(five):
    for title in ("D pixels", "strict boundary F1", "3 epochs", "D pixels - A", "C - B"):
        assert title in five.printed, title
    assert re.search(r"B - A +10\.0 +10\.0 .* 0\.0 +0\.0 *\n", five.printed), "differences, then p"


def test_a_comparison_gives_difference_and_interval_of_each_score_in_points(nb, tmp_path):
    put_camvid_runs(tmp_path)
    runs = tmp_path / NAME / "camvid11-laptop"
    folders = pd.DataFrame({name: {seed: runs / f"{name}_seed{seed}" for seed in (42, 43, 44)} for name in "ABC"})
    folders.loc[44, "C"] = None  # a run that is not there yet: its pair is left out
    uneven = folders.loc[42, "A"] / "test_per_image.npz"
    with np.load(uneven) as kept:
        scores = dict(kept)
    np.savez(uneven, **scores | {"trimap_iou": scores["trimap_iou"] - 0.03})
    pairs = {"B - A": ("B", "A"), "C - B": ("C", "B"), "D - A": ("D", "A")}  # D has no runs
    table = common.compare_pairs(folders, pairs, nb.STRICT).drop(columns=["p", "seeds"])
    assert table.index.tolist() == [(pair, title) for pair in ("B - A", "C - B") for title in nb.STRICT.values()]
    np.testing.assert_allclose(table.loc["C - B"], -5)
    np.testing.assert_allclose(table.loc[[("B - A", "mIoU"), ("B - A", "strict boundary F1")]], 10)  # so with each seed and picture
    np.testing.assert_allclose(table.loc[("B - A", "trimap IoU"), ["difference", "low", "high"]].astype(float), [11, 10, 13])  # 13, 10, 10


def put_camvid_runs(base):
    """Runs in mode laptop as they lie on disk: B is 10 points above A in each of three seeds, D pixels 5 below."""
    classes = ["road", "pole", "traffic sign", "person", "rider", "fence"]
    for name, miou in {"A": 0.5, "B": 0.6, "C": 0.55, "D": 0.5, "D-normnone": 0.45, "A-epochs3": 0.3, "B-epochs3": 0.35}.items():
        for seed in (42, 43, 44):
            value = miou + 0.01 * (seed - 43)
            folder = base / NAME / "camvid11-laptop" / f"{name}_seed{seed}"
            metrics = {"miou": value, "boundary_f1_strict": value, "trimap_iou": value, "iou": dict.fromkeys(classes, value)}
            summary = {"notebook": NAME, "method": name, "mode": "laptop", "dataset": "camvid11", "seed": seed, "weights": "lite0",
                       "epochs": 3 if "epochs3" in name else 12, "metrics": metrics, "test": metrics}  # fmt: skip
            common.write_json(folder / "summary.json", summary)
            rows = [{"epoch": e} | runs.flat(metrics) for e in ((3,) if "epochs3" in name else (3, 6, 9, 12))]
            pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
            right = round(100 * value)
            confusion = np.zeros((24, 6, 6), int)
            confusion[:, 0, 0], confusion[:, 0, 1] = right, 100 - right
            images = [f"{drive}/{k}" for drive in ("0001TP", "Seq05VD") for k in range(12)]
            scores = np.full((24, 6), value)
            np.savez_compressed(folder / "test_per_image.npz", image=np.array(images), confusion=confusion,
                                boundary_f1_strict=scores, trimap_iou=scores)  # fmt: skip


def test_kept_weights_are_scored_again_by_several_processes_without_training(five, tmp_path):
    shutil.copytree(five.folders["A"].parent, tmp_path / "toy-quick")
    for letter in "BCE":
        shutil.rmtree(tmp_path / "toy-quick" / five.folders[letter].name)
    without = tmp_path / "toy-quick" / "C_seed1"  # as the repository's runs are: it is left out
    shutil.copytree(five.folders["C"], without, ignore=shutil.ignore_patterns("*.safetensors"))
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))}
    checkpoints.main(["score", str(tmp_path / "toy-quick"), "--processes", "2"])
    for letter in "AD":
        folder = tmp_path / "toy-quick" / five.folders[letter].name
        found = pd.read_csv(folder / "rescored.csv")
        assert found["weights"].tolist() == ["epoch_0001.safetensors", "last.safetensors"] and found["epoch"].tolist() == [1, 2]
        columns = ["miou", *CONTOURS, "iou_road"]
        pd.testing.assert_frame_equal(found[columns], five.histories[letter][columns])
    assert before == {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))}
    assert not (without / "rescored.csv").exists()


def test_what_cannot_be_scored_again_is_one_sentence(five, tmp_path):
    with pytest.raises(SystemExit, match="There are no finished runs with weights in"):
        checkpoints.main(["score", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no finished run of notebook 06"):
        checkpoints.main(["export", str(tmp_path), "--out", str(tmp_path / "x")])
    shutil.copytree(five.folders["A"], tmp_path / "A_seed42")
    with pytest.raises(SystemExit, match="There is no folder /nowhere, on which A_seed42 was trained: name it with --data-dir"):
        checkpoints.main(["score", str(tmp_path), "--data-dir", "/nowhere"])
    data_prep.make_toy(tmp_path / "other", size=(64, 128), train=8, val=2, test=2, seed=1)
    with pytest.raises(SystemExit, match="has not as many images as A_seed42 was trained and scored on"):
        checkpoints.main(["score", str(tmp_path), "--data-dir", str(tmp_path / "other")])


def test_exported_predictions_score_the_same_under_the_official_script(five, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(toy))
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path))
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    checkpoints.main(["export", str(five.folders["D"]), "--out", str(tmp_path)])
    args, frames = evaluation.args, common.list_frames(toy, "val")
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    args.predictionPath, args.predictionWalk = str(tmp_path), None
    truths = [str(frame.label) for frame in frames]
    predictions = [evaluation.getPrediction(args, truth) for truth in truths]
    official = evaluation.evaluateImgLists(predictions, truths, args)["averageScoreClasses"]
    scheme, kept = common.SCHEMES["cityscapes19"], checkpoints.Kept(five.folders["D"])
    net = kept.network("last.safetensors")
    ours = sum(common.confusion_matrix(common.predict(net, common.read_image(f.image), (32, 64), **kept.scaling),
                                       scheme.table[common.read_label(f.label)], 19) for f in frames)  # fmt: skip
    assert common.miou_official(ours) == official


def test_a_misspelt_parameter_stops_the_script_with_one_sentence(tmp_path, toy):
    parameters = TINY | {"data_dir": str(toy), "out_dir": str(tmp_path / "results"), "varient": "D"}
    with pytest.raises(common.StreetsError, match="There is no parameter 'varient' here: this notebook has mode, variant"):
        run_script(NAME, tmp_path, **parameters)
    assert not list(tmp_path.rglob("config.json"))


def test_the_notebook_runs_as_a_script_from_any_folder_on_another_encoder(toy, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    parameters = TINY | {"data_dir": str(toy), "out_dir": str(tmp_path / "results"), "network": "resnet18", "variant": "D"}
    run_script(NAME, folder, folder, **parameters)
    assert list((tmp_path / "results").rglob(f"D-networkresnet18{TAG}/summary.json"))


def test_the_notebook_alone_in_an_empty_folder_fetches_its_helpers_and_labels_a_photo_of_ones_own(
    nb, toy, tmp_path, monkeypatch
):
    repo, alone = tmp_path / "repo", tmp_path / "alone"
    alone.mkdir()
    (repo / "results").mkdir(parents=True)
    for name in ("common.py", "data_prep.py", "results/extras_06.py", "results/figures.py", "results/needs.py", "results/runs.py", "results/video.py", "results/viewer.py", "results/published.csv"):
        shutil.copy(ROOT / name, repo / name)
    tag = re.search(r'^REPO, TAG = ".*", "(.*)"$', (ROOT / "notebooks" / f"{NAME}.py").read_text(), re.M)[1]
    git = ["git", "-C", repo, "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"], ["tag", tag]):
        subprocess.run([*git, *command], check=True)
    jupytext.write(jupytext.read(ROOT / "notebooks" / f"{NAME}.py"), alone / f"{NAME}.ipynb")
    cv2.imwrite(str(alone / "mine.jpg"), np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    monkeypatch.setenv("STREETS_REPO", str(repo))
    parameters = TINY | {"out_dir": str(tmp_path / "results"), "data_dir": str(toy), "photo": "mine.jpg", "variant": "B",
                         "recipe": "author_config", "epochs": 3, "evaluate_at": "1,", "keep_at": "1,", "flip": 1, "blur": 0}  # fmt: skip
    papermill.execute_notebook(str(alone / f"{NAME}.ipynb"), str(tmp_path / "out.ipynb"), parameters=parameters, cwd=str(alone), progress_bar=False)
    [path] = (tmp_path / "results").rglob("summary.json")
    assert (alone / "street-segmentation" / "common.py").exists()
    folder = path.parent
    assert folder.name.startswith("B-recipeauthor_config-height32-epochs3-weightsnone-images8-evaluate_at") and len(folder.name) < 100
    changes = json.loads((folder / "config.json").read_text())["changes"]
    assert {key: changes[key] for key in ("flip", "blur", "evaluate_at")} == {"flip": 1.0, "blur": 0.0, "evaluate_at": "1,"}
    assert pd.read_csv(folder / "history.csv")["epoch"].tolist() == [1, 3]  # the last one, too
    assert {path.stem for path in folder.glob("*.safetensors")} == {"best", "last", "epoch_0001"}
    first, last = (common.load_weights(folder / f"{stem}.safetensors", nb.UPerNetWithAux("tu-tf_efficientnet_lite0", 64))
                   for stem in ("epoch_0001", "last"))
    assert not torch.equal(first.aux_head[0].weight, last.aux_head[0].weight)


@pytest.mark.parametrize(("form", "folder"), [("camvid11", "."), ("camvid32", "notebooks")])
def test_the_notebook_runs_on_real_photos_from_either_folder(real_data, tmp_path, form, folder):
    data_prep.convert_camvid(copy_some(real_data / form, tmp_path / "source", form, every=8), tmp_path / "camvid")
    parameters = TINY | {"out_dir": str(tmp_path / "results"), "data_dir": str(tmp_path / "camvid"), "images": 16, "epochs": 3, "height": 64, "variant": "D"}
    run_script(NAME, tmp_path, ROOT / folder, **parameters)
    summary = json.loads(next((tmp_path / "results").rglob("D-height64-epochs3-weightsnone-images16_seed42/summary.json")).read_text())
    assert summary["dataset"] == form
    assert sum(iou is not None for iou in summary["metrics"]["iou"].values()) in (10, 11, 12)
    assert summary["metrics"]["accuracy"] > summary["majority_baseline"]["accuracy"]


def test_pretrained_weights_come_from_the_hubs_cache_without_a_network(nb, tmp_path, monkeypatch):
    import timm
    from huggingface_hub import constants

    source = timm.create_model("convnextv2_atto.fcmae_ft_in1k", pretrained=False)
    revision = tmp_path / "models--timm--convnextv2_atto.fcmae_ft_in1k" / "snapshots" / ("0" * 40)
    revision.mkdir(parents=True)
    save_file(source.state_dict(), revision / "model.safetensors")
    (revision.parent.parent / "refs").mkdir()
    (revision.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(runs, "hub_reachable", lambda: False)
    net, used = nb.build_network(nb_settings("quick", "atto"), "auto")
    assert used == "fcmae_ft_in1k"
    stem = source.stem[0].weight
    assert any(torch.equal(p, stem) for p in net.encoder.parameters() if p.shape == stem.shape)


def test_without_weights_auto_starts_from_scratch_and_says_so_and_imagenet_stops(nb, capsys, monkeypatch):
    monkeypatch.setattr(runs, "hub_reachable", lambda: False)
    common.say_once.cache_clear()
    _, used = nb.build_network(nb_settings("quick", "atto"), "auto")
    assert used == "none" and "random initialisation" in capsys.readouterr().out
    with pytest.raises(common.StreetsError, match="cannot be fetched"):
        nb.build_network(nb_settings("quick", "atto"), "imagenet")


@pytest.mark.parametrize(("name", "tag"), [("resnet34", "imagenet"), ("mit_b0", "imagenet"), ("resnext101_32x16d", "instagram"),
                                           ("tu-resnet18", "a1_in1k"), ("tu-resnet18.fb_swsl_ig1b_ft_in1k", "fb_swsl_ig1b_ft_in1k")])
def test_any_encoder_of_smp_or_timm_is_a_network(nb, name, tag, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(smp.encoders, "get_preprocessing_params", lambda name, tag: {"input_space": "RGB", "input_range": [0, 2], "mean": [1.0], "std": [0.5]})
        found = common.network_facts(name, nb.NETWORKS, "auto")
    assert found == {"encoder": name, "decoder_width": 256, "pretrained": tag, "mean": (0.5,), "std": (0.25,)}
    assert all(common.network_facts(one, nb.NETWORKS, "imagenet") is nb.NETWORKS[one] for one in nb.NETWORKS)


@pytest.mark.parametrize("name", ["resnet43", "tu-nope", "tu-resnet18.nope", "tu-", "Lite0", "../x"])
def test_a_network_that_nobody_knows_is_one_sentence_that_says_what_is_allowed(nb, name):
    with pytest.raises(common.StreetsError, match=f"network does not know '{re.escape(name)}': use lite0, atto, nano, base, an encoder .*resnet34"):
        common.network_facts(name, nb.NETWORKS, "none")


@pytest.mark.parametrize("name", ["resnet18", "mit_b0", "tu-resnet18"])
def test_upernet_reads_encoders_of_every_kind_and_says_which_it_cannot(nb, name):
    net = nb.UPerNetWithAux(name, 32)
    main, aux = net(torch.zeros(2, 3, 64, 96))
    assert main.shape == aux.shape == (2, 19, 64, 96) and net.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 19, 64, 96)
    vit = "tu-vit_tiny_patch16_224"
    with pytest.raises(common.StreetsError, match=f"network: this decoder cannot be built on {vit} .*: use another network"), common.network_errors(vit):
        nb.UPerNetWithAux(vit, 32)(torch.zeros(2, 3, 64, 96))


def test_a_network_without_pretrained_weights_starts_from_none_and_imagenet_is_refused(nb, monkeypatch):
    import timm

    monkeypatch.setattr(runs, "hub_reachable", lambda: pytest.fail("nobody is asked"))
    monkeypatch.setattr(timm, "is_model_pretrained", lambda name: False)
    assert nb.build_network(common.network_facts("tu-resnet18", nb.NETWORKS), "auto")[1] == "none"
    with pytest.raises(common.StreetsError, match="There are no pretrained weights of tu-resnet18"):
        common.network_facts("tu-resnet18", nb.NETWORKS, "imagenet")


def hub_with(tmp_path, monkeypatch, **files):
    """A cache of the hub with resnet18's repository, which holds these files: {name: function that writes to a path}."""
    from huggingface_hub import constants

    at = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{at['repo_id'].replace('/', '--')}" / "snapshots" / at["revision"]
    folder.mkdir(parents=True)
    for name, write in files.items():
        write(folder / name.replace("_", "."))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(runs, "hub_reachable", lambda: False)


def test_an_encoder_of_smp_gets_its_weights_and_their_scaling_from_the_hub_or_neither(nb, tmp_path, monkeypatch):
    state = smp.encoders.get_encoder("resnet18").state_dict()
    scaling = {"input_space": "RGB", "input_range": [0, 255], "mean": [51.0, 102.0, 153.0], "std": [25.5, 51.0, 255.0]}
    files = {"config_json": lambda path: path.write_text(json.dumps(scaling)), "model_safetensors": lambda path: save_file(state, path)}
    with monkeypatch.context() as patch:
        hub_with(tmp_path / "both", patch, **files)
        settings = common.network_facts("resnet18", nb.NETWORKS)
        assert settings["mean"] == pytest.approx((0.2, 0.4, 0.6)) and settings["std"] == pytest.approx((0.1, 0.2, 1.0))
        net, used = nb.build_network(settings, "imagenet")
    assert used == "imagenet" and torch.equal(net.encoder.conv1.weight, state["conv1.weight"])
    hub_with(tmp_path / "weights", monkeypatch, model_safetensors=files["model_safetensors"])
    blind = common.network_facts("resnet18", nb.NETWORKS)
    assert nb.build_network(blind, "auto")[1] == "none", "weights without their scaling would see wrong colours"
    with pytest.raises(common.StreetsError, match="The pretrained weights imagenet cannot be fetched"):
        common.network_facts("resnet18", nb.NETWORKS, "imagenet")


@pytest.mark.parametrize("mode", ["quick", "laptop"])
def test_quick_and_laptop_start_from_weights_that_need_no_hub(nb, mode, monkeypatch):
    monkeypatch.setattr(runs, "hub_reachable", lambda: pytest.fail("nobody is asked"))
    settings = nb_settings(mode)
    net, used = nb.build_network(settings, "auto")
    assert used == "lite0" and settings["mean"] == settings["std"] == common.LITE0_MEAN
    state, wanted = net.encoder.state_dict(), runs.lite0_weights()
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("schedule", ["linear", "one_cycle"])
def test_a_schedule_ends_at_zero_with_the_last_step_of_the_last_epoch(nb, schedule):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler, when = nb.make_scheduler(optimizer, {"schedule": schedule, "epochs": 4}, steps_per_epoch=5)
    rates = []
    for _ in range(4 * (5 if when == "step" else 1)):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    last = rates[-1] if when == "step" else optimizer.param_groups[0]["lr"]  # one cycle is at its end for the last step
    assert max(rates) == pytest.approx(0.5) and last == pytest.approx(0, abs=1e-5)
    assert rates[rates.index(max(rates)):] == sorted(rates[rates.index(max(rates)):], reverse=True)
