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
# # What can a U-Net learn from nothing?
#
# You build a U-Net layer by layer, train it from random weights to name seven kinds of things in a street, and then try
# three ways to make it see people: class weights, hiding parts of people while it learns, and a Dice loss. Beside them
# runs a control that only trains longer, because without it no gain could be told from mere patience.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/main/notebooks/02_unet_from_scratch.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/main/notebooks/02_unet_from_scratch.ipynb)
#
# Notebook 2 of 6 · before it: [01 class remapping](01_class_remapping.ipynb) · after it: [03 cross-validation](03_unet_resnet50_cv.ipynb) · [all six](../README.md)
#
# **Sources.** *The U-Net report*, a student's course report on Cityscapes with public code (a U-Net from scratch on
# seven classes, then weighted cross-entropy, occlusion and Dice), after O. Ronneberger, P. Fischer, T. Brox, *U-Net:
# Convolutional Networks for Biomedical Image Segmentation* (MICCAI 2015).
#
# **You need** convolution, batch norm, softmax, cross-entropy and the IoU. Notebook 01 explains the IoU (its mean is the mIoU)
# and where the seven classes come from.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | 2.6 min in all, 1.1 GB of memory (2 cores of an AMD EPYC, November 2026) | in three seeds, mIoU on val .71 to .72 after `scratch` and .73 after `dice_occlusion` (majority class .04), IoU of people on test .00 to .03 and .18 to .22 after the same two: it works, and is no evidence |
# | `course` | CamVid, or Cityscapes | one 16 GB GPU | not yet measured on one (half the channels, 24 and 8 epochs instead of 40 and 12, on CamVid: 2.5 h on one CPU core among other jobs, 2.0 GB) | five stages that one can compare |
# | `paper` | Cityscapes, squeezed to 256x256 | one 16 GB GPU | not yet measured (the source: 2 h 16 min for the first stage on a P100) | the published table |

# %% [markdown]
# ## Parameters
#
# From a shell, any of them can be set with
# `papermill notebooks/02_unet_from_scratch.ipynb out.ipynb -p stage dice_occlusion`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (CPU, minutes), course (one free GPU session), paper (the published recipe)
stage: str = "all"  # scratch, continued, weighted, weighted_occlusion, dice_occlusion, several with commas, or all
lr: float = 0.0  # learning rate of the first stage; 0 takes the mode's (the code's 1e-4 in paper mode; the report says 1e-3)
frequency: str = "published"  # class weights from the published, rounded frequencies, or measured on the training labels
fill: str = "noise"  # what hides people: noise (grey or uniform, as the code does) or black (as the report says)
select: str = "corrected"  # the epoch kept: corrected (dataset mIoU) or as_published (mean of batch IoUs)
width: int = 0  # channels of the first level; 0 takes the mode's (64 in the source)
depth: int = 0  # number of poolings; 0 takes the mode's (3 in the source)
size: int = 0  # side of the square that images are squeezed to, in pixels; 0 takes the mode's
epochs: int = 0  # epochs of the first stage; 0 takes the mode's
stage_epochs: int = 0  # epochs of each later stage; 0 takes the mode's
rerun: str = "no"  # yes trains again what is already trained
photo: str = ""  # a JPEG or PNG of your own to label at the end
seed: int = 42
data_dir: str = ""  # a folder in Cityscapes layout, or toy; empty looks in the usual places; quick draws toy streets
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
            f"The helpers, {TAG} of {source}, cannot be cloned with git: turn the internet on "
            "(Kaggle: in the settings), or set STREETS_HOME to their folder.") from None
sys.path.insert(0, str(home.resolve()))

# %% [markdown]
# What is missing is installed; what is there is never replaced.

# %%
import importlib.util

NEEDS = {"segmentation_models_pytorch": "segmentation-models-pytorch",
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
# ## The recipe, by mode
#
# `paper` is the recipe of the source's code: images squeezed to 256x256, Adam, 100 epochs with a learning rate of 1e-4 in
# batches of 8, then 30 epochs with 1e-5 per later stage (the last one in batches of 4). The mode departs from that recipe
# where this does not touch the idea: mixed precision (`-p precision fp32` for the source's), photos shrunk by area averages
# instead of bilinearly, a last incomplete batch left out. `course` takes fewer epochs and ten times the learning rates: 1e-3,
# which is what the report says, and 1e-4. `quick` trains a network with a quarter of the channels on a quarter of the pixels.

# %%
MODES = {
    "quick": {"width": 16, "depth": 3, "size": 128, "images": 40, "epochs": 40,
              "batch_size": 4, "lr": 2e-3, "stage_epochs": 10, "stage_lr": 5e-4,
              "dice_batch_size": 2, "precision": "auto"},
    "course": {"width": 64, "depth": 3, "size": 256, "images": 0, "epochs": 40,
               "batch_size": 8, "lr": 1e-3, "stage_epochs": 12, "stage_lr": 1e-4,
               "dice_batch_size": 4, "precision": "auto"},
    "paper": {"width": 64, "depth": 3, "size": 256, "images": 0, "epochs": 100,
              "batch_size": 8, "lr": 1e-4, "stage_epochs": 30, "stage_lr": 1e-5,
              "dice_batch_size": 4, "precision": "auto"},
}

# %% [markdown]
# Of `images` (0 is all) the network learns from, an eighth as many are in each half of the validation.
#
# The stages, with the loss, the shares that class weights are made from, and of the people the part that is hidden and the
# part of these that is hidden by grey noise:

# %%
STAGES = {
    "scratch": {"parent": "", "loss": "cross_entropy"},
    "continued": {"parent": "scratch", "loss": "cross_entropy"},
    "weighted": {"parent": "scratch", "loss": "weighted", "frequency": "1a"},
    "weighted_occlusion": {"parent": "weighted", "loss": "weighted", "frequency": "1b",
                           "hide": 0.6, "grey": 0.7},
    "dice_occlusion": {"parent": "scratch", "loss": "dice", "frequency": "1b",
                       "hide": 0.8, "grey": 0.9},
}

# %%
import common

NOTEBOOK = "02_unet_from_scratch"
choices = {"frequency": ("published", "measured"), "fill": ("noise", "black"),
           "select": ("corrected", "as_published")}
settings = common.check_parameters(globals(), MODES, choices, {"stage": STAGES})
if settings["size"] % 2 ** settings["depth"]:
    step = 2 ** settings["depth"]
    raise common.StreetsError(
        f"size must be a multiple of {step} with depth {settings['depth']}: "
        f"use {common.setting('size', -(-settings['size'] // step) * step)}.")
print(common.device_line())

# %% [markdown]
# ## Streets in seven classes
#
# The classes are background, road, building, vehicle, person, vegetation and sky. What the source has no class for is
# *background*: sidewalks, poles and void alike. It is trained and scored like any other class.

# %%
import numpy as np

root = common.find_data(data_dir, mode)
scheme = common.SCHEMES["streets7"]
PERSON = 4
train_frames = common.evenly(common.list_frames(root, "train"), settings["images"])
print(f"{len(train_frames)} images to learn from; {PERSON} is {scheme.classes[PERSON]!r}")


# %% [markdown]
# ### Two halves of the validation images
#
# The source halves the 500 official validation images with scikit-learn's `train_test_split(..., random_state=42)`: one
# half (*val*) selects the epoch, the other (*test*) gives the table. These lines do the same, and on any data set. The
# order matters: scikit-learn takes the second return from the front of the shuffled list, and it is the second that the
# source called *val*.

# %%
def halve(frames):
    """(test, val) halves of a list as train_test_split(frames, test_size=0.5, random_state=42) returns them."""
    order = np.random.RandomState(42).permutation(len(frames))
    second = (len(frames) + 1) // 2
    return [frames[i] for i in order[second:]], [frames[i] for i in order[:second]]


test_frames, val_frames = (common.evenly(half, settings["images"] // 8) for half in halve(common.list_frames(root, "val")))
own_test = common.evenly(common.list_frames(root, "test"), settings["images"] // 8) if common.has_test_labels(root) else []
print(f"{len(val_frames)} images to select by (val), {len(test_frames)} to judge by (test), {len(own_test)} of a test split")

# %% [markdown]
# Cityscapes publishes dummies for the labels of its test split, so nobody can score there. Where a data set has real
# ones (the toy streets, CamVid), that split is scored too, once, at the end. On CamVid prefer it: all validation images
# come from one drive that is also trained on, and its halves hold each other's neighbours. Of CamVid's test images about a
# quarter share a drive with training images, so that the evidence is a few drives, however many frames they have.

# %%
import matplotlib.pyplot as plt

train_data = common.StreetScenes(train_frames, (settings["size"], settings["size"]), "streets7", mean=(0, 0, 0), std=(1, 1, 1))
person_pixels = [(train_data.read(i)[1] == PERSON).sum() for i in range(min(40, len(train_data)))]
example, label = train_data.read(int(np.argmax(person_pixels)))
print("photo", example.shape, "label", label.shape)

# %%
common.show(common.show_pair(example, label, scheme))

# %% [markdown]
# Of the first 40 training images this one has the most pixels of people. It is a square: a street twice as wide as high is
# squeezed, so that everyone is thin. Pixels are divided by 255 and nothing else.
#
# ## The network
#
# ### Two convolutions
#
# Everything in this U-Net is made of one block: twice a 3x3 convolution (padded, so that the size stays), batch norm,
# ReLU.

# %%
import torch
from torch import nn
from torch.nn import functional as F


class DoubleConv(nn.Sequential):
    """(3x3 convolution, batch norm, ReLU) twice: (B, in_channels, H, W) to (B, out_channels, H, W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True),
        )


# %%
batch = common.to_tensor(example, mean=(0, 0, 0), std=(1, 1, 1))[None]  # (B, 3, H, W)
with torch.no_grad():
    first = DoubleConv(3, 64)(batch)
print(tuple(batch.shape), "->", tuple(first.shape))

# %% [markdown]
# ### Down: half the size, twice the channels

# %%
with torch.no_grad():
    pooled = F.max_pool2d(first, 2)
    second = DoubleConv(64, 128)(pooled)
print(tuple(first.shape), "-> pooled", tuple(pooled.shape), "->", tuple(second.shape))

# %% [markdown]
# A pooled map keeps *that* something is there and forgets which of four pixels it was in. So the way up needs help.
#
# ### Up: a transposed convolution, and what was kept on the way down
#
# A transposed convolution with a 2x2 kernel and stride 2 paints each value as a 2x2 patch. The map from the way down, of
# the same size, is put beside it (*skip connection*), and a block merges the two.

# %%
with torch.no_grad():
    up = nn.ConvTranspose2d(128, 64, kernel_size=2, stride=2)(second)
    joined = torch.cat([up, first], dim=1)
    merged = DoubleConv(128, 64)(joined)
print("up", tuple(up.shape), "+ skip", tuple(first.shape), "=", tuple(joined.shape), "->", tuple(merged.shape))


# %% [markdown]
# ### All of it
#
# At the bottom is the *bottleneck*, and on top a 1x1 convolution that turns 64 channels into 7 scores per pixel, the
# *logits*.

# %%
from itertools import pairwise


class UNet(nn.Module):
    """U-Net: images (B, 3, H, W) to logits (B, num_classes, H, W); H and W are multiples of 2**depth."""

    def __init__(self, num_classes=7, width=64, depth=3):
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]  # 64, 128, 256, 512
        self.down = nn.ModuleList(DoubleConv(i, o) for i, o in pairwise([3] + channels[:-1]))
        self.bottleneck = DoubleConv(channels[-2], channels[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairwise(channels[::-1]))
        self.merge = nn.ModuleList(DoubleConv(i, o) for i, o in pairwise(channels[::-1]))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, image):
        x, skips = image, []
        for block in self.down:
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


# %%
def layer_shapes(model, image):
    """{name: shape of its output} of the parts of a U-Net, in the order in which they run."""
    parts = {n: m for n, m in model.named_modules() if isinstance(m, DoubleConv | nn.ConvTranspose2d) or n == "head"}
    shapes = {}
    hooks = [m.register_forward_hook(lambda _, __, out, name=n: shapes.update({name: tuple(out.shape)}))
             for n, m in parts.items()]
    with torch.no_grad():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return shapes


# %%
net = UNet()
shapes = layer_shapes(net, batch)
shapes


# %% [markdown]
# The same as a drawing. It is made from these shapes: boxes are as high as the map and as wide as the logarithm of its
# channels.

# %%
def place(names, shapes, gap=1.15):
    """{name: (x, y, width, height)} of boxes that go down to the bottleneck and up again, one column each."""
    boxes, x, top = {}, 0.0, max(shape[2] for shape in shapes.values())
    for name in names:
        _, channels, side, _ = shapes[name]
        width, height = 0.25 * np.log2(channels), 6 * side / top
        boxes[name] = (x, -height / 2 + 2.2 * np.log2(side / top), width, height)
        x += width + gap
    return boxes


# %%
def draw_network(shapes):
    """Figure of a U-Net from the shapes of its parts; returns the figure."""
    boxes = place([n for n in shapes if not n.startswith("up")], shapes)
    fig, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    for name, (x, y, width, height) in boxes.items():
        axis.add_patch(plt.Rectangle((x, y), width, height, color=common.CURVES[0], alpha=0.75, lw=0))
        _, channels, h, w = shapes[name]
        axis.text(x + width / 2, y - 0.25, f"{name}\n{channels} x {h} x {w}", ha="center", va="top", fontsize=8)
    draw_arrows(axis, boxes)
    right, bottom = max(x + w for x, _, w, _ in boxes.values()), min(y for _, y, _, _ in boxes.values())
    axis.set(xlim=(-0.8, right + 0.8), ylim=(bottom - 1.6, 3.6))
    axis.set_axis_off()
    return fig


# %%
def draw_arrows(axis, boxes):
    """Arrows from part to part, and the skip connections above them."""
    for (_, (x, y, width, height)), (_, (x2, y2, _, height2)) in pairwise(boxes.items()):
        axis.annotate("", (x2, y2 + height2 / 2), (x + width, y + height / 2), arrowprops={"arrowstyle": "->", "color": "0.4"})
    merges = [name for name in boxes if name.startswith("merge")]
    for name, merge in zip(boxes, merges[::-1]):  # the first way down meets the last way up
        (x, y, width, height), (x2, y2, _, _) = boxes[name], boxes[merge]
        axis.annotate("", (x2, y2 + 0.9 * height), (x + width, y + 0.9 * height),
                      arrowprops={"arrowstyle": "->", "color": common.CURVES[1], "lw": 1.5})


common.show(draw_network(shapes))

# %% [markdown]
# Orange are the skip connections, which join a map on the way down to one of the same size on the way up. Without them,
# everything that the network knows of edges would have to pass through the bottleneck, whose sides are an eighth of the
# image's.
#
# ### Where the parameters are

# %%
import pandas as pd

counts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_modules() if name in shapes}
total = sum(counts.values())
assert total == sum(p.numel() for p in net.parameters()) == 7_703_367
pd.DataFrame({"parameters": counts, "share": {n: f"{c / total:.1%}" for n, c in counts.items()}})

# %% [markdown]
# 7,703,367 in all. A 3x3 convolution from $i$ to $o$ channels has $9io$ weights and $o$ biases, so the
# bottleneck, 256 to 512 and 512 to 512, takes nearly half. (The biases are idle: the batch norm behind each subtracts them
# again.)

# %%
conv = sum(9 * i * o + o for i, o in ((256, 512), (512, 512)))
norm = 2 * (2 * 512)  # two batch norms with a scale and a shift per channel
print(f"bottleneck: {conv:,} + {norm:,} = {conv + norm:,}")


# %% [markdown]
# ### What one output pixel can see
#
# Its *receptive field*: walk backwards from one output pixel. Two 3x3 convolutions reach two pixels further on either
# side; a transposed convolution reads the one pixel that it was painted from; a pooled pixel reads two. The longest way
# leads through the bottleneck.

# %%
def receptive_field(pixel, depth):
    """First and last input pixel, along one axis, that an output pixel of a U-Net depends on (edges left aside)."""
    low, high = pixel, pixel
    for _ in range(depth):  # up the decoder, backwards
        low, high = (low - 2) // 2, (high + 2) // 2
    low, high = low - 2, high + 2  # the bottleneck
    for _ in range(depth):  # down the encoder, backwards
        low, high = 2 * low - 2, 2 * high + 1 + 2
    return low, high


# %% [markdown]
# Check it: what the output really depends on has a gradient. As a maximum passes its gradient to one of four pixels only,
# we add up a few random pictures.

# %%
def gradient_extent(model, pixel, side, repeats=6):
    """First and last row of the input that has a gradient from the logits at (pixel, pixel)."""
    seen = torch.zeros(side, dtype=torch.bool)
    for k in range(repeats):
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(k)).requires_grad_()
        model.eval()(image)[0, :, pixel, pixel].sum().backward()
        seen |= (image.grad[0] != 0).any(0).any(1)
    rows = seen.nonzero().flatten()
    return rows[0].item(), rows[-1].item()


# %%
narrow = UNet(width=16)
print("computed", receptive_field(64, depth=3), "from the gradient", gradient_extent(narrow, 64, side=128))
seen = sorted({high - low + 1 for low, high in (receptive_field(pixel, depth=3) for pixel in range(8))})
print(f"an output sees {seen[0]} or {seen[-1]} pixels of a side, by its place; the source's images have 256")

# %% [markdown]
# So no output pixel sees half of a side.
#
# ### Three poolings or four?
#
# The report calls its network the classic U-Net. The classic has four poolings. What the fourth costs and buys:

# %%
from torch.utils.flop_counter import FlopCounterMode


def cost(depth, side=256):
    """Parameters, multiply-adds and receptive field of a U-Net of that depth, for one image."""
    with torch.device("meta"):
        model, image = UNet(depth=depth), torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(image)
    low, high = receptive_field(128, depth)
    return {"parameters": f"{sum(p.numel() for p in model.parameters()):,}", "receptive field": high - low + 1,
            "giga multiply-adds": round(counter.get_total_flops() / 2e9, 1), "bottleneck": f"{side >> depth} x {side >> depth}"}


pd.DataFrame({f"{depth} poolings": cost(depth) for depth in (2, 3, 4, 5)}).T

# %% [markdown]
# Each further pooling costs the same 11.4 giga multiply-adds, as its maps have a quarter of the pixels and its layers four
# times the weights. So a fourth gives four times the parameters and twice the view for a third more arithmetic. Whether
# it pays in IoU is an experiment, and one line: `-p depth 4`.
#
# ## Three losses
#
# Write $y(x)$ for the label of pixel $x$, one of $C$ classes, $y_c(x)$ for 1 where $y(x) = c$ and else 0, and $p_c(x)$ for the
# softmax probability of class $c$. The source numbers its stages: 0 has plain cross-entropy, 1a class weights, 1b occlusion
# besides, and 2 the Dice loss (a table below, under *Training*, has them all).
#
# ### Cross-entropy, and cross-entropy with class weights
#
# $$L_{CE} = -\frac{\sum_x w_{y(x)} \log p_{y(x)}(x)}{\sum_x w_{y(x)}}$$
#
# Stage 0, our `scratch`, has $w = 1$. From stage 1a on the source weighs with $w_c = 1/\sqrt{f_c}$, where $f_c$ is the share
# of pixels of class $c$, so that rare people count more than common road.

# %%
FREQUENCIES = {  # the source's shares for its stages 1a and 1b
    "1a": (0.21, 0.33, 0.20, 0.07, 0.01, 0.14, 0.04),
    "1b": (0.21, 0.33, 0.20, 0.06, 0.02, 0.14, 0.04),
}
PIXELS = (1306362141, 2036416525, 1260636120, 459059194, 74789586, 879783988, 221979646)  # its count on Cityscapes


# %%
def inverse_sqrt_weights(shares):
    """1 / sqrt(share) per class, (C,) float32; a class without pixels gets the weight of a share of 1e-4."""
    return torch.tensor(shares, dtype=torch.float32).clamp(min=1e-4).rsqrt()


# %%
exact = np.array(PIXELS) / sum(PIXELS)
weights = {"exact": inverse_sqrt_weights(exact), **{k: inverse_sqrt_weights(f) for k, f in FREQUENCIES.items()}}
pd.DataFrame({"share": exact, **{f"w {k}": w for k, w in weights.items()}}, index=scheme.classes).round(3)

# %% [markdown]
# 1.2 % of all pixels are people. Rounded to 1 % (stage 1a) they weigh 10; with the 2 % of stages 1b and 2, which no rounding
# explains, they weigh 7: the stages differ in more than their names say. `-p frequency measured` takes exact shares of the
# training labels. (Notebook 01 gives an absent class the weight 0. Here a class that is missing from a few images may still
# come up, so that it keeps a large, finite one.)


# %%
def cross_entropy(logits, label, weights=None):
    """Mean of -w log p of the true class, divided by the sum of w; logits (B, C, H, W), label (B, H, W)."""
    return F.cross_entropy(logits.float(), label, weight=weights)


# %% [markdown]
# ### Weighted Dice
#
# $$D_c = \frac{2\sum_x p_c y_c + \epsilon}{\sum_x p_c + \sum_x y_c + \epsilon} \qquad
# L_{Dice} = \frac{1}{C} \sum_c \left(1 - \hat w_c \min(D_c, 0.999)\right) \qquad \hat w_c = \frac{C\, w_c}{\sum_k w_k}$$
#
# with $\epsilon = 10^{-6}$ and sums over the whole batch. (Dice as a loss is from Milletari et al., the weights
# are the source's.) Stage 2 minimises $0.3\,L_{CE} + 0.7\,L_{Dice}$.

# %%
def dice_per_class(probs, label, epsilon=1e-6):
    """Soft Dice of each class over the batch, (C,) in [0, 1]; probs (B, C, H, W), label (B, H, W)."""
    truth = F.one_hot(label, probs.shape[1]).movedim(-1, 1)
    hits = (probs * truth).sum((0, 2, 3))
    return (2 * hits + epsilon) / (probs.sum((0, 2, 3)) + truth.sum((0, 2, 3)) + epsilon)


# %%
def weighted_dice_loss(probs, label, weights):
    """Mean over classes of 1 - w_c min(Dice_c, 0.999), with the weights (C,) scaled to a mean of 1."""
    scaled = weights * len(weights) / weights.sum()
    return (1 - scaled * dice_per_class(probs, label).clamp(max=0.999)).mean()


# %%
def dice_and_cross_entropy(logits, label, weights):
    """Stage 2's loss: 0.3 weighted cross-entropy + 0.7 weighted Dice."""
    probs = logits.float().softmax(1)
    return 0.3 * cross_entropy(logits, label, weights) + 0.7 * weighted_dice_loss(probs, label, weights)


# %% [markdown]
# The source says that both terms of this loss, cross-entropy and Dice, are guaranteed to be positive. The Dice term is a
# mean of seven parts, one per class. Here they are, from a Dice of 0 to 1.

# %%
scaled = weights["1b"] * 7 / weights["1b"].sum()
dice = np.linspace(0, 1, 101)
terms = 1 - scaled[:, None].numpy() * np.minimum(dice, 0.999)  # (C, 101)
print(f"person at a Dice of 1: {terms[PERSON, -1]:+.3f}; mean of all: {terms.mean(0)[-1]:+.4f}")

# %%
fig, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for c, color in zip((PERSON, 6, 3, 0, 1), common.CURVES):
    axis.plot(dice, terms[c], color=color, label=f"{scheme.classes[c]}, weight {scaled[c]:.2f}")
axis.plot(dice, terms.mean(0), "k--", label="mean of all seven")
axis.axhline(0, color="0.6", lw=0.8)
axis.set(xlabel="Dice of the class", ylabel="its part of the loss")
fig.legend(loc="outside right upper", frameon=False)
common.show(fig)

# %% [markdown]
# Not all parts are positive: where the weight is above 1 they end below 0, and that of a well segmented person falls to -0.98.
# Their mean is positive, because the scaled weights sum to 7:
#
# $$\frac17\sum_c (1 - \hat w_c \min(D_c, .999)) = 1 - \frac17\sum_c \hat w_c \min(D_c, .999) \ge 1 - .999 = .001.$$
#
# In other words: this is 1 minus a weighted mean of Dice. Two details of it are worth a look, in the gradient.

# %%
nobody = torch.zeros(1, 128, 128, dtype=torch.long)  # a picture of background only: six classes are absent
for name, sure in {"unsure": 0.0, "nearly sure": 5.0, "sure": 9.0}.items():
    logits = torch.zeros(1, 7, 128, 128)
    logits[:, 0] = sure
    probs = logits.softmax(1).requires_grad_()
    weighted_dice_loss(probs, nobody, weights["1b"]).backward()
    d, slope = dice_per_class(probs, nobody).detach(), probs.grad[0].abs().mean((1, 2))
    print(f"{name:11s} background: Dice {d[0]:.4f}, gradient {slope[0]:.0e};   "
          f"person (absent): part {1 - scaled[PERSON] * d[PERSON]:.4f}, gradient {slope[PERSON]:.0e}")

# %% [markdown]
# Above a Dice of .999 the clamp cuts the gradient: the class is done. A class that the batch does not hold adds about 1,
# whatever its weight, and has almost no gradient of its own, as long as its summed probability is far above $\epsilon$.
# So a false alarm is felt only through the class whose pixels it takes. What does it cost to call a part of this picture
# person, with this $\epsilon$ and with the 1 of notebook 06?

# %%
for epsilon in (1e-6, 1.0):
    losses = []
    for share in (0.0, 0.001, 0.01, 0.1):
        probs = F.one_hot(nobody, 7).movedim(-1, 1).float() * 0.999 + 0.001 / 7
        alarm = int(share * 128 * 128)
        probs.view(7, -1)[0, :alarm], probs.view(7, -1)[PERSON, :alarm] = probs[0, PERSON, -1, -1], probs[0, 0, -1, -1]
        losses.append((1 - scaled * dice_per_class(probs, nobody, epsilon).clamp(max=0.999)).mean().item())
    print(f"epsilon {epsilon:g}: loss with 0, 0.1, 1 and 10 % false alarms", [round(loss, 4) for loss in losses])

# %% [markdown]
# With $\epsilon = 10^{-6}$ the loss hardly notices; with 1 the first stray pixels of an absent class are dear.
#
# ## Hiding parts of people
#
# *Occlusion* covers a part of a person with noise in the photo and leaves the label alone, a relative of the *random erasing*
# of Zhong et al. The network has to name what it cannot see from what is around it. The people in a label are its connected
# components: pixels of class 4 that touch, corners included. (Two people who touch are one.)

# %%
from scipy import ndimage


def find_people(label):
    """Bounding boxes (row slice, column slice) of the connected groups of person pixels, in scan order."""
    groups, _ = ndimage.label(label == PERSON, structure=np.ones((3, 3)))
    return ndimage.find_objects(groups)


print([(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in find_people(label)], "height, width")


# %% [markdown]
# For each person in turn chance decides whether to hide a part (with probability .6 in stage 1b and .8 in stage 2), until two
# people are done. The box has 30 to 70 % of the person's height and width and lies anywhere within its bounding box.

# %%
def box_within(box, rng):
    """A random box (row slice, column slice) of 30 to 70 % of each side, inside the given one; maybe empty."""
    sides = []
    for side in box:
        length = side.stop - side.start
        hidden = int(rng.uniform(0.3, 0.7) * length)
        start = side.start + int(rng.integers(length - hidden + 1))
        sides.append(slice(start, start + hidden))
    return tuple(sides)


# %%
def noise(shape, rng, grey):
    """Noise (h, w, 3) uint8: with probability `grey` normal around mid-grey, else uniform."""
    values = rng.normal(0.5, 0.1, shape) if rng.random() < grey else rng.random(shape)
    return (255 * values.clip(0, 1)).round().astype(np.uint8)


# %%
def occlude(image, label, rng, hide=0.6, grey=0.7, fill="noise", limit=2):
    """Hide parts of at most `limit` people in a copy of the image (H, W, 3); the label (H, W) comes back unchanged."""
    image, hidden = image.copy(), 0
    for person in find_people(label):
        if hidden == limit:
            break
        box = box_within(person, rng) if rng.random() < hide else np.s_[:0, :0]
        if image[box].size:
            image[box] = noise(image[box].shape, rng, grey) if fill == "noise" else 0
            hidden += 1
    return image, label


# %%
views = {"before": example}
views |= {f"noise, draw {k}": occlude(example, label, np.random.default_rng(k), hide=1.0)[0] for k in (1, 2, 6)}
views["black"] = occlude(example, label, np.random.default_rng(1), hide=1.0, fill="black")[0]
people = find_people(label)
tall, wide = people[0] if people else (slice(0, n) for n in label.shape)  # nobody there: the whole picture
around = np.s_[max(0, tall.start - 6) : tall.stop + 6, max(0, wide.start - 15) : wide.stop + 30]

# %%
fig, axes = plt.subplots(1, len(views), figsize=(8.5, 2.6), layout="constrained")
for axis, (name, view) in zip(axes, views.items()):
    axis.imshow(view[around], interpolation="nearest")
    axis.set_title(name, fontsize=9)
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# These are people of the picture above, and what the network gets to see of them. The report calls the boxes black; its code
# makes grey or uniform noise, inside the bounding boxes of people. `-p fill black` does as the report says. One difference to
# the code: there, a person one to three pixels wide can get an empty box that uses up one of the two; here it does not count.
# The draw depends on (seed, epoch, index) alone, so that a resumed run hides the same. And it costs next to nothing:

# %%
import time

started = time.perf_counter()
for k in range(100):
    occlude(example, label, np.random.default_rng(k), hide=1.0)
print(f"{10 * (time.perf_counter() - started):.2f} ms an image of {example.shape}")

# %% [markdown]
# ## Training
#
# | stage | starts from | loss | people hidden | the source's name |
# |---|---|---|---|---|
# | `scratch` | random weights | cross-entropy | | stage 0 |
# | `continued` | `scratch` | cross-entropy | | none: our control |
# | `weighted` | `scratch` | weighted cross-entropy | | stage 1a |
# | `weighted_occlusion` | `weighted` | weighted cross-entropy | 60 % | stage 1b |
# | `dice_occlusion` | `scratch` | 0.3 weighted cross-entropy + 0.7 weighted Dice | 80 % | stage 2 |
#
# The source compares its later stages with stage 0, which had 30 epochs less (60 less than 1b, which goes on from 1a). What
# came from the new loss and what from more training cannot be told from that. `continued` trains as long as 1a and 2 with
# their small learning rate and the old loss. Two things it cannot settle: 1b trains twice as long, and stage 0 is kept by
# its validation loss but the others by mIoU, so that a part of any gain over stage 0 is the choice of the epoch.
#
# ### The score that the source selected its epochs by
#
# It took the IoU of each validation batch, counted a class that the batch does not hold as 0, and averaged over classes
# and batches. We compute it beside the real one, the IoU of the whole set's confusion matrix, and select by the latter
# (`-p select as_published` by the former, in batches of the stage's own size). Stage 0 is selected by its validation loss,
# as in the source.

# %%
def batch_miou(confusion, batch_size):
    """Mean over batches of the mean IoU over all classes, absent ones counted 0, from (N, C, C) confusion matrices."""
    batches = [confusion[i : i + batch_size].sum(0) for i in range(0, len(confusion), batch_size)]
    return float(np.mean([np.nan_to_num(common.iou_per_class(batch)).mean() for batch in batches]))


# %%
def evaluate(model, data, accelerator=None, batch_size=8):
    """common.evaluate with the loss and the biased mean of the batches' IoUs."""
    metrics, per_image = common.evaluate(model, data, accelerator, batch_size=batch_size, loss=cross_entropy)
    return metrics | {"batch_miou": batch_miou(per_image["confusion"], batch_size)}, per_image


# %%
three = np.zeros((3, 7, 7), int)  # three perfect images, the first two without people
three[:, range(7), range(7)] = 100
three[:2, PERSON] = 0
print(f"perfect predictions: mIoU {common.miou(three.sum(0)):.3f}, mean over batches of 2: {batch_miou(three, 2):.3f}")

# %% [markdown]
# A perfect prediction scores less than 1, because a batch has nobody in it. The score depends on the batch size and on
# the order of the files, and a class that is rare is punished for being rare.

# %%
from functools import partial


def stage_loss(model, batch, kind, weights):
    """The loss of a stage: "cross_entropy", "weighted" or "dice"."""
    logits, label = model(batch["image"]), batch["label"]
    if kind == "cross_entropy":
        return cross_entropy(logits, label)
    loss = dice_and_cross_entropy if kind == "dice" else cross_entropy
    return loss(logits, label, weights.to(logits.device))


# %%
PARTS = {"parent", "loss", "frequency", "hide", "grey"}  # what a stage may say


def check_stages(stages):
    """StreetsError for a stage that could not be trained as it is written."""
    losses, above = ("cross_entropy", "weighted", "dice"), {""}
    for name, recipe in stages.items():
        weighted, problem = recipe.get("loss") != "cross_entropy", ""
        if unknown := recipe.keys() - PARTS:
            problem = f"does not know {', '.join(sorted(unknown))}: use {', '.join(sorted(PARTS))}"
        elif recipe.get("loss") not in losses:
            problem = f"has the loss {recipe.get('loss')!r}: use {', '.join(losses)}, or extend stage_loss"
        elif recipe.get("parent") not in above:
            problem = f"has the parent {recipe.get('parent')!r}: name a stage above it, or \"\""
        elif recipe.get("frequency") not in (FREQUENCIES if weighted else (None,)):
            problem = (f"has the frequency {recipe.get('frequency')!r}: weighted and dice take "
                       f"{', '.join(FREQUENCIES)}, cross_entropy none")
        elif ("hide" in recipe) != ("grey" in recipe):
            problem = "has one of hide and grey: occlusion takes both"
        if problem:
            raise common.StreetsError(f"STAGES: {name} {problem}.")
        above.add(name)


# %%
def measured_shares(data):
    """Share of pixels per class in the labels of a data set, (C,)."""
    counts = sum(np.bincount(data.read(i)[1].ravel(), minlength=7) for i in range(len(data)))
    return counts / counts.sum()


# %%
def score_own_test(folder, model, accelerator, data, batch_size):
    """{"test_split": metrics} on the data set's own test split, where it has one."""
    return {"test_split": evaluate(model, data, accelerator, batch_size)[0]} if data else {}


# %%
def make_datasets(splits, side, seed):
    """StreetScenes of seven classes at side x side, or None for an empty split, of each list of frames."""
    return [common.StreetScenes(frames, (side, side), "streets7", seed=seed, mean=(0, 0, 0), std=(1, 1, 1)) if frames else None
            for frames in splits]


# %%
def train_stage(folder, recipe, settings, splits, frequency, fill, select, seed,
                parent=None, **options):
    """Train one stage from the best weights in the folder `parent` (None: from random ones) and leave it in `folder`."""
    torch.manual_seed(seed)
    model = UNet(width=settings["width"], depth=settings["depth"])
    if parent:
        common.load_weights(parent / "best.safetensors", model)
    train, val, test, own_test = make_datasets(splits, settings["size"], seed)
    weights = None
    if "frequency" in recipe:
        weights = inverse_sqrt_weights(measured_shares(train) if frequency == "measured" else FREQUENCIES[recipe["frequency"]])
    if "hide" in recipe:
        train.augment = partial(occlude, hide=recipe["hide"], grey=recipe["grey"], fill=fill)
    batch_size = settings["dice_batch_size" if recipe["loss"] == "dice" else "batch_size"]
    common.fit(folder, model, partial(stage_loss, kind=recipe["loss"], weights=weights), train, val, test_data=test,
               optimizer=torch.optim.Adam(model.parameters(), lr=settings["stage_lr" if parent else "lr"]),
               epochs=settings["stage_epochs" if parent else "epochs"], batch_size=batch_size,
               evaluate=partial(evaluate, batch_size=batch_size), select="best",
               precision=settings["precision"],
               best_by="eval_loss" if not parent else "miou" if select == "corrected" else "batch_miou",
               final_scores=partial(score_own_test, data=own_test, batch_size=batch_size), **options)


# %% [markdown]
# A stage needs its parent's weights. Asked for `dice_occlusion` alone, the notebook trains `scratch` first if it is not
# there. A run is named after its stage and after everything that departs from the recipe of its mode, as far as it or one
# of its parents reads it: `-p fill black` does not train `scratch` again.

# %%
UNUSED = {  # what neither a stage nor its parents read
    "scratch": ["frequency", "fill", "select", "stage_epochs", "stage_lr",
                "dice_batch_size"],
    "continued": ["frequency", "fill", "dice_batch_size"],
    "weighted": ["fill", "dice_batch_size"],
    "weighted_occlusion": ["dice_batch_size"],
}

# %%
splits = {"train": train_frames, "val": val_frames, "test": test_frames, "test_split": own_test}
train = partial(train_stage, settings=settings, splits=list(splits.values()), seed=seed,
                frequency=frequency, fill=fill, select=select, max_hours=max_hours)
check_stages(STAGES)
jobs = {name: partial(train, recipe=recipe) for name, recipe in STAGES.items()}
parents = {name: STAGES[name]["parent"] for name in STAGES if STAGES[name]["parent"]}
wanted = common.several("stage", stage, STAGES)
runs = common.train_runs(globals(), jobs, settings, root, splits, wanted=wanted,
                         unused=UNUSED, parents=parents)

# %% [markdown]
# ## What came out
#
# A run that `max_hours` stopped is missing here; run the notebook again and it goes on.

# %%
summaries = {name: run.summary for name, run in runs.items()}
histories = {name: run.history for name, run in runs.items()}
later = {name: h for name, h in histories.items() if name != "scratch"}
common.show(common.show_history(later or histories, ("eval_loss", "miou", "accuracy", "iou_person")))

# %% [markdown]
# The later stages, on the validation half: `eval_loss`, the validation loss, is the same plain cross-entropy for all, as their
# training losses would not compare. It disfavours the weighted stages, which were not trained to give true probabilities: read
# it within a stage, and the mIoU between stages. The report speaks of better generalisation and of a more stable validation
# loss; none of its figures or logs shows either, so judge by yours.
#
# ### Does it learn, or learn by heart?

# %%
first = next(iter(histories))
history = histories[first]
fig, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for column, color in (("train_loss", common.CURVES[0]), ("eval_loss", common.CURVES[1])):
    axis.plot(history["epoch"], history[column], color=color, label=column.replace("_", " "))
axis.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, 1.1 * history["train_loss"].max()))
axis.grid(alpha=0.3)
axis.legend(frameon=False)
common.show(fig)

# %%
published = common.read_published(NOTEBOOK)
print(published.query("metric.str.endswith('loss')")[["metric", "epoch", "value"]].to_string(index=False))
lowest = history.loc[history["eval_loss"].idxmin(), "epoch"]
print(f"ours: lowest validation loss at epoch {lowest} of {len(history)}")

# %% [markdown]
# The source's validation loss was lowest at epoch 20 and by epoch 100 far higher, when its training loss was near zero: it had
# become sure of wrong answers. That is why the epoch of the lowest validation loss is kept. Whether ours has turned yet
# stands in the last line.
#
# ### Two ways to average

# %%
scored = {name: run.folder / "val_per_image.npz" for name, run in runs.items()}
per_image = {name: np.load(path)["confusion"] for name, path in scored.items()
             if path.exists()}  # (N, C, C) of the epoch kept
if not per_image:
    raise common.StreetsError("These runs have scores but no weights: train them again "
                              f"with {common.setting('rerun', 'yes')}.")
best = "dice_occlusion" if "dice_occlusion" in per_image else list(per_image)[-1]

# %%
sizes = [1, 2, 4, 8, 16]
curves = {"epoch": (history["epoch"], history["miou"], history["batch_miou"], f"{first}, batches of {settings['batch_size']}"),
          "images per batch": (sizes, [common.miou(per_image[best].sum(0))] * len(sizes),
                               [batch_miou(per_image[best], k) for k in sizes], best)}
fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")
for axis, (name, (x, whole, batches, title)) in zip(axes, curves.items()):
    axis.plot(x, whole, color=common.CURVES[0], label="of the data set")
    axis.plot(x, batches, "--", color=common.CURVES[1], label="mean of batches")
    axis.set(xlabel=name, ylabel="validation mIoU", title=title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
axes[1].set(xscale="log", xticks=sizes, xticklabels=sizes)
common.show(fig)

# %%
truth = per_image[best].sum(2)  # (N, C): true pixels per image and class
k = settings["batch_size"]
absent = sum(int((truth[i : i + k].sum(0) == 0).sum()) for i in range(0, len(truth), k))
picks = {name: [int(h.loc[h[by].idxmax(), "epoch"]) for by in ("miou", "batch_miou")] for name, h in histories.items()}
print(f"classes missing from validation batches of {k}: {absent}")
print(f"the epochs that the two mIoUs would keep: {picks}")

# %% [markdown]
# A mean over batches differs for two reasons. The mean of ratios is not the ratio of the sums, which can go either way;
# and a class that a batch lacks counts 0, which pulls it down. Where every image holds all classes, as on toy streets, only
# the first acts; the perfect prediction above shows the second. Where two scores differ, they can keep different epochs.
#
# ### The table
#
# Published are the scores on the source's *test* half, ours those on the same half of your data: mIoU, the IoU of people
# (*person*) and accuracy, in per cent; below it the IoU of every class on test. The majority class is what naming the most
# frequent class everywhere would score. (What three seeds gave in quick mode stands at the top of this notebook.)

# %%
claims = {m: common.headline(published, m).set_index("method")["value"].astype(float) for m in ("miou", "accuracy")}
published_person = published.query("metric == 'iou' and `class` == 'person'").set_index("method")["value"].astype(float)


def table_row(summary, name, claims, published_person):
    """One stage's scores in per cent, beside the published ones (nan where there is none)."""
    test, extra = summary["test"], summary["final"].get("test_split", {"miou": np.nan, "iou": {"person": np.nan}})
    scores = {"val": summary["metrics"]["miou"], "test": test["miou"], "own test split": extra["miou"],
              "person": test["iou"]["person"], "person, own test split": extra["iou"]["person"], "accuracy": test["accuracy"]}
    ours = {("ours", key): np.nan if value is None else 100 * value for key, value in scores.items()}
    theirs = {"test": claims["miou"], "person": published_person, "accuracy": claims["accuracy"]}
    return ours | {("published", key): values.get(name, np.nan) for key, values in theirs.items()}


# %%
table = pd.DataFrame({name: table_row(summary, name, claims, published_person) for name, summary in summaries.items()}).T
shares = measured_shares(make_datasets([test_frames], settings["size"], seed)[0])
print(f"in per cent; the majority class scores {100 * shares.max() / (shares > 0).sum():.1f} on test "
      f"(accuracy {100 * shares.max():.1f})")
table.round(1)

# %%
measured = pd.DataFrame({name: s["test"]["iou"] for name, s in summaries.items()}, dtype=float) * 100
claimed = published.query("metric == 'iou'").pivot(index="class", columns="method", values="value").astype(float)
pd.concat({"ours": measured, "published": claimed[[s for s in STAGES if s in claimed]]}, axis=1).loc[scheme.classes].round(1)

# %% [markdown]
# Read a gain beside the control. What `continued` gained came from training longer and needs no new loss to explain it;
# what a stage has beyond that may come from its loss, from twice the training (1b), or from twice the steps (2, whose
# batches are half as large).
#
# ### More than one run
#
# One run says little: another seed would have given other numbers. The source ran each stage once, without a seed: its
# differences of a point or less cannot be told from chance. Here are all finished runs of this mode and recipe,
# with a Student-t interval where there are several seeds.

# %%
finished, same = common.find_runs(out_dir), ["notebook", "dataset", "mode", "method"]
for name, summary in summaries.items():
    alike = finished[(finished[same] == [summary[key] for key in same]).all(axis=1)]
    person = [np.nan if test["iou"]["person"] is None else 100 * test["iou"]["person"] for test in alike["test"]]
    mean, half = common.student_interval(person)
    interval = "" if np.isnan(half) else f" ± {half:.1f}"
    print(f"{name:20s} person IoU on test {mean:5.1f}{interval}, seeds: {len(alike)}")

# %% [markdown]
# ### A measured case: CamVid
#
# Does Dice with occlusion raise the IoU of people, as the source says? The repository holds runs on real streets: CamVid (in
# its form of 11 classes, here merged to the seven), 367 training images at 256x256, half the channels of the source, 24
# epochs of stage 0 and 8 of each later stage, on a CPU in bf16. All later stages had equally many images per epoch. First the
# mIoU and the IoU of people, in per cent, by stage and seed; then what stage 2 gained for people over three others:

# %%
from IPython.display import display

committed = common.find_runs()
if len(committed):
    committed = committed.query("notebook == @NOTEBOOK and dataset == 'camvid11' and mode == 'course'")
    committed = committed[committed["method"].str.endswith("-width32-epochs24-stage_epochs8")]
evidence = {(run.method.split("-")[0], run.seed): {
    "val half": run.metrics["miou"], "test half": run.test["miou"], "CamVid's test": run.final["test_split"]["miou"],
    "person, test half": run.test["iou"]["person"], "person, CamVid's test": run.final["test_split"]["iou"]["person"]}
    for run in committed.itertuples()}
measured_runs = 100 * pd.DataFrame.from_dict(evidence, orient="index", dtype=float)
if evidence:
    display(measured_runs.round(1))

# %%
if evidence:
    person = measured_runs.groupby(level=0).mean()[["person, test half", "person, CamVid's test"]]
    others = ("scratch", "continued", "weighted")
    gains = {f"dice_occlusion - {other}": person.loc["dice_occlusion"] - person.loc[other] for other in others}
    display(pd.DataFrame(gains).T.round(1))

# %% [markdown]
# The first row is what the source compares. On the test half, more than half of that gain is the control's: the network had
# simply not finished learning. What remains beyond the control is still a gain of people, and most of it is there with class
# weights alone (last row), before any Dice or occlusion; what those two add is small, and stage 2 had twice the steps.
# `weighted_occlusion`, without Dice and trained for twice as long, has a higher IoU of people on that half than stage 2. On
# CamVid's own test split, with other drives, training longer did not help people at all, and weights did. So in this run the
# direction of the claim holds and its explanation does not. It is one seed: a single run has no interval, and differences of
# a few points are not to be told from chance.

# %% [markdown]
# ## What is taken for what
#
# Each row is a true class. The numbers say where its pixels went, in per cent (the colours, as fractions); shares below half
# a per cent are left blank.

# %%
def show_confusion(confusion, classes):
    """Confusion matrix with every row (a true class) summing to 1; absent classes are left out; returns the figure."""
    keep = np.flatnonzero(confusion.sum(1))
    shares = confusion[keep][:, keep] / confusion[keep].sum(1, keepdims=True)
    names = [classes[i] for i in keep]
    fig, axis = plt.subplots(figsize=(1.5 + 0.5 * len(keep), 1 + 0.45 * len(keep)), layout="constrained")
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(keep)), names, rotation=90)
    axis.set_yticks(range(len(keep)), names)
    axis.set(xlabel="prediction", ylabel="truth")
    for (i, j), share in np.ndenumerate(shares):
        if share >= 0.005:
            axis.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if share > 0.5 else "black")
    fig.colorbar(picture, label="share of the true class's pixels")
    return fig


# %%
common.show(show_confusion(per_image[best].sum(0), scheme.classes))

# %%
predicted_as = {name: confusion.sum(0)[PERSON] / max(1, confusion.sum(0)[PERSON].sum()) for name, confusion in per_image.items()}
fig, axis = plt.subplots(figsize=(8, 3), layout="constrained")
(100 * pd.DataFrame(predicted_as, index=scheme.classes)).plot.bar(ax=axis, color=common.CURVES, width=0.8, legend=False, rot=0)
axis.set(xlabel="predicted class", ylabel="share of person pixels (%)")
fig.legend(loc="outside right upper", frameon=False)
common.show(fig)

# %% [markdown]
# The row *person* of the matrix holds the most mistakes; on the toy streets most of the people missed are called vehicle.
# The bars show that row for every stage (the source has such a chart, too). A class weight takes person pixels back from
# other classes. What it costs are false alarms, which this chart does not show and the IoU does.
#
# ## The worst and the best five
#
# Scores of a data set hide its images. These are the extremes of the validation half, by the mean IoU of the classes in
# the picture.

# %%
scores = np.array([common.miou(confusion) for confusion in per_image[best]])
order = np.argsort(scores)
few = min(5, max(1, len(order) // 2))
model = UNet(width=settings["width"], depth=settings["depth"])
common.load_weights(runs[best].folder / "best.safetensors", model).eval()
val_data = make_datasets([val_frames], settings["size"], seed)[0]


# %%
def show_extremes(model, data, indices, scores, size):
    """Photo, truth, prediction and error of some images, with their mIoU; returns the figure."""
    photos, labels = zip(*(data.read(i) for i in indices))
    predictions = [common.predict(model, photo, (size, size), mean=(0, 0, 0), std=(1, 1, 1)) for photo in photos]
    return common.show_predictions(photos, labels, predictions, data.scheme, [f"(mIoU {scores[i]:.2f})" for i in indices])


common.show(show_extremes(model, val_data, order[:few], scores, settings["size"]))

# %%
common.show(show_extremes(model, val_data, order[::-1][:few], scores, settings["size"]))

# %% [markdown]
# The first figure shows the worst, the second the best (quick mode has too few images for five of each). Red is wrong. An
# image's mean IoU falls steeply when a class of a few pixels is missed: look whether the worst images are hard, or merely have
# a rare class.
#
# ## Where the source is wrong
#
# **A figure with the wrong caption.** The report's Figure 3, "weighted CE + occlusion", holds the numbers of stage 1a,
# which has no occlusion. From it the report concludes that occlusion reduced the IoU of people. The run with occlusion is
# in the public notebook only:

# %%
for name in ("scratch", "weighted", "weighted_occlusion"):
    print(f"{name:20s} person {published_person[name]:.2f}")
print(f"1a to 1b: {published_person['weighted_occlusion'] - published_person['weighted']:+.2f} points")

# %% [markdown]
# With occlusion people gain. But 1b also trained 30 epochs more and gave people another weight, and each is one run, so
# that even this is no measurement of occlusion.
#
# **Colours in another order.** The public script swaps red and blue before the network, the notebook does not. A network
# trained with either order works; one trained with one and used with the other sees wrong colours, which is what happens when
# the notebook's weights meet the script. What that costs our own network is below; we keep RGB.

# %%
def swap_red_and_blue(image, label, rng):
    """An `augment` that turns RGB into BGR."""
    return np.ascontiguousarray(image[..., ::-1]), label


# %%
normal = evaluate(model, val_data)[0]["miou"]
val_data.augment = swap_red_and_blue
print(f"mIoU on val: RGB {normal:.3f}, BGR {evaluate(model, val_data)[0]['miou']:.3f}")
val_data.augment = None

# %% [markdown]
# **A share of 0 %.** Its statistics count classes under one type of key and look them up under another, number and string,
# and so print 0 % for all (notebook 01). The counts themselves are right; the table of shares above is made from them.

# %%
counted = {"4": 74789586}
print("looked up as a number:", counted.get(4, 0), " as a string:", counted.get("4", 0))

# %% [markdown]
# The rest in short:
#
# | the source | what is the matter | here |
# |---|---|---|
# | learning rate 1e-3 (report), 1e-4 (code) | they differ | `paper` takes the code's; `-p lr 0.001` the report's |
# | epochs and batch size | the report names neither | the code's |
# | "black boxes" hide people | the code makes grey or uniform noise, inside people's bounding boxes | noise; `-p fill black` |
# | stage 2 starts from stage 0 | the call that would train it so is commented out in the code | as stated |
# | "classic U-Net" | three poolings, not four | three; `-p depth 4` |
# | both loss terms are guaranteed positive | true of the mean (at least .001), not of each class's part (person: -0.98) | shown above |
# | mean of batch IoUs | an absent class counts 0 | the confusion matrix of the data set; the other beside it |
# | "basic augmentation" in stage 0 | the code has none | none |
# | a preprocessed "test" split | it has no images: 1481 labels are not found under the names looked for | never scored; the labels are dummies |
# | validation images select and test | split in halves, so no image does both, but they share cities and a choice of recipe | the same halves, and the data's own test split where it has labels |
# | sidewalk and terrain are background, "vehicle" holds bicycles and trains | seven classes are easier than 19 | the same classes; do not compare with 19 |
#
# ## Your own photo
#
# Set `photo` to any JPEG or PNG. Without one, an image that was not trained on serves.

# %%
own = common.own_photo(photo, (own_test or test_frames)[0])
prediction = common.predict(model, own, (settings["size"], settings["size"]), mean=(0, 0, 0), std=(1, 1, 1))
common.show(common.show_pair(own, prediction, scheme))

# %% [markdown]
# ## What we learnt
#
# - A U-Net is one block, used on the way down and up; skip connections carry the places that pooling forgets.
# - Nearly half of the parameters sit at the bottom, the arithmetic is spread evenly over the levels, and the bottom decides
#   how far a pixel can see.
# - A class weight is a choice of what to get wrong, and rounding 1.2 % to 1 % is part of it.
# - A loss can have negative parts and a positive mean. Check a claim on its formula, then in code.
# - A gain needs a control: training longer is a method, too.
# - The mean of batch scores is not the score of the set.
#
# ## Exercises
#
# Write your answer in place of `raise NotImplementedError`, run the cell, and then the one below, which checks it. An
# exercise that is not done yet stops nothing. None of them needs training.

# %% [markdown]
# ### Exercise 2.1: parameters of a thinner U-Net
#
# Predict, then check: how many parameters has `UNet(width=32)`? All channels inside are halved, and yet the count is not a
# quarter of 7,703,367. Work it out from what grows with the square of the width, what grows with the width, and what does
# not grow, rather than by building the network. Return an int. (2 points)

# %%
# Exercise 2.1
def parameters_of_width_32():
    """Number of parameters of UNet(width=32): an int."""
    raise NotImplementedError


# %%
# Exercise 2.1: check
with common.exercise("Exercise 2.1"):
    common.check("parameters of width 32", parameters_of_width_32(), between=(1_900_000, 1_950_000))

# %% [markdown]
# ### Exercise 2.2: how an absent class feels a false alarm
#
# A batch holds nobody, and the probabilities of *person* add up to `total` over its pixels. How much does the Dice of
# *person* change when one of these probabilities grows a little? Derive it from the formula of $D_c$: the derivative
# $\partial D_c / \partial p_c(x)$ as a function of `total` and $\epsilon$ (two floats in, one float out). Then compare
# $\epsilon = 10^{-6}$ with 1, early in training (`total` in the thousands) and late (about 1): when does the loss notice an
# alarm? (2 points)

# %%
# Exercise 2.2
def dice_slope_of_absent_class(total, epsilon):
    """Derivative of the Dice of a class that the label lacks by one of its probabilities, whose sum is `total`."""
    raise NotImplementedError


# %%
# Exercise 2.2: check
with common.exercise("Exercise 2.2"):
    common.check("nothing there yet, epsilon 1", dice_slope_of_absent_class(0.0, 1.0), -1.0)
    unsure = dice_slope_of_absent_class(128 * 128 / 7, 1e-6)
    common.check("unsure everywhere, epsilon 1e-6", unsure, between=(-1e-9, 0))

# %% [markdown]
# ### Exercise 2.3: find and mend the score
#
# The function below is meant to give the mean IoU of a data set that comes in batches. Dealt into batches in one way, a perfect
# prediction gets 1; dealt in another, it does not.

# %%
# Exercise 2.3: as given
def dataset_miou_as_given(batches, num_classes):
    """Mean IoU of a data set: batches of (prediction, label), integer arrays (B, H, W) each."""
    scores = []
    for prediction, label in batches:
        for c in range(num_classes):
            hits = ((prediction == c) & (label == c)).sum()
            union = ((prediction == c) | (label == c)).sum()
            scores.append(hits / max(union, 1))
    return float(np.mean(scores))


streets = np.array([[[0, 1], [2, 2]], [[0, 1], [1, 0]]])  # two labels, the second without class 2
print("perfect, one batch of two:  ", dataset_miou_as_given([(streets, streets)], 3))
print("perfect, two batches of one:", dataset_miou_as_given([(streets[:1], streets[:1]), (streets[1:], streets[1:])], 3))

# %% [markdown]
# Write the score that does not depend on how the images are dealt into batches: the mean of the IoUs of the data set, over
# the classes that occur in its labels. The arguments are as above, batches may differ in size, the result is a float. Two
# things are wrong, and one of them no perfect prediction will show. (3 points)

# %%
# Exercise 2.3
def dataset_miou(batches, num_classes):
    """Mean IoU over the classes that occur in the labels of all batches together: a float."""
    raise NotImplementedError


# %%
# Exercise 2.3: check
with common.exercise("Exercise 2.3"):
    two = np.array([[[0, 1], [2, 2]], [[0, 1], [1, 0]]])
    common.check("perfect, one batch of two", dataset_miou([(two, two)], 3), 1)
    common.check("perfect, two batches of one", dataset_miou([(two[:1], two[:1]), (two[1:], two[1:])], 3), 1)

# %% [markdown]
# ### Exercise 2.4: find and mend the class weights
#
# Somebody counts pixels once, keeps the counts in a JSON file, and makes the class weights from it. Training with these
# weights runs, and but for rounding its cross-entropy is what it is without weights.

# %%
# Exercise 2.4: as given
import json


def weights_as_given(text, num_classes):
    """Class weights (C,) from a JSON text of pixel counts per class."""
    counts = json.loads(text)
    total = sum(counts.values())
    return inverse_sqrt_weights([counts.get(c, 0) / total for c in range(num_classes)])


print("kept:", json.dumps({0: 6400, 1: 2500, 2: 100}))
print("weights:", weights_as_given(json.dumps({0: 6400, 1: 2500, 2: 100}), 3))

# %% [markdown]
# Write the function so that it returns $1/\sqrt{f_c}$ for the share $f_c$ of each class, (C,) float32. The text may name the
# classes in any order, and leave out a class without pixels; such a class gets the weight of a share of 1e-4. (2 points)

# %%
# Exercise 2.4
def weights_from_json(text, num_classes):
    """1 / sqrt(share) per class, (C,) float32, from a JSON text of pixel counts per class."""
    raise NotImplementedError


# %%
# Exercise 2.4: check
with common.exercise("Exercise 2.4"):
    three_weights = weights_from_json(json.dumps({0: 6400, 1: 2500, 2: 100}), 3)
    common.check("weights of three classes", three_weights, [1.185854, 1.897367, 9.486833])

# %% [markdown]
# ### Exercise 2.5: a small project: which people are found?
#
# IoU counts pixels, so that one near person outweighs ten far ones. Count people instead. A person is a connected group of
# pixels of class `PERSON` in the label, corners included; its height is the number of rows of its bounding box; it is
# *found* where at least half of its own pixels are predicted as `PERSON`. Return the share of people found in each group
# of heights, an array of `len(edges) + 1` numbers: with `edges` (8, 16) for heights below 8, from 8 to below 16, and from
# 16 on; `nan` for a group without people. `predictions` and `labels` are lists of integer arrays (H, W), whose sizes may
# differ from image to image. (4 points)

# %%
# Exercise 2.5
def recall_by_height(predictions, labels, edges):
    """Share of the people of each group of heights that are found, (len(edges) + 1,); nan for a group without people."""
    raise NotImplementedError


# %%
# Exercise 2.5: check
with common.exercise("Exercise 2.5"):
    crowd = np.zeros((2, 24, 30), int)
    crowd[:, 2:22, 2:8], crowd[:, 4:9, 12:14], crowd[:, 4:9, 20:22] = PERSON, PERSON, PERSON  # one tall, two small
    blind = np.where(np.arange(30) < 20, crowd, 0)  # sees none of the third
    common.check("the third missed", recall_by_height(list(blind), list(crowd), (8, 16)), [0.5, np.nan, 1])

# %% [markdown]
# ### To go further
#
# These need training and are not checked.
#
# - Take the skip connections out (put zeros in their place). Which classes suffer?
# - Run `-p depth 4`. Is the gain, if there is one, larger than what a second seed changes?
# - Run `-p select as_published`. Does another epoch win, and by how much does the test half notice?
#
# ## References
#
# - O. Ronneberger, P. Fischer, T. Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation*, MICCAI 2015.
# - F. Milletari, N. Navab, S.-A. Ahmadi, *V-Net* (the Dice loss), 3DV 2016.
# - Z. Zhong et al., *Random Erasing Data Augmentation*, AAAI 2020.
# - G. Brostow, J. Fauqueur, R. Cipolla, *Semantic object classes in video: A high-definition ground truth database*
#   (CamVid), Pattern Recognition Letters 2009.
# - M. Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding*, CVPR 2016.
#
# **Next:** [03 What does a cross-validated score tell you?](03_unet_resnet50_cv.ipynb)
