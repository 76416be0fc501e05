"""Notebook 05: its edges, proxy network, losses, strengths, network and scores against oracles and naive loops, and whole runs."""

import json
import math
import urllib.error
from functools import partial

import cv2
import jupytext
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny_run
import torch
from conftest import ROOT, notebook_definitions, run_script
from street_labels import real_label
from torch import nn
from torch.nn import functional as F

import common
from results import extras_05

NAME = "05_semeda"
TINY = {"height": 64, "crop": 64, "epochs": 1, "stage_epochs": 1, "images": 6, "batch_size": 3, "weights": "none"}
REDUCTIONS = ("pixels", "elements", "sum")
TUNED = ["continued", "sobel_tuned", "semeda_tuned", "semeda_elements", "sobel_matched", "semeda_matched"]
DIRECT = ["ppce", "sobel_4", "semeda_4_2_0"]
LAMBDAS = ((4.0, 2.0, 0.0), (0.5, 1.0, 0.25), (0.0, 1.5, 0.0), (0.0, 0.0, 3.0))


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


def random_labels(seed=0, classes=4, size=(13, 15), void=0.0, batch=2):
    """Labels (B, H, W) of blocks and single pixels, a share of them void."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, classes, (batch, -(-size[0] // 5), -(-size[1] // 5)))
    label = small.repeat(5, axis=1).repeat(5, axis=2)[:, : size[0], : size[1]]
    label = np.where(rng.random(label.shape) < 0.03, rng.integers(0, classes, label.shape), label)
    return torch.from_numpy(np.where(rng.random(label.shape) < void, 255, label))


# edges


def shifted_edges(label):
    """(edges, valid) of a label (H, W): each pixel beside its eight neighbours, the frame continued by its own pixels."""
    around, (h, w) = np.pad(label, 1, mode="edge"), label.shape
    views = [around[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    valid = np.all([view != 255 for view in views], axis=0)
    return np.any([view != label for view in views], axis=0) & valid, valid


def assert_shifted(nb, labels):
    for found, expected in zip(zip(*nb.semantic_edges(labels)), map(shifted_edges, labels.numpy())):
        for ours, theirs in zip(found, expected):
            assert ours.dtype == torch.bool
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (13, 15), (40, 33)])
@pytest.mark.parametrize("void", [0.0, 0.03, 0.3, 1.0])
def test_edges_are_what_eight_shifted_comparisons_find(nb, void, size):
    for seed in range(5):
        assert_shifted(nb, random_labels(seed, classes=19, size=size, void=void))


def test_edges_of_real_labels_are_what_eight_shifted_comparisons_find(nb, real_data):
    labels = [real_label(index)[0] for index in (0, 240, 480)]
    assert any((label == 255).any() for label in labels)
    for label in labels:
        assert_shifted(nb, torch.from_numpy(label)[None].long())


def test_void_and_its_eight_neighbours_are_neither_valid_nor_edges(nb):
    label = torch.full((1, 9, 9), 3)
    label[0, 4, 4] = 255
    edges, valid = nb.semantic_edges(label)
    expected = torch.ones(9, 9, dtype=torch.bool)
    expected[3:6, 3:6] = False
    assert torch.equal(valid[0], expected) and not edges.any()
    label[0, :, 5:] = 7  # a seam that runs into the void
    assert not nb.semantic_edges(label)[0][0, 3:6, 3:6].any() and nb.semantic_edges(label)[0][0, :3, 4:6].all()


def test_the_frame_of_a_uniform_image_is_no_edge(nb):
    edges, valid = nb.semantic_edges(torch.full((1, 6, 8), 18))
    assert valid.all() and not edges.any()


@pytest.mark.parametrize("turned", [False, True])
def test_a_straight_seam_is_two_pixels_wide(nb, turned):
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    label[..., 4:] = 1
    edges = nb.semantic_edges(label.mT if turned else label)[0]
    assert ((edges.mT if turned else edges)[0].numpy() == np.isin(np.arange(10), (3, 4))).all()


def test_edges_of_a_batch_are_those_of_its_images_one_by_one(nb):
    labels = random_labels(3, void=0.03, batch=5)
    for together, alone in zip(nb.semantic_edges(labels), zip(*(nb.semantic_edges(one) for one in labels.split(1)))):
        assert torch.equal(together, torch.cat(alone))


# the proxy network


def naive_conv(maps, layer):
    """A 3x3 convolution (B, C, H, W) with zeros beyond the frame, one offset at a time."""
    padded, (h, w) = F.pad(maps, (1, 1, 1, 1)), maps.shape[-2:]
    weight = layer.weight.to(maps.dtype)
    return layer.bias.to(maps.dtype)[:, None, None] + sum(
        torch.einsum("oc,bchw->bohw", weight[..., dy, dx], padded[..., dy : dy + h, dx : dx + w]) for dy in range(3) for dx in range(3))


def naive_embeddings(proxy, maps):
    first = naive_conv(maps, proxy.layers[0]).clamp(min=0)
    second = naive_conv(first, proxy.layers[1]).clamp(min=0)
    scores = naive_conv(second, proxy.layers[2]).exp()
    return first, second, scores / scores.sum(1, keepdim=True)


def frozen_proxy(nb, classes=4, seed=0):
    torch.manual_seed(seed)
    return nb.EdgeNet(classes).requires_grad_(False).eval()


def test_the_proxy_network_has_7970_parameters(nb):
    assert sum(p.numel() for p in nb.EdgeNet().parameters()) == 7970


def test_embeddings_are_two_rectified_layers_and_the_softmax_of_the_third(nb):
    proxy, maps = frozen_proxy(nb), torch.rand(2, 4, 9, 11)
    found, expected = proxy.embeddings(maps), naive_embeddings(proxy, maps)
    assert [e.shape[1:] for e in found] == [(k, 9, 11) for k in (16, 32, 2)]
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs)


def test_the_third_embedding_is_the_softmax_of_what_the_network_answers(nb):
    proxy, maps = frozen_proxy(nb), torch.rand(2, 4, 9, 11)
    last, answer = proxy.embeddings(maps)[2], proxy(maps)
    assert torch.equal(last, answer.softmax(1)) and (answer < 0).any()
    torch.testing.assert_close(last.sum(1), torch.ones(2, 9, 11))


def test_one_hot_maps_name_the_class_of_a_pixel_and_nothing_at_void(nb):
    label = random_labels(void=0.1)
    maps = nb.one_hot(label, 5)
    assert maps.shape == (2, 5, 13, 15) and maps.dtype == torch.float32 and not maps[:, 4].any()
    assert torch.equal(maps.sum(1), (label != 255).float())
    assert torch.equal(maps.argmax(1)[label != 255], label[label != 255])


def answering(scores):
    """A proxy network that answers the scores (N, 2, H, W), one image after the other."""
    left = list(scores.split(1))
    proxy = nn.Conv2d(19, 2, 1)
    proxy.forward = lambda maps: left.pop(0) if len(maps) == 1 else scores
    return proxy


def test_edge_loss_is_the_cross_entropy_of_pixels_that_do_not_touch_void(nb):
    label, logits, terms = random_labels(void=0.02), torch.randn(2, 2, 13, 15), []
    for b, one in enumerate(label.numpy()):
        edges, valid = shifted_edges(one)
        terms += [-logits[b, :, y, x].log_softmax(0)[int(edges[y, x])].item() for y, x in np.argwhere(valid)]
    assert 0 < len(terms) < label.numel()
    assert nb.edge_loss(answering(logits), {"label": label}).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_scores_of_edges_count_the_pixels_of_all_images_together(nb):
    label, scores = random_labels(void=0.02, batch=3), torch.randn(3, 2, 13, 15)
    label[0], scores[0] = 2, torch.tensor([3.0, 0.0])[:, None, None]  # nothing there and nothing found
    counts = np.zeros((3, 2, 2), int)
    for k, (one, score) in enumerate(zip(label.numpy(), scores.numpy())):
        edges, valid = shifted_edges(one)
        for y, x in np.argwhere(valid):
            counts[k, int(edges[y, x]), int(score[1, y, x] > score[0, y, x])] += 1
    metrics, per_image = nb.evaluate_edges(answering(scores), [{"label": one} for one in label])
    np.testing.assert_array_equal(per_image["confusion"], counts)
    (_, fp), (fn, tp) = counts.sum(0)
    assert metrics == {"edge_f1": pytest.approx(2 * tp / (2 * tp + fp + fn))}


def test_edges_that_are_nowhere_have_an_f1_of_0(nb):
    scores = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    assert nb.evaluate_edges(answering(scores), [{"label": torch.zeros(5, 6, dtype=torch.long)}])[0]["edge_f1"] == 0


def test_the_proxy_network_learns_from_crops_and_is_judged_on_whole_labels(nb, toy, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(common, "fit", lambda folder, *data, **options: calls.append((*data, options)))
    splits = {split: common.list_frames(toy, split) for split in ("train", "val")}
    settings = {"crop": 32, "scale_from": 0.5, "scale_to": 1.5, "proxy_lr": 0.01}
    nb.train_proxy(tmp_path, splits, (64, 128), settings, seed=3)
    ((proxy, loss, train, val, options),) = calls
    assert train[1, 0]["label"].shape == (32, 32) and not torch.equal(train[1, 0]["label"], train[2, 0]["label"])
    assert val[1, 0]["label"].shape == (64, 128) and (train.seed, val.augment) == (3, None)
    assert {id(p) for p in proxy.parameters()} == {id(p) for p in options["optimizer"].param_groups[0]["params"]}
    assert (options["batch_size"], options["epochs"]) == (8, 300) and options["evaluate"] is nb.evaluate_edges and loss is nb.edge_loss
    few = {split: frames[:3] for split, frames in splits.items()}
    nb.train_proxy(tmp_path, few, (64, 128), settings, seed=3)
    assert (calls[1][-1]["batch_size"], calls[1][-1]["epochs"]) == (3, 300)


def test_a_proxy_network_that_did_not_learn_edges_stops_with_one_sentence(nb, tmp_path):
    common.save_weights(tmp_path / "best.safetensors", nb.EdgeNet())
    given = {"proxy_run": common.runs.Run(tmp_path, {"metrics": {"edge_f1": 0.5}})}
    with pytest.raises(common.StreetsError, match="^The proxy network did not learn to find edges: give it [^.]*\\.$"):
        run_cells(("proxy_run.summary",), given)


# the losses


def random_case(seed=0, classes=4, size=(4, 5), void=0.2, dtype=torch.float64):
    """Logits (2, C, H, W) and labels (2, H, W), one image with more void than the other."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (2, *size), generator=rng)
    label[0][torch.rand(size, generator=rng) < 2 * void] = 255
    label[1, 0, 1] = 255 if void else label[1, 0, 1]
    return 2 * torch.randn(2, classes, *size, generator=rng, dtype=dtype), label


@pytest.fixture
def doubles(nb, monkeypatch):
    """The notebook's one-hot maps in float64, in which gradients can be compared closely."""
    one_hot = nb.one_hot
    monkeypatch.setattr(nb, "one_hot", lambda *args: one_hot(*args).double())


def assert_same(ours, theirs, logits, **tolerance):
    """Two losses of the logits agree in value and gradient."""
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    x, y = ours(a), theirs(b)
    torch.testing.assert_close(x, y, **tolerance)
    torch.testing.assert_close(*torch.autograd.grad(x, a), *torch.autograd.grad(y, b), **tolerance)


def naive_distance(predicted, truth, label, reduction):
    """One pixel and one channel after the other."""
    total, pixels, channels = 0.0, 0, predicted.shape[1]
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != 255:
            pixels += 1
            for k in range(channels):
                total = total + (predicted[b, k, y, x] - truth[b, k, y, x]).abs()
    return total / {"pixels": pixels, "elements": pixels * channels, "sum": 1}[reduction]


def naive_maps(probs, label):
    """(probabilities, one-hot truth), both without void pixels."""
    truth = torch.zeros_like(probs.detach())
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != 255:
            truth[b, label[b, y, x], y, x] = 1
    return probs * (label != 255)[:, None], truth


def naive_semeda(probs, label, proxy, lambdas, reduction):
    pairs = zip(*(naive_embeddings(proxy, maps) for maps in naive_maps(probs, label)))
    return sum(weight * naive_distance(p, t, label, reduction) for weight, (p, t) in zip(lambdas, pairs) if weight)


def naive_sobel(maps):
    """The differences of the columns right and left, weighted 1, 2, 1, and of the rows below and above, per map."""
    rows, columns = (torch.arange(-1, n + 1).clamp(0, n - 1) for n in maps.shape[-2:])
    around = maps[..., rows[:, None], columns]
    smooth_rows = around[..., :-2, :] + 2 * around[..., 1:-1, :] + around[..., 2:, :]
    smooth_columns = around[..., :-2] + 2 * around[..., 1:-1] + around[..., 2:]
    x, y = smooth_rows[..., 2:] - smooth_rows[..., :-2], smooth_columns[..., 2:, :] - smooth_columns[..., :-2, :]
    return torch.stack([x, y], dim=2).flatten(1, 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("lambdas", LAMBDAS)
def test_semeda_is_the_l1_distance_of_embeddings_pixel_by_pixel(nb, doubles, lambdas, reduction):
    logits, label = random_case()
    proxy = frozen_proxy(nb).double()
    assert_same(lambda z: nb.semeda_loss(z.softmax(1), label, proxy, lambdas, reduction),
                lambda z: naive_semeda(z.softmax(1), label, proxy, lambdas, reduction), logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_semeda_in_float32_is_what_it_is_in_float64(nb, reduction):
    logits, label = random_case(size=(9, 7), dtype=torch.float32)
    proxy = frozen_proxy(nb)
    assert_same(lambda z: nb.semeda_loss(z.softmax(1), label, proxy, (4, 2, 1), reduction),
                lambda z: naive_semeda(z.double().softmax(1), label, proxy, (4, 2, 1), reduction).float(), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_sobel_loss_is_the_l1_distance_of_responses_pixel_by_pixel(nb, reduction):
    logits, label = random_case()

    def naive(z):
        p, y = naive_maps(z.softmax(1), label)
        return naive_distance(naive_sobel(p), naive_sobel(y), label, reduction)

    assert_same(lambda z: nb.sobel_loss(z.softmax(1), label, reduction), naive, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("lambdas", LAMBDAS)
def test_the_gradient_of_semeda_is_that_of_small_differences(nb, doubles, lambdas, reduction):
    logits, label = random_case(1, classes=3, size=(2, 3))
    proxy = frozen_proxy(nb, classes=3).double()
    assert torch.autograd.gradcheck(lambda z: nb.semeda_loss(z.softmax(1), label, proxy, lambdas, reduction), logits.requires_grad_())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_gradient_of_the_sobel_loss_is_that_of_small_differences(nb, reduction):
    logits, label = random_case(1, classes=3, size=(3, 3))
    assert torch.autograd.gradcheck(lambda z: nb.sobel_loss(z.softmax(1), label, reduction), logits.requires_grad_())


def structural(nb, name, classes=4):
    """loss(probs, label) of one of the two structural losses."""
    return nb.sobel_loss if name == "sobel" else partial(nb.semeda_loss, proxy=frozen_proxy(nb, classes), lambdas=(4.0, 2.0, 1.0))


@pytest.mark.parametrize("name", ["sobel", "semeda"])
def test_a_void_pixel_has_no_gradient_and_its_probabilities_no_influence(nb, name):
    logits, label = random_case(size=(9, 8), dtype=torch.float32)
    loss, probs = structural(nb, name), logits.softmax(1).requires_grad_()
    value = loss(probs, label)
    value.backward()
    slopes = probs.grad.abs().sum(1)
    assert (slopes[label == 255] == 0).all() and (slopes[label != 255] > 0).any()
    other = torch.where((label == 255)[:, None], torch.rand_like(probs), probs)
    assert torch.equal(loss(other, label), value)


@pytest.mark.parametrize("name", ["sobel", "semeda"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_where_all_is_void_the_loss_and_its_gradient_are_0(nb, name, reduction):
    probs = random_case(dtype=torch.float32)[0].softmax(1).requires_grad_()
    loss = structural(nb, name)(probs, torch.full((2, 4, 5), 255), reduction=reduction)
    loss.backward()
    assert loss.item() == 0 and (probs.grad == 0).all()


@pytest.mark.parametrize("name", ["sobel", "semeda"])
def test_the_truth_itself_costs_nothing_and_anything_else_something(nb, name):
    label = random_labels(void=0.1)
    truth = nb.one_hot(label, 4)
    assert structural(nb, name)(truth, label).item() == 0
    assert structural(nb, name)(truth.roll(1, dims=2), label).item() > 0
    assert structural(nb, name)(0.9 * truth + 0.025, label).item() > 0


def test_the_gradient_passes_the_frozen_proxy_network_on_its_way_to_the_logits(nb):
    logits, label = random_case(dtype=torch.float32)
    proxy = frozen_proxy(nb)
    nb.semeda_loss(logits.requires_grad_().softmax(1), label, proxy, (4, 2, 0)).backward()
    assert all(p.grad is None for p in proxy.parameters()) and (logits.grad.abs().sum(1)[label != 255] > 0).all()


def test_embeddings_of_the_truth_carry_no_graph_and_those_of_the_prediction_do(nb):
    logits, label = random_case(dtype=torch.float32)
    proxy, graphs = nb.EdgeNet(4), []
    plain = proxy.embeddings
    proxy.embeddings = lambda *args: graphs.append([e.requires_grad for e in plain(*args)]) or plain(*args)
    nb.semeda_loss(logits.softmax(1).requires_grad_(), label, proxy, (1, 1, 1))
    assert sorted(graphs) == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("channels", [2, 16, 32])
def test_per_pixel_is_the_number_of_channels_times_per_element(nb, channels):
    a, b, valid = torch.rand(2, channels, 6, 7), torch.rand(2, channels, 6, 7), torch.rand(2, 6, 7) < 0.7
    pixels, elements, total = (nb.l1_distance(a, b, valid, reduction) for reduction in REDUCTIONS)
    assert torch.equal(pixels, nb.l1_distance(a, b, valid))
    torch.testing.assert_close(torch.stack([elements * channels, total / valid.sum()]), pixels.expand(2))


def test_cross_entropy_is_the_mean_over_valid_pixels_and_0_where_all_is_void(nb):
    logits, label = random_case(dtype=torch.float32)
    terms = [-logits[b, :, y, x].log_softmax(0)[label[b, y, x]] for b, y, x in np.ndindex(*label.shape) if label[b, y, x] != 255]
    assert nb.cross_entropy(logits, label).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    loss = nb.cross_entropy(logits.requires_grad_(), torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def step_loss(nb, logits, label, method, lambdas, reduction="pixels"):
    return nb.training_loss(lambda image: image, {"image": logits, "label": label}, method, lambdas, frozen_proxy(nb), reduction)


@pytest.mark.parametrize("method", ["sobel", "semeda"])
def test_with_weights_of_0_a_step_is_that_of_plain_cross_entropy_bit_by_bit(nb, method):
    logits, label = random_case(dtype=torch.float32)
    found = []
    for name in ("ppce", method):
        z = logits.clone().requires_grad_()
        loss = step_loss(nb, z, label, name, (0.0, 0.0, 0.0))
        found.append((loss, *torch.autograd.grad(loss, z)))
    assert all(torch.equal(a, b) for a, b in zip(*found)) and torch.equal(found[0][0], nb.cross_entropy(logits, label))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("method", ["ppce", "sobel", "semeda"])
def test_a_step_adds_the_structural_loss_to_the_cross_entropy(nb, method, reduction):
    logits, label = random_case(dtype=torch.float32)

    def expected(z):
        extra = {"ppce": lambda p: 0, "sobel": lambda p: 4 * nb.sobel_loss(p, label, reduction),
                 "semeda": lambda p: nb.semeda_loss(p, label, frozen_proxy(nb), (4, 2, 0), reduction)}[method]
        return nb.cross_entropy(z, label) + extra(z.softmax(1))

    assert_same(lambda z: step_loss(nb, z, label, method, (4.0, 2.0, 0.0), reduction), expected, logits)


@pytest.mark.parametrize("method", ["sobel", "semeda"])
def test_under_autocast_the_structural_loss_stays_in_float32(nb, method):
    logits, label = random_case(size=(9, 8), dtype=torch.float32)
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = step_loss(nb, half, label, method, (4.0, 2.0, 0.0))
    assert torch.equal(ours, step_loss(nb, half.float(), label, method, (4.0, 2.0, 0.0)))


# Sobel's responses


def test_sobels_responses_are_those_of_opencv_with_x_before_y_in_each_class(nb):
    maps = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    found = nb.sobel(maps)
    assert found.shape == (2, 6, 9, 11)
    for b, c, (axis, order) in ((b, c, o) for b, c in np.ndindex(2, 3) for o in enumerate(((1, 0), (0, 1)))):
        expected = cv2.Sobel(maps[b, c].numpy(), cv2.CV_64F, *order, ksize=3, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(found[b, 2 * c + axis], expected, atol=1e-12)


def test_sobels_responses_are_those_of_kornia_without_its_scale(nb):
    filters = pytest.importorskip("kornia.filters")
    maps = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    expected = filters.spatial_gradient(maps, mode="sobel", order=1, normalized=False)
    torch.testing.assert_close(nb.sobel(maps), expected.flatten(1, 2))


# trimaps, means and F1


def scenes_with_predictions(n=3, classes=4, size=(24, 30)):
    truths = random_labels(5, classes, size, void=0.02, batch=n).numpy()
    return np.random.default_rng(1).integers(0, classes, truths.shape), truths


def naive_band(truth, radius):
    """Valid pixels at most `radius` rows and columns away from an edge."""
    edges = np.argwhere(shifted_edges(truth)[0])
    away = np.abs(np.indices(truth.shape)[:, None] - edges.T[:, :, None, None]).max(0)
    return (away <= radius).any(0) & (truth != 255)


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_near_edges_is_what_lies_at_most_a_radius_from_an_edge_of_eight_neighbours(nb, radius):
    for truth in random_labels(7, classes=4, size=(24, 30), void=0.01, batch=4).numpy().astype(np.uint8):
        band = nb.near_edges(truth, radius)
        np.testing.assert_array_equal(band, naive_band(truth, radius))
        assert band.any() and not band.all()


def naive_counts(pred, truth, classes):
    """(C, 3) true positives, false positives and false negatives of flat arrays."""
    return np.array([[((pred == c) & (truth == c)).sum(), ((pred == c) & (truth != c)).sum(), ((pred != c) & (truth == c)).sum()] for c in range(classes)])


def test_counts_in_trimaps_are_those_of_pixels_near_an_edge(nb):
    assert nb.RADII == (1, 2, 3, 5, 10)
    for pred, truth in zip(*scenes_with_predictions()):
        found = nb.counts_in_trimaps(pred, truth, 4)
        for counts, radius in zip(found, nb.RADII):
            band = naive_band(truth, radius)
            assert band.any() and not band[truth == 255].any()
            np.testing.assert_array_equal(counts, naive_counts(pred[band], truth[band], 4))


def test_a_wider_trimap_holds_a_narrower_one_and_with_its_outside_every_valid_pixel(nb):
    label = np.zeros((60, 40), int)
    label[20:, :], label[50:, 30:] = 1, 255
    pred = np.random.default_rng(0).integers(0, 2, label.shape)
    inside = nb.counts_in_trimaps(pred, label, 2)
    pixels = inside[..., [0, 2]].sum((1, 2))
    np.testing.assert_array_equal(pixels, [2 * 40 * (radius + 1) for radius in nb.RADII])
    assert (np.diff(inside, axis=0) >= 0).all()
    everything = nb.tp_fp_fn(common.confusion_matrix(pred, label, 2)[None])[0]
    np.testing.assert_array_equal(everything, naive_counts(pred[label != 255], label[label != 255], 2))
    for counts, radius in zip(inside, nb.RADII):
        beyond = ~nb.near_edges(label, radius) & (label != 255)
        np.testing.assert_array_equal(everything - counts, naive_counts(pred[beyond], label[beyond], 2))


def test_trimap_curves_are_mean_ious_inside_and_outside_over_all_images(nb):
    preds, truths = scenes_with_predictions(size=(40, 50))
    per_image = {"confusion": np.stack([common.confusion_matrix(p, t, 4) for p, t in zip(preds, truths)]),
                 "trimaps": np.stack([nb.counts_in_trimaps(p, t, 4) for p, t in zip(preds, truths)])}
    curves = nb.trimap_curves(per_image)
    assert list(curves) == ["inside", "outside"] and all(list(curve) == ["1", "2", "3", "5", "10"] for curve in curves.values())
    for radius in nb.RADII:
        bands = np.stack([nb.near_edges(t, radius) for t in truths])
        for name, part in (("inside", bands), ("outside", ~bands & (truths != 255))):
            expected = common.miou(common.confusion_matrix(preds[part], truths[part], 4))
            assert curves[name][str(radius)] == (None if math.isnan(expected) else pytest.approx(expected))


def test_the_mean_iou_of_counts_is_that_of_the_confusion_matrix(nb):
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 30, (5, 6, 6))
    confusion[:, 2] = 0  # a class that is predicted and never true
    confusion[:, 4], confusion[:, :, 4] = 0, 0
    assert extras_05.mean_iou(nb.tp_fp_fn(confusion).sum(0)) == pytest.approx(common.miou(confusion.sum(0)))
    assert extras_05.mean_iou(np.zeros((6, 3), int)) is None


def test_pixel_f1_is_a_function_of_the_iou():
    for seed in range(20):
        cm = np.random.default_rng(seed).integers(0, 100, (7, 7))
        cm[seed % 7, :] = 0
        iou = common.iou_per_class(cm)
        f1 = 2 * np.diag(cm) / (cm.sum(0) + cm.sum(1))
        np.testing.assert_allclose(f1, 2 * iou / (1 + iou))


@pytest.mark.parametrize("method", ["ppce", "semeda_4_2_0"])
def test_the_published_f1_says_nothing_that_the_published_iou_does_not(method):
    published = common.read_published(NAME).query("method == @method")
    rows = {metric: published.query("metric == @metric and `class` != ''").set_index("class")["value"].astype(float) for metric in ("iou", "f1", "e")}
    assert all(list(row.index) == common.SCHEMES["cityscapes19"].classes for row in rows.values())
    iou = rows["iou"] / 100
    assert (rows["f1"] - 100 * 2 * iou / (1 + iou)).abs().max() < 0.11
    for metric, row in rows.items():
        (printed,) = common.headline(published, metric.replace("iou", "miou"))["value"].astype(float)
        assert row.mean() == pytest.approx(printed, abs=0.06)


def test_an_evaluation_scores_contours_and_both_sides_of_trimaps(nb, toy):
    torch.manual_seed(0)
    net, data = nn.Conv2d(3, 19, 1).eval(), common.StreetScenes(common.list_frames(toy, "val"), (64, 128))
    metrics, per_image = nb.evaluate(net, data)
    pairs = [(net(item["image"][None]).argmax(1)[0].numpy(), item["label"].numpy()) for item in data]
    for radius in nb.RADII:
        bands = [nb.near_edges(t, radius) for _, t in pairs]
        pred, truth = (np.concatenate([pair[k][band] for pair, band in zip(pairs, bands)]) for k in (0, 1))
        assert metrics["inside"][str(radius)] == pytest.approx(common.miou(common.confusion_matrix(pred, truth, 19)))
    assert set(per_image) == {"confusion", "boundary_f1", "trimap_iou", "trimaps"}
    assert {"miou", "accuracy", "iou", "boundary_f1", "trimap_iou", "outside"} <= set(metrics)


def test_the_trimap_figure_shows_every_fine_tuning_beside_the_control(nb, monkeypatch):
    shown, scores = [], {"semeda_matched": 48, "ppce": 45, "continued": 50}
    monkeypatch.setattr(common, "show", shown.append)
    means = pd.DataFrame({f"{side}_{radius}": scores for side in ("inside", "outside") for radius in nb.RADII})
    run_cells(["common.show_curves("], {"ready": True, "means": means, "tuned": ["continued", "semeda_matched"]})
    (fig,) = shown
    assert [axis.get_title() for axis in fig.axes] == ["near edges", "away from edges"]
    for axis in fig.axes:
        assert [line.get_xdata().tolist() for line in axis.get_lines()] == [list(nb.RADII)] * 2
        np.testing.assert_allclose([line.get_ydata() for line in axis.get_lines()], [[0] * 5, [-2] * 5], atol=1e-9)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["continued", "semeda_matched"]
    plt.close(fig)


# how strongly a loss pulls


def test_the_pull_of_cross_entropy_at_the_logits_is_p_minus_y_over_the_pixels_that_count(nb):
    logits, label = random_case(dtype=torch.float32)
    expected = (logits.softmax(1) - nb.one_hot(label, 4)) * (label != 255)[:, None] / (label != 255).sum()
    torch.testing.assert_close(nb.pull(nb.cross_entropy, logits, label), expected)
    assert logits.grad is None and not logits.requires_grad


def test_the_length_of_a_gradient_is_that_of_the_pixels_asked_for(nb):
    gradient, where = torch.randn(2, 5, 6, 7), torch.rand(2, 6, 7) < 0.4
    expected = math.sqrt(sum(gradient[b, :, y, x].square().sum().item() for b, y, x in where.nonzero().tolist()))
    assert nb.length(gradient, where) == pytest.approx(expected)
    assert nb.length(gradient, torch.ones_like(where)) == pytest.approx(gradient.norm().item())


def test_a_part_of_sobels_pull_on_a_prediction_that_is_equally_sure_everywhere_is_rounding(nb, toy):
    frame = common.list_frames(toy, "train")[0]
    truth = torch.from_numpy(common.StreetScenes([frame], (64, 128)).read(0)[1].astype(np.int64))[None]
    logits, valid = nb.sure_of(torch.where(truth == 255, 0, truth).roll(2, dims=2), 19).log(), truth != 255

    def without_last_digits(logits):
        residual = nb.sobel(logits.softmax(1) * valid[:, None]) - nb.sobel(nb.one_hot(truth, 19))
        assert ((residual != 0) & (residual.abs() < 1e-6)).float().mean() > 0.1
        return (residual * (residual.abs() > 1e-6)).abs().mul(valid[:, None]).sum() / valid.sum()

    plain = nb.pull(lambda one: nb.sobel_loss(one.softmax(1), truth), logits)
    clean = nb.pull(without_last_digits, logits)
    assert 0.5 < clean.norm() / plain.norm() < 0.95


@pytest.mark.parametrize("method", ["sobel", "semeda"])
def test_strength_is_how_many_times_longer_a_gradient_is_than_that_of_cross_entropy(nb, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5))
    data = [{"image": torch.randn(3, 9, 8), "label": label} for label in random_labels(size=(9, 8), void=0.1, batch=3)]
    recipe = (method, (3.0, 2.0, 0.0), frozen_proxy(nb), "pixels")
    found, lengths = nb.strength(model.train(), data, recipe), np.zeros(2)
    for item in data:
        logits, label = model.eval()(item["image"][None]).detach(), item["label"][None]
        lengths += [nb.pull(nb.cross_entropy, logits, label).norm().item(),
                    nb.pull(nb.structural_loss, logits, label, *recipe).norm().item()]
    assert lengths[0] > 0 and found == pytest.approx(lengths[1] / lengths[0], rel=1e-4)
    assert nb.strength(model, data, (method, (6.0, 4.0, 0.0), *recipe[2:])) == pytest.approx(2 * found, rel=1e-4)


@pytest.mark.parametrize("name", ["sobel_matched", "semeda_matched", "semeda_elements", "sobel_tuned", "continued"])
def test_a_recipe_is_scaled_only_where_it_asks_for_a_pull(nb, toy, name):
    torch.manual_seed(0)
    recipe, data = nb.RECIPES[name], common.StreetScenes(common.list_frames(toy, "train"), (64, 128))
    data.augment = partial(nb.random_crop, crop=32)
    model, proxy = nn.Conv2d(3, 19, 1), frozen_proxy(nb, 19)
    loss, force = nb.recipe_loss(recipe, model, data, proxy, {"reduction": "sum"})
    given, weights = loss.keywords, recipe.get("lambdas", ())
    assert given["reduction"] == recipe.get("reduction", "sum") and given["method"] == recipe["loss"]
    unscaled = nb.strength(model, data, (recipe["loss"], weights, proxy, given["reduction"])) if weights else 0
    if "pull" in recipe:
        assert force == recipe["pull"] and unscaled > 0
        assert given["lambdas"] == pytest.approx([weight / unscaled for weight in weights])
        assert nb.strength(model, data, (recipe["loss"], given["lambdas"], proxy, "sum")) == pytest.approx(1, rel=1e-4)
    else:
        assert given["lambdas"] == weights and force == unscaled


# the network


def network(nb, name, crop=128, weights="none"):
    return nb.build_network(name, crop, weights)


@pytest.mark.parametrize(("name", "parameters"), [("v3plus_xception71", 43_463_915), ("v3plus_resnet101", 45_674_339)])
def test_deeplab_v3_plus_has_the_size_of_smps(nb, name, parameters):
    with torch.device("meta"):
        net, got = network(nb, name, 320)
    assert got == "none" and sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name", ["v3plus_resnet18", "v3plus_lite0"])
@pytest.mark.parametrize("size", [(192, 192), (64, 128)])
def test_deeplab_v3_plus_answers_at_the_size_of_the_image_from_stride_16_on(nb, name, size):
    net, got = network(nb, name)
    with torch.no_grad():
        image = torch.randn(2, 3, *size)
        logits = net(image)
        deepest = net.encoder(image)[-1]
    assert got == "none" and logits.shape == (2, 19, *size) and logits.dtype == torch.float32
    assert deepest.shape[-2:] == (size[0] // 16, size[1] // 16)


def test_the_rates_are_deeplabs_where_the_crop_is_large_enough_and_smaller_where_it_is_not(nb):
    assert nb.aspp_rates(320) == nb.aspp_rates(768) == (6, 12, 18)
    assert nb.aspp_rates(128) == (2, 4, 6) and nb.aspp_rates(16) == (1, 2, 3)
    assert all(nb.aspp_rates(crop)[2] < crop // 16 for crop in range(64, 1024, 16))


def aspp_taps(net):
    """The 3x3 convolutions of a network's ASPP, one for each rate."""
    return [m for m in net.decoder.aspp[0].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize("mode", ["quick", "laptop", "course", "paper"])
def test_every_tap_of_every_aspp_branch_gets_a_gradient_at_the_modes_crop(nb, mode):
    torch.manual_seed(0)
    crop = nb.MODES[mode]["crop"]
    net, _ = network(nb, "v3plus_lite0", crop)  # the ASPP is the same on every encoder
    net(torch.randn(2, 3, crop, crop)).square().mean().backward()
    taps = aspp_taps(net)
    assert [conv.dilation[0] for conv in taps] == list(nb.aspp_rates(crop))
    assert all((conv.weight.grad.abs().sum((0, 1)) > 0).all() for conv in taps)


def test_the_default_rates_of_the_library_would_leave_taps_without_a_gradient(nb):
    torch.manual_seed(0)
    net = nb.DeepLabV3Plus("resnet18", rates=(12, 24, 36))
    net(torch.randn(2, 3, 320, 320)).square().mean().backward()
    dead = [int((conv.weight.grad.abs().sum((0, 1)) == 0).sum()) for conv in aspp_taps(net)]
    assert dead == [0, 8, 8]


def test_dropout_and_corners_are_deeplabs(nb):
    net = nb.DeepLabV3Plus("resnet18")
    assert [m.p for m in net.decoder.modules() if isinstance(m, nn.Dropout)] == [0.1]
    assert [m.align_corners for m in net.decoder.modules() if isinstance(m, nn.Upsample)] == [False]


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of both hubs, neither of which can be reached."""
    from huggingface_hub import constants

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("results.runs.hub_reachable", lambda: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    common.say_once.cache_clear()
    return tmp_path


def put_resnet18(caches):
    """A random encoder of smp in the hub's cache."""
    import segmentation_models_pytorch as smp
    from safetensors.torch import save_file

    torch.manual_seed(3)
    settings = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    folder = caches / "hf" / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    folder.mkdir(parents=True)
    save_file(encoder.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return encoder


def check_frozen(nb, net):
    """Batch norms of the encoder stay as they came, in training too, and all else learns."""
    assert net.frozen
    norms = [m for m in net.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    fixed = {id(p) for norm in norms for p in norm.parameters()}
    assert norms and len(fixed) == 2 * len(norms)
    for training in (True, False, True):
        net.train(training)
        assert not any(norm.training for norm in norms)
        within = {id(m) for norm in norms for m in norm.modules()}  # timm's hold an activation
        assert all(m.training == training for m in net.modules() if id(m) not in within)
    assert all(p.requires_grad == (id(p) not in fixed) for p in net.parameters())
    before = [norm.running_mean.clone() for norm in norms]
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all((p.grad is None) == (id(p) in fixed) for p in net.parameters())
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before))


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_deeplab_v3_plus_takes_an_encoder_trained_on_imagenet_and_freezes_its_norms(nb, caches, weights):
    source = put_resnet18(caches).state_dict()
    net, got = network(nb, "v3plus_resnet18", weights=weights)
    ours = net.encoder.state_dict()
    assert got == "imagenet" and ours.keys() == source.keys() and all(torch.equal(ours[key], source[key]) for key in source)
    check_frozen(nb, net)


def test_the_small_network_takes_lite0_without_a_hub_and_freezes_its_norms(nb, caches):
    net, got = network(nb, "v3plus_lite0", weights="auto")
    theirs = common.runs.lite0_weights()
    assert got == "lite0" and all(torch.equal(value, theirs[key]) for key, value in net.encoder.state_dict().items())
    check_frozen(nb, net)


@pytest.mark.parametrize("weights", ["auto", "none"])
def test_without_weights_nothing_is_frozen_and_auto_says_so(nb, caches, weights, capsys):
    net, got = network(nb, "v3plus_resnet18", weights=weights)
    assert got == "none" and not net.frozen
    assert all(p.requires_grad for p in net.parameters()) and all(m.training for m in net.train().modules())
    assert ("random initialisation" in capsys.readouterr().out) == (weights == "auto")


def test_weights_that_are_asked_for_and_not_there_stop_with_one_sentence(nb, caches):
    with pytest.raises(common.StreetsError, match="^The pretrained weights imagenet cannot be fetched[^.]*\\.$"):
        network(nb, "v3plus_resnet18", weights="imagenet")


@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.9), ("adamw", None)])
def test_the_optimizer_moves_what_is_not_frozen(nb, kind, momentum):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))
    (group,) = nb.make_optimizer(model, {"optimizer": kind, "weight_decay": 0.03}, 0.1).param_groups
    assert (group["lr"], group["weight_decay"], group.get("momentum")) == (0.1, 0.03, momentum)
    assert [id(p) for p in group["params"]] == [id(p) for p in model[0].parameters()]


# the crops


def coded(label):
    """A photo whose colour tells the label under it."""
    return np.stack([label, label // 2, 255 - label], axis=-1).astype(np.uint8)


def test_photo_and_label_stay_aligned_in_crops_of_any_scale(nb):
    label = (np.indices((96, 160)) // 24).sum(0).astype(np.uint8) * 20
    checked = set()
    for seed in range(40):
        image, out = nb.random_crop(coded(label), label, np.random.default_rng(seed), crop=64)
        assert image.shape == (64, 64, 3) and out.shape == (64, 64) and image.dtype == out.dtype == np.uint8
        square = np.ones((7, 7), np.uint8)
        calm = (cv2.erode(out, square) == cv2.dilate(out, square)) & (out != 255)  # no other label within 3 pixels
        assert calm.mean() > 0.2
        np.testing.assert_array_equal(image[calm], coded(out)[calm])
        checked |= set(np.unique(out[calm]))
    assert checked == set(np.unique(label))


def test_a_crop_at_scale_1_is_a_part_of_the_image_or_its_mirror_and_all_places_occur(nb):
    label = np.arange(42, dtype=np.uint8).reshape(6, 7)
    corners = {False: set(), True: set()}
    for seed in range(300):
        image, out = nb.random_crop(coded(label), label, np.random.default_rng(seed), crop=4, scales=(1, 1))
        mirrored = bool(out[0, 0] > out[0, 1])
        row, column = divmod(int(out[:, ::-1][0, 0] if mirrored else out[0, 0]), 7)
        part = label[row : row + 4, column : column + 4]
        np.testing.assert_array_equal(out, part[:, ::-1] if mirrored else part)
        np.testing.assert_array_equal(image, coded(out))
        corners[mirrored].add((row, column))
    assert corners[False] == corners[True] == {(row, column) for row in range(3) for column in range(4)}


def test_what_lies_beyond_a_small_image_is_void_and_has_the_mean_colour(nb):
    label = np.full((40, 60), 7, np.uint8)
    seen = set()
    for seed in range(10):
        image, out = nb.random_crop(np.zeros((40, 60, 3), np.uint8), label, np.random.default_rng(seed), crop=64, scales=(1, 1))
        inside = np.zeros((64, 64), bool)
        mirrored = bool(out[0, 0] == 255)
        inside[:40, 4:] = True
        inside = inside if mirrored else inside[:, ::-1]
        np.testing.assert_array_equal(out, np.where(inside, 7, 255))
        np.testing.assert_array_equal(image[~inside], np.tile([124, 116, 104], (64 * 64 - 2400, 1)))
        assert not image[inside].any()
        seen.add(mirrored)
    assert seen == {False, True}


def test_crops_show_from_two_thirds_to_twice_their_side(nb):
    label = np.tile(np.arange(400) // 2, (300, 1)).astype(np.uint8)
    image = coded(label)
    spans = [2 * int(np.ptp(nb.random_crop(image, label, np.random.default_rng(seed), crop=60)[1].astype(int))) for seed in range(300)]
    assert 36 <= min(spans) <= 42 and 114 <= max(spans) <= 122


def test_a_crop_depends_on_its_generator_only(nb):
    label = np.random.default_rng(0).integers(0, 19, (50, 70)).astype(np.uint8)
    crops = [nb.random_crop(coded(label), label, np.random.default_rng(seed), crop=32)[1] for seed in (5, 5, 6)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])


# the plan of runs


def test_every_setting_of_table_1_is_a_recipe_under_the_name_of_its_published_number(nb):
    table = common.read_published(NAME).query("metric == 'miou'")["method"]
    names = [name for name in table if "resnet101" not in name]
    assert len(names) == 13 and nb.read_methods(",".join(names)) == names
    for name in names:
        method, *weights = name.split("_")
        recipe = nb.RECIPES[name]
        assert recipe["loss"] == method and recipe.get("lambdas", ()) == tuple(map(float, weights))


def test_methods_are_recipes_or_none(nb):
    assert nb.read_methods("") == [] and nb.read_methods("ppce, sobel_2 ,ppce") == ["ppce", "sobel_2"] and nb.read_methods("all") == list(nb.RECIPES)
    for text in ("dice", "semeda_4_2", ",", "ppce,all"):
        with pytest.raises(common.StreetsError, match="^method does not know [^.]*: use ppce, sobel_4, "):
            nb.read_methods(text)


def test_the_modes_name_recipes_that_there_are(nb):
    for mode in nb.MODES.values():
        assert nb.read_methods(mode["method"]) == mode["method"].split(",")
    assert nb.MODES["laptop"]["method"].split(",") == [*DIRECT, *TUNED]
    assert [name for name, recipe in nb.RECIPES.items() if recipe.get("parent") == "ppce"] == TUNED


def test_the_rate_is_chosen_by_val_with_the_first_seed_for_all_seeds(nb):
    planned = nb.plan_runs(nb.RECIPES, ["continued", "sobel_tuned"], "1e-4,1e-3")
    rows = [("ppce", 42, 0.5), ("continued_lr1e-4", 42, 0.5), ("continued_lr1e-3", 42, 0.6), ("continued_lr1e-4", 43, 0.7),
            ("continued_lr1e-3", 43, 0.6), ("sobel_tuned_lr1e-4", 42, 0.4), ("sobel_tuned_lr1e-4", 43, 0.4), ("other", 42, 0.9)]
    found = extras_05.best_rates(pd.DataFrame(rows, columns=["method", "seed", "miou"]), planned)
    assert found["recipe"].tolist() == ["ppce", "continued", "continued", "sobel_tuned", "sobel_tuned"]
    assert set(found["method"]) == {"ppce", "continued_lr1e-3", "sobel_tuned_lr1e-4"}
    assert extras_05.best_rates(found.drop(columns="recipe").iloc[:0], planned).empty


def test_a_fine_tuning_is_planned_once_for_each_rate_and_what_it_starts_from_stands_before_it(nb):
    plan = nb.plan_runs(nb.RECIPES, ["continued", "sobel_2"], "1e-4, 3e-4", "_x")
    assert plan == {"ppce_x": ("ppce", 0), "continued_x_lr1e-4": ("continued", 1e-4), "continued_x_lr3e-4": ("continued", 3e-4),
                    "sobel_2_x": ("sobel_2", 0)}  # fmt: skip
    assert next(iter(plan)) == "ppce_x"
    with pytest.raises(common.StreetsError, match="^stage_lr must be"):
        nb.plan_runs(nb.RECIPES, ["continued"], "1e-4,fast")


@pytest.mark.parametrize(("rates", "written"), [("3e-4", ["3e-4"]), ("0.0003", ["3e-4"]), ("1e-4, 0.00025,1e-3", ["1e-4", "2.5e-4", "1e-3"]),
                                                ("3e-4,0.0003", ["3e-4"]), ("0.1", ["1e-1"])])  # fmt: skip
def test_a_rate_stands_in_a_runs_name_by_its_value_however_it_was_written(nb, rates, written):
    assert list(nb.plan_runs(nb.RECIPES, ["continued"], rates)) == ["ppce", *(f"continued_lr{rate}" for rate in written)]


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


CHECK = ("MODES = {", "NOTEBOOK = ", 'settings["crop"] % 16')


@pytest.mark.parametrize(("parameters", "sentence"), [
    ({"method": "much"}, "method does not know 'much'"), ({"reduction": "mean"}, "reduction does not know 'mean'"),
    ({"network": "unet"}, "network does not know 'unet'"), ({"weights": "coco"}, "weights does not know 'coco'"),
    ({"crop": 321}, "crop must be a multiple of 16, not 321"), ({"photo": "missing.jpg"}, "photo: there is no file missing.jpg"),
    ({"methods": "ppce"}, "There is no parameter 'methods' here: this notebook has mode, method, reduction")])
def test_a_wrong_parameter_stops_with_one_sentence(parameters, sentence):
    with pytest.raises(common.StreetsError) as caught:
        run_cells(CHECK, **parameters)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_parameters_replace_what_the_mode_says_and_0_takes_it(nb):
    settings = run_cells(CHECK, lr=0.25, epochs=3, reduction="sum")["settings"]
    quick = {name: value for name, value in nb.MODES["quick"].items() if name != "method"} | HALVES
    assert settings == quick | {"lr": 0.25, "scratch_lr": 0.25, "epochs": 3, "reduction": "sum"}
    assert run_cells(CHECK)["settings"] == quick


def test_each_mode_has_recipes_of_its_own_unless_others_are_asked_for(nb):
    assert run_cells(CHECK)["names"] == ["ppce", *TUNED]
    assert run_cells(CHECK, mode="paper")["names"] == DIRECT
    assert run_cells(CHECK, mode="laptop")["names"] == [*DIRECT, *TUNED]
    assert run_cells(CHECK, mode="laptop", method="sobel_2")["names"] == ["sobel_2"]


@pytest.fixture
def asked_for(monkeypatch):
    """asked_for(cells, given, parameters): [(folder, configuration)] of the runs that cells of the notebook would train or load."""
    def runs_of(parts, given, parameters):
        asked = []

        def note(folder, config, train, **options):
            asked.append((folder, json.loads(json.dumps(config)), options))
            return {"n_train": 6}

        monkeypatch.setattr(common.runs, "train_or_load", note)
        monkeypatch.setattr(common.runs, "record", lambda *args: {})
        run_cells((*CHECK, *parts), given, **parameters)
        return asked
    return runs_of


@pytest.fixture
def methods_of(asked_for, toy, tmp_path):
    """[(folder, configuration, options)] of the runs of the methods."""
    given = {"root": toy, "splits": {}, "size": (64, 128), "proxy_run": common.runs.Run(tmp_path, {})}
    return lambda **parameters: asked_for(("plan = plan_runs(", "jobs = {run:"), given, parameters)


@pytest.fixture
def names_of(methods_of):
    """Names of the runs of the methods, without their seed."""
    return lambda **parameters: [folder.name.removesuffix("_seed42") for folder, *_ in methods_of(**parameters)]


def test_runs_of_the_published_networks_have_the_names_of_their_published_numbers(names_of):
    published = set(common.headline(common.read_published(NAME), "miou")["method"])
    for more in ({}, {"network": "v3plus_resnet101"}):
        names = names_of(mode="paper", method="ppce,semeda_4_2_0", **more)
        assert len(names) == 2 and set(names) <= published


def test_what_departs_from_the_mode_stands_in_the_name_where_it_is_read(names_of, nb):
    tuned = [f"{name}_lr3e-4" for name in TUNED]
    assert names_of() == ["ppce", *tuned]
    assert names_of(method="ppce,sobel_4,semeda_4_2_0", reduction="sum", epochs=3) == ["ppce-epochs3", "sobel_4-reductionsum-epochs3", "semeda_4_2_0-reductionsum-epochs3"]
    assert names_of(method="sobel_matched", reduction="sum", stage_epochs=3) == ["ppce", "sobel_matched_lr3e-4-reductionsum-stage_epochs3"]
    assert names_of(method="semeda_elements", reduction="sum")[1] == "semeda_elements_lr3e-4"
    assert names_of(method="ppce", weights="none", lr=0.25, stage_epochs=3) == ["ppce-weightsnone-lr0.25"]
    assert names_of(method="sobel_matched", network="v3plus_resnet18") == ["ppce_v3plus_resnet18", "sobel_matched_v3plus_resnet18_lr3e-4"]


def test_a_fine_tuning_starts_from_the_network_that_was_trained_alike(methods_of):
    (first, _, options), (_, config, _) = methods_of(method="continued", epochs=3, network="v3plus_resnet18")
    assert config["parent"] == first.name == "ppce_v3plus_resnet18-epochs3_seed42" and options["parent"]


def test_what_the_mode_says_anyway_leaves_no_mark_also_where_it_is_given(methods_of, nb):
    quick = nb.MODES["quick"]
    given = {name: quick[name] for name in ("network", "height", "crop", "epochs", "stage_epochs", "reduction", "batch_size", "images")}
    plain, given = methods_of(), methods_of(**given)
    assert [folder for folder, *_ in given] == [folder for folder, *_ in plain]
    assert all(common.runs.differing_keys(a[1], b[1]) == [] for a, b in zip(given, plain, strict=True))


def test_a_run_is_compared_by_its_own_weights_and_all_that_it_reads(methods_of):
    ppce, other = (methods_of(method="ppce", mode="course", reduction=reduction)[0] for reduction in ("", "sum"))
    assert ppce[0] == other[0] and common.runs.differing_keys(ppce[1], other[1]) == [] and "reduction" not in ppce[1]["settings"]
    rates = [methods_of(method="continued", stage_lrs=rates)[1] for rates in ("1e-4", "1e-4,1e-3", 1e-4)]  # papermill gives a number
    assert {folder.name for folder, *_ in rates} == {"continued_lr1e-4_seed42"}
    assert all(common.runs.differing_keys(rates[0][1], config) == [] for _, config, _ in rates)
    changes = [{}, {"weights": "none"}, {"lr": 0.1}, {"lr": 5e-5}, {"scale_to": 2.0}, {"precision": "bf16"}, {"optimizer": "sgd"}, {"seed": 1}]
    configs = [methods_of(method="ppce", mode="course", **change)[0] for change in changes]
    assert len({folder for folder, *_ in configs}) == len(changes)
    assert all(common.runs.differing_keys(config, configs[0][1]) for _, config, _ in configs[1:])


@pytest.fixture
def proxy_of(asked_for, toy):
    """(folder, configuration) of the proxy network that a run would train or load."""
    def only(**parameters):
        ((folder, config, options),) = asked_for(("reads = (",), {"root": toy, "splits": {}, "size": (64, 128)}, parameters)
        assert options["parent"] and options["rerun"] == "no", "it is loaded where it is there, in quick mode, too"
        return folder, config
    return only


@pytest.mark.parametrize("changes", [
    {"method": "ppce"}, {"reduction": "sum"}, {"weights": "none"}, {"lr": 0.1}, {"epochs": 3}, {"stage_epochs": 3}, {"batch_size": 4},
    {"precision": "fp32"}, {"optimizer": "sgd"}, {"eval_every": 1}, {"height": 128}, {"network": "v3plus_resnet101"}, {"rerun": "yes"}])
def test_what_a_proxy_network_does_not_depend_on_leaves_it_the_same(proxy_of, changes):
    folder, config = proxy_of()
    other_folder, other = proxy_of(**changes)
    assert other_folder == folder and common.runs.differing_keys(other, config) == []


@pytest.mark.parametrize("changes", [{"height": 64}, {"crop": 64}, {"images": 6}, {"seed": 1}, {"mode": "course"},
                                     {"scale_from": 0.75}, {"proxy_lr": 1e-2}])
def test_proxy_networks_that_differ_have_folders_of_their_own(proxy_of, changes):
    (folder, config), (other_folder, other) = (proxy_of(**({"mode": "paper"} | more)) for more in ({}, changes))
    assert common.runs.differing_keys(other, config) and other_folder != folder


# training


def train_tiny(root, out, name="semeda_4_2_0", epochs=3, parent=None, **changes):
    """One recipe as the notebook trains it, with a proxy network of random weights; returns its folder."""
    common.runs.SAVE_SECONDS = 0.0  # a state after every epoch
    nb = notebook_definitions(NAME)
    torch.manual_seed(7)
    common.save_weights(out.parent / "proxy" / "best.safetensors", nb.EdgeNet())
    splits = {split: common.list_frames(root, split) for split in ("train", "val", "test")}
    settings = nb.MODES["quick"] | HALVES | {"height": 64, "crop": 64, "epochs": epochs, "stage_epochs": 1, "eval_every": 1, "batch_size": 3} | changes
    config = {"method": name, "parameters": {"seed": 1, "mode": "course"}, "dataset": "toy", "images": {"train": 8, "val": 3},
              "recorded": {"versions": {}, "command": "", "definitions": "", "started": "2026"}}
    run = partial(nb.train_method, recipe=nb.RECIPES[name], rate=1e-3 * bool(parent), proxy_folder=out.parent / "proxy", settings=settings,
                  splits=splits, size=(64, 128), weights="none", seed=1, parent=parent)
    common.runs.train_or_load(out, config, run)
    return out


def test_a_killed_training_resumes_and_ends_in_the_same_numbers(nb, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(common.runs, "SAVE_SECONDS", 0.0)
    folders, (_, unbroken) = tiny_run.killed_and_unbroken(__name__, train_tiny, toy, tmp_path, times=2)
    assert len(unbroken) == 3 and len({*map(tuple, unbroken[["train_loss", "miou"]].values)}) == 3
    scores = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert all(scores[0][part] == scores[1][part] for part in ("metrics", "test"))
    rate = nb.MODES["quick"]["scratch_lr"]
    np.testing.assert_allclose(unbroken["lr"], [rate * (1 - done / 6) ** 0.9 for done in (0, 2, 4)])  # 6 steps of three images


def handed_to_fit(toy, tmp_path, monkeypatch, **changes):
    """What the training of one method hands to common.fit: (model, loss, training data, validation data, options)."""
    calls = []
    monkeypatch.setattr(common, "fit", lambda folder, *data, **options: calls.append((*data, options)))
    train_tiny(toy, tmp_path / "run", **changes)
    return calls[0]


def test_the_proxy_network_is_frozen_while_a_network_is_trained(nb, toy, tmp_path, monkeypatch):
    model, loss, *_, options = handed_to_fit(toy, tmp_path, monkeypatch)
    proxy = loss.keywords["proxy"]
    saved = common.load_weights(tmp_path / "proxy" / "best.safetensors", nb.EdgeNet())
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(proxy.parameters(), saved.parameters(), strict=True))
    moved = {id(p) for group in options["optimizer"].param_groups for p in group["params"]}
    assert moved == {id(p) for p in model.parameters()}


def test_a_network_learns_from_crops_and_is_judged_on_whole_images(nb, toy, tmp_path, monkeypatch):
    _, loss, train, val, options = handed_to_fit(toy, tmp_path, monkeypatch, crop=32, reduction="sum")
    assert (len(train), len(val), len(options["test_data"])) == (8, 3, 2)
    assert train[1, 0]["label"].shape == (32, 32) and not torch.equal(train[1, 0]["image"], train[2, 0]["image"])
    assert val[1, 0]["label"].shape == options["test_data"][1, 0]["label"].shape == (64, 128)
    assert loss.keywords["reduction"] == "sum" and options["evaluate"].__name__ == "evaluate"


def test_a_fine_tuning_starts_from_its_parents_weights_at_its_own_rate_and_matched_pull(nb, toy, tmp_path, monkeypatch):
    parent = tmp_path / "parent"
    torch.manual_seed(5)
    source, _ = nb.build_network("v3plus_lite0", 64)
    common.save_weights(parent / "best.safetensors", source)
    model, loss, *_, options = handed_to_fit(toy, tmp_path, monkeypatch, name="semeda_matched", parent=parent)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True))
    assert options["optimizer"].param_groups[0]["lr"] == 1e-3 and options["epochs"] == 1
    assert options["final_scores"](None, None, None) == {"strength": 1.0}
    first, second, third = loss.keywords["lambdas"]
    assert first == 2 * second and third == 0 and first not in (0, 4)


@pytest.mark.parametrize(("network", "scaled"), [("v3plus_lite0", HALVES), ("v3plus_xception71", HALVES), ("v3plus_resnet18", {})])
def test_each_encoder_sees_colours_scaled_as_its_weights_expect(network, scaled):
    timm = pytest.importorskip("timm")
    assert run_cells(CHECK, network=network)["scaled"] == scaled
    expected = {"v3plus_xception71": "xception71", "v3plus_lite0": "tf_efficientnet_lite0"}.get(network)
    assert expected is None or timm.get_pretrained_cfg(expected).mean == scaled["mean"]


def test_photos_are_scaled_alike_in_all_splits(toy, tmp_path, monkeypatch):
    *_, train, val, options = handed_to_fit(toy, tmp_path, monkeypatch)
    assert {(data.mean, data.std) for data in (train, val, options["test_data"])} == {tuple(HALVES.values())}


# the whole notebook


def run_notebook(out, **parameters):
    """Summaries by folder name of a run as a script."""
    run_script(NAME, out, **TINY | {"out_dir": str(out / "results")} | parameters)
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}


TAG = "-weightsnone-height64-crop64-batch_size3-epochs1"
PROXY = "proxy_64-crop64-images6_seed42"
PPCE = f"ppce{TAG}-images6_seed42"


@pytest.fixture(scope="module")
def all_methods(toy, tmp_path_factory):
    """(folder, summaries) of one run of what quick mode trains."""
    out = tmp_path_factory.mktemp("all")
    return out, run_notebook(out, data_dir=str(toy))


def test_all_recipes_run_and_leave_complete_results(nb, all_methods):
    out, summaries = all_methods
    recipes, losses = [], set()
    for name, summary in summaries.items():
        folder = out / "results" / NAME / "toy-quick" / name
        config, history = json.loads((folder / "config.json").read_text()), pd.read_csv(folder / "history.csv")
        assert config["method"] == summary["method"] and (summary["mode"], summary["n_train"], summary["n_val"]) == ("quick", 6, 3)
        assert np.isfinite(history["train_loss"]).all() and (folder / "best.safetensors").exists()
        if name == PROXY:
            continue
        recipes.append(config["recipe"])
        losses.add(history["train_loss"][0])
        for scores in (summary["metrics"], summary["test"]):
            assert {"miou", "accuracy", "iou", "boundary_f1", "trimap_iou", "inside", "outside"} <= set(scores)
            assert 0 < scores["miou"] < 1 and all(list(scores[side]) == ["1", "2", "3", "5", "10"] for side in ("inside", "outside"))
        assert summary["weights"] == "none" and config["parent"] == ("" if name == PPCE else PPCE)
        assert (summary["final"]["strength"] == 1) == ("matched" in name)
    assert sorted(recipes) == sorted(["ppce", *(f"{name}_lr3e-4" for name in TUNED)])
    assert len(losses) == 7, "seven recipes, seven losses"


def test_the_scores_kept_of_a_run_give_its_curves_again(nb, all_methods):
    out, summaries = all_methods
    with np.load(out / "results" / NAME / "toy-quick" / PPCE / "test_per_image.npz") as kept:
        curves = nb.trimap_curves(kept)
    assert curves == {side: summaries[PPCE]["test"][side] for side in ("inside", "outside")}


def test_the_run_of_the_proxy_network_says_what_it_reached(nb, all_methods):
    out, summaries = all_methods
    folder, summary = out / "results" / NAME / "toy-quick" / PROXY, summaries[PROXY]
    assert summary["metrics"]["edge_f1"] == pytest.approx(pd.read_csv(folder / "history.csv")["edge_f1"].iloc[-1]) and summary["metrics"]["edge_f1"] > 0.9
    common.load_weights(folder / "best.safetensors", nb.EdgeNet())


def test_a_later_run_finds_the_proxy_network_and_needs_no_other_recipe(toy, all_methods, tmp_path):
    out, before = all_methods
    weights = out / "results" / NAME / "toy-quick" / PROXY / "best.safetensors"
    written = weights.stat().st_mtime_ns
    cv2.imwrite(str(tmp_path / "mine.jpg"), np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    after = run_notebook(tmp_path, data_dir=str(toy), out_dir=str(out / "results"), method="sobel_2", photo=str(tmp_path / "mine.jpg"))
    assert not after  # it went to the other results
    later = {p.parent.name for p in (out / "results").rglob("summary.json")} - set(before)
    assert later == {f"sobel_2{TAG}-images6_seed42"} and weights.stat().st_mtime_ns == written
    config = json.loads(next((out / "results").rglob(f"sobel_2{TAG}*/config.json")).read_text())
    assert config["recipe"] == "sobel_2" and "-p method sobel_2 " in config["recorded"]["command"] + " "
    assert config["arguments"]["recipe"] == {"loss": "sobel", "lambdas": [2.0]}


def test_an_unknown_method_stops_the_notebook_before_anything_is_trained(toy, tmp_path):
    with pytest.raises(common.StreetsError, match="^method does not know 'dice': use ppce"):
        run_notebook(tmp_path, data_dir=str(toy), method="dice")
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize("lambdas", [(0, 0, 0), (1, 0, 0)])
def test_a_loss_of_ones_own_is_trained_or_refused_and_never_taken_for_another(nb, lambdas):
    batch = {"image": torch.zeros(1, 19, 16, 16), "label": torch.zeros(1, 16, 16, dtype=torch.long)}
    with pytest.raises(common.StreetsError, match="training_loss does not know the loss 'mine': give it a branch"):
        nb.training_loss(lambda image: image, batch, "mine", lambdas, None)
