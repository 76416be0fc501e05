"""Labels for the tests and benches of distance maps and metrics: real ones where there are any, else a drawn one."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest


def real_label(index: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, int]:
    """Return a CamVid label as (H, W) uint8, its classes numbered 0..n-1 and void 255, and n; skip where there is none.

    size: (H, W) to repeat pixels up to.
    """
    root = os.environ.get("STREETS_TEST_DATA", "")
    files = sorted(Path(root, "camvid32", "labels").glob("*.png")) if root else []
    if not files:
        pytest.skip("needs real labels: set STREETS_TEST_DATA to a folder that holds camvid32/")
    colours = cv2.imread(str(files[index % len(files)])).astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
    values, label = np.unique(colours, return_inverse=True)  # black, void in CamVid, comes first where it occurs
    has_void = int(values[0] == 0)
    label = (label.reshape(colours.shape) - has_void).astype(np.uint8)  # 0 - 1 wraps to 255
    if size is not None:
        label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
    return label, len(values) - has_void


def drawn_label(height: int, width: int, n: int = 14) -> np.ndarray:
    """Return a label with n classes and void: bands, as sky and road, then objects from broad to thin."""
    rng = np.random.default_rng(0)
    label = np.zeros((height, width), np.uint8)
    label[height // 3:] = 1
    label[height // 2:] = 2
    for c in [*range(3, n)] * 6 + [255]:
        x, y = int(rng.integers(width)), int(rng.integers(height // 4, height))
        w, h = max(1, width // (4 * c)), max(2, height // (2 + c % 5))
        if c % 3:
            cv2.rectangle(label, (x, y - h), (x + w, y), c, -1)
        else:
            cv2.ellipse(label, (x, y), (w, h // 2), 0, 0, 360, c, -1)
    label[-height // 20:] = 255
    return label
