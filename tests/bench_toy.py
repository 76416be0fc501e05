"""How fast the toy streets are drawn, and how hard they are: `pytest tests/bench_toy.py -s` (about eight minutes).

Difficulty: colours alone must not be enough. A small U-Net trained for five CPU minutes has to beat a per-pixel
classifier that sees colour and position, and must still leave room for better networks.
"""
import os
import time

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import Cityscapes

import data_prep

CPU_SECONDS = float(os.environ.get("STREETS_BENCH_SECONDS", 300))
LR = 6e-3
CLASSES = [c for c in Cityscapes.classes if not c.ignore_in_eval]
TRAIN_ID = np.full(256, 255, np.uint8)
for c in CLASSES:
    TRAIN_ID[c.id] = c.train_id


def test_sixty_streets(benchmark, tmp_path):
    benchmark.pedantic(data_prep.make_toy, args=(tmp_path / "toy",), rounds=1)
    print(f"\n60 streets at 256x512: {benchmark.stats['mean']:.1f} s (limit 15 s on 2 cores)")


def test_one_full_size_street(benchmark):
    benchmark.pedantic(lambda: data_prep.draw_street((1024, 2048), "altmoor", np.random.default_rng(0)), rounds=5)
    mean, most = benchmark.stats["mean"], benchmark.stats["max"]
    print(f"\none street at 1024x2048: {mean:.2f} s, at most {most:.2f} s (limit 1.5 s)")


def load(root, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8 and trainIds (N, H, W) uint8 of one split."""
    dataset = Cityscapes(root, split=split, mode="fine", target_type="semantic")
    pairs = [(np.array(image), TRAIN_ID[np.array(label)]) for image, label in dataset]
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def iou_per_class(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(19,) IoU over the whole set; nan for a class that the ground truth does not have."""
    valid = target != 255
    cm = np.bincount(target[valid].astype(int) * 19 + pred[valid], minlength=361).reshape(19, 19)
    truth = cm.sum(axis=1)
    return np.where(truth > 0, np.diag(cm) / np.maximum(truth + cm.sum(axis=0) - np.diag(cm), 1), np.nan)


def pixel_features(images: np.ndarray) -> np.ndarray:
    """(N * H * W, 5) red, green, blue, row, column."""
    n, height, width, _ = images.shape
    row, column = np.mgrid[:height, :width]
    place = np.broadcast_to(np.stack([row, column], axis=-1), (n, height, width, 2))
    return np.concatenate([images, place], axis=-1).reshape(-1, 5).astype(np.float32)


def classify_pixels(train, val) -> np.ndarray:
    rng = np.random.default_rng(0)
    target = train[1].ravel()
    chosen = rng.choice(np.flatnonzero(target != 255), 300_000, replace=False)
    model = HistGradientBoostingClassifier(max_iter=100, random_state=0)
    model.fit(pixel_features(train[0])[chosen], target[chosen])
    return model.predict(pixel_features(val[0])).reshape(val[1].shape)


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """A U-Net of five levels, 0.5 M parameters, narrow at full size, where a step spends its time."""

    def __init__(self, widths=(8, 16, 32, 64, 128), num_classes: int = 19):
        super().__init__()
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip((3, *widths), widths))
        self.up = nn.ModuleList(double_conv(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x):  # (B, 3, H, W) -> (B, 19, H, W)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1]):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2)], dim=1))
        return self.head(x)


def network_input(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1], stored channels last, which is faster on a CPU."""
    return images.permute(0, 3, 1, 2) / 127.5 - 1


def train_unet(train, val, cpu_seconds: float) -> np.ndarray:
    """Weighted cross-entropy on random half-size crops, the learning rate falling with the CPU time used up."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images, labels = (torch.from_numpy(array) for array in train)
    model = SmallUNet().to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    frequency = torch.bincount(labels[labels != 255].long(), minlength=19).float()
    weight = (frequency / frequency.sum()).clamp(min=1e-4) ** -0.5
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR)
    height, width = (side // 2 for side in labels.shape[1:])
    begin, steps, used = time.process_time(), 0, 0.0
    while used < cpu_seconds:
        optimiser.param_groups[0]["lr"] = LR * min(1, steps / 30 + .05) * (1 - used / cpu_seconds) ** .9
        crops = []
        for index in rng.integers(len(images), size=4):
            top, left = rng.integers(height + 1), rng.integers(width + 1)
            window = np.s_[index, top:top + height, left:left + width]
            flip = [1] if rng.random() < .5 else []
            crops.append((images[window].flip(flip), labels[window].flip(flip)))
        x = network_input(torch.stack([image for image, _ in crops]))
        y = torch.stack([label for _, label in crops]).long()
        loss = F.cross_entropy(model(x), y, weight, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps, used = steps + 1, time.process_time() - begin
    print(f"\nU-Net: {parameters:,} parameters, {steps} steps of 4 crops in {used:.0f} CPU seconds")
    model.eval()
    with torch.no_grad():
        logits = [model(network_input(torch.from_numpy(image[None]))) for image in val[0]]
    return torch.cat(logits).argmax(dim=1).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = data_prep.make_toy(tmp_path_factory.mktemp("bench") / "toy")
    return load(root, "train"), load(root, "val")


def test_a_network_sees_more_than_colour_and_position(streets):
    train, val = streets
    unet = iou_per_class(train_unet(train, val, CPU_SECONDS), val[1])
    pixel = iou_per_class(classify_pixels(train, val), val[1])
    print(f"{'class':14s}  U-Net  pixel classifier")
    for i in np.argsort(unet):
        print(f"{CLASSES[i].name:14s}  {unet[i]:.3f}  {pixel[i]:.3f}")
    ratio = np.nanmean(unet) / np.nanmean(pixel)
    print(f"{'mean':14s}  {np.nanmean(unet):.3f}  {np.nanmean(pixel):.3f}  ratio {ratio:.2f} (wanted: 1.6 or more)")
    assert ratio >= 1.6 and np.nanmean(unet) < 0.9


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-s"]))
