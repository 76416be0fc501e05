"""The edges and the losses of notebook 05, one thread: pooling beside eight shifted comparisons, losses beside cross-entropy.

pytest tests/bench_edges.py
"""
import time

import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from street_labels import drawn_label
from torch.nn import functional as F

nb = notebook_definitions("05_semeda")
SIZE, CLASSES, VOID = (512, 1024), 19, 255
SHIFTS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def labels():
    """A batch of labels (4, H, W) with void."""
    return torch.from_numpy(np.stack([np.roll(drawn_label(*SIZE, n=CLASSES), 100 * k, axis=1) for k in range(4)])).long()


def timed(call, repeats=5):
    """(seconds of the fastest call, what it returns)."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - started)
    return min(seconds), found


def shifted(around, label, shape):
    """(edges, valid) of an array or tensor (B, H, W) from its eight neighbours in `around`, which is one pixel larger on each side."""
    differ, void = label != label, label == VOID
    for dy, dx in SHIFTS:
        beside = around[:, 1 + dy : 1 + dy + shape[0], 1 + dx : 1 + dx + shape[1]]
        differ |= beside != label
        void |= beside == VOID
    return differ & ~void, ~void


def test_semantic_edges(labels, capsys):
    array = labels.numpy()
    ours, found = timed(lambda: nb.semantic_edges(labels))
    in_numpy, expected = timed(lambda: shifted(np.pad(array, ((0, 0), (1, 1), (1, 1)), mode="edge"), array, SIZE))
    in_torch, again = timed(lambda: shifted(F.pad(labels[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0], labels.float(), SIZE))
    for a, b, c in zip(found, expected, again):
        np.testing.assert_array_equal(a, b)
        assert torch.equal(a, c)
    with capsys.disabled():
        print(f"\nedges of 4x512x1024: pooling {1000 * ours:.0f} ms, eight comparisons in numpy {1000 * in_numpy:.0f} ms (ratio {in_numpy / ours:.2f}), "
              f"in torch {1000 * in_torch:.0f} ms (ratio {in_torch / ours:.2f})")


def test_structural_losses(labels, capsys):
    """Forward and backward beside cross-entropy, at a crop of 320, and what a prediction's embeddings take of a whole picture."""
    label = labels[:2, :320, :320]
    logits = torch.randn(2, CLASSES, 320, 320, generator=torch.Generator().manual_seed(0))
    proxy = nb.EdgeNet().requires_grad_(False)
    losses = {"cross-entropy": lambda z: nb.cross_entropy(z, label)}
    for name, recipe in {"Sobel": ("sobel", (4,)), "SEMEDA (4, 2, 0)": ("semeda", (4, 2, 0)), "SEMEDA (.5, .5, .5)": ("semeda", (0.5, 0.5, 0.5))}.items():
        losses[name] = lambda z, recipe=recipe: nb.structural_loss(z, label, *recipe, proxy)
    seconds = {}
    for name, loss in losses.items():
        seconds[name], slope = timed(lambda loss=loss: nb.pull(loss, logits), repeats=3)
        assert torch.isfinite(slope).all() and slope.any()
    with capsys.disabled():
        print("\nforward and backward at 2x19x320x320:", *(f"{name} {1000 * s:.0f} ms ({s / seconds['cross-entropy']:.1f} x)" for name, s in seconds.items()))
        print(f"two embeddings of a picture of 1024x2048: {(16 + 32) * 1024 * 2048 * 4 / 1e6:.0f} MB in float32")
