"""Occlusion of one image at 256x256, one thread: pixel by pixel in Python against ours.

pytest tests/bench_occlusion.py
"""
from timeit import repeat

import numpy as np
from conftest import notebook_definitions

nb = notebook_definitions("02_unet_from_scratch")


def crowd(people=12, side=256):
    """A label with upright people and a photo."""
    rng, label = np.random.default_rng(0), np.ones((side, side), np.uint8)
    for _ in range(people):
        y, x = rng.integers(0, side - 40, 2)
        label[y : y + 30, x : x + 8] = 4
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8), label


def plain_people(label, person=4):
    """Bounding boxes of the 8-connected groups, by flood fill in scan order."""
    seen, boxes = np.zeros(label.shape, bool), []
    for start in np.ndindex(*label.shape):
        if label[start] != person or seen[start]:
            continue
        seen[start], stack, group = True, [start], []
        while stack:
            y, x = stack.pop()
            group.append((y, x))
            for dy, dx in np.ndindex(3, 3):
                at = (y + dy - 1, x + dx - 1)
                if 0 <= at[0] < label.shape[0] and 0 <= at[1] < label.shape[1] and label[at] == person and not seen[at]:
                    seen[at] = True
                    stack.append(at)
        ys, xs = zip(*group)
        boxes.append((slice(min(ys), max(ys) + 1), slice(min(xs), max(xs) + 1)))
    return boxes


def plain_occlude(image, label, rng, hide):
    """The same draws, the boxes filled one pixel at a time."""
    image, hidden = image.copy(), 0
    for person in plain_people(label):
        if hidden == 2:
            break
        rows, columns = nb.box_within(person, rng) if rng.random() < hide else np.s_[:0, :0]
        if not image[rows, columns].size:
            continue
        values = nb.noise(image[rows, columns].shape, rng, 0.7)
        for y in range(rows.start, rows.stop):
            for x in range(columns.start, columns.stop):
                image[y, x] = values[y - rows.start, x - columns.start]
        hidden += 1
    return image, label


def test_occlusion(capsys, benchmark):
    image, label = crowd()
    for seed in range(5):
        ours, plain = (f(image, label, np.random.default_rng(seed), hide=0.8)[0] for f in (nb.occlude, plain_occlude))
        np.testing.assert_array_equal(ours, plain)
    benchmark(lambda: nb.occlude(image, label, np.random.default_rng(0), hide=0.8))
    ours = min(repeat(lambda: nb.occlude(image, label, np.random.default_rng(0), hide=0.8), repeat=50, number=1))
    plain = min(repeat(lambda: plain_occlude(image, label, np.random.default_rng(0), hide=0.8), repeat=3, number=1))
    with capsys.disabled():
        print(f"\nocclusion 256x256: {1e3 * ours:.2f} ms, pixel by pixel {1e3 * plain:.1f} ms, ratio {plain / ours:.0f}")
