# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     cell_metadata_filter: tags,nbgrader,-all
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# TITLE

# %% [markdown]
# ## Parameters
#
# From a shell, any of them can be set with
# `papermill notebooks/05_semeda.ipynb out.ipynb -p method semeda -p lambdas 2,4,0`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (CPU, minutes), course (one free GPU session), paper (the published recipe)
method: str = "all"  # ppce, sobel, semeda, several with commas, or all
lambdas: str = "4,2,0"  # weights of the three embeddings (sobel takes the first); several settings with semicolons, or all
reduction: str = ""  # distances are summed and divided by the valid pixels (pixels), by pixels and channels (elements), or not (sum); empty takes the mode's
network: str = ""  # v3plus_resnet18, v3plus_resnet101, v3plus_xception71 or v2_resnet101; empty takes the mode's
weights: str = "auto"  # imagenet, coco (v2_resnet101 only), none, or auto, which is imagenet where it can be had
lr: float = 0.0  # learning rate; 0 takes the mode's, which depends on the weights
height: int = 0  # rows of the images, a multiple of 32; 0 takes the mode's
crop: int = 0  # side of the training crops, a multiple of 16; 0 takes the mode's
batch_size: int = 0  # crops per step, at least 2; 0 takes the mode's
epochs: int = 0  # epochs; 0 takes the mode's
images: int = 0  # number of training images; 0 takes the mode's
precision: str = "auto"  # auto, bf16, fp16, fp32
rerun: str = "no"  # yes trains again what is already trained
photo: str = ""  # a JPEG or PNG of your own to label at the end
seed: int = 42
data_dir: str = ""  # a folder in Cityscapes layout; empty looks in the usual places, then draws toy streets
out_dir: str = ""  # where runs are kept; empty is the results folder of the repo
num_processes: int = 1  # GPUs (or CPU processes) to train on
max_hours: float = 0.0  # stop cleanly before this many hours; 0 never stops

# %% [markdown]
# The next cell finds the helpers of this course: in the folder above, or, when the notebook was opened alone, by
# cloning the repository. It installs what is missing and never replaces what is there.

# %%
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = "https://github.com/street-segmentation/street-segmentation"
NOTEBOOK = "05_semeda"
NEEDS = {"segmentation_models_pytorch": "segmentation-models-pytorch", "accelerate": "accelerate",
         "cv2": "opencv-python-headless"}

script = Path(globals().get("__file__", "notebook")).parent
places = [Path(p) for p in (os.environ.get("STREETS_HOME", "."), ".", "..", script / "..", "street-segmentation")]
places += [p.parent for depth in ("*", "*/*", "*/*/*") for p in sorted(Path("/kaggle/input").glob(f"{depth}/data_prep.py"))]
home = next((p for p in places if (p / "common.py").exists() and (p / "data_prep.py").exists()), None)
if home is None:
    home = Path("street-segmentation")
    clone = ["git", "clone", "--depth", "1", os.environ.get("STREETS_REPO", REPO), home]
    if shutil.which("git") is None or subprocess.run(clone).returncode:
        raise RuntimeError("The helpers cannot be cloned: connect, or set STREETS_HOME to a folder that holds common.py.")

# %%
missing = [wheel for module, wheel in NEEDS.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()
sys.path.insert(0, str(home.resolve()))

import common

# %%
METHODS = ("ppce", "sobel", "semeda")
NETWORKS = ("v3plus_resnet18", "v3plus_resnet101", "v3plus_xception71", "v2_resnet101")
SOBEL_SETTINGS = ((0.5,), (1.0,), (2.0,), (4.0,))  # Table 1 of the paper
SEMEDA_SETTINGS = ((0.5, 0.5, 0.5), (1.0, 0.5, 0.0), (0.5, 1.0, 0.0), (1.0, 0.5, 0.25),
                   (1.0, 1.0, 0.0), (2.0, 4.0, 0.0), (4.0, 2.0, 0.0), (4.0, 4.0, 0.0))

# %%
def read_lambdas(text):
    """[(l1, l2, l3), ...] from "4,2,0; 2,4,0"; what is left out at the end is 0. StreetsError for anything else."""
    settings = []
    for one in text.split(";"):
        try:
            numbers = tuple(float(number) for number in one.split(","))
        except ValueError:
            numbers = ()
        if not 1 <= len(numbers) <= 3 or not all(0 <= number < float("inf") for number in numbers):
            raise common.StreetsError(f"lambdas does not know {one.strip()!r}: use one to three weights such as 4,2,0, several settings with semicolons, or all.")
        settings.append((*numbers, 0.0, 0.0)[:3])
    return settings


# %%
common.check_parameters(
    globals(),
    {"mode": ("quick", "course", "paper"), "network": ("", *NETWORKS), "weights": ("auto", "imagenet", "coco", "none"),
     "reduction": ("", "pixels", "elements", "sum"), "precision": ("auto", "bf16", "fp16", "fp32"), "rerun": ("no", "yes")},
    {"method": METHODS},
)
if lambdas.strip() != "all":
    read_lambdas(lambdas)
if crop % 16:
    raise common.StreetsError(f"crop must be a multiple of 16, not {crop}: the networks shrink it four times.")
if photo and not Path(photo).is_file():
    raise common.StreetsError(f"photo: there is no file {photo} (seen from {Path.cwd()}).")
print(common.device_line())

# %% [markdown]
# MODES

# %%
MODES = {
    "quick": {"network": "v3plus_resnet18", "height": 128, "crop": 128, "images": 40, "epochs": 30, "batch_size": 8,
              "optimizer": "adamw", "lr": 1e-3, "scratch_lr": 2e-3, "tolerance": 1, "eval_every": 5, "proxy_lr": 3e-3, "reduction": "elements"},
    "course": {"network": "v3plus_resnet18", "height": 512, "crop": 320, "images": 0, "epochs": 40, "batch_size": 8,
               "optimizer": "adamw", "lr": 5e-4, "scratch_lr": 1e-3, "tolerance": 2, "eval_every": 5, "proxy_lr": 3e-3, "reduction": "elements"},
    "paper": {"network": "v3plus_xception71", "height": 1024, "crop": 320, "images": 0, "epochs": 60, "batch_size": 2,
              "optimizer": "sgd", "lr": 5e-4, "scratch_lr": 1e-2, "tolerance": 3, "eval_every": 5, "proxy_lr": 1e-3, "reduction": "pixels"},
}
named = {"network": network, "height": height, "crop": crop, "batch_size": batch_size, "epochs": epochs, "images": images, "reduction": reduction}
chosen = {name: value for name, value in named.items() if value}
settings = MODES[mode] | chosen | ({"lr": lr, "scratch_lr": lr} if lr else {})
if settings["network"] == "v2_resnet101" and mode == "paper" and not height:
    settings["height"] = 512  # the paper shows its v2 networks images of half the size
if weights == "coco" and settings["network"] != "v2_resnet101":
    raise common.StreetsError("weights coco is a backbone of v2_resnet101: name that network, or use imagenet.")
settings

# %% [markdown]
# DATA

# %%
import numpy as np

root = common.find_data(data_dir)
scheme = common.SCHEMES["cityscapes19"]
frames = {split: common.list_frames(root, split) for split in ("train", "val")}
frames["test"] = common.list_frames(root, "test") if common.has_test_labels(root) else []
splits = {"train": common.evenly(frames["train"], settings["images"])}
splits |= {split: common.evenly(frames[split], settings["images"] // 3) for split in ("val", "test")}
print({split: len(chosen_frames) for split, chosen_frames in splits.items()})

# %%
size = common.network_size(frames["train"][0], settings["height"])
scenes = common.StreetScenes(splits["train"], size)
example, label = scenes.read(0)
print("photo", example.shape, "label", label.shape)

# %%
import matplotlib.pyplot as plt

common.show(common.show_pair(example, label, scheme))

# %% [markdown]
# PROBLEMS

# %%
import torch
from torch import nn
from torch.nn import functional as F


# %%
def cross_entropy(logits, label):
    """Mean of -log p of the true class over valid pixels; logits (B, C, H, W), label (B, H, W); 0 where all are void."""
    if not (label != 255).any():
        return logits.sum() * 0
    return F.cross_entropy(logits.float(), label, ignore_index=255)


# %% [markdown]
# EDGES

# %%
def semantic_edges(label, ignore=255):
    """(edges, valid), both (B, H, W) bool: a pixel is an edge where one of its 8 neighbours has another label.

    label: (B, H, W) integers on any device. The frame is continued by its own pixels, so it is no edge. Void pixels and
    their neighbours are not valid and no edges.
    """
    around = F.pad(label[:, None].float(), (1, 1, 1, 1), mode="replicate")
    highest, lowest = F.max_pool2d(around, 3, stride=1), -F.max_pool2d(-around, 3, stride=1)
    touched = F.max_pool2d((around == ignore).float(), 3, stride=1) > 0
    return ((highest != lowest) & ~touched)[:, 0], ~touched[:, 0]


# %% [markdown]
# PROXY

# %%
def one_hot(label, num_classes):
    """Label (B, H, W) as maps (B, C, H, W) float32; void pixels (255) are 0 in every class."""
    classes = torch.arange(num_classes, device=label.device)[:, None, None]
    return (label[:, None] == classes).float()


# %%
class EdgeNet(nn.Module):
    """The proxy network g: class maps (B, C, H, W) to two logits per pixel (B, 2, H, W), no edge and edge."""

    def __init__(self, num_classes=19):
        super().__init__()
        channels = (num_classes, 16, 32, 2)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(channels, channels[1:]))

    def forward(self, maps):
        return self.layers[2](self.layers[1](self.layers[0](maps).relu()).relu())

    def embeddings(self, maps, depth=3):
        """The first `depth` of the embeddings (B, 16, H, W), (B, 32, H, W) and the softmax (B, 2, H, W)."""
        found = []
        for layer in self.layers[:depth]:
            maps = layer(maps)
            maps = maps.softmax(1) if layer is self.layers[2] else maps.relu()
            found.append(maps)
        return found


# %%
def edge_loss(logits, label):
    """Cross-entropy of edge logits (B, 2, H, W) against the edges of a label (B, H, W), void and its rim left out."""
    edges, valid = semantic_edges(label)
    return cross_entropy(logits, torch.where(valid, edges.long(), 255))


# %%
@torch.no_grad()
def edge_f1(proxy, labels):
    """F1 of the edge pixels that a proxy network finds in labels (B, H, W), in [0, 1]; nan without any."""
    num_classes, device = proxy.layers[0].in_channels, proxy.layers[0].weight.device
    counts = torch.zeros(2)  # found rightly; found + true
    for label in labels.split(1):
        edges, valid = (one.cpu() for one in semantic_edges(label))
        found = (proxy(one_hot(label, num_classes).to(device)).argmax(1) == 1).cpu() & valid
        counts += torch.stack([(found & edges).sum(), found.sum() + edges.sum()])
    return (2 * counts[0] / counts[1]).item()


# %%
def random_crop(image, label, rng, crop=320, scales=(0.5, 1.5)):
    """A random square of a photo (H, W, 3) and its label (H, W), enlarged or shrunk to (crop, crop), mirrored or not.

    What lies beyond the image is void in the label and the mean colour of ImageNet in the photo.
    """
    side = round(crop / rng.uniform(*scales))
    top, left = (int(rng.integers(max(0, n - side) + 1)) for n in label.shape)
    image, label = image[top : top + side, left : left + side], label[top : top + side, left : left + side]
    missing = (0, side - label.shape[0], 0, side - label.shape[1])  # at the top, bottom, left and right
    grey = tuple(255 * mean for mean in common.IMAGENET_MEAN)
    image = cv2.copyMakeBorder(image, *missing, cv2.BORDER_CONSTANT, value=grey)
    label = cv2.copyMakeBorder(label, *missing, cv2.BORDER_CONSTANT, value=255)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return common.resize_pair(np.ascontiguousarray(image), np.ascontiguousarray(label), (crop, crop))


# %%
def train_edge_net(proxy, data, held_out, lr, batch_size=8, goal=0.99, every=50, max_steps=3000, seed=0):
    """Train a proxy network on the labels of a data set until its edge F1 on labels (N, H, W) is above `goal`.

    Returns one row per `every` steps: {"step", "train_loss", "edge_f1"}. It stops at max_steps, whatever F1 is then.
    """
    optimizer, history, losses = torch.optim.Adam(proxy.parameters(), lr), [], []
    sampler, device = common.EpochSampler(len(data), seed), proxy.layers[0].weight.device
    loader = common.make_loader(data, min(batch_size, len(data)), sampler=sampler)
    step = 0
    while step < max_steps and not (history and history[-1]["edge_f1"] > goal):
        for batch in loader:
            label, step = batch["label"].to(device), step + 1
            loss = edge_loss(proxy(one_hot(label, proxy.layers[0].in_channels)), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % every == 0:
                history.append({"step": step, "train_loss": np.mean(losses[-every:]), "edge_f1": edge_f1(proxy, held_out)})
                if history[-1]["edge_f1"] > goal or step >= max_steps:
                    break
        sampler.epoch += 1
    return history


# %%
def labels_of(scenes, n=12):
    """Up to n labels of a data set as one tensor (n, H, W)."""
    return torch.stack([torch.from_numpy(scenes.read(i)[1].astype(np.int64)) for i in common.evenly(range(len(scenes)), n)])


# %%
def train_proxy(folder, splits, size, settings, seed):
    """Train the proxy network and leave it in `folder` as a run of its own; other processes wait for the first."""
    if int(os.environ.get("RANK", 0)) == 0:
        started = time.monotonic()
        torch.manual_seed(seed)
        augment = partial(random_crop, crop=settings["crop"])
        proxy = EdgeNet().to(common.make_accelerator("fp32").device)
        data, held_out = common.StreetScenes(splits["train"], size, augment=augment, seed=seed), common.StreetScenes(splits["val"], size)
        history = train_edge_net(proxy, data, labels_of(held_out), settings["proxy_lr"], seed=seed)
        common.save_weights(folder / "best.safetensors", proxy)
        common.write_atomic(folder / "history.csv", pd.DataFrame(history).to_csv(index=False).encode())
        common.write_json(folder / "summary.json", proxy_summary(folder, history, len(data), len(held_out), time.monotonic() - started))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        common.make_accelerator().wait_for_everyone()


# %%
def proxy_summary(folder, history, n_train, n_val, seconds):
    """Content of the summary.json of a proxy network's run."""
    config = common.read_json(folder / "config.json")
    return {"notebook": folder.parent.parent.name, "run": folder.name, "method": config["method"],
            "mode": config["parameters"]["mode"], "dataset": config["dataset"], "split": "val", "n_train": n_train,
            "n_val": n_val, "steps": history[-1]["step"], "seed": config["parameters"]["seed"], "weights": "none",
            "metrics": {"edge_f1": history[-1]["edge_f1"]}, "majority_baseline": {}, "seconds": round(seconds, 1),
            "command": config["recorded"]["command"], "versions": config["recorded"]["versions"]}


# %%
import time
from functools import partial

import cv2
import pandas as pd

dataset = common.dataset_name(root)
proxy_changes = "".join(f"-{name}{settings[name]}" for name in ("height", "crop", "images") if name in chosen)
proxy_folder = common.run_folder(out_dir, NOTEBOOK, dataset, mode, "proxy" + proxy_changes, seed)
unread = dict.fromkeys(("lambdas", "reduction", "network", "weights", "lr", "batch_size", "epochs", "precision"), "not used")
proxy_settings = {name: settings[name] for name in ("height", "crop", "images", "proxy_lr")}
proxy_config = common.run_config(globals(), "proxy" + proxy_changes, proxy_settings, root, splits, **unread)
proxy_run = common.train_or_load(proxy_folder, proxy_config, partial(train_proxy, splits=splits, size=size, settings=settings, seed=seed),
                                 parent=True, num_processes=num_processes)
proxy = common.load_weights(proxy_folder / "best.safetensors", EdgeNet()).requires_grad_(False).eval()
print(f"edge F1 {proxy_run['metrics']['edge_f1']:.3f} after {proxy_run['steps']} steps, {proxy_run['seconds']:.0f} s")

# %% [markdown]
# LOSS

# %%
def l1_distance(predicted, truth, valid, reduction="pixels"):
    """Sum of |predicted - truth| over valid pixels and all channels, divided by as `reduction` says.

    predicted, truth: (B, K, H, W); valid: (B, H, W) bool. "pixels" divides by the valid pixels, "elements" also by the
    channels K, "sum" by nothing. 0 where nothing is valid.
    """
    total = ((predicted - truth).abs() * valid[:, None]).sum()
    pixels = valid.sum().clamp(min=1)
    return total / {"pixels": pixels, "elements": pixels * predicted.shape[1], "sum": 1}[reduction]


# %%
def semeda_loss(probs, label, proxy, lambdas, reduction="pixels"):
    """Sum over layers of lambda times the L1 distance of a frozen proxy network's embeddings of probs and label.

    probs: (B, C, H, W) softmax probabilities; label: (B, H, W), void 255; lambdas: one weight per layer.
    """
    depth = max((i for i, weight in enumerate(lambdas, start=1) if weight), default=0)
    valid = label != 255
    with torch.no_grad():
        truth = proxy.embeddings(one_hot(label, probs.shape[1]), depth)
    predicted = proxy.embeddings(probs * valid[:, None], depth)
    return sum((weight * l1_distance(p, t, valid, reduction) for weight, p, t in zip(lambdas, predicted, truth)), probs.sum() * 0)


# %%
SOBEL = (((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0)), ((-1.0, -2.0, -1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0)))


# %%
def sobel(maps):
    """Sobel's derivatives along x and y of maps (B, C, H, W) as (B, 2C, H, W), the frame continued by its own pixels."""
    kernels = torch.tensor(SOBEL, dtype=maps.dtype, device=maps.device)[:, None]  # (2, 1, 3, 3)
    channels = maps.shape[1]
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernels.repeat(channels, 1, 1, 1), groups=channels)


# %%
def sobel_loss(probs, label, reduction="pixels"):
    """L1 distance of Sobel's responses to probs (B, C, H, W) and to the one-hot label (B, H, W), void set to 0 in both."""
    valid = label != 255
    truth = one_hot(label, probs.shape[1])
    return l1_distance(sobel(probs * valid[:, None]), sobel(truth), valid, reduction)


# %%
def training_loss(model, batch, method, lambdas, proxy, reduction="pixels"):
    """Per-pixel cross-entropy of a network's answer to a batch, plus the method's structural loss in float32."""
    logits, label = model(batch["image"]).float(), batch["label"]
    loss = cross_entropy(logits, label)
    if method == "ppce" or not any(lambdas):
        return loss
    with torch.autocast(logits.device.type, enabled=False):
        probs = logits.softmax(1)
        if method == "sobel":
            return loss + lambdas[0] * sobel_loss(probs, label, reduction)
        return loss + semeda_loss(probs, label, proxy.to(logits.device), lambdas, reduction)


# %% [markdown]
# NETWORKS

# %%
import segmentation_models_pytorch as smp
import torchvision


# %%
class DeepLabV3Plus(nn.Module):
    """DeepLab v3+ on an encoder of smp: images (B, 3, H, W), multiples of 16, to logits (B, num_classes, H, W)."""

    def __init__(self, encoder, num_classes=19, pretrained=False):
        super().__init__()
        weights = "imagenet" if pretrained else None
        net = smp.DeepLabV3Plus(encoder, encoder_weights=weights, encoder_output_stride=16, classes=num_classes, upsampling=1)
        self.encoder, self.decoder, self.head = net.encoder, net.decoder, net.segmentation_head

    def forward(self, image):
        return enlarge(self.head(self.decoder(self.encoder(image))), image.shape[-2:])


# %%
def enlarge(scores, shape):
    """Scores (B, C, h, w) at the size (H, W), bilinearly, corners not aligned."""
    return F.interpolate(scores.float(), shape, mode="bilinear", align_corners=False)


# %%
def resnet101_stride8(pretrained=None):
    """The layers of torchvision's ResNet-101 before its pooling, dilated from stage 3 on: (B, 3, H, W) to (B, 2048, H / 8, W / 8)."""
    weights = torchvision.models.ResNet101_Weights.IMAGENET1K_V1 if pretrained == "imagenet" else None
    net = torchvision.models.resnet101(weights=weights, replace_stride_with_dilation=(False, True, True))
    if pretrained == "coco":
        net.load_state_dict(coco_backbone(), strict=False)
    return nn.Sequential(*list(net.children())[:-2])


# %%
def coco_backbone():
    """Weights of the ResNet-101 in torchvision's DeepLab v3 that was trained on COCO's images with the classes of VOC."""
    segmentation = torchvision.models.segmentation
    weights = segmentation.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1
    return segmentation.deeplabv3_resnet101(weights=weights).backbone.state_dict()


# %%
class DeepLabV2(nn.Module):
    """DeepLab v2: a dilated ResNet-101 and four parallel 3x3 convolutions of rates 6, 12, 18 and 24, summed."""

    def __init__(self, num_classes=19, pretrained=None):
        super().__init__()
        self.encoder = resnet101_stride8(pretrained)
        self.branches = nn.ModuleList(nn.Conv2d(2048, num_classes, 3, padding=r, dilation=r) for r in (6, 12, 18, 24))

    def forward(self, image):
        features = self.encoder(image)  # (B, 2048, H / 8, W / 8)
        return enlarge(sum(branch(features) for branch in self.branches), image.shape[-2:])


# %%
class WithFrozenNorm(nn.Module):
    """A network whose encoder keeps the batch norm statistics and factors that it came with."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        for norm in self.norms():
            norm.requires_grad_(False)

    def norms(self):
        return [m for m in self.net.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode=True):
        super().train(mode)
        for norm in self.norms():
            norm.eval()
        return self

    def forward(self, image):
        return self.net(image)


# %%
def build_network(name, weights="none"):
    """(network, which weights it got): imagenet, coco or none. Batch norm is frozen where the weights are pretrained."""
    if name == "v2_resnet101":
        kind = "coco" if weights == "coco" else "imagenet"
        net, got = common.with_weights(lambda pretrained: DeepLabV2(pretrained=kind if pretrained else None), weights, name=kind)
    else:
        encoder = {"xception71": "tu-xception71"}.get(name.removeprefix("v3plus_"), name.removeprefix("v3plus_"))
        net, got = common.with_weights(lambda pretrained: DeepLabV3Plus(encoder, pretrained=pretrained), weights)
    return (net if got == "none" else WithFrozenNorm(net)), got


# %% [markdown]
# EVAL

# %%
RADII = (1, 2, 3, 5, 10)


# %%
def e_measure(confusion, divisor="pixels"):
    """E-measure of every class in N images, (N, C) in [0, 1], from their confusion matrices (N, C, C).

    Each class is a binary map of its image's valid pixels; nan where the image does not hold the class. The sum over
    pixels is divided by their number n ("pixels", as the paper writes) or by n - 1 ("n-1", as the reference code does).
    """
    confusion = confusion.astype(float)
    hits = np.einsum("ncc->nc", confusion)
    predicted, true, n = confusion.sum(1), confusion.sum(2), confusion.sum((1, 2))[:, None]
    counts = {(1, 1): hits, (0, 1): predicted - hits, (1, 0): true - hits, (0, 0): n - predicted - true + hits}
    total = np.zeros_like(hits)
    with np.errstate(invalid="ignore", divide="ignore"):
        for (y, p), count in counts.items():
            a, b = y - true / n, p - predicted / n
            alignment = np.where(true == n, 2 * p - 1, 2 * a * b / (a * a + b * b + np.spacing(1)))
            total += np.where(count > 0, count * (1 + alignment) ** 2 / 4, 0)
        return np.where(true > 0, total / (n if divisor == "pixels" else n - 1), np.nan)


# %%
def counts_in_trimaps(pred, truth, num_classes=19):
    """True positives, false positives and false negatives of each class within each radius of the seams, (R, C, 3)."""
    counts = []
    for radius in RADII:
        band = common.trimap_band(truth, num_classes, radius)
        cm = common.confusion_matrix(pred[band], truth[band], num_classes)
        hits = np.diag(cm)
        counts.append(np.stack([hits, cm.sum(0) - hits, cm.sum(1) - hits], axis=-1))
    return np.stack(counts)


# %%
def tp_fp_fn(confusion):
    """True positives, false positives and false negatives, (N, C, 3), from confusion matrices (N, C, C)."""
    hits = np.einsum("ncc->nc", confusion)
    return np.stack([hits, confusion.sum(1) - hits, confusion.sum(2) - hits], axis=-1)


# %%
def mean_iou(counts):
    """Mean IoU over the classes with true pixels, from summed counts (..., C, 3), of all leading indices together; nan if none."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        iou = np.where(tp + fn > 0, tp / (tp + fp + fn), np.nan)
    return float(np.nanmean(iou)) if (tp + fn).any() else float("nan")


# %%
def trimap_curves(per_image):
    """{"inside": {radius: mIoU}, "outside": {...}} of a data set from what `evaluate` keeps of its images."""
    everything, inside = tp_fp_fn(per_image["confusion"]).sum(0), per_image["trimaps"].sum(0)  # (C, 3), (R, C, 3)
    return {"inside": {str(r): mean_iou(band) for r, band in zip(RADII, inside)},
            "outside": {str(r): mean_iou(everything - band) for r, band in zip(RADII, inside)}}


# %%
def none_for_nan(tree):
    """The same nested dict, with None for what is not defined, as JSON wants it."""
    if isinstance(tree, dict):
        return {key: none_for_nan(value) for key, value in tree.items()}
    return None if np.isnan(tree) else float(tree)


# %%
def nanmean(values, axis=0):
    """np.nanmean without a warning where everything is nan."""
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0).sum(axis) / counted.sum(axis)


# %%
def evaluate(model, data, accelerator=None, tolerance=3, **options):
    """common.evaluate with boundary F1, the E-measure of each class, and mean IoU inside and outside of trimaps."""
    n, classes = len(data.scheme.classes), data.scheme.classes

    def score(pred, truth):
        contours = common.boundary_f1(pred, truth, n, tolerance, count_frame=False, count_void_rim=False)
        return {"boundary_f1": contours, "trimaps": counts_in_trimaps(pred, truth, n)}

    metrics, per_image = common.evaluate(model, data, accelerator, score=score, **options)
    e = nanmean(e_measure(per_image["confusion"]))  # (C,)
    more = {"e_mean": nanmean(e), "e": dict(zip(classes, e))} | trimap_curves(per_image)
    return metrics | none_for_nan(more), per_image


# %% [markdown]
# TRAIN

# %%
def make_optimizer(model, settings, started_from):
    """SGD with momentum and weight decay, or AdamW, on what is not frozen."""
    free = [p for p in model.parameters() if p.requires_grad]
    rate = settings["scratch_lr" if started_from == "none" else "lr"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(free, lr=rate, momentum=0.9, weight_decay=5e-4)
    return torch.optim.AdamW(free, lr=rate, weight_decay=1e-4)


# %%
def train_method(folder, method, lambdas, proxy_folder, settings, splits, size, weights, seed, processes=1, **options):
    """Train a segmentation network with one method and leave it in `folder`."""
    torch.manual_seed(seed)
    model, started_from = build_network(settings["network"], weights)
    proxy = common.load_weights(proxy_folder / "best.safetensors", EdgeNet()).requires_grad_(False).eval()
    train = common.StreetScenes(splits["train"], size, augment=partial(random_crop, crop=settings["crop"]), seed=seed)
    val, test = (common.StreetScenes(splits[name], size, seed=seed) if splits[name] else None for name in ("val", "test"))
    optimizer = make_optimizer(model, settings, started_from)
    steps = settings["epochs"] * (len(train) // (settings["batch_size"] * processes))
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    loss = partial(training_loss, method=method, lambdas=lambdas, proxy=proxy, reduction=settings["reduction"])
    common.fit(folder, model, loss, train, val, test_data=test, optimizer=optimizer, scheduler=scheduler, schedule="step",
               epochs=settings["epochs"], batch_size=settings["batch_size"], eval_every=settings["eval_every"],
               evaluate=partial(evaluate, tolerance=settings["tolerance"]), weights=started_from, **options)


# %%
def plan_runs(methods, lambdas, network=""):
    """{run's name: (method, lambdas)}: one for ppce, one for each first weight with sobel, each setting with semeda."""
    plan = {}
    for name in methods:
        if name == "ppce":
            wanted = [(0.0, 0.0, 0.0)]
        elif lambdas.strip() == "all":
            wanted = {"sobel": SOBEL_SETTINGS, "semeda": SEMEDA_SETTINGS}[name]
        else:
            wanted = read_lambdas(lambdas)
        for weights in wanted:
            used = {"ppce": (), "sobel": weights[:1], "semeda": weights}[name]
            plan["_".join([name, *(f"{weight:g}" for weight in used), *([network] if network else [])])] = (name, tuple(weights))
    return plan


# %%
published_network = network if network in ("v3plus_resnet101", "v2_resnet101") else ""
plan = plan_runs(common.several("method", method, METHODS), lambdas, published_network + "_coco" * (weights == "coco"))
changes = {k: v for k, v in chosen.items() if not (k == "network" and published_network)} | ({"lr": lr} if lr else {})
changes |= {"weights_": weights} if weights in ("imagenet", "none") else {}


# %%
def run_name(recipe, changes):
    """A run's name: the recipe and everything that departs from its mode; the reduction only where there is a loss to reduce."""
    changes = {key: value for key, value in changes.items() if not (key == "reduction" and recipe.startswith("ppce"))}
    return "-".join([recipe, *(f"{key}{value}" for key, value in changes.items())])


# %%
folders = {name: common.run_folder(out_dir, NOTEBOOK, dataset, mode, run_name(name, changes), seed) for name in plan}
summaries = {}
for name, (kind, layer_weights) in plan.items():
    used = settings | ({"reduction": "not used"} if kind == "ppce" else {})
    unused = {"lambdas": list(layer_weights), "reduction": used["reduction"]}
    config = common.run_config(globals(), run_name(name, changes), used, root, splits, **unused)
    train = partial(train_method, method=kind, lambdas=layer_weights, proxy_folder=proxy_folder, settings=settings, splits=splits,
                    size=size, weights=weights, seed=seed, processes=num_processes, precision=precision, max_hours=max_hours)
    summaries[name] = common.train_or_load(folders[name], config, train, rerun=rerun, num_processes=num_processes)
    if summaries[name] is None:
        del summaries[name]
        break
