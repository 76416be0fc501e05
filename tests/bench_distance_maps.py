"""Signed distance maps at 1024x2048, one thread: two scipy transforms per class against ours.

pytest tests/bench_distance_maps.py
"""
import os
import time

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from street_labels import drawn_label, real_label

from data_prep import signed_distance_maps

SIZE = (1024, 2048)


@pytest.fixture(autouse=True)
def one_opencv_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def scene():
    """A label, its number of classes, and the plain way's raw map and seconds."""
    label, n = real_label(240, SIZE) if os.environ.get("STREETS_TEST_DATA") else (drawn_label(*SIZE, n=16), 16)
    start = time.perf_counter()
    raw = np.zeros((n, *SIZE), np.float32)
    for c in np.unique(label[label != 255]):
        mask = label == c
        outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
        raw[c] = outside.astype(np.float32) - np.maximum(inside.astype(np.float32) - 1, 0)
    return label, n, raw, time.perf_counter() - start


def report(capsys, benchmark, plain, what):
    ours = benchmark.stats.stats.min
    with capsys.disabled():
        print(f"\n{what}: {1000 * ours:.0f} ms, two scipy EDTs per class {1000 * plain:.0f} ms: {plain / ours:.1f} times faster")


def test_clipped_map(scene, benchmark, capsys):
    label, n, raw, plain = scene
    maps = benchmark.pedantic(signed_distance_maps, (label, n), rounds=5, warmup_rounds=1)
    np.testing.assert_array_equal(maps, np.clip(raw, -127, 127) / np.float32(127))
    report(capsys, benchmark, plain, f"clip127, {len(np.unique(label))} values")


def test_exact_map(scene, benchmark, capsys):
    label, n, raw, plain = scene
    maps = benchmark.pedantic(signed_distance_maps, (label, n), {"norm": "none"}, rounds=3, warmup_rounds=1)
    np.testing.assert_array_equal(maps, raw)
    report(capsys, benchmark, plain, "unclipped")
