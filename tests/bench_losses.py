"""The losses and the copy-paste of notebook 04 at 7x512x1024, one thread: each term beside cross-entropy, and plain ways.

pytest tests/bench_losses.py
"""
import time

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import notebook_definitions
from street_labels import drawn_label
from torch.nn import functional as F

nb = notebook_definitions("04_segformer_thin_structures")
SIZE, CLASSES = (512, 1024), 7
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene():
    """Logits (1, 7, H, W) that know a little, and a label without void."""
    label = torch.from_numpy(drawn_label(*SIZE, n=CLASSES) % 255).long()[None]
    noise = torch.randn(1, CLASSES, *SIZE, generator=torch.Generator().manual_seed(0))
    return noise + 2 * F.one_hot(label, CLASSES).movedim(-1, 1), label


def timed(call, repeats=3):
    """(seconds of the fastest call, what it returns)."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), found


def value_and_gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_terms(scene, capsys):
    logits, label = scene
    terms = {"cross-entropy": lambda z: nb.cross_entropy(z, label), "SSIM": lambda z: nb.ssim_loss(z.softmax(1), label),
             "soft IoU": lambda z: nb.soft_iou_loss(z.softmax(1), label), "Lovász": lambda z: nb.lovasz_softmax(z.softmax(1), label)}
    seconds = {}
    for name, term in terms.items():
        seconds[name], (value, slope) = timed(lambda term=term: value_and_gradient(term, logits))
        assert torch.isfinite(value) and torch.isfinite(slope).all() and slope.any()
    with capsys.disabled():
        print("\nforward and backward at 7x512x1024:", *(f"{name} {1000 * s:.0f} ms ({s / seconds['cross-entropy']:.1f} x)" for name, s in seconds.items()))


def separable_blur(maps, size=11, sigma=1.5):
    """The same Gaussian means from a row and a column one after the other."""
    x = torch.arange(size, dtype=maps.dtype) - size // 2
    bell = torch.exp(-x.square() / (2 * sigma**2))
    bell, channels = bell / bell.sum(), maps.shape[1]
    padded = F.pad(maps, (size // 2,) * 4, mode="reflect")
    rows = F.conv2d(padded, bell.view(1, 1, 1, size).expand(channels, 1, 1, size), groups=channels)
    return F.conv2d(rows, bell.view(1, 1, size, 1).expand(channels, 1, size, 1), groups=channels)


def test_ssim_window(scene, capsys, monkeypatch):
    logits, label = scene
    whole, (value, slope) = timed(lambda: value_and_gradient(lambda z: nb.ssim_loss(z.softmax(1), label), logits))
    monkeypatch.setattr(nb, "blur", separable_blur)
    parts, (again, slope_again) = timed(lambda: value_and_gradient(lambda z: nb.ssim_loss(z.softmax(1), label), logits))
    torch.testing.assert_close(value, again, atol=1e-4, rtol=0)
    torch.testing.assert_close(slope, slope_again, atol=2e-3 * slope.abs().max().item(), rtol=0)
    with capsys.disabled():
        print(f"\nSSIM with an 11x11 window: {1000 * whole:.0f} ms, with a row and a column: {1000 * parts:.0f} ms, ratio {whole / parts:.2f}")


def test_lovasz(scene, capsys):
    logits, label = scene
    oracle = smp.losses.LovaszLoss("multiclass")
    ours, (value, slope) = timed(lambda: value_and_gradient(lambda z: nb.lovasz_softmax(z.softmax(1), label), logits))
    theirs, (again, slope_again) = timed(lambda: value_and_gradient(lambda z: oracle(z, label), logits))
    torch.testing.assert_close(value, again, atol=1e-5, rtol=0)
    torch.testing.assert_close(slope, slope_again, atol=1e-7, rtol=1e-3)
    with capsys.disabled():
        print(f"\nLovász: {1000 * ours:.0f} ms, smp's {1000 * theirs:.0f} ms, ratio {theirs / ours:.2f}")


def plain_paste(image, label, source, source_label, rng, classes):
    """The same draws, class by class and pixel by pixel."""
    if rng.random() < 0.5:
        source, source_label = source[:, ::-1], source_label[:, ::-1]
    present = [c for c in sorted(set(source_label.ravel().tolist())) if c in classes]
    image, label = image.copy(), label.copy()
    for c in rng.choice(present, rng.integers(1, len(present) + 1), replace=False):
        for y, x in np.ndindex(*label.shape):
            if source_label[y, x] == c:
                image[y, x], label[y, x] = source[y, x], c
    return image, label


def test_paste_whole_classes(capsys):
    rng, label = np.random.default_rng(0), drawn_label(*SIZE, n=CLASSES)
    image, source = (rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(2))
    scenes = (image, label, source, np.roll(label[::-1], 100, axis=1))
    ours, pasted = timed(lambda: nb.paste_whole_classes(*scenes, np.random.default_rng(3), (1, 2, 3, 4, 5, 6)))
    plain, expected = timed(lambda: plain_paste(*scenes, np.random.default_rng(3), (1, 2, 3, 4, 5, 6)), repeats=1)
    for a, b in zip(pasted, expected):
        np.testing.assert_array_equal(a, b)
    with capsys.disabled():
        print(f"\npasting classes at 512x1024: {1000 * ours:.1f} ms, pixel by pixel {1000 * plain:.0f} ms, ratio {plain / ours:.0f}")
