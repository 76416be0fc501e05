"""The edges and the E-measure of notebook 05, one thread: pooling beside eight shifted comparisons, counts beside maps.

pytest tests/bench_edges.py
"""
import time

import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from py_sod_metrics import Emeasure
from street_labels import drawn_label
from torch.nn import functional as F

import common

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


def reference_scores(pred, truth):
    """E-measure of each class of an image by the reference code, from the class's map of the valid pixels; nan where it is absent."""
    valid, scores = truth != VOID, np.full(CLASSES, np.nan)
    for c in np.unique(truth[valid]):
        measure = Emeasure()
        measure.step(255 * (pred == c)[valid][None].astype(np.uint8), 255 * (truth == c)[valid][None].astype(np.uint8))
        scores[c] = measure.get_results()["em"]["curve"][128]
    return scores


def test_e_measure(labels, capsys):
    truths = labels.numpy().astype(np.uint8)
    preds = np.roll(np.where(truths == VOID, 0, truths), (4, 3), (1, 2))
    counting, confusion = timed(lambda: np.stack([common.confusion_matrix(p, t, CLASSES) for p, t in zip(preds, truths)]))
    ours, scores = timed(lambda: nb.e_measure(confusion, "n-1"))
    theirs, expected = timed(lambda: np.stack([reference_scores(p, t) for p, t in zip(preds, truths)]), repeats=1)
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    with capsys.disabled():
        print(f"\nE-measure of 19 classes in four images: {1000 * ours:.2f} ms from confusion matrices that took {1000 * counting:.0f} ms, "
              f"the reference code {1000 * theirs:.0f} ms, ratio {theirs / (ours + counting):.0f}")
