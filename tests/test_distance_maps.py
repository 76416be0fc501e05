"""Signed distance maps: exact, with the conventions that the docstring promises."""
import cv2
import numpy as np
import pytest
import torch
from monai.losses import BoundaryLoss
from scipy.ndimage import distance_transform_edt
from street_labels import drawn_label, real_label

from data_prep import NORMS, quantise_distance_maps, signed_distance_maps

VOID = 255


def distances_by_brute_force(mask):
    """Each pixel's distance to the nearest True pixel, by trying all of them."""
    points = np.argwhere(mask)
    grid = np.indices(mask.shape).transpose(1, 2, 0)
    squared = ((grid[:, :, None] - points) ** 2).sum(-1).min(-1)
    return np.sqrt(squared.astype(np.float32))


def plain_maps(label, n, norm, distances):
    maps = np.zeros((n, *label.shape), np.float32)
    for c in range(n):
        mask = label == c
        if mask.all() or not mask.any():
            continue
        outside, inside = distances(mask), distances(~mask)
        phi = outside - inside if norm == "readme" else np.where(mask, -(inside - 1), outside)
        if norm == "clip127":
            phi = np.clip(phi, -127, 127) / np.float32(127)
        elif norm in ("absmax", "readme"):
            phi = phi / np.abs(phi).max()
        elif norm == "signwise":
            phi = np.where(phi > 0, phi / phi.max(), phi / (-phi.min() or 1))
        maps[c] = phi
    return maps


def scipy_distances(mask):
    return distance_transform_edt(~mask).astype(np.float32)


@pytest.mark.parametrize("norm", NORMS)
def test_tiny_labels_equal_brute_force(norm):
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width, n = rng.integers(1, 10, 3)
        values = [*range(rng.integers(1, n + 1)), VOID]  # classes beyond these are absent
        label = rng.choice(values, (height, width), p=rng.dirichlet(np.ones(len(values)))).astype(np.uint8)
        maps = signed_distance_maps(label, n, norm=norm)
        assert maps.shape == (n, height, width) and maps.dtype == np.float32
        np.testing.assert_array_equal(maps, plain_maps(label, n, norm, distances_by_brute_force))


@pytest.mark.parametrize("norm", NORMS)
def test_real_label_equals_scipy(norm):
    label, n = real_label(240, (360, 480))
    assert n > 10
    expected = plain_maps(label, n, norm, scipy_distances)
    np.testing.assert_array_equal(signed_distance_maps(label, n, norm=norm), expected)


@pytest.mark.parametrize("index", [0, 110, 300, 420])
def test_clipped_maps_of_other_real_labels_equal_scipy(index):
    label, n = real_label(index, (300, 600))
    expected = plain_maps(label, n, "clip127", scipy_distances)
    np.testing.assert_array_equal(signed_distance_maps(label, n), expected)


def test_far_pixels_of_a_full_size_image_equal_scipy():
    rng = np.random.default_rng(2)
    label = np.zeros((1024, 2048), np.uint8)
    label[rng.integers(1024, size=5), rng.integers(2048, size=5)] = 1
    expected = plain_maps(label, 2, "none", scipy_distances)
    assert expected.max() > 500
    np.testing.assert_array_equal(signed_distance_maps(label, 2, norm="none"), expected)


def test_one_thread_and_several_give_the_same_map_and_leave_opencv_as_it_was():
    label = drawn_label(200, 300)
    threads, ipp_before = cv2.getNumThreads(), cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(True)
    ipp = cv2.ipp.useIPP()  # False where OpenCV was built without
    try:
        maps = []
        for number in (1, 4):
            cv2.setNumThreads(number)
            maps.append(signed_distance_maps(label, 14, norm="none"))
        assert cv2.ipp.useIPP() == ipp
    finally:
        cv2.setNumThreads(threads)
        cv2.ipp.setUseIPP(ipp_before)
    np.testing.assert_array_equal(maps[0], maps[1])


def test_raw_map_gives_monais_boundary_loss():
    n = 16
    label = drawn_label(96, 160)  # classes 14 and 15 are absent
    label[label == VOID] = 0  # MONAI knows no void
    for target in (label, np.full_like(label, 3)):
        logits = torch.randn(1, n, 96, 160, generator=torch.Generator().manual_seed(0))
        loss = BoundaryLoss(softmax=True, to_onehot_y=True, reduction="none")
        expected = loss(logits, torch.from_numpy(target)[None, None].long())[0]
        phi = torch.from_numpy(signed_distance_maps(target, n, norm="none"))
        torch.testing.assert_close((phi * logits[0].softmax(0)).mean((1, 2)), expected)
        present = np.unique(target) if target is label else []  # a class that fills the image counts as absent
        np.testing.assert_array_equal(np.flatnonzero(expected), present)


@pytest.mark.parametrize("norm", NORMS)
def test_a_class_without_a_boundary_is_zero_everywhere(norm):
    label = np.full((20, 30), 1, np.uint8)  # 1 fills the label, 0 and 2 are absent
    np.testing.assert_array_equal(signed_distance_maps(label, 3, norm=norm), np.zeros((3, 20, 30)))
    np.testing.assert_array_equal(signed_distance_maps(np.full_like(label, VOID), 3, norm=norm), np.zeros((3, 20, 30)))


def test_one_pixel_is_its_own_rim():
    label = np.zeros((9, 9), np.uint8)
    label[4, 4] = 1
    raw = signed_distance_maps(label, 2, norm="none")
    assert raw[1, 4, 4] == 0 and raw[1, 4, 7] == 3 and raw[1, 3, 3] == np.sqrt(np.float32(2))
    assert raw[0, 4, 4] == 1 and raw[0, 4, 5] == 0 and raw[0, 4, 6] == -1
    signwise = signed_distance_maps(label, 2, norm="signwise")
    assert signwise[1].min() == 0 and signwise[1].max() == 1
    assert signwise[0].min() == -1 and signwise[0].max() == 1
    readme = signed_distance_maps(label, 2, norm="readme")
    assert readme[1, 4, 4] == np.float32(-1) / np.sqrt(np.float32(32)) and not (readme == 0).any()


def test_the_image_frame_is_no_boundary():
    label = np.zeros((5, 12), np.uint8)
    label[:, 6:] = 1
    phi = signed_distance_maps(label, 2, norm="none")[1]
    np.testing.assert_array_equal(phi, [[6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5]] * 5)


@pytest.mark.parametrize("norm", NORMS)
def test_void_is_outside_of_every_class(norm):
    label = drawn_label(120, 200)
    maps = signed_distance_maps(label, 14, norm=norm)
    assert (label == VOID).any() and (maps[:, label == VOID] > 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_flipping_the_label_flips_the_map(norm):
    label = drawn_label(60, 90)
    maps = signed_distance_maps(label, 14, norm=norm)
    for axis in (0, 1):
        flipped = signed_distance_maps(np.flip(label, axis), 14, norm=norm)
        np.testing.assert_array_equal(flipped, np.flip(maps, axis + 1))


@pytest.mark.parametrize("norm", NORMS)
def test_the_truth_has_a_lower_boundary_loss_than_any_shift_of_it(norm):
    label, n = real_label(300, (180, 240))
    phi = signed_distance_maps(label, n, norm=norm)

    def loss(prediction):
        valid = (label != VOID) & (prediction != VOID)
        rows, cols = np.nonzero(valid)
        return phi[prediction[valid], rows, cols].sum(dtype=float)

    for dy in (-2, 0, 2):
        for dx in (-5, -1, 0, 1, 5):
            if dy or dx:
                shifted = np.roll(label, (dy, dx), (0, 1))
                both = np.where(shifted == VOID, VOID, label)  # the same pixels for both
                assert loss(both) < loss(shifted)


def test_one_byte_a_pixel_rounds_to_the_nearest_pixel():
    label, n = real_label(300)
    maps = signed_distance_maps(label, n)
    small = quantise_distance_maps(maps)
    pixels = np.clip(signed_distance_maps(label, n, norm="none"), -127, 127)
    assert small.dtype == np.int8 and np.abs(small - pixels).max() <= 0.5
    assert (small == 127).any() and (small == -127).any()
    truncated = (maps * 127).astype(np.int8)
    bias, truncation_bias = (abs((kept - pixels).mean()) for kept in (small, truncated))
    assert truncation_bias > 10 * bias


def test_label_type_and_void_value_do_not_matter():
    label = drawn_label(50, 80, n=7)
    maps = signed_distance_maps(label, 7)
    np.testing.assert_array_equal(signed_distance_maps(label.astype(np.int64), 7), maps)
    signed = np.where(label == VOID, -1, label.astype(np.int16))
    np.testing.assert_array_equal(signed_distance_maps(signed, 7, ignore=-1), maps)
    void_first = np.where(label == VOID, 0, label + 1).astype(np.uint8)
    shifted = signed_distance_maps(void_first, 8, ignore=0)
    np.testing.assert_array_equal(shifted[1:], maps)
    assert not shifted[0].any()


def test_label_is_left_as_it_was():
    label = drawn_label(40, 60)
    before = label.copy()
    label.flags.writeable = False
    signed_distance_maps(label, 14)
    np.testing.assert_array_equal(label, before)


@pytest.mark.parametrize("value, arguments, words", [
    (33, {}, "label holds 33"),
    (0, {"norm": "clip"}, "norm='clip' is unknown"),
])
def test_errors_name_the_cause(value, arguments, words):
    with pytest.raises(ValueError, match=words):
        signed_distance_maps(np.full((4, 4), value, np.uint8), 19, **arguments)
