"""Notebook 04: its losses, network, copy-paste and scores against oracles and naive loops, and whole runs."""

import json
import math
import re
from functools import partial
from itertools import pairwise

import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from conftest import ROOT, copy_some, notebook_definitions, run_in_kernel, run_script
from torch import nn
from torch.nn import functional as F

import common
import data_prep
from results.report import survivors

NAME = "04_segformer_thin_structures"
TINY = {"epochs": 1, "images": 10, "height": 32, "weights": "none"}
THIN7 = common.SCHEMES["thin7"]


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


def random_case(seed=0, classes=4, size=(13, 15), void=False, absent=(), dtype=torch.float64):
    """Logits (2, C, H, W) and labels (2, H, W), a sixth of them void if so asked."""
    rng = torch.Generator().manual_seed(seed)
    present = torch.tensor([c for c in range(classes) if c not in absent])
    label = present[torch.randint(0, len(present), (2, *size), generator=rng)]
    if void:
        label[torch.rand(label.shape, generator=rng) < 1 / 6] = 255
    return 2 * torch.randn(2, classes, *size, generator=rng, dtype=dtype), label


def assert_same(ours, theirs, logits, **tolerance):
    """Two losses of the logits agree in value and gradient."""
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    x, y = ours(a), theirs(b)
    torch.testing.assert_close(x, y, **tolerance)
    torch.testing.assert_close(*torch.autograd.grad(x, a), *torch.autograd.grad(y, b), **tolerance)


# SSIM


def naive_ssim(p, y):
    """SSIM of two pictures (H, W), one mirrored 11x11 window at a time, variances from differences to the mean."""
    bell = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    padded, out = [np.pad(m, 5, mode="reflect") for m in (p, y)], np.empty(p.shape)
    for at in np.ndindex(*p.shape):
        a, b = (m[at[0] : at[0] + 11, at[1] : at[1] + 11] for m in padded)
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b, both = ((window * (s - m) * (t - n)).sum()
                              for s, t, m, n in ((a, a, mean_a, mean_a), (b, b, mean_b, mean_b), (a, b, mean_a, mean_b)))
        out[at] = ((2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                   / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return out


def maps_of(seed=0, **options):
    logits, label = random_case(seed, **options)
    return logits.softmax(1), F.one_hot(label, logits.shape[1]).movedim(-1, 1).to(logits.dtype)


def test_the_ssim_map_is_the_formula_window_by_window(nb):
    p, y = maps_of(classes=2)
    ours = nb.ssim_map(p, y)
    for b, c in np.ndindex(2, 2):
        np.testing.assert_allclose(ours[b, c], naive_ssim(p[b, c].numpy(), y[b, c].numpy()), atol=1e-10)


def test_ssim_is_that_of_torchmetrics_and_kornia_with_a_mirrored_frame(nb):
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    kornia = pytest.importorskip("kornia.metrics")
    p, y = maps_of(size=(24, 31))

    def full_map(p):
        options = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0, "return_full_image": True}
        return torchmetrics.structural_similarity_index_measure(p, y, **options)[1]

    torch.testing.assert_close(nb.ssim_map(p, y), full_map(p), atol=1e-9, rtol=0)
    assert_same(lambda p: nb.ssim_map(p, y).mean(), lambda p: kornia.ssim(p, y, 11, padding="same").mean(), p, atol=1e-8, rtol=1e-6)


def test_away_from_the_frame_ssim_is_that_of_pytorch_msssim_and_scikit_image(nb):
    msssim, skimage = pytest.importorskip("pytorch_msssim"), pytest.importorskip("skimage.metrics")
    p, y = maps_of(size=(24, 31))
    assert_same(lambda p: nb.ssim_map(p, y)[..., 5:-5, 5:-5].mean(),
                lambda p: msssim.ssim(p, y, data_range=1), p, atol=1e-6, rtol=1e-5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True}
    _, theirs = skimage.structural_similarity(p[0, 1].numpy(), y[0, 1].numpy(), **options)
    np.testing.assert_allclose(nb.ssim_map(p, y)[0, 1, 5:-5, 5:-5], theirs[5:-5, 5:-5], atol=1e-9)


@pytest.mark.parametrize("absent", [(), (2,)])
def test_without_void_the_ssim_loss_is_1_minus_the_mean_over_all_windows_and_classes(nb, absent):
    logits, label = random_case(absent=absent)
    p, y = logits.softmax(1), F.one_hot(label, 4).movedim(-1, 1).double()
    similar = [naive_ssim(p[b, c].numpy(), y[b, c].numpy()).mean() for b, c in np.ndindex(2, 4)]
    assert nb.ssim_loss(p, label).item() == pytest.approx(1 - np.mean(similar), abs=1e-10)


def void_case(size=(30, 34)):
    """A case whose void is one block and one pixel in the corner, so that some windows are free of it."""
    logits, label = random_case(size=size)
    label[0, 12:16, 20:23], label[1, 0, 0] = 255, 255
    return logits, label


def test_ssim_windows_that_touch_void_do_not_count(nb):
    logits, label = void_case()
    p, similar = logits.softmax(1).numpy(), []
    for b in range(2):
        padded = np.pad(label[b].numpy(), 5, mode="reflect")
        clean = np.array([[(padded[r : r + 11, c : c + 11] != 255).all() for c in range(34)] for r in range(30)])
        assert 0 < clean.sum() < clean.size
        similar += [naive_ssim(p[b, c], (label[b] == c).numpy().astype(float))[clean] for c in range(4)]
    assert nb.ssim_loss(logits.softmax(1), label).item() == pytest.approx(1 - np.concatenate(similar).mean(), abs=1e-10)


def test_what_a_network_says_about_void_does_not_change_the_ssim_loss(nb):
    logits, label = void_case()
    other = torch.where((label == 255)[:, None], torch.randn_like(logits) * 5, logits)
    torch.testing.assert_close(nb.ssim_loss(other.softmax(1), label), nb.ssim_loss(logits.softmax(1), label))
    logits.requires_grad_()
    nb.ssim_loss(logits.softmax(1), label).backward()
    assert (logits.grad.abs().sum(1)[label == 255] == 0).all() and logits.grad.abs().sum() > 0


def faint_texture():
    """Probabilities (1, 2, 64, 64) that are high and nearly flat, so that half precision loses their variance; and the truth."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    p = 0.9 + 0.02 * torch.sin(rows) * torch.cos(columns)
    return torch.stack([p, 1 - p])[None], torch.zeros(1, 64, 64, dtype=torch.long)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ssim_is_exact_under_autocast_where_half_precision_would_lose_the_variance(nb, dtype):
    p, label = faint_texture()
    y = nb.truth_maps(label, 2)
    exact, mean = nb.ssim_loss(p, label), nb.blur(p)
    variance = nb.blur(p * p) - mean * mean
    with torch.autocast("cpu", dtype):
        assert torch.equal(nb.ssim_loss(p, label), exact)
        assert torch.equal(nb.ssim_map(p, y), nb.ssim_map(p.float(), y))
        lost = nb.blur(p * p) - nb.blur(p) ** 2
    assert (lost - variance).abs().max() > 2e-4, "a picture on which the precaution matters"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_probabilities_count_as_the_float32_numbers_that_they_are(nb, dtype):
    logits, label = random_case(classes=2, size=(190, 181), dtype=torch.float32)  # more windows than float16 can count
    p = (logits + 2 * nb.truth_maps(label, 2)).softmax(1).to(dtype)
    assert nb.ssim_map(p, p).dtype == torch.float32
    torch.testing.assert_close(nb.ssim_loss(p, label).float(), nb.ssim_loss(p.float(), label), atol=1e-6, rtol=0)


# soft IoU


def naive_iou(probs, label):
    terms = []
    for b, c in np.ndindex(*probs.shape[:2]):
        p, y = probs[b, c][label[b] != 255], (label[b] == c)[label[b] != 255].to(probs.dtype)
        terms.append(((p * y).sum() + 1e-6) / ((p + y - p * y).sum() + 1e-6))
    return 1 - sum(terms) / len(terms)


@pytest.mark.parametrize("absent", [(), (2,), (0, 3)])
@pytest.mark.parametrize("void", [False, True])
def test_soft_iou_is_the_formula_image_by_image_and_class_by_class(nb, absent, void):
    logits, label = random_case(void=void, absent=absent)
    assert_same(lambda z: nb.soft_iou_loss(z.softmax(1), label), lambda z: naive_iou(z.softmax(1), label), logits)


def test_soft_iou_is_smps_one_image_at_a_time_where_all_classes_occur(nb):
    import segmentation_models_pytorch as smp

    logits, label = random_case()
    assert all(len(one.unique()) == 4 for one in label)
    oracle = smp.losses.JaccardLoss("multiclass", smooth=1e-6)
    assert_same(lambda z: nb.soft_iou_loss(z.softmax(1), label), lambda z: (oracle(z[:1], label[:1]) + oracle(z[1:], label[1:])) / 2,
                logits, atol=1e-7, rtol=1e-6)


def test_an_absent_class_costs_nearly_1_and_pulls_next_to_nothing(nb):
    logits, label = random_case(absent=(2,))
    probs = logits.softmax(1).requires_grad_()
    loss = nb.soft_iou_loss(probs, label)
    others = nb.soft_iou_loss(probs[:, [0, 1, 3]], torch.where(label == 3, 2, label))
    assert (4 * loss - 3 * others).item() == pytest.approx(1, abs=1e-6)
    loss.backward()
    assert probs.grad[:, 2].abs().max() < 1e-6 * probs.grad[:, 0].abs().max()


# Lovász


def set_jaccard(wrong, truth):
    """What the wrong pixels cost a class, as sets of pixels: 1 - IoU."""
    return len(wrong) / len(wrong | truth) if wrong else 0.0


def threshold_lovasz(errors, truth):
    """The Lovász extension as an integral: the Jaccard loss of the pixels with an error above t, over t from 0 to 1."""
    values = sorted({0.0, *errors})
    return sum((high - low) * set_jaccard({i for i, m in enumerate(errors) if m >= high}, truth)
               for low, high in pairwise(values))


def naive_lovasz(probs, label, divisor=None):
    valid = (label != 255).numpy()
    losses = []
    for c in range(probs.shape[1]):
        truth = (label.numpy() == c)[valid]
        if truth.any():
            errors = np.abs(truth - probs[:, c].detach().numpy()[valid])
            losses.append(threshold_lovasz(errors.tolist(), set(np.flatnonzero(truth).tolist())))
    return sum(losses) / (divisor or len(losses))


@pytest.mark.parametrize("absent", [(), (2,), (0, 3)])
@pytest.mark.parametrize("void", [False, True])
def test_lovasz_integrates_the_jaccard_loss_of_sets(nb, absent, void):
    logits, label = random_case(size=(4, 5), void=void, absent=absent)
    probs = logits.softmax(1)
    assert nb.lovasz_softmax(probs, label).item() == pytest.approx(naive_lovasz(probs, label), abs=1e-12)
    assert nb.lovasz_softmax(probs, label, "C").item() == pytest.approx(naive_lovasz(probs, label, 4), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_does_not_depend_on_the_order_of_equal_errors(nb, seed):
    logits, label = random_case(seed, size=(4, 6))
    probs = (4 * logits.softmax(1)).round() / 4
    value = nb.lovasz_softmax(probs, label)
    assert value.item() == pytest.approx(naive_lovasz(probs, label), abs=1e-12)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    shuffled = probs.flatten(2)[..., order].view_as(probs), label.flatten(1)[:, order].view_as(label)
    torch.testing.assert_close(nb.lovasz_softmax(*shuffled), value)


@pytest.mark.parametrize("absent", [(), (2,), (0, 3)])
@pytest.mark.parametrize("void", [False, True])
def test_lovasz_is_bermans_in_value_and_gradient(nb, absent, void):
    import segmentation_models_pytorch as smp

    logits, label = random_case(size=(24, 31), void=void, absent=absent, dtype=torch.float32)
    oracle = smp.losses.LovaszLoss("multiclass", ignore_index=255)
    assert_same(lambda z: nb.lovasz_softmax(z.softmax(1), label), lambda z: oracle(z, label), logits, atol=1e-6, rtol=1e-5)
    share = (4 - len(absent)) / 4
    assert_same(lambda z: nb.lovasz_softmax(z.softmax(1), label, "C"), lambda z: share * oracle(z, label), logits, atol=1e-6, rtol=1e-5)


def test_at_a_hard_prediction_lovasz_is_1_minus_the_iou(nb):
    logits, label = random_case(void=True, absent=(2,))
    pred = logits.argmax(1)
    hard = F.one_hot(pred, 4).movedim(-1, 1).double()
    ious = common.iou_per_class(common.confusion_matrix(pred, label, 4))
    assert nb.lovasz_softmax(hard, label).item() == pytest.approx(1 - ious[[0, 1, 3]].mean(), abs=1e-12)


# cross-entropy, and what holds for all terms


@pytest.mark.parametrize("weights", [None, (1.0, 5.0, 0.5, 2.0)])
def test_cross_entropy_is_a_weighted_mean_over_valid_pixels(nb, weights):
    logits, label = random_case(void=True, absent=(2,))
    log_probs, total, norm = logits.log_softmax(1), 0.0, 0.0
    for b, y, x in np.ndindex(*label.shape):
        c = int(label[b, y, x])
        if c != 255:
            w = weights[c] if weights else 1.0
            total, norm = total - w * log_probs[b, c, y, x], norm + w
    given = logits.new_tensor(weights) if weights else None
    torch.testing.assert_close(nb.cross_entropy(logits, label, given), total / norm)


TERMS = {"ce": lambda nb, z, label: nb.cross_entropy(z, label), "ssim": lambda nb, z, label: nb.ssim_loss(z.softmax(1), label),
         "iou": lambda nb, z, label: nb.soft_iou_loss(z.softmax(1), label),
         "lovasz": lambda nb, z, label: nb.lovasz_softmax(z.softmax(1), label)}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("void", [False, True])
def test_gradients_are_those_of_finite_differences(nb, term, void):
    logits, label = random_case(classes=3, size=(6, 7), absent=(1,))
    logits, label = logits[:1], label[:1]
    if void:
        label[0, 0, 0] = 255  # the only windows without it are at the opposite side
    assert torch.autograd.gradcheck(lambda z: TERMS[term](nb, z, label), logits.requires_grad_())


@pytest.mark.parametrize("term", ["ce", "iou", "lovasz"])
def test_void_pixels_get_no_gradient_and_the_others_do(nb, term):
    logits, label = random_case(void=True, absent=(2,))
    TERMS[term](nb, logits.requires_grad_(), label).backward()
    per_pixel = logits.grad.abs().sum(1)
    assert (per_pixel[label == 255] == 0).all() and (per_pixel[label != 255] > 0).float().mean() > 0.9


@pytest.mark.parametrize("term", TERMS)
def test_a_batch_of_void_costs_nothing_and_can_be_stepped_on(nb, term):
    logits, label = random_case()
    loss = TERMS[term](nb, logits.requires_grad_(), torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and (logits.grad == 0).all()


def test_the_approaches_are_the_published_ones_and_two_controls(nb):
    bas, lovasz = {"ce": 1.0, "ssim": 0.4, "iou": 0.5}, {"ce": 1.1, "ssim": 0.5, "lovasz": 0.5}
    control = {"terms": {"ce": 1.0, "ssim": 0.4, "lovasz": 0.5}, "paste": True}
    assert nb.APPROACHES == {
        "baseline": {"terms": {"ce": 1.0}},
        "bas": {"terms": bas},
        "bas_copypaste": {"terms": bas, "paste": True},
        "bas_lovasz": control,
        "bas_lovasz_matched": control | {"match": True},
        "ssim_lovasz": {"terms": lovasz, "class_weights": (1, 5, 1, 1, 5, 5, 2), "paste": True},
    }
    assert set(control["terms"].items()) ^ set(bas.items()) == {("iou", 0.5), ("lovasz", 0.5)}


@pytest.mark.parametrize("normalize", ["present", "C"])
@pytest.mark.parametrize("approach", ["baseline", "bas", "bas_copypaste", "bas_lovasz", "ssim_lovasz"])
def test_the_loss_of_an_approach_is_the_weighted_sum_of_its_terms(nb, approach, normalize):
    recipe = {"terms": nb.APPROACHES[approach]["terms"], "class_weights": nb.APPROACHES[approach].get("class_weights")}
    logits, label = random_case(classes=7, void=True, absent=(3,), dtype=torch.float32)
    label[:, :, :12] = label[:, :, :12].where(label[:, :, :12] != 255, 0)  # leaves windows without void
    weights = recipe["class_weights"] and torch.tensor(recipe["class_weights"]).float()

    def expected(z):
        p = z.softmax(1)
        losses = {"ce": F.cross_entropy(z, label, weight=weights, ignore_index=255), "ssim": nb.ssim_loss(p, label),
                  "iou": nb.soft_iou_loss(p, label), "lovasz": nb.lovasz_softmax(p, label, normalize)}
        return sum(c * losses[name] for name, c in nb.APPROACHES[approach]["terms"].items())

    assert_same(lambda z: nb.hybrid_loss(z, label, normalize=normalize, **recipe), expected, logits)
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = nb.hybrid_loss(half, label, normalize=normalize, **recipe)
    torch.testing.assert_close(ours, expected(half.float()), atol=1e-6, rtol=1e-5)
    stepped = nb.training_loss(lambda image: image, {"image": logits, "label": label}, normalize=normalize, **recipe)
    torch.testing.assert_close(stepped, expected(logits))


# strength


def test_the_length_of_a_terms_gradient_is_that_at_the_logits(nb):
    logits, label = random_case(classes=7, dtype=torch.float32)
    lengths = nb.term_lengths(logits, label)
    assert list(lengths) == list(nb.TERMS) and not logits.requires_grad
    for term in nb.TERMS:
        leaf = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(TERMS[term](nb, leaf, label), leaf)
        assert lengths[term] == pytest.approx(slope.norm().item(), rel=1e-4)


def test_a_matched_lovasz_pulls_as_hard_as_soft_iou_did_before_the_first_step(nb, toy):
    data = nb.make_data(common.list_frames(toy, "train"), (32, 64), THIN7, "mit_b0", 0)
    model = nb.SegFormer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    terms = nb.matched({"ce": 1.0, "lovasz": 0.5}, model, data, batch_size=8, batches=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the network is left alone"
    image, label = (torch.stack([data[k][name] for k in range(8)]) for name in ("image", "label"))
    torch.manual_seed(0)  # the same dropout
    logits, lengths = model.train()(image).detach(), []
    for loss in ({"iou": 0.5}, {"lovasz": terms["lovasz"]}):
        leaf = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(nb.hybrid_loss(leaf, label, loss), leaf)
        lengths.append(slope.norm().item())
    assert terms["ce"] == 1.0 and lengths[0] == pytest.approx(lengths[1], rel=1e-3)


def test_on_a_pole_that_slid_ssim_pulls_least_where_it_is_wrong_and_soft_iou_minds_thin_things_most(nb):
    truth, slid = nb.shifted(4, 3)
    force, flat = nb.pull("ssim", slid, truth)[1].abs(), torch.ones(96, 96, dtype=torch.bool)
    flat[:, 36:64] = False
    assert 2 * force[(truth != slid)[0]].mean() < force[flat].mean()
    steps = {}
    for width in (4, 32):
        losses = [nb.pull("iou", moved, label)[0] for label, moved in (nb.shifted(width, 0), nb.shifted(width, 1))]
        steps[width] = losses[1] - losses[0]
    assert steps[4] > 2 * steps[32]


def on_missed(nb, term, width, confidence=0.98):
    """The mean pull of a term on the pixels that an object predicted 6 pixels too far right misses."""
    truth, moved = nb.shifted(width, 6)
    return nb.pull(term, moved, truth, confidence)[1][(truth > moved)[0]].mean().item()


def test_the_pull_of_cross_entropy_is_the_error_and_a_class_weight_multiplies_it_for_misses(nb):
    for width in nb.WIDTHS.values():
        truth, moved = nb.shifted(width, 6)
        missed, false = (truth > moved)[0], (truth < moved)[0]
        assert on_missed(nb, "ce", width) == pytest.approx(-nb.pull("ce", moved, truth)[1][false].mean().item(), abs=0.01) == pytest.approx(0.98, abs=0.01)
        logits = nb.sure(moved).requires_grad_()
        nb.hybrid_loss(logits, truth, {"ce": 1.0}, (1, 5)).backward()
        assert logits.grad[0, 1][missed].mean().item() == pytest.approx(-5 * logits.grad[0, 1][false].mean().item(), rel=0.01)


def test_a_missed_pixel_of_a_thin_object_is_pulled_harder_by_soft_iou_and_lovasz_and_both_fade_when_the_network_is_sure(nb):
    for term, times in (("ce", 1), ("iou", 3), ("lovasz", 5)):
        thin, thick = (on_missed(nb, term, width) for width in nb.WIDTHS.values())
        assert thin / thick == pytest.approx(times, abs=0.3)
        assert (on_missed(nb, term, 4, confidence=0.999) < 0.1 * thin) == (term != "ce")


def test_of_a_pole_that_is_missed_three_losses_do_not_say_by_how_far_and_ssim_hardly_does(nb):
    for term in nb.TERMS:
        near, far = (nb.pull(term, moved, truth)[0] for truth, moved in (nb.shifted(4, 5), nb.shifted(4, 10)))
        assert far - near == pytest.approx(0.01 if term == "ssim" else 0, abs=1e-3)


def test_void_alone_leaves_the_coefficient_as_it_is(nb, toy):
    data = nb.make_data(common.list_frames(toy, "train"), (32, 64), THIN7._replace(table=np.full(256, 255, np.uint8)), "mit_b0", 0)
    assert nb.matched({"lovasz": 0.5}, nb.SegFormer(), data, batch_size=2, batches=2) == {"lovasz": 0.5}


# the network


def randomised(net, seed=0):
    """The network with random numbers in every weight and statistic, so that no part of it is an identity."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=rng) * 0.1
                value.copy_(1 + noise if value.dim() == 1 and name.endswith("weight") else noise.abs() + 0.5 if "running_var" in name else noise)
    return net


def test_the_network_has_the_published_number_of_parameters(nb):
    assert sum(p.numel() for p in nb.SegFormer().parameters()) == 3_715_943
    assert sum(p.numel() for p in nb.SegFormer(19).parameters()) == 3_719_027


def test_scores_are_computed_at_stride_4_and_enlarged_without_aligned_corners(nb):
    net, seen = randomised(nb.SegFormer()).eval(), []
    net.classifier.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        logits = net(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 7, 64, 96) and logits.dtype == torch.float32 and seen[0].shape == (2, 7, 16, 24)
    torch.testing.assert_close(logits, F.interpolate(seen[0], (64, 96), mode="bilinear", align_corners=False))


def test_a_tenth_of_what_the_classifier_sees_is_dropped_in_training_only(nb):
    net, seen = nb.SegFormer(), {}
    net.decoder.register_forward_hook(lambda *args: seen.update(before=args[2]))
    net.classifier.register_forward_pre_hook(lambda _, inputs: seen.update(after=inputs[0]))
    torch.manual_seed(0)
    for training in (True, False):
        with torch.no_grad():
            net.train(training)(torch.randn(2, 3, 64, 64))
        alive = seen["before"] > 0
        kept = seen["after"][alive] != 0
        assert abs(1 - kept.float().mean() - 0.1 * training) < 0.01
        torch.testing.assert_close(seen["after"][alive][kept] * (0.9 if training else 1), seen["before"][alive][kept])


def smp_name(name):
    """Where smp keeps a weight of the SegFormer of Hugging Face's transformers 5."""
    stage, _, rest = name.removeprefix("segformer.stages.").partition(".")
    if stage.isdigit():
        stage = int(stage) + 1
        for theirs, ours in {"blocks.": f"block{stage}.", "patch_embeddings.proj": f"patch_embed{stage}.proj", "k_proj": "kv", "v_proj": "kv",
                             "patch_embeddings.layer_norm": f"patch_embed{stage}.norm", "layernorm_before": "norm1", "layernorm_after": "norm2",
                             "sequence_reduction.sequence_reduction": "sr", "sequence_reduction.layer_norm": "norm", "attention": "attn",
                             "q_proj": "q", "o_proj": "proj"}.items():
            rest = rest.replace(theirs, ours)
        return "encoder." + (f"norm{stage}" + rest.removeprefix("layer_norm") if rest.startswith("layer_norm") else rest)
    if name.startswith("decode_head.linear_projections."):
        level, _, rest = name.removeprefix("decode_head.linear_projections.").partition(".")
        return f"decoder.mlp_stage.{3 - int(level)}.{rest.replace('proj', 'linear')}"
    for theirs, ours in {"linear_fuse": "fuse_stage.0", "batch_norm": "fuse_stage.1"}.items():
        name = name.replace(f"decode_head.{theirs}", f"decoder.{ours}")
    return name.replace("decode_head.classifier", "classifier")


def test_with_the_same_weights_the_network_scores_as_hugging_faces_does(nb):
    transformers = pytest.importorskip("transformers", "5.23")
    ours, theirs = randomised(nb.SegFormer()).eval(), transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=7))
    weights, moved, used = ours.state_dict(), {}, set()
    for name, value in theirs.state_dict().items():
        source = weights[smp_name(name)]
        if "k_proj" in name or "v_proj" in name:
            source = source.chunk(2)["v_proj" in name]
        assert source.shape == value.shape
        moved[name] = source
        used.add(smp_name(name))
    assert used == set(weights), "every weight of ours has its place"
    theirs.load_state_dict(moved)
    image, seen = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)), []
    ours.classifier.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        ours(image)
        torch.testing.assert_close(seen[0], theirs.eval()(image).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_attention_in_ten_lines_is_the_librarys_in_value_and_gradient(nb, stage):
    layer = randomised(nb.SegFormer()).eval().encoder.get_submodule(f"block{stage}")[1].attn
    rows, columns = 64 >> stage, 96 >> stage
    tokens = torch.randn(2, rows * columns, layer.dim, generator=torch.Generator().manual_seed(stage))
    assert layer.sr_ratio == 2 ** (4 - stage) and layer.num_heads == (1, 2, 5, 8)[stage - 1]
    assert_same(lambda x: nb.attention(x, rows, columns, layer).square().mean(), lambda x: layer(x, rows, columns).square().mean(), tokens)


def test_lite0_has_the_same_head_over_strides_4_to_32_and_pretrained_weights_without_a_hub(nb):
    net, used = nb.build_network("lite0", "auto")
    assert used == "lite0" and [mlp.linear.in_features for mlp in net.decoder.mlp_stage] == [320, 112, 40, 24]
    assert all(torch.equal(net.encoder.state_dict()[name], value) for name, value in common.runs.lite0_weights().items())
    assert net.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 7, 64, 96)
    assert nb.build_network("lite0", "none")[1] == "none"


@pytest.mark.parametrize("network", ["mit_b0", "lite0"])
def test_photos_are_scaled_as_the_weights_of_a_network_want_them(nb, toy, network):
    data = nb.make_data(common.list_frames(toy, "train"), (32, 64), THIN7, network, 0)
    wanted = (common.LITE0_MEAN, common.LITE0_STD) if network == "lite0" else (common.IMAGENET_MEAN, common.IMAGENET_STD)
    assert (data.mean, data.std) == wanted


# where the weights come from


def put_into_cache(cache, repository, revision):
    """Folder of a snapshot in the layout of the hub's cache."""
    base = cache / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(revision)
    snapshot = base / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


def put_cityscapes(nb, cache):
    """A SegFormer with 19 classes as the hub would hold it."""
    import segmentation_models_pytorch as smp

    net = randomised(smp.Segformer("mit_b0", encoder_weights=None, classes=19), seed=1)
    net.save_pretrained(put_into_cache(cache, nb.CITYSCAPES_WEIGHTS, "0" * 40))
    return net


def put_imagenet(cache):
    """An encoder as the hub would hold it, at the revision that smp asks for."""
    import segmentation_models_pytorch as smp
    from safetensors.torch import save_file

    settings = smp.encoders.encoders["mit_b0"]["pretrained_settings"]["imagenet"]
    encoder = randomised(smp.encoders.get_encoder("mit_b0", weights=None), seed=2)
    folder = put_into_cache(cache, settings["repo_id"], settings["revision"])
    save_file(encoder.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return encoder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, which itself cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("results.runs.hub_reachable", lambda: False)
    common.say_once.cache_clear()
    return tmp_path


def same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("weights", ["auto", "cityscapes"])
def test_a_network_trained_on_cityscapes_comes_first_and_gets_a_new_last_layer(nb, hub, weights):
    trained, encoder = put_cityscapes(nb, hub), put_imagenet(hub)
    net, used = nb.build_network("mit_b0", weights)
    assert used == "cityscapes" and not same_weights(net.encoder, encoder)
    assert same_weights(net.encoder, trained.encoder) and same_weights(net.decoder, trained.decoder)
    assert net.classifier.weight.shape == (7, 256, 1, 1) and net.dropout.p == 0.1 and net.training


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_an_encoder_trained_on_imagenet_comes_second(nb, hub, weights, capsys):
    encoder = put_imagenet(hub)
    net, used = nb.build_network("mit_b0", weights)
    assert used == "imagenet" and same_weights(net.encoder, encoder)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: ")]
    line = r"weights: The pretrained weights cityscapes cannot be fetched \(HF_HUB_OFFLINE is set\): .* The network starts from: imagenet\."
    assert len(said) == (weights == "auto") and all(re.fullmatch(line, one) for one in said)


def test_without_any_weights_auto_starts_from_scratch_and_says_so(nb, hub, capsys):
    assert nb.build_network("mit_b0", "auto")[1] == "none" == nb.build_network("mit_b0", "auto")[1]  # for a picture and for each run: said once
    (said,) = capsys.readouterr().out.splitlines()
    reason = r"The pretrained weights {} cannot be fetched \(HF_HUB_OFFLINE is set\): [^.]*\."
    assert re.fullmatch(f"weights: {reason.format('cityscapes')} {reason.format('imagenet')} The network starts from: none.", said)
    assert nb.build_network("mit_b0", "none")[1] == "none" and capsys.readouterr().out == ""


@pytest.mark.parametrize("weights", ["cityscapes", "imagenet"])
def test_weights_that_are_asked_for_and_not_there_stop_with_one_sentence(nb, hub, weights):
    with pytest.raises(common.StreetsError, match=f"^The pretrained weights {weights} cannot be fetched[^.]*\\.$"):
        nb.build_network("mit_b0", weights)


# the splits


def frames_of(n):
    return [data_prep.Frame(f"frame_{i:04d}", "city", None, None) for i in range(n)]


def test_cityscapes_is_cut_into_2000_250_and_250_images():
    frames = frames_of(2975)
    parts = common.split_frames(frames, 42)
    assert [len(part) for part in parts] == [2000, 250, 250]
    assert len({frame.name for part in parts for frame in part}) == 2500 and all(part == sorted(part) for part in parts)
    assert parts == common.split_frames(frames, 42) and all(a != b for a, b in zip(parts, common.split_frames(frames, 43)))


@pytest.mark.parametrize("n", [3, 4, 9, 10, 19, 40, 231, 2974, 3000])
def test_another_data_set_is_cut_into_80_10_and_10_per_cent_without_a_rest(n):
    train, val, test = common.split_frames(frames_of(n), 42)
    assert sorted(train + val + test) == frames_of(n) and len(val) == len(test) == max(1, n // 10)
    assert all(part == sorted(part) for part in (train, val, test))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_images_for_three_parts_leave_nothing_to_learn_from_and_lose_none(n):
    train, val, test = common.split_frames(frames_of(n), 42)
    assert train == [] and sorted(val + test) == frames_of(n)
    with pytest.raises(common.StreetsError, match="A split is empty"):
        common.StreetScenes(train, (32, 64))


# copy-paste


class Scenes:
    """One scene, which says that it was read."""

    def __init__(self, image, label):
        self.scene, self.reads = (image, label), []

    def __len__(self):
        return 5

    def read(self, index):
        self.reads.append(index)
        return self.scene


def two_scenes(seed=0, shape=(12, 16), classes=(0, 1, 3, 4, 6, 255), block=1):
    """A dark scene (image, label) and a bright one, so that a pixel tells where it is from; labels are made of blocks."""
    rng = np.random.default_rng(seed)
    dark, bright = (rng.integers(low, low + 100, (*shape, 3), dtype=np.uint8) for low in (0, 128))
    small = (shape[0] // block, shape[1] // block)
    labels = rng.integers(0, 7, small).astype(np.uint8), rng.choice(np.array(classes, np.uint8), small)
    labels = [one.repeat(block, axis=0).repeat(block, axis=1) for one in labels]
    return (dark, labels[0]), (bright, labels[1])


ALL = (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("seed", range(30))
def test_whole_classes_are_pasted_where_they_are_or_all_mirrored(nb, seed):
    (image, label), (source, source_label) = two_scenes(seed)
    before = [array.copy() for array in (image, label, source, source_label)]
    out, out_label = nb.paste_whole_classes(image, label, source, source_label, np.random.default_rng(seed), ALL)
    assert all((a == b).all() for a, b in zip((image, label, source, source_label), before)), "inputs are left alone"
    assert out.dtype == out_label.dtype == np.uint8 and out.shape == image.shape and out_label.shape == label.shape
    pasted = out[..., 0] >= 128
    picked = np.unique(out_label[pasted])
    assert len(picked) and set(picked) <= {1, 3, 4, 6}, "neither background nor void"
    views = [(source, source_label), (source[:, ::-1], source_label[:, ::-1])]
    photo, ids = next(view for view in views if (np.isin(view[1], picked) == pasted).all())
    np.testing.assert_array_equal(out, np.where(pasted[..., None], photo, image))
    np.testing.assert_array_equal(out_label, np.where(pasted, ids, label))


def test_one_to_all_of_the_classes_present_are_pasted_each_number_and_class_as_often_and_half_mirrored(nb):
    (image, label), (source, source_label) = two_scenes(classes=(0, 1, 3, 6, 255))
    counts, seen, mirrored = np.zeros(4, int), np.zeros(7, int), 0
    for seed in range(900):
        out, out_label = nb.paste_whole_classes(image, label, source, source_label, np.random.default_rng(seed), ALL)
        pasted = out[..., 0] >= 128
        picked = np.unique(out_label[pasted])
        counts[len(picked)] += 1
        seen[picked] += 1
        mirrored += not (np.isin(source_label, picked) == pasted).all()
    assert counts[0] == 0 and all(abs(n / 900 - 1 / 3) < 0.06 for n in counts[1:])
    assert all(abs(seen[c] / 900 - 2 / 3) < 0.06 for c in (1, 3, 6)) and abs(mirrored / 900 - 0.5) < 0.06


def test_only_the_classes_asked_for_are_pasted_and_nothing_where_the_source_has_none(nb):
    for seed in range(30):
        (image, label), (source, source_label) = two_scenes(seed, shape=(48, 64), block=8)
        out, out_label = nb.paste_whole_classes(image, label, source, source_label, np.random.default_rng(seed), (1, 4))
        assert set(np.unique(out_label[out[..., 0] >= 128])) <= {1, 4} and (out[..., 0] >= 128).any()
        same = nb.paste_whole_classes(image, label, source, source_label, np.random.default_rng(seed), (2, 5))
        assert (same[0] == image).all() and (same[1] == label).all()


def test_a_share_of_0_returns_the_arrays_themselves_and_a_share_of_1_always_pastes(nb):
    (image, label), source = two_scenes()
    for seed in range(50):
        data = Scenes(*source)
        untouched = nb.copy_paste(image, label, np.random.default_rng(seed), data, share=0.0)
        assert untouched[0] is image and untouched[1] is label and not data.reads
        out, _ = nb.copy_paste(image, label, np.random.default_rng(seed), data, share=1.0)
        assert (out[..., 0] >= 128).any() and data.reads[0] in range(5)


def test_the_share_is_a_probability_and_every_source_is_as_likely(nb):
    (image, label), source = two_scenes()
    data = Scenes(*source)
    for seed in range(800):
        nb.copy_paste(image, label, np.random.default_rng(seed), data, share=0.25)
    assert abs(len(data.reads) / 800 - 0.25) < 0.05 and set(data.reads) == set(range(5))


def test_what_is_pasted_depends_on_seed_epoch_and_index_only(nb, toy):
    frames = common.list_frames(toy, "train")
    source = common.StreetScenes(frames, (32, 64), "thin7")

    def scenes(seed):
        augment = partial(nb.copy_paste, data=source, share=0.9)
        return common.StreetScenes(frames, (32, 64), "thin7", seed=seed, augment=augment)

    keys = [(epoch, index) for epoch in (1, 2) for index in range(len(frames))]
    first, data = [scenes(5)[key] for key in keys], scenes(5)
    again = [data[key] for key in reversed(keys)][::-1]
    assert all(torch.equal(a[part], b[part]) for a, b in zip(first, again) for part in ("image", "label"))
    assert any(not torch.equal(a["label"], b["label"]) for a, b in zip(first[: len(frames)], first[len(frames) :])), "epochs differ"
    other = scenes(6)
    assert any(not torch.equal(a["label"], other[key]["label"]) for a, key in zip(first, keys))


def test_what_is_pasted_are_classes_of_this_study_and_no_label_ids(nb, toy):
    frames = common.list_frames(toy, "train")
    data = nb.make_data(frames, (64, 128), THIN7, "mit_b0", 0)
    for seed in range(20):
        image, label = data.read(0)
        out, out_label = nb.copy_paste(image, label, np.random.default_rng(seed), data, share=1.0)
        changed = (out != image).any(-1)
        assert set(np.unique(out_label[changed])) <= set(ALL) and out_label.max() <= 6


# scores


class Guesses(nn.Module):
    """A network that is right about half of the pixels of the images it knows, in blocks, and says class 2 or 4 elsewhere."""

    def __init__(self, data):
        super().__init__()
        self.known = {item["image"].numpy().tobytes(): item["label"] for item in (data[i] for i in range(len(data)))}
        self.anything = nn.Parameter(torch.zeros(1))

    def guess(self, image):
        label = self.known[image.cpu().numpy().tobytes()].clamp(max=6).clone()
        label[:, ::3], label[::4] = 2, 4
        return label

    def forward(self, images):
        return torch.stack([F.one_hot(self.guess(image), 7).movedim(-1, 0).float() for image in images]) + self.anything


def test_the_six_class_mean_leaves_background_out(nb, toy):
    data = nb.make_data(common.list_frames(toy, "val"), (64, 128), THIN7, "mit_b0", 0)
    net = Guesses(data)
    metrics, per_image = nb.evaluate(net, data)
    items = [data[i] for i in range(len(data))]
    preds, truths = [net.guess(item["image"]).numpy() for item in items], [item["label"].numpy() for item in items]
    iou = common.iou_per_class(sum(common.confusion_matrix(p, t, 7) for p, t in zip(preds, truths)))
    present = [c for c in range(1, 7) if any((t == c).any() for t in truths)]
    assert metrics["miou6"] == pytest.approx(iou[present].mean()) and metrics["miou6"] != pytest.approx(metrics["miou"])
    assert metrics["boundary_f1"] == pytest.approx(common.mean_over_images(per_image["boundary_f1"]))
    assert per_image["confusion"].shape == (3, 7, 7) and per_image["boundary_f1"].shape == (3, 7)


def test_a_class_that_no_label_holds_is_null_and_left_out_of_the_mean(nb, toy):
    data = nb.make_data(common.list_frames(toy, "val"), (32, 64), THIN7, "mit_b0", 0)
    data.scheme = THIN7._replace(table=np.where(THIN7.table == 4, 0, THIN7.table).astype(np.uint8))
    metrics, _ = nb.evaluate(Guesses(data), data)
    assert metrics["iou"]["pole"] is None
    rest = [metrics["iou"][name] for name in THIN7.classes[1:] if metrics["iou"][name] is not None]
    assert len(rest) < 6 and metrics["miou6"] == pytest.approx(np.mean(rest))


def test_a_score_of_ones_own_comes_back_image_by_image_in_order(nb, toy):
    data = nb.make_data(common.list_frames(toy, "train"), (32, 64), THIN7, "mit_b0", 0)
    net = Guesses(data)
    _, per_image = common.evaluate(net, data, batch_size=3, score=lambda p, t: {"pred": p, "truth": t, "sum": np.array(t.sum())})
    assert per_image["sum"].shape == (8,) and per_image["pred"].dtype == np.uint8
    for i, (pred, truth) in enumerate(zip(per_image["pred"], per_image["truth"])):
        np.testing.assert_array_equal(truth, data[i]["label"])
        np.testing.assert_array_equal(pred, net.guess(data[i]["image"]))


def blobs(seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 5, (2, 10, 12))
    truth, pred = small.repeat(5, axis=1).repeat(4, axis=2).astype(np.uint8)
    return np.where(rng.random(pred.shape) < 0.3, truth, pred), truth


def test_the_plain_boundary_f1_and_trimap_iou_are_those_that_the_course_uses(nb, toy):
    cases = [blobs(seed) for seed in range(4)]
    cases += [(np.roll(label, 2, axis=1), label) for label in (common.SCHEMES["thin7"].table[data_prep.read_label(f.label)]
                                                              for f in common.list_frames(toy, "val"))]
    cases += [(np.full((8, 9), 2, np.uint8), np.full((8, 9), 2, np.uint8)), (np.zeros((8, 9), np.uint8), np.full((8, 9), 2, np.uint8))]
    for pred, truth in cases:
        for tolerance in (1, 3):
            ours = [nb.boundary_f1(pred, truth, c, tolerance) for c in range(7)]
            np.testing.assert_allclose(ours, common.boundary_f1(pred, truth, 7, tolerance=tolerance), atol=1e-12)
            theirs = common.trimap_iou(pred, truth, 7, radius=tolerance)
            np.testing.assert_allclose(nb.trimap_iou(pred, truth, tolerance), theirs, atol=1e-12)


# the grid of cells, and widths


def test_a_grid_with_a_cell_for_every_pixel_draws_everything_and_a_coarse_one_loses_a_thin_pole(nb):
    label = np.zeros((32, 32), np.uint8)
    label[4:28, 13:15] = 4
    label[0, :8] = 255
    loss = partial(F.cross_entropy, ignore_index=255)
    drawn = {stride: nb.drawn_on_grid(label, stride, loss) for stride in (1, 4, 8)}
    ious = {stride: common.iou_per_class(common.confusion_matrix(one, label, 7))[4] for stride, one in drawn.items()}
    assert ious[1] == 1 and ious[4] > 0.6 > ious[8]
    assert all(one.shape == label.shape for one in drawn.values())


def widths_by_hand(mask):
    """Width of each pixel's object by flood fill and by trying every disc centre on a grid of half pixels."""
    todo, found = {tuple(p) for p in np.argwhere(mask)}, np.zeros(mask.shape)
    outside = np.argwhere(~np.pad(np.kron(mask, np.ones((2, 2), bool)), 1)) - 1
    while todo:
        queue, pixels = [min(todo)], []
        todo.remove(queue[0])
        while queue:
            r, c = queue.pop()
            pixels.append((r, c))
            near = {(r + a, c + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & todo
            todo -= near
            queue += near
        cells = [(2 * r + a, 2 * c + b) for r, c in pixels for a in (0, 1) for b in (0, 1)]
        found[tuple(zip(*pixels))] = max(np.sqrt(((outside - cell) ** 2).sum(1).min()) for cell in cells)
    return found[mask]


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_widths_equal_brute_force_on_tiny_masks(nb, density):
    rng = np.random.default_rng(1)
    for _ in range(10):
        mask = rng.random((9, 11)) < density
        np.testing.assert_allclose(nb.object_widths(mask), widths_by_hand(mask), atol=1e-5)


@pytest.mark.parametrize("width", range(1, 9))
def test_a_bar_is_as_wide_as_it_is_whatever_its_parity_place_and_direction(nb, width):
    for top, left in ((3, 5), (0, 0), (10, 32)):  # inside, in a corner, and cut off by the frame
        mask = np.zeros((30, 40), bool)
        mask[top : top + 20, left : left + width] = True
        for view in (mask, mask.T):
            np.testing.assert_array_equal(nb.object_widths(view), np.full(mask.sum(), width))


def test_pixels_that_touch_at_a_corner_are_one_object_of_one_pixel_width(nb):
    assert nb.object_widths(np.eye(6, dtype=bool)).tolist() == [1] * 6


# scores of committed runs


def test_poles_are_scored_over_all_test_pictures_by_recall_precision_and_contours(nb, tmp_path):
    confusion, contours = np.zeros((2, 7, 7), int), np.full((2, 7), np.nan)
    confusion[0, 4, 4], confusion[1, 4, 0], confusion[1, 0, 4] = 3, 9, 1
    contours[0, 4] = 0.5  # the other picture has no pole
    np.savez(tmp_path / "test_per_image.npz", confusion=confusion, boundary_f1=contours)
    assert nb.on_poles(tmp_path) == pytest.approx({"recall": 25, "precision": 75, "boundary F1": 50})


def seen_as(seeds):
    """What `find_runs` gives of the committed runs, seen as if they were of several seeds."""
    committed = ROOT / "results" / NAME / "camvid11-laptop"
    return pd.DataFrame([{"method": name, "seed": seed, "folder": committed / f"{name}_seed42"}
                         for name in notebook_definitions(NAME).APPROACHES for seed in seeds])


@pytest.mark.parametrize("seeds", [(42,), (42, 43), (42, 43, 44)])
def test_answers_come_from_one_two_or_three_seeds_and_only_from_pairs_that_there_are(nb, seeds):
    folders = seen_as(seeds).pivot(index="seed", columns="method", values="folder")
    table = common.compare_pairs(folders, nb.QUESTIONS, {"iou_pole": "pole"})
    first = table.loc["SSIM and soft IoU", "pole"]
    assert [*table.index] == [(question, "pole") for question in nb.QUESTIONS]
    assert first["difference"] == pytest.approx(5.3, abs=0.05) and first["low"] <= first["difference"] <= first["high"]
    assert table["seeds"].tolist() == [len(seeds)] * len(table)
    fewer = common.compare_pairs(folders[["bas", "baseline"]], nb.QUESTIONS, {"iou_pole": "pole"})
    pd.testing.assert_frame_equal(fewer, table.iloc[:1])
    alone = common.compare_pairs(folders[["bas"]], nb.QUESTIONS, {"iou_pole": "pole"})
    assert alone.empty and list(alone) == list(table)


def test_a_pair_is_compared_over_the_seeds_that_both_have(nb):
    folders = seen_as((42, 43)).pivot(index="seed", columns="method", values="folder")
    folders.loc[43, "bas"] = None
    table = common.compare_pairs(folders, nb.QUESTIONS, {"iou_pole": "pole"})
    assert table["seeds"].to_dict()["SSIM and soft IoU", "pole"] == 1 == table["seeds"].min() and table["seeds"].max() == 2


def test_the_figure_of_pulls_says_how_hard_missed_pixels_are_pulled_and_how_much_is_on_right_ones(nb):
    slides = {kind: [nb.shifted(width, shift) for shift in range(8)] for kind, width in nb.WIDTHS.items()}
    pulls = {(term, kind): [nb.pull(term, moved, truth) for truth, moved in slides[kind]] for term in nb.TERMS for kind in slides}
    fig = common.show_pulls(pulls, slides, nb.NAMES)
    titles = [axis.get_title() for axis in fig.axes]
    assert titles[:4] == list(nb.NAMES.values())
    for row, kind in enumerate(slides, start=1):
        truth, moved = (one[0] for one in slides[kind][6])
        for column, term in enumerate(nb.TERMS):
            force = pulls[term, kind][6][1]
            right = force[truth == moved].abs().sum() / force.abs().sum()
            assert titles[4 * row + column] == f"missed {force[(truth == 1) & (moved == 0)].mean():.2f}, right {right:.0%}"
    plt.close(fig)


def test_over_the_whole_object_soft_iou_pulls_the_thick_one_harder(nb):
    whole = {}
    for width in (4, 32):
        truth, moved = nb.shifted(width, 6)
        whole[width] = nb.pull("iou", moved, truth)[1][truth[0] == 1].sum().item()
    assert whole[32] / whole[4] == pytest.approx(2.66, abs=0.03)


def test_significant_are_the_classes_that_survive_holms_correction(nb, monkeypatch):
    p = {"pole": 0.02, "traffic sign": 0.01, "fence": 0.2, "car": 0.03}  # levels .05/3, .05/4, and none after the first that fails
    monkeypatch.setattr(common, "compare_runs", lambda a, b, metric: (0.1, 0.05, 0.15, p[metric.removeprefix("iou_")]))
    folders = seen_as((42, 43)).pivot(index="seed", columns="method", values="folder")
    table = common.compare_pairs(folders, nb.QUESTIONS, {f"iou_{name}": name for name in p})
    assert np.allclose(table[["difference", "low", "high"]], [10, 5, 15])
    sure = survivors(table["p"].unstack())
    assert sure.sum().to_dict() == {"car": 0, "fence": 0, "pole": 0, "traffic sign": len(nb.QUESTIONS)}
    for seeds, expected in {(42,): set(), (42, 43): {"traffic sign"}}.items():  # one seed proves nothing
        table = run_cells(["survivors("], {"found": seen_as(seeds)})["table"]
        assert {name for _, name in table.index[table["significant"]]} == expected


def test_the_published_differences_are_those_of_the_printed_rows():
    published = common.read_published(NAME)
    iou = published[published["metric"] == "iou"].pivot(index="class", columns="method", values="value").astype(float)
    assert round(iou["bas"] - iou["baseline"], 2)["fence"] == 5.22 and round(iou["bas_copypaste"] - iou["bas"], 2)["fence"] == -0.80


# the recipe and the names of runs


def test_paper_mode_is_the_published_recipe():
    paper = notebook_definitions(NAME).MODES["paper"]
    assert (paper["height"], paper["images"], paper["epochs"], paper["batch_size"], paper["lr"]) == (512, 0, 15, 2, 6e-5)
    assert 15 * (2000 // paper["batch_size"]) == 15_000


def fitted(nb, monkeypatch, approach, **changes):
    """What train_approach hands to common.fit, for five different lists of frames."""
    seen = {}
    monkeypatch.setattr(common, "fit", lambda folder, model, loss, train, val, **options: seen.update(options, loss=loss, train=train, val=val))
    splits = {name: frames_of(6)[k : k + 2] for k, name in enumerate(("val", "test", "official_val"))} | {"train": frames_of(20)}
    settings = nb.MODES["paper"] | {"epochs": 2} | changes.pop("settings", {})
    options = {"network": "mit_b0", "weights": "none", "pasting": {"share": 0.3, "classes": (1, 4)}, "normalize": "C", "seed": 9} | changes
    nb.train_approach("f", nb.APPROACHES[approach], settings, splits | {"none": []}, (32, 64), THIN7, **options)
    return seen | {"splits": splits}


@pytest.mark.parametrize("approach", ["baseline", "bas", "bas_copypaste", "bas_lovasz", "ssim_lovasz"])
def test_an_approach_trains_on_its_recipe_and_pastes_from_training_images_only(nb, monkeypatch, approach):
    seen = fitted(nb, monkeypatch, approach)
    recipe, train, splits = nb.APPROACHES[approach], seen["train"], seen["splits"]
    assert train.frames == splits["train"] and seen["val"].frames == splits["val"] and seen["test_data"].frames == splits["test"]
    assert all(data.augment is None for data in (seen["val"], seen["test_data"], *seen["final_scores"].keywords["data"].values()))
    assert {name: data.frames for name, data in seen["final_scores"].keywords["data"].items()} == {"official_val": splits["official_val"]}
    assert seen["loss"].keywords == {"terms": recipe["terms"], "class_weights": recipe.get("class_weights"), "normalize": "C"}
    assert seen["final_scores"].keywords["terms"] == recipe["terms"]
    if recipe.get("paste"):
        source = train.augment.keywords["data"]
        assert source.frames == splits["train"] and source.augment is None and source.scheme is THIN7 and source.size == (32, 64)
        assert train.augment.func is nb.copy_paste
        assert {k: v for k, v in train.augment.keywords.items() if k != "data"} == {"share": 0.3, "classes": (1, 4)}
    else:
        assert train.augment is None


def test_the_matched_approach_trains_with_the_coefficient_that_it_records(nb, monkeypatch):
    monkeypatch.setattr(nb, "matched", lambda terms, model, data, batch_size: terms | {"lovasz": 0.03})
    seen = fitted(nb, monkeypatch, "bas_lovasz_matched")
    assert seen["loss"].keywords["terms"] == seen["final_scores"].keywords["terms"] == {"ce": 1.0, "ssim": 0.4, "lovasz": 0.03}
    assert fitted(nb, monkeypatch, "bas_lovasz")["loss"].keywords["terms"]["lovasz"] == 0.5


def test_one_cycle_rises_for_a_tenth_of_the_steps_and_falls(nb, monkeypatch):
    seen = fitted(nb, monkeypatch, "baseline", settings={"schedule": "one_cycle"})
    group, rates = seen["optimizer"].param_groups[0], []
    for _ in range(20):
        rates.append(group["lr"])
        seen["optimizer"].step()
        seen["scheduler"].step()
    assert max(rates) == pytest.approx(nb.MODES["paper"]["scratch_lr"]) and np.argmax(rates) == 1 and rates[-1] < 1e-5


def test_training_is_adamw_with_a_rate_that_falls_to_zero_along_a_line(nb, monkeypatch):
    seen = fitted(nb, monkeypatch, "baseline")
    optimizer, scheduler = seen["optimizer"], seen["scheduler"]
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW and len(optimizer.param_groups) == 1
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0, (0.9, 0.999), 1e-8)
    assert (seen["clip_norm"], seen["schedule"], seen["epochs"], seen["batch_size"], seen["weights"]) == (1.0, "step", 2, 2, "none")
    assert seen.get("select", "last") == "last", "the last epoch counts"
    rates = []
    for _ in range(20):  # two epochs of ten batches
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([*rates, group["lr"]], np.linspace(nb.MODES["paper"]["scratch_lr"], 0, 21), atol=1e-12)


def test_pretrained_weights_take_the_published_rate(nb, hub, monkeypatch):
    put_imagenet(hub)
    seen = fitted(nb, monkeypatch, "baseline", weights="auto")
    assert seen["weights"] == "imagenet" and seen["optimizer"].param_groups[0]["lr"] == 6e-5


def test_approaches_start_from_the_same_numbers_with_the_same_seed(nb, monkeypatch):
    first = {}
    for approach in ("baseline", "bas_copypaste", "ssim_lovasz"):
        weights = [p.detach() for p in fitted(nb, monkeypatch, approach)["optimizer"].param_groups[0]["params"]]
        first = first or weights
        assert all(torch.equal(a, b) for a, b in zip(first, weights))


def run_cells(parts, given=(), **parameters):
    """The globals after the notebook's code cells that contain one of `parts`, with parameters injected as papermill does.

    All that the notebook defines is there from the beginning, and `given`, which other cells would have made.
    """
    cells = [cell.source for cell in jupytext.read(ROOT / "notebooks" / f"{NAME}.py").cells if cell.cell_type == "code"]
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    chosen = [cells[0], injected, *(cell for cell in cells[1:] if any(part in cell for part in parts))]
    assert all(any(part in cell for cell in chosen) for part in parts)
    scope = vars(notebook_definitions(NAME)) | {"In": chosen} | dict(given)
    for cell in chosen:
        exec(cell, scope)
    return scope


CHECK = ("MODES = {", "APPROACHES = {", "common.check_parameters(")


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """{approach: (folder, configuration)} of the runs that the notebook would train or load with the parameters given."""
    def plan(**parameters):
        asked = {}

        def note(folder, config, train, **options):
            asked[config["recipe"]] = folder, json.loads(json.dumps(config))
            return {"n_train": 6}

        monkeypatch.setattr(common.runs, "train_or_load", note)
        monkeypatch.setattr(common.runs, "record", lambda *args: {})
        given = {"root": tmp_path, "scheme": THIN7, "size": (32, 64), "splits": {}, "pasting": {}}
        run_cells((*CHECK, "common.train_runs("), given, **parameters)
        return asked
    return plan


@pytest.fixture
def names_of(planned):
    """{approach: name of its run, without the seed}."""
    return lambda **parameters: {name: folder.name.removesuffix("_seed42") for name, (folder, _) in planned(**parameters).items()}


PLAIN = ("baseline", "bas")  # which paste nothing


def test_an_approach_is_named_after_what_it_reads(names_of):
    pasted, names = "-paste_classespole-paste_share0.75", names_of(paste_classes="pole", paste_share=0.75, normalize="C")
    for name in notebook_definitions(NAME).APPROACHES:
        assert names[name] == name + pasted * (name not in PLAIN) + "-normalizeC" * ("lovasz" in name)


def test_what_an_approach_does_not_read_leaves_its_run_the_same(planned):
    before, after = planned(), planned(paste_classes="pole", paste_share=0.75, normalize="C")
    for name, (folder, config) in before.items():
        same = common.runs.differing_keys(after[name][1], config) == []
        assert same == (name in PLAIN) == (after[name][0] == folder)
        assert config["settings"]["precision"] == "auto" and config["parameters"]["void"] == "background"
        assert config["settings"]["network"] == "lite0"


def test_defaults_leave_no_mark_on_a_run_and_changes_mark_those_that_read_them(names_of):
    approaches, quick = notebook_definitions(NAME).APPROACHES, notebook_definitions(NAME).MODES["quick"]
    assert names_of() == {name: name for name in approaches}
    same = {name: quick[name] for name in ("epochs", "height", "network")}
    assert names_of(paste_classes="all", void="background", **same) == {name: name for name in approaches}
    names = names_of(network="mit_b0", paste_classes="fence", epochs=3, void="ignore")
    assert names["baseline"] == names["bas"].replace("bas-", "baseline-") == "baseline-networkmit_b0-voidignore-epochs3"
    assert names["bas_copypaste"] == "bas_copypaste-networkmit_b0-paste_classesfence-voidignore-epochs3"
    assert names_of(paste_classes="traffic sign,pole")["bas_copypaste"].startswith("bas_copypaste-paste_classestraffic_sign_pole-")


def test_only_the_approaches_that_are_wanted_are_trained(planned):
    assert list(planned(approach="bas_copypaste,baseline")) == ["baseline", "bas_copypaste"]
    assert list(planned()) == list(notebook_definitions(NAME).APPROACHES)


def test_other_values_make_other_names(names_of):
    changes = [{}, {"lr": 1e-4}, {"lr": 6e-5}, {"height": 64}, {"images": 12}, {"paste_share": 0.8}, {"void": "ignore"}, {"normalize": "C"},
               {"paste_classes": "pole"}, {"paste_classes": "fence,pole"}, {"paste_classes": "pole,fence"}, {"batch_size": 2}, {"precision": "bf16"}]
    assert len({names_of(**change)["ssim_lovasz"] for change in changes}) == len(changes)


def test_values_of_the_mode_can_be_set_although_the_parameters_cell_does_not_show_them(nb):
    settings = run_cells(CHECK, batch_size=2, lr=0.25, schedule="linear")["settings"]
    assert settings == nb.MODES["quick"] | {"batch_size": 2, "lr": 0.25, "scratch_lr": 0.25, "schedule": "linear"}


@pytest.mark.parametrize(("parameters", "sentence"), [
    ({"approach": "lovasz"}, "approach does not know 'lovasz': use baseline"), ({"network": "vit"}, "network does not know 'vit': use mit_b0 or lite0"),
    ({"paste_classes": "fence,road"}, "paste_classes does not know 'road': use fence"), ({"weights": "coco"}, "weights does not know 'coco'"),
    ({"weights": "cityscapes"}, "lite0 has no weights trained on Cityscapes"),
    ({"paste_share": 1.5}, "paste_share must be 0.0 to 1.0, not 1.5"), ({"normalize": "all"}, "normalize does not know 'all'"),
    ({"void": "keep"}, "void does not know 'keep'"), ({"lr": -1}, "lr must be 1e-09 to 10.0, not -1.0"), ({"aproach": "bas"}, "There is no parameter 'aproach'"),
    ({"photo": "missing.jpg"}, "photo: there is no file missing.jpg"),
    ({"schedule": "poly"}, "schedule does not know 'poly'"), ({"precision": "fp8"}, "precision does not know 'fp8'")])
def test_a_wrong_parameter_stops_with_one_sentence(parameters, sentence):
    with pytest.raises(common.StreetsError) as caught:
        run_cells(CHECK, **parameters)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_the_published_means_are_those_of_the_published_classes():
    published = common.read_published(NAME)
    means = common.headline(published, "miou6").set_index("method")["value"].astype(float)
    assert list(means.index) == ["baseline", "bas", "bas_copypaste", "ssim_lovasz"]
    assert (published["weights"] == "cityscapes").all()
    for method, mean in means.items():
        classes = published[(published["metric"] == "iou") & (published["method"] == method)]
        assert list(classes["class"]) == THIN7.classes[1:]
        assert classes["value"].astype(float).mean() == pytest.approx(mean, abs=0.0101)


# the whole notebook


def run_notebook(out, kernel=False, **parameters):
    """Summaries by folder name of a run, by papermill in a kernel or as a script."""
    parameters = TINY | {"out_dir": str(out / "results")} | parameters
    if not kernel:
        run_script(NAME, out, **parameters)
        return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}
    run_in_kernel(NAME, out, **parameters)
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}


def numbers(tree):
    """All numbers in nested dicts."""
    return [n for value in tree.values() for n in (numbers(value) if isinstance(value, dict) else [value]) if n is not None]


def check_run(folder, summary, splits):
    """The files of a run agree with its summary."""
    config, history = json.loads((folder / "config.json").read_text()), pd.read_csv(folder / "history.csv")
    assert config["method"] == summary["method"] and len(history) and np.isfinite(history[["train_loss", "miou"]]).all(axis=None)
    assert list(summary["final"]) == [*splits, "coefficients"] and all(math.isfinite(n) for n in numbers(summary["metrics"]) + numbers(summary["final"]))
    assert (folder / "last.safetensors").exists()
    kept = np.load(folder / "test_per_image.npz")
    iou = common.iou_per_class(kept["confusion"].sum(0))
    for c, name in enumerate(THIN7.classes):
        there = kept["confusion"].sum(0)[c].sum() > 0
        assert summary["test"]["iou"][name] == (pytest.approx(iou[c]) if there else None)
    for scores in (summary["metrics"], summary["test"]):
        assert scores["miou6"] == pytest.approx(np.mean([v for v in list(scores["iou"].values())[1:] if v is not None]))


def test_all_approaches_run_under_papermill_and_leave_complete_results(nb, toy, tmp_path):
    summaries = run_notebook(tmp_path, kernel=True, data_dir=str(toy), seed=43)  # by which the first batch gets something pasted
    assert set(summaries) == {f"{name}-weightsnone-height32-epochs1-images10_seed43" for name in nb.APPROACHES}
    losses = set()
    for name, summary in summaries.items():
        folder = tmp_path / "results" / NAME / "toy-quick" / name
        check_run(folder, summary, [])
        assert (summary["n_train"], summary["n_val"], summary["n_test"]) == (8, 3, 2)
        assert (summary["weights"], summary["selected"]) == ("none", "last")
        assert (summary["final"]["coefficients"].get("lovasz") in (None, 0.5)) == ("matched" not in name)
        losses.add(pd.read_csv(folder / "history.csv")["train_loss"][0])
    assert len(losses) == 6, "six approaches, six losses"
    executed = json.loads((tmp_path / "out.ipynb").read_text())
    pictures = [o for c in executed["cells"] for o in c.get("outputs", []) if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
    assert len(pictures) >= 8


def test_one_approach_alone_runs_in_the_other_readings_which_stand_in_its_name(toy, tmp_path):
    summaries = run_notebook(tmp_path, data_dir=str(toy), approach="ssim_lovasz", network="mit_b0", paste_classes="fence,pole",
                             void="ignore", normalize="C", paste_share=1.0)
    ((name, summary),) = summaries.items()
    assert name.startswith("ssim_lovasz-networkmit_b0-weightsnone-paste_classesfence_pole") and name.endswith("_seed42")
    config = json.loads((tmp_path / "results" / NAME / "toy-quick" / name / "config.json").read_text())
    assert config["changes"] == {"network": "mit_b0", "weights": "none", "paste_classes": "fence,pole", "paste_share": 1.0, "normalize": "C",
                                 "void": "ignore", "height": 32, "epochs": 1, "images": 10}
    check_run(tmp_path / "results" / NAME / "toy-quick" / name, summary, [])


@pytest.mark.parametrize("changes", [{"share": 0.0}, {"normalize": "C"}, {"network": "lite0"}])
def test_each_other_reading_trains_to_finite_scores(nb, toy, tmp_path, changes):
    pasting = {"share": changes.pop("share", 1.0), "classes": ALL}
    folder = train_tiny(toy, tmp_path / "run", "bas_lovasz", epochs=1, pasting=pasting, **changes)
    check_run(folder, json.loads((folder / "summary.json").read_text()), ["official_val"])


def train_tiny(root, out, approach="bas_copypaste", epochs=4, scheme=THIN7, **changes):
    """One approach as the notebook trains it; returns its folder."""
    common.runs.SAVE_SECONDS = 0.0  # a state after every epoch
    nb = notebook_definitions(NAME)
    train, val, test = common.split_frames(common.list_frames(root, "train"), 42)
    splits = {"train": train, "val": val, "test": test, "official_val": common.list_frames(root, "val")}
    settings = nb.MODES["course"] | {"height": 32, "epochs": epochs, "eval_every": 1, "batch_size": 3}
    config = {"method": approach, "parameters": {"seed": 1, "mode": "course"}, "dataset": "toy", "images": {"train": 6, "val": 1},
              "recorded": {"versions": {}, "command": "", "definitions": "", "started": "2026"}}
    options = {"network": "mit_b0", "weights": "none", "pasting": {"share": 0.8, "classes": ALL}, "normalize": "present", "seed": 1}
    run = partial(nb.train_approach, recipe=nb.APPROACHES[approach], settings=settings, splits=splits, size=(32, 64), scheme=scheme,
                  **options | changes)
    common.runs.train_or_load(out, config, run)
    return out


def test_a_killed_training_resumes_and_ends_in_the_same_numbers(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(common.runs, "SAVE_SECONDS", 0.0)
    folders, (_, unbroken) = tiny_run.killed_and_unbroken(__name__, train_tiny, toy, tmp_path, times=3)
    assert len(unbroken) == 4 and len({*map(tuple, unbroken.values)}) == 4
    kept = [np.load(folder / "test_per_image.npz")["confusion"] for folder in folders]
    assert (kept[0] == kept[1]).all()


def test_void_that_is_ignored_is_neither_trained_nor_scored(toy, tmp_path):
    ignored = common.SCHEMES["cityscapes19"].table == 255
    scheme = THIN7._replace(table=np.where(ignored, np.uint8(255), THIN7.table))
    folders = [train_tiny(toy, tmp_path / str(k), epochs=1, scheme=one) for k, one in enumerate((THIN7, scheme))]
    counted = [np.load(folder / "test_per_image.npz")["confusion"].sum() for folder in folders]
    assert counted[1] < counted[0] == 32 * 64


@pytest.mark.parametrize("form", ["camvid11", "camvid32"])
def test_the_notebook_runs_on_real_photos(real_data, tmp_path, form):
    data_prep.convert_camvid(copy_some(real_data / form, tmp_path / "source", form), tmp_path / "camvid")
    summaries = run_notebook(tmp_path, data_dir=str(tmp_path / "camvid"), approach="bas_copypaste", height=64)
    ((name, summary),) = summaries.items()
    check_run(tmp_path / "results" / NAME / f"{form}-quick" / name, summary, [])
    assert summary["dataset"] == form and summary["n_train"] == 10
    assert (summary["metrics"]["iou"]["traffic light"] is None) == (form == "camvid11")
