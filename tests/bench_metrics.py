"""Metrics of one image at 1024x2048, one thread: scipy's morphology and torchmetrics against ours.

pytest tests/bench_metrics.py
"""
import os
import time

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from street_labels import drawn_label, real_label
from torchmetrics.functional.classification import multiclass_confusion_matrix

import common

SIZE, VOID = (1024, 2048), 255


@pytest.fixture(autouse=True)
def one_thread():
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="module")
def scene():
    """A prediction that is off by a few pixels, the label, and the number of classes."""
    label, n = real_label(240, SIZE) if os.environ.get("STREETS_TEST_DATA") else (drawn_label(*SIZE, n=16), 16)
    pred = np.roll(label, (4, 3), (0, 1))
    return np.where(pred == VOID, 0, pred), label, n


def side_by_side(capsys, benchmark, plain, ours, what):
    """Run both ways, check that they agree, print the ratio of their best times."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        expected = plain()
        seconds.append(time.perf_counter() - start)
    scores = benchmark.pedantic(ours, rounds=7, warmup_rounds=1)
    np.testing.assert_array_equal(scores, expected)
    plain_time, our_time = min(seconds), benchmark.stats.stats.min
    with capsys.disabled():
        print(f"\n{what}: {1000 * our_time:.1f} ms, the plain way {1000 * plain_time:.0f} ms: "
              f"{plain_time / our_time:.0f} times faster")


def plain_boundary_f1(pred, label, n):
    """One morphology per class, on the whole picture."""
    square, tolerance = np.ones((3, 3), bool), np.ones((7, 7), bool)
    valid, scores = label != VOID, np.full(n, np.nan)
    for c in np.unique(label[valid]):
        masks = [(labels == c) & valid for labels in (pred, label)]
        p, t = (ndimage.binary_dilation(m, square) ^ ndimage.binary_erosion(m, square) for m in masks)
        precision = (p & ndimage.binary_dilation(t, tolerance)).sum() / max(p.sum(), 1)
        recall = (t & ndimage.binary_dilation(p, tolerance)).sum() / t.sum()
        scores[c] = 2 * precision * recall / (precision + recall or 1)
    return scores


def plain_trimap_iou(pred, label, n):
    valid, seam = label != VOID, np.zeros(SIZE, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differ = (label[a] != label[b]) & valid[a] & valid[b]
        seam[a] |= differ
        seam[b] |= differ
    band = ndimage.binary_dilation(seam, np.ones((7, 7), bool)) & valid
    hits = np.array([((pred == c) & (label == c) & band).sum() for c in range(n)])
    unions = np.array([(((pred == c) | (label == c)) & band).sum() for c in range(n)])
    return np.where(unions > 0, hits / np.maximum(unions, 1), np.nan)


def plain_confusion_matrix(pred, label, n):
    pred, label = (torch.as_tensor(labels).long() for labels in (pred, label))
    return multiclass_confusion_matrix(pred, label, n, ignore_index=VOID).numpy()


def test_boundary_f1(scene, benchmark, capsys):
    side_by_side(capsys, benchmark, lambda: plain_boundary_f1(*scene), lambda: common.boundary_f1(*scene),
                 f"boundary F1, {scene[2]} classes")


def test_trimap_iou(scene, benchmark, capsys):
    side_by_side(capsys, benchmark, lambda: plain_trimap_iou(*scene), lambda: common.trimap_iou(*scene), "trimap IoU")


def test_confusion_matrix(scene, benchmark, capsys):
    pred, label = (torch.from_numpy(labels).long() for labels in scene[:2])
    n = scene[2]
    side_by_side(capsys, benchmark, lambda: plain_confusion_matrix(pred, label, n),
                 lambda: common.confusion_matrix(pred, label, n), "confusion matrix (plain: torchmetrics)")


def test_all_metrics_of_an_image(scene, benchmark, capsys):
    pred, label, n = scene[0], scene[1].astype(np.int64), scene[2]  # the types that common.evaluate hands over

    def every(*metrics):
        return np.concatenate([metric(pred, label, n).ravel() for metric in metrics])

    side_by_side(capsys, benchmark, lambda: every(plain_confusion_matrix, plain_boundary_f1, plain_trimap_iou),
                 lambda: every(common.confusion_matrix, common.boundary_f1, common.trimap_iou),
                 "confusion matrix, boundary F1 and trimap IoU")


def test_paired_bootstrap(benchmark, capsys):
    rng = np.random.default_rng(0)
    b = rng.integers(0, 1000, (500, 19, 19))
    a = b + 20 * np.eye(19, dtype=int)
    repeats = 1000

    def plain():
        rng, differences = np.random.default_rng(0), []
        for _ in range(repeats):
            times = rng.multinomial(500, np.full(500, 1 / 500))
            sums = [np.repeat(cms, times, axis=0).sum(0) for cms in (a, b)]
            differences.append(common.miou(sums[0]) - common.miou(sums[1]))
        return np.quantile(differences, [0.025, 0.975])

    side_by_side(capsys, benchmark, plain, lambda: common.paired_bootstrap(a, b, common.miou, repeats=repeats)[1:3],
                 f"paired bootstrap, 500 images, {repeats} repeats")
