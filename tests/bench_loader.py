"""Loading one training image at 1024x2048: OpenCV as in common.StreetScenes against torchvision's own data set.

Run with `pytest tests/bench_loader.py -s`. Both sides do the same work on one thread: read photo and label, remap to
trainIds, flip, jitter the colours, blur, normalise. Deterministic parts are compared pixel by pixel.
"""

import time

import numpy as np
import pytest
import torch
from conftest import notebook_definitions
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes
from torchvision.transforms import v2

import common
import data_prep


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets") / "toy"
    data_prep.make_toy(root, size=(1024, 2048), train=4, val=2, test=1)
    return root


def milliseconds(function, repeats=8):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def compare(what, plain, ours):
    a, b = milliseconds(plain), milliseconds(ours)
    print(f"\n{what}: plain {a:.0f} ms, ours {b:.0f} ms, {a / b:.1f} times faster")


def test_bench_reading_a_photo_with_its_label(streets):
    torch.set_num_threads(1)
    frames = common.list_frames(streets, "train")
    ours = common.StreetScenes(frames, (1024, 2048))
    theirs = Cityscapes(str(streets), "train", "fine", "semantic")
    table = torch.from_numpy(ours.scheme.table).long()
    normalise = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(common.IMAGENET_MEAN, common.IMAGENET_STD)])

    def plain():
        image, label = theirs[0]
        return normalise(image), table[v2.functional.pil_to_tensor(label)[0].long()]

    photo = theirs.images[0].rsplit("/", 1)[1]
    index = next(i for i, frame in enumerate(frames) if frame.image.name == photo)
    image, label = plain()
    assert torch.equal(ours[index]["label"], label) and torch.allclose(ours[index]["image"], image, atol=1e-5)
    compare("read, remap, normalise 1024x2048", plain, lambda: ours[index])


def test_bench_flip_jitter_and_blur(streets):
    torch.set_num_threads(1)
    augment = notebook_definitions("06_kervadec_ablation").augment
    image, label = common.StreetScenes(common.list_frames(streets, "train"), (1024, 2048)).read(0)
    transform = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ColorJitter(0.25, 0.25, 0.25, 0.03), v2.GaussianBlur(7, (0.1, 1.0))])
    pair = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
    seed = next(s for s in range(100) if (d := np.random.default_rng(s)).random() < 0.5 and d.random(5)[-1] < 0.5)
    _, mirrored = augment(image, label, np.random.default_rng(seed))
    assert (mirrored == transform(*pair)[1].numpy()).all()
    compare("flip, jitter, blur 1024x2048", lambda: transform(*pair), lambda: augment(image, label, np.random.default_rng(seed)))
