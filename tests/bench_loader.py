"""Loading one training image at 1024x2048: OpenCV as in common.StreetScenes against torchvision's own data set.

Run with `pytest tests/bench_loader.py -s`. Both sides do the same work on one thread: read photo and label, remap to
trainIds, flip, jitter the colours, blur, measure distances, normalise. Deterministic parts are compared pixel by pixel.
"""

import time
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import distance_transform_edt
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes
from torchvision.transforms import v2

import common
import data_prep

nb = notebook_definitions("06_kervadec_ablation")
SIZE = (1024, 2048)
NORMALISE = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                        v2.Normalize(common.IMAGENET_MEAN, common.IMAGENET_STD)])


@pytest.fixture(autouse=True)
def one_thread_each(one_thread):
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets") / "toy"
    data_prep.make_toy(root, size=SIZE, train=4, val=2, test=1)
    return root


def milliseconds(function, repeats=8):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def compare(what, plain, ours, repeats=8):
    a, b = milliseconds(plain, repeats), milliseconds(ours)
    print(f"\n{what}: plain {a:.0f} ms, ours {b:.0f} ms, {a / b:.1f} times faster")


def test_bench_reading_a_photo_with_its_label(streets):
    frames = common.list_frames(streets, "train")
    ours = common.StreetScenes(frames, SIZE)
    theirs = Cityscapes(str(streets), "train", "fine", "semantic")
    table = torch.from_numpy(ours.scheme.table).long()

    def plain():
        image, label = theirs[0]
        return NORMALISE(image), table[v2.functional.pil_to_tensor(label)[0].long()]

    photo = theirs.images[0].rsplit("/", 1)[1]
    index = next(i for i, frame in enumerate(frames) if frame.image.name == photo)
    image, label = plain()
    assert torch.equal(ours[index]["label"], label) and torch.allclose(ours[index]["image"], image, atol=1e-5)
    compare("read, remap, normalise 1024x2048", plain, lambda: ours[index])


def flips_and_blurs(seed):
    """Whether notebook 06's augmentation mirrors and blurs with that seed."""
    rng = np.random.default_rng(seed)
    return rng.random() < 0.5 and rng.random(5)[-1] < 0.5


def test_bench_flip_jitter_and_blur(streets):
    image, label = common.StreetScenes(common.list_frames(streets, "train"), SIZE).read(0)
    transform = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ColorJitter(0.25, 0.25, 0.25, 0.03),
                            v2.GaussianBlur(7, (0.1, 1.0))])
    pair = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
    seed = next(filter(flips_and_blurs, range(100)))
    _, mirrored = nb.augment(image, label, np.random.default_rng(seed))
    assert (mirrored == transform(*pair)[1].numpy()).all()
    compare("flip, jitter, blur 1024x2048", lambda: transform(*pair),
            lambda: nb.augment(image, label, np.random.default_rng(seed)))


def plain_distance_maps(label, n=19):
    """Two scipy transforms per class: outside the distance, inside minus (it less one), clipped at 127 pixels."""
    maps = np.zeros((n, *label.shape), np.float32)
    for c in range(n):
        mask = label == c
        if mask.any():
            maps[c] = np.where(mask, 1 - distance_transform_edt(mask), distance_transform_edt(~mask))
    return np.clip(maps, -127, 127) / 127


def test_bench_a_training_sample_of_notebook_06(streets):
    frames = common.list_frames(streets, "train")
    targets = partial(nb.distance_targets, num_classes=19, norm="clip127")
    data = common.StreetScenes(frames, SIZE, augment=nb.augment, targets=targets)
    epoch = next(k for k in range(100) if flips_and_blurs((0, k, 0)))
    table, jitter = data.scheme.table, v2.ColorJitter(0.25, 0.25, 0.25, 0.03)

    def plain():
        image, label = Image.open(frames[0].image).convert("RGB"), np.array(Image.open(frames[0].label))
        image, label = jitter(ImageOps.mirror(image)), np.ascontiguousarray(table[label][:, ::-1])
        image = NORMALISE(image.filter(ImageFilter.GaussianBlur(0.55)))
        phi = torch.from_numpy(plain_distance_maps(label))
        return {"image": image, "label": torch.from_numpy(label).long(), "phi": phi}

    ours, theirs = data[epoch, 0], plain()
    assert torch.equal(ours["label"], theirs["label"]) and ours["image"].shape == theirs["image"].shape
    torch.testing.assert_close(ours["phi"] / 127, theirs["phi"], atol=1 / 127, rtol=0)
    compare("a training sample of notebook 06 at 1024x2048", plain, lambda: data[epoch, 0], repeats=3)

    image, label = data.read(0)
    parts = {
        "decode the photo": lambda: common.read_image(frames[0].image),
        "decode the label": lambda: table[common.read_label(frames[0].label)],
        "flip": lambda: (np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])),
        "jitter": lambda: nb.jitter_colors(image, np.random.default_rng(0)),
        "blur": lambda: cv2.GaussianBlur(image, (0, 0), 0.55),
        "distance maps": lambda: targets(label),
        "to tensors": lambda: (common.to_tensor(image), torch.from_numpy(label.astype(np.int64))),
    }
    for name, call in parts.items():
        print(f"{name:17s}{milliseconds(call):6.1f} ms")
