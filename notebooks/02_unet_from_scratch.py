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
# You build a U-Net, write the loop that trains it, and watch it learn a street from random weights. It finds roads and cars
# and overlooks people. Then you try three ways to make it see them, beside a control that merely trains longer. On real
# streets the control does as well as the three.
#
# ![A street of CamVid, its label, and what the U-Net makes of it after 50 epochs and 12 epochs later](../.github/02_camvid.jpg)
#
# *A street of CamVid (Brostow, Fauqueur, Cipolla 2009), shown for teaching. People are red. Below, what our U-Net makes of it
# after 50 epochs from scratch, and 12 epochs later: the network had seen 367 pictures of other streets.*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/main/notebooks/02_unet_from_scratch.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/main/notebooks/02_unet_from_scratch.ipynb)
#
# Notebook 2 of 6 · before it: [01 class remapping](01_class_remapping.ipynb) · after it: [03 cross-validation](03_unet_resnet50_cv.ipynb) · [all six](../README.md)
#
# **Sources.** *The U-Net report*: Subhasis Panda, a student's course report on Cityscapes with public code (April 2025),
# after O. Ronneberger, P. Fischer, T. Brox, *U-Net* (MICCAI 2015). [results/sources.md](../results/sources.md) has the links.
#
# **You need** convolution, batch norm, softmax and cross-entropy. Notebook 01 explains the seven classes, the confusion
# matrix and the mean IoU. This notebook takes about 60 minutes to read.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | 2.1 min in all (2 cores of an AMD EPYC, November 2026) | with seed 42, mIoU on test .70 after `scratch` and .72 after `dice_occlusion` (majority class .05), people .00 and .17: it works, and is no evidence |
# | `laptop` | CamVid: 367 real streets | any CPU | 47 min on one core of that machine for all five stages, 26 of them for `scratch` | with seed 42, mIoU on test .60 after `scratch` and .63 after `continued` (majority class .04), people .15 and .24 |
# | `course` | CamVid, or Cityscapes | one 16 GB GPU: 1.5 GiB, computed | not yet measured | five stages that one can compare |
# | `paper` | Cityscapes, squeezed to 256x256 | one 16 GB GPU: 1.5 GiB, computed | not yet measured (the source: 2 h 16 min for the first stage on a P100) | the published table |

# %% [markdown]
# ## Parameters
#
# You can change them here, or from a shell:
# `papermill notebooks/02_unet_from_scratch.ipynb out.ipynb -p stage dice_occlusion`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (CPU, minutes), laptop (real streets), course (GPU), paper
stage: str = "all"  # one of STAGES below, several with commas, or all
lr: float = 0.0  # learning rate of the first stage; 0 takes the mode's
frequency: str = "published"  # class weights from the published shares, or measured
fill: str = "noise"  # what hides people: noise (the source's code), black (its report)
select: str = "miou"  # the epoch that is kept: best miou, lowest loss, or as_published
width: int = 0  # channels of the first level; 0 takes the mode's (64 in the source)
depth: int = 0  # number of poolings; 0 takes the mode's (3 in the source)
size: int = 0  # side of the square that pictures are squeezed to; 0 takes the mode's
epochs: int = 0  # epochs of the first stage; 0 takes the mode's
stage_epochs: int = 0  # epochs of each later stage; 0 takes the mode's
rerun: str = "no"  # yes trains again what is already trained
photo: str = ""  # a JPEG, PNG or video of your own to label at the end
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
# A *mode* is a recipe. `paper` is the source's: pictures squeezed to 256x256, 100 epochs of Adam, then 30 epochs for each
# later stage. `laptop` and `quick` take a quarter of the channels and smaller pictures.

# %%
MODES = {
    "quick": {"width": 16, "depth": 3, "size": 128, "images": 40, "epochs": 40,
              "batch_size": 4, "lr": 2e-3, "stage_epochs": 10, "stage_lr": 5e-4,
              "dice_batch_size": 2, "precision": "auto"},
    "laptop": {"width": 16, "depth": 3, "size": 192, "images": 0, "epochs": 50,
               "batch_size": 8, "lr": 2e-3, "stage_epochs": 12, "stage_lr": 5e-4,
               "dice_batch_size": 4, "precision": "auto"},
    "course": {"width": 64, "depth": 3, "size": 256, "images": 0, "epochs": 40,
               "batch_size": 8, "lr": 1e-3, "stage_epochs": 12, "stage_lr": 1e-4,
               "dice_batch_size": 4, "precision": "auto"},
    "paper": {"width": 64, "depth": 3, "size": 256, "images": 0, "epochs": 100,
              "batch_size": 8, "lr": 1e-4, "stage_epochs": 30, "stage_lr": 1e-5,
              "dice_batch_size": 4, "precision": "auto"},
}

# %% [markdown]
# The source trains in stages. The first starts from random weights, each later one from the weights of another, its *parent*.
# `continued` is our addition. You will learn the other words on the way.

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
           "select": ("miou", "loss", "as_published")}
settings = common.check_parameters(globals(), MODES, choices, {"stage": STAGES})
if settings["size"] % 2 ** settings["depth"]:
    raise common.StreetsError(f"size must be a multiple of {2 ** settings['depth']} "
                              f"with depth {settings['depth']}.")
print(common.device_line())

# %% [markdown]
# ## Streets in seven classes
#
# The source has seven classes: background, road, building, vehicle, person, vegetation and sky. Everything else, void
# included, is background, and is trained and scored like any other class.
#
# We learn from `train`, choose the best epoch on `val`, and judge on `test`. Cityscapes keeps its test labels secret, so the
# source halves the validation pictures instead, with scikit-learn's `train_test_split(..., random_state=42)`. These lines
# give the same halves:

# %%
import numpy as np


def halve(frames):
    """(test, val) halves of a list, as train_test_split(test_size=0.5) gives them."""
    order = np.random.RandomState(42).permutation(len(frames))
    second = (len(frames) + 1) // 2
    return [frames[i] for i in order[second:]], [frames[i] for i in order[:second]]


# %% [markdown]
# Where a data set has test labels, as the toy streets and CamVid have, we take its own splits:

# %%
root = common.find_data(data_dir, mode)
scheme = common.SCHEMES["streets7"]
train_frames, val_frames = (common.list_frames(root, s) for s in ("train", "val"))
if common.has_test_labels(root):
    test_frames = common.list_frames(root, "test")
else:
    test_frames, val_frames = halve(val_frames)
splits = {"train": train_frames, "val": val_frames, "test": test_frames}
splits = {s: common.evenly(frames, settings["images"]) for s, frames in splits.items()}
print({name: len(frames) for name, frames in splits.items()})

# %% [markdown]
# To PyTorch a data set is an object that has a length and gives its k-th example. Ours reads a photo and its label, makes
# both small squares, and looks the label up in the table of notebook 01:

# %%
import cv2
import torch
from torch.utils.data import DataLoader, Dataset


class Streets(Dataset):
    """Photos (3, H, W), floats from 0 to 1, with labels (H, W), classes 0 to 6."""

    def __init__(self, frames, size):
        self.frames, self.size = frames, (size, size)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, k):
        photo = common.read_image(self.frames[k].image)
        ids = common.read_label(self.frames[k].label)
        photo = cv2.resize(photo, self.size, interpolation=cv2.INTER_AREA)
        ids = cv2.resize(ids, self.size, interpolation=cv2.INTER_NEAREST_EXACT)
        label = common.SCHEMES["streets7"].table[ids]
        return torch.tensor(photo).movedim(-1, 0) / 255, torch.tensor(label).long()


# %%
small = Streets(common.evenly(splits["train"], 40), 128)
image, label = small[0]
print(len(small), "streets; photo", tuple(image.shape), "label", tuple(label.shape))

# %% [markdown]
# We will come back to one street again and again: the one with the most pixels of people.

# %%
PERSON = 4  # the class that this notebook is about
most = max(range(len(small)), key=lambda k: (small[k][1] == PERSON).sum())
street, truth = small[most]
picture = (255 * street).byte().movedim(0, -1).numpy()  # (H, W, 3), for matplotlib
common.show(common.show_pair(picture, truth.numpy(), scheme))

# %% [markdown]
# The toy streets are twice as wide as high. Here they are squares, so everybody is thin.
#
# ## The network
#
# Here is what we are going to build. A photo goes in at the upper left. On the way down its map gets smaller and deeper; on
# the way up it grows again, and at each level the map from the way down is put beside it:

# %%
import matplotlib.pyplot as plt


def draw_unet(width, depth, size):
    """Figure of a U-Net: boxes as high as the maps, with channels and side below."""
    levels = [*range(depth + 1), *range(depth - 1, -1, -1)]
    fig, axis = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
    for x, level in enumerate(levels):
        side = 2.0**-level
        box = plt.Rectangle((x, -level), 0.5, side, color=common.CURVES[0], alpha=0.7)
        axis.add_patch(box)
        axis.text(x + 0.25, -level - 0.08, f"{width << level} x {size >> level}²",
                  ha="center", va="top", fontsize=8)
        if x:
            before = (x - 0.5, 0.5 * 2.0 ** -levels[x - 1] - levels[x - 1])
            axis.annotate("", (x, 0.5 * side - level), before,
                          arrowprops={"arrowstyle": "->", "color": "0.4"})
        if x > depth:
            top = 0.9 * side - level
            axis.annotate("", (x, top), (2 * depth - x + 0.5, top),
                          arrowprops={"arrowstyle": "->", "color": common.CURVES[1]})
    axis.set(xlim=(-0.4, len(levels)), ylim=(-depth - 0.5, 1.1))
    axis.set_axis_off()
    return fig


# %%
common.show(draw_unet(64, 3, 256))

# %% [markdown]
# Each box is a *feature map*, in short a map: its channels and its side. The orange arrows are the *skip connections*. Let us build it from its parts.
#
# ### One block, used everywhere
#
# Nearly everything in this U-Net is made of one block: a 3x3 convolution, batch norm and ReLU, twice. The convolutions are padded, so
# the side stays as it is:

# %%
from torch import nn
from torch.nn import functional as F


class DoubleConv(nn.Sequential):
    """(3x3 convolution, batch norm, ReLU) twice; maps (B, C, H, W) keep their side."""

    def __init__(self, in_channels, out_channels):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


# %% [markdown]
# Let us send our street through a first block:

# %%
batch = street[None]  # (B, 3, H, W), here with B = 1
first = DoubleConv(3, 64)(batch)
print(tuple(batch.shape), "->", tuple(first.shape))

# %% [markdown]
# ### Down
#
# Max pooling keeps the largest of every 2x2 values. The side halves, and the next block doubles the channels:

# %%
pooled = F.max_pool2d(first, 2)
second = DoubleConv(64, 128)(pooled)
print(tuple(first.shape), "-> pooled", tuple(pooled.shape), "->", tuple(second.shape))

# %% [markdown]
# A pooled map still knows *that* something is there, but not in which of the four pixels. The way up will need help with
# that.
#
# ### Up
#
# A *transposed convolution* with a 2x2 kernel and stride 2 paints every value as a patch of 2x2. The map from the way down has
# the same side, and knows the pixels. We put both side by side, and a block merges them:

# %%
up = nn.ConvTranspose2d(128, 64, kernel_size=2, stride=2)(second)
joined = torch.cat([up, first], dim=1)
merged = DoubleConv(128, 64)(joined)
print("up", tuple(up.shape), "+ skip", tuple(first.shape), "=", tuple(joined.shape),
      "->", tuple(merged.shape))

# %% [markdown]
# ### The whole network
#
# At the lowest level sits the *bottleneck*. At the end a 1x1 convolution turns the 64 channels of every pixel into seven
# scores, the *logits*:

# %%
from itertools import pairwise


class UNet(nn.Module):
    """U-Net: images (B, 3, H, W) to logits (B, num_classes, H, W).

    H and W are multiples of 2**depth.
    """

    def __init__(self, num_classes=7, width=64, depth=3):
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]  # 64, 128, 256, 512
        way_up = list(pairwise(channels[::-1]))  # (512, 256), (256, 128), (128, 64)
        way_down = pairwise([3] + channels[:-1])  # (3, 64), (64, 128), (128, 256)
        self.down = nn.ModuleList(DoubleConv(i, o) for i, o in way_down)
        self.bottleneck = DoubleConv(channels[-2], channels[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in way_up)
        self.merge = nn.ModuleList(DoubleConv(i, o) for i, o in way_up)
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


# %% [markdown]
# With seven classes, 64 channels and three poolings, as in the source:

# %%
net = UNet()
print("logits", tuple(net(batch).shape))
for name in ("down", "bottleneck", "up", "merge"):
    print(f"{name:10s} {sum(p.numel() for p in getattr(net, name).parameters()):9,}")
print(f"in all     {sum(p.numel() for p in net.parameters()):9,} parameters")

# %% [markdown]
# 7,703,367 parameters, as in the source, and nearly half of them in the bottleneck: a 3x3 convolution from 512 to 512
# channels alone has 9 x 512 x 512 weights.
#
# ### How far can one pixel see?
#
# The logits of a pixel depend on the part of the photo that they have a gradient to, their *receptive field*. We ask autograd
# for it, with a few random pictures, as a maximum passes its gradient to one of four pixels only:

# %%
def receptive_rows(model, side, repeats=6):
    """First and last row of a picture that the logits in its middle depend on."""
    seen = torch.zeros(side, dtype=torch.bool)
    for k in range(repeats):
        noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(k))
        noise.requires_grad_()
        model.eval()(noise)[0, :, side // 2, side // 2].sum().backward()
        seen |= (noise.grad[0] != 0).any(dim=0).any(dim=1)
    rows = seen.nonzero().flatten()
    return rows[0].item(), rows[-1].item()


# %% [markdown]
# How many rows of a picture of 256 do two, three and four poolings see?

# %%
for poolings in (2, 3, 4):
    low, high = receptive_rows(UNet(width=8, depth=poolings), 256)
    print(f"{poolings} poolings: rows {low} to {high}, {high - low + 1} of 256")

# %% [markdown]
# With three poolings a pixel sees 92 rows, about a third of a picture of 256x256, as the source has them. It has to tell a
# person from a post without seeing the whole street. The U-Net of Ronneberger et al. has four poolings; the source's has three.
#
# ## Train it, in plain sight
#
# A `DataLoader` deals the streets in batches, in a new order each time:

# %%
torch.manual_seed(seed)
loader = DataLoader(small, batch_size=4, shuffle=True, drop_last=True)
images, labels = next(iter(loader))
print("images", tuple(images.shape), "labels", tuple(labels.shape))

# %% [markdown]
# Now the loop that every training is made of. For each batch: forget the old gradients, compute the loss, send its gradient
# back through the network, and take one small step. One pass over all streets is an *epoch*:

# %%
def train_epoch(model, loader, optimizer):
    """Train on every batch once; returns the mean loss."""
    model.train()  # batch norm uses the statistics of the batch
    losses = []
    for image, label in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


# %% [markdown]
# A prediction is the class with the highest logit, pixel by pixel:

# %%
@torch.no_grad()  # no gradients are needed here, which saves memory and time
def predict(model, image):
    """Label map (B, H, W) of images (B, 3, H, W)."""
    model.eval()  # batch norm uses the statistics of the training
    logits = model(image)  # (B, C, H, W)
    return logits.argmax(dim=1)


# %% [markdown]
# That is all. We train a small U-Net for twenty epochs, with *Adam*, a gradient descent that adapts the step of every weight, and look at our street after the first, the fifth and the last:

# %%
EPOCHS = 20
model = UNet(width=16)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
plain_losses, looks = [], {}
for epoch in range(1, EPOCHS + 1):
    plain_losses.append(train_epoch(model, loader, optimizer))
    if epoch in (1, 5, EPOCHS):
        looks[epoch] = predict(model, batch)[0]
        print(f"epoch {epoch}: loss {plain_losses[-1]:.3f}")

# %%
panels = {"truth": truth} | {f"after epoch {e}": seen for e, seen in looks.items()}
fig, axes = plt.subplots(1, 4, figsize=(8.5, 2.4), layout="constrained")
for axis, (title, panel) in zip(axes, panels.items()):
    axis.imshow(common.as_colors(panel.numpy(), scheme), interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
common.class_legend(fig, scheme, range(7))
common.show(fig)

# %% [markdown]
# After one epoch everything is road, the commonest class. After five we see the large regions, after twenty contours and
# vehicles. The people are there only as blobs of the wrong class.
#
# This street was one of those that the network trained on. What does it score on streets that it has never seen? We add up one
# confusion matrix over the validation split, as in notebook 01:

# %%
confusion = 0
for image, label in DataLoader(Streets(splits["val"], 128), batch_size=4):
    seen = predict(model, image)
    confusion += common.confusion_matrix(seen, label, 7)
print(f"mean IoU {common.miou(confusion):.3f}")
print(f"accuracy {common.accuracy(confusion):.3f}")
print("IoU of person", common.iou_per_class(confusion)[PERSON].round(3))

# %% [markdown]
# The accuracy looks fine, but the IoU of people is 0. What does it take people for? Each row of this matrix is a
# true class, and says in per cent where its pixels went:

# %%
def show_confusion(confusion, classes):
    """Figure of a confusion matrix (C, C), rows in per cent of the true class."""
    keep = np.flatnonzero(confusion.sum(axis=1))
    shares = 100 * confusion[keep][:, keep] / confusion[keep].sum(axis=1, keepdims=True)
    names = [classes[c] for c in keep]
    fig, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            axis.text(column, row, f"{share:.0f}", ha="center", va="center",
                      color="white" if share > 50 else "black")
    axis.set_xticks(range(len(keep)), names, rotation=90)
    axis.set_yticks(range(len(keep)), names)
    axis.set(xlabel="predicted", ylabel="true")
    return fig


# %%
common.show(show_confusion(confusion, scheme.classes))

# %% [markdown]
# Not one pixel of people is called person: 40 % of them are taken for vehicles, 23 % for buildings, 17 % for vegetation.
# People have one pixel in a hundred, so the network loses little by never naming them.
#
# And where does it go wrong? These are the three validation streets with the lowest mean IoU. Red pixels are wrong:

# %%
val = Streets(splits["val"], 128)
answers = [predict(model, val[k][0][None])[0] for k in range(len(val))]
scores = [common.miou(common.confusion_matrix(answer, label, 7))
          for answer, (_, label) in zip(answers, val)]
worst = np.argsort(scores)[:3]
photos = [(255 * val[k][0]).byte().movedim(0, -1).numpy() for k in worst]
common.show(common.show_predictions(photos, [val[k][1].numpy() for k in worst],
                                    [answers[k].numpy() for k in worst], scheme))

# %% [markdown]
# It is wrong along contours, where things crowd together, and on almost everybody who walks there.
#
# The source has three ideas against that.
#
# ## Idea 1: class weights
#
# Write $y(x)$ for the class of pixel $x$ and $p_c(x)$ for the softmax probability of class $c$ there. A weight $w_c$ for each
# class makes its pixels count more or less:
#
# $$L_{CE} = -\frac{\sum_x w_{y(x)} \log p_{y(x)}(x)}{\sum_x w_{y(x)}}$$
#
# The source takes $w_c = 1/\sqrt{f_c}$, where $f_c$ is the share of pixels of class $c$. It calls its stage with class weights
# 1a, and the one with occlusion as well 1b. Each has its own shares, rounded, in the code:

# %%
FREQUENCIES = {  # the source's shares for its stages 1a and 1b
    "1a": (0.21, 0.33, 0.20, 0.07, 0.01, 0.14, 0.04),
    "1b": (0.21, 0.33, 0.20, 0.06, 0.02, 0.14, 0.04),
}
PIXELS = (1306362141, 2036416525, 1260636120, 459059194, 74789586, 879783988, 221979646)


def inverse_sqrt_weights(shares):
    """1 / sqrt(share) per class, (C,); a share of 0 counts as 1e-4."""
    return torch.tensor(shares, dtype=torch.float32).clamp(min=1e-4).rsqrt()


# %% [markdown]
# PyTorch's own cross-entropy takes such weights, and divides by their sum as the formula does:

# %%
def cross_entropy(logits, label, weights=None):
    """Sum of -w log p of the true class over the sum of w; logits (B, C, H, W)."""
    return F.cross_entropy(logits.float(), label, weight=weights)


# %% [markdown]
# Its own counts of pixels (`PIXELS`) give the exact ones:

# %%
import pandas as pd

exact = np.array(PIXELS) / sum(PIXELS)
weights = {"w, exact": inverse_sqrt_weights(exact)}
weights |= {f"w, stage {k}": inverse_sqrt_weights(f) for k, f in FREQUENCIES.items()}
pd.DataFrame({"exact share": exact, **weights}, index=scheme.classes).round(3)

# %% [markdown]
# People have 1.2 % of the pixels. Rounded to 1 % their pixels weigh 10, with the 2 % of stage 1b only 7. So 1b changes two things
# at once, occlusion and weights. With `frequency = "measured"` you take the exact shares of your own training labels.
#
# ## Idea 2: hide parts of people
#
# *Occlusion* covers a part of a person with noise, in the photo but not in the label. The network then has to name what it
# cannot see from what is around it. First we have to find the people: groups of person pixels that touch.

# %%
from scipy import ndimage


def find_people(label):
    """Bounding boxes (row slice, column slice) of the groups of person pixels."""
    groups, _ = ndimage.label(label == PERSON, structure=np.ones((3, 3)))
    return ndimage.find_objects(groups)


boxes = find_people(truth.numpy())
print([(y.stop - y.start, x.stop - x.start) for y, x in boxes])

# %% [markdown]
# These are height and width of everybody in our street. For each of them chance decides whether a part is hidden, until two
# are done. The hidden box has 30 to 70 % of each side:

# %%
def box_within(box, rng):
    """A random box of 30 to 70 % of each side, inside a box of two slices."""
    sides = []
    for side in box:
        length = side.stop - side.start
        hidden = int(rng.uniform(0.3, 0.7) * length)
        start = side.start + int(rng.integers(length - hidden + 1))
        sides.append(slice(start, start + hidden))
    return tuple(sides)


# %% [markdown]
# It is filled with grey noise most of the time, and else with noise of all colours:

# %%
def noise(shape, rng, grey):
    """Noise (h, w, 3) uint8: with probability `grey` around mid-grey, else uniform."""
    values = rng.normal(0.5, 0.1, shape) if rng.random() < grey else rng.random(shape)
    return (255 * values.clip(0, 1)).round().astype(np.uint8)


# %% [markdown]
# Every augmentation of this course has the same form: photo, label and a random generator in, photo and label out.

# %%
def occlude(image, label, rng, hide=0.6, grey=0.7, fill="noise", limit=2):
    """Hide parts of at most `limit` people in a copy of the image (H, W, 3)."""
    image, hidden = image.copy(), 0
    for person in find_people(label):
        if hidden == limit:
            break
        if rng.random() < hide:
            box = box_within(person, rng)
            if image[box].size:  # who is one to three pixels wide may have no box
                patch = noise(image[box].shape, rng, grey)
                image[box] = patch if fill == "noise" else 0
                hidden += 1
    return image, label


# %% [markdown]
# Here everybody would be hidden, if it were not for the limit of two. Three draws:

# %%
views = {"as it is": picture}
for k in (1, 2, 6):
    rng = np.random.default_rng(k)
    views[f"hidden, draw {k}"], _ = occlude(picture, truth.numpy(), rng, hide=1.0)
fig, axes = plt.subplots(1, 4, figsize=(8.5, 2.3), layout="constrained")
for axis, (title, view) in zip(axes, views.items()):
    axis.imshow(view, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# ## Idea 3: a Dice loss
#
# The *Dice score* of a class is another measure of overlap, 2 IoU / (1 + IoU). Here it is with probabilities in place of yes
# and no:
#
# $$D_c = \frac{2\sum_x p_c y_c + \epsilon}{\sum_x p_c + \sum_x y_c + \epsilon}$$
#
# $y_c(x)$ is 1 where $x$ has class $c$ and else 0, sums run over the batch, and $\epsilon = 10^{-6}$ avoids 0/0:

# %%
def dice_per_class(probs, label, epsilon=1e-6):
    """Dice per class over the batch, (C,); probs (B, C, H, W), label (B, H, W)."""
    truth = F.one_hot(label, probs.shape[1]).movedim(-1, 1)  # (B, C, H, W)
    hits = (probs * truth).sum((0, 2, 3))
    both = probs.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return (2 * hits + epsilon) / (both + epsilon)


# %% [markdown]
# In the plain mean of these a class of few pixels has the same say as a class of many. The source still multiplies each class
# by its weight from idea 1, and scales the weights so that their mean is 1:
#
# $$L_{Dice} = \frac{1}{C} \sum_c \left(1 - \hat w_c \min(D_c, 0.999)\right) \qquad \hat w_c = \frac{C\, w_c}{\sum_k w_k}$$

# %%
def weighted_dice_loss(probs, label, weights):
    """Mean of 1 - w_c min(Dice_c, 0.999), the weights (C,) scaled to mean 1."""
    scaled = weights * len(weights) / weights.sum()
    return (1 - scaled * dice_per_class(probs, label).clamp(max=0.999)).mean()


# %% [markdown]
# The last stage adds some cross-entropy to it:

# %%
def dice_and_cross_entropy(logits, label, weights):
    """The last stage's loss: 0.3 weighted cross-entropy + 0.7 weighted Dice."""
    probs = logits.float().softmax(dim=1)
    dice = weighted_dice_loss(probs, label, weights)
    return 0.3 * cross_entropy(logits, label, weights) + 0.7 * dice


# %% [markdown]
# What does the loss say to a class that is not in the batch at all? Let a picture show background only, and let the network
# take a part of it for people:

# %%
nobody = torch.zeros(1, 64, 64, dtype=torch.long)
for alarm in (0, 0.001, 0.01, 0.1):
    answer = nobody.clone()
    answer.view(-1)[: int(alarm * 64 * 64)] = PERSON
    probs = 0.99 * F.one_hot(answer, 7).movedim(-1, 1) + 0.01 / 7
    losses = [weighted_dice_loss(probs, nobody, torch.ones(7)),
              F.nll_loss(probs.log(), nobody)]
    print(f"{alarm:5.1%} false alarms:",
          f"Dice {losses[0]:.4f}, cross-entropy {losses[1]:.4f}")

# %% [markdown]
# Dice hardly minds. A softmax is never exactly 0, so a class without pixels has a Dice near 0, and its part of the loss stays
# near 1. (The small rise comes from the background, which loses pixels.) That is a good reason to keep the cross-entropy
# beside it.

# %% [markdown]
# ## The same loop, grown up
#
# `common.fit` is that loop, with what long trainings need besides: it saves its state and resumes after a stop, runs on
# several GPUs, evaluates after each epoch, and keeps a record. The data set `common.StreetScenes` is ours, with a place for
# augmentation. Notebooks 02 to 06 train with these two. (A test of this course trains both ways from the same weights, on the
# same streets in the same order, and gets the same losses.)
#
# After each epoch we want the validation loss, the IoU of every class, and one more score, for later: the mean over batches of
# the batch's mean IoU, by which the source chose the epochs of its later stages.

# %%
def batch_miou(confusion, batch_size):
    """Mean over batches of the mean IoU, absent classes as 0; confusion (N, C, C)."""
    starts = range(0, len(confusion), batch_size)
    batches = [confusion[k : k + batch_size].sum(axis=0) for k in starts]
    scores = [np.nan_to_num(common.iou_per_class(batch)).mean() for batch in batches]
    return float(np.mean(scores))


# %% [markdown]
# `common.evaluate` makes one confusion matrix for each picture. From these we get that score, too:

# %%
def evaluate(model, data, accelerator=None, batch_size=8, contours=False):
    """common.evaluate with the cross-entropy and the mean of the batches' IoUs."""
    metrics, per_image = common.evaluate(
        model, data, accelerator, batch_size=batch_size, contours=contours,
        loss=cross_entropy)
    of_batches = batch_miou(per_image["confusion"], batch_size)
    return metrics | {"batch_miou": of_batches}, per_image


# %% [markdown]
# ## Five stages
#
# | stage | starts from | loss | people hidden | the source's name |
# |---|---|---|---|---|
# | `scratch` | random weights | cross-entropy | | stage 0 |
# | `continued` | `scratch` | cross-entropy | | none: our control |
# | `weighted` | `scratch` | weighted cross-entropy | | stage 1a |
# | `weighted_occlusion` | `weighted` | weighted cross-entropy | 60 % | stage 1b |
# | `dice_occlusion` | `scratch` | 0.3 weighted cross-entropy + 0.7 weighted Dice | 80 % | stage 2 |
#
# The source compares its later stages with stage 0. Stages 1a and 2 have trained 30 epochs more than it, stage 1b 60. A better
# score can come from the new loss, or from those epochs. So we add `continued`: 30 epochs more, with the old loss. It is a
# fair control for `weighted`, and a rough one for the others: `weighted_occlusion` has had twice as many extra epochs, and
# `dice_occlusion` takes twice as many steps, as its batches are half as large.
#
# The epoch that is kept is the one with the highest mean IoU on val, in every stage (`select`). Two functions put a stage
# together:

# %%
from functools import partial


LOSSES = ("cross_entropy", "weighted", "dice")


# %% [markdown]
# The first function picks the loss:

# %%
def stage_loss(model, batch, kind, weights):
    """The loss of a stage, one of LOSSES."""
    logits, label = model(batch["image"]), batch["label"]
    if kind == "cross_entropy":
        return cross_entropy(logits, label)
    loss = dice_and_cross_entropy if kind == "dice" else cross_entropy
    return loss(logits, label, weights.to(logits.device))


# %% [markdown]
# You can add a stage of your own to `STAGES`. What could not be trained as it is written is refused:

# %%
def check_stages(stages):
    """StreetsError for a stage that could not be trained as it is written."""
    keys = {"parent", "loss", "frequency", "hide", "grey"}
    for name, recipe in stages.items():
        weighted = recipe.get("loss") in ("weighted", "dice")
        if (not {"parent", "loss"} <= set(recipe) <= keys
                or recipe["loss"] not in LOSSES
                or recipe["parent"] not in ("", *stages) or recipe["parent"] == name
                or weighted != (recipe.get("frequency") in FREQUENCIES)
                or ("hide" in recipe) != ("grey" in recipe)):
            raise common.StreetsError(
                f"STAGES: {name} cannot be trained as it is written: {recipe}.")


# %% [markdown]
# Ours pass:

# %%
check_stages(STAGES)

# %% [markdown]
# The data of a stage:

# %%
def make_data(frames, size, seed):
    """common.StreetScenes of seven classes at size x size, photos from 0 to 1."""
    return common.StreetScenes(frames, (size, size), "streets7", seed=seed,
                               mean=(0, 0, 0), std=(1, 1, 1))


# %% [markdown]
# With `frequency = "measured"` the class weights come from its labels:

# %%
def measured_shares(data):
    """Share of pixels per class in the labels of a data set, (C,)."""
    labels = (data.read(k)[1] for k in range(len(data)))
    counts = sum(np.bincount(label.ravel(), minlength=7) for label in labels)
    return counts / counts.sum()


# %% [markdown]
# And one stage whole: its network from the parent's weights, its data, its loss, its optimizer.

# %%
def train_stage(folder, recipe, settings, splits, frequency, fill, select, seed,
                parent=None, **options):
    """Train one stage in `folder`, from the weights in `parent` (None: random ones)."""
    torch.manual_seed(seed)
    model = UNet(width=settings["width"], depth=settings["depth"])
    model = model.to(memory_format=torch.channels_last)  # half as fast again on a CPU
    if parent:
        common.load_weights(parent / "best.safetensors", model)
    train, val, test = (make_data(f, settings["size"], seed) for f in splits.values())
    weights = None
    if "frequency" in recipe:
        measured = measured_shares(train) if frequency == "measured" else None
        shares = FREQUENCIES[recipe["frequency"]] if measured is None else measured
        weights = inverse_sqrt_weights(shares)
    if "hide" in recipe:
        train.augment = partial(
            occlude, hide=recipe["hide"], grey=recipe["grey"], fill=fill)
    dice = recipe["loss"] == "dice"
    batch_size = settings["dice_batch_size" if dice else "batch_size"]
    chosen_by = {"miou": "miou", "loss": "eval_loss",
                 "as_published": "batch_miou" if parent else "eval_loss"}
    lr = settings["stage_lr" if parent else "lr"]
    common.fit(folder, model, partial(stage_loss, kind=recipe["loss"], weights=weights),
               train, val, test_data=test, batch_size=batch_size,
               optimizer=torch.optim.Adam(model.parameters(), lr=lr),
               epochs=settings["stage_epochs" if parent else "epochs"],
               evaluate=partial(evaluate, batch_size=batch_size, contours=True),
               precision=settings["precision"], select="best",
               best_by=chosen_by[select], **options)


# %% [markdown]
# `train_runs` trains what is not there yet, parents first. A run is named after its stage and after everything that departs
# from its mode; `UNUSED` says which parameters a stage does not read.

# %%
UNUSED = {
    "scratch": ["frequency", "fill", "stage_epochs", "stage_lr", "dice_batch_size"],
    "continued": ["frequency", "fill", "dice_batch_size"],
    "weighted": ["fill", "dice_batch_size"],
    "weighted_occlusion": ["dice_batch_size"],
}

# %%
train = partial(train_stage, settings=settings, splits=splits, seed=seed, fill=fill,
                frequency=frequency, select=select, max_hours=max_hours)
jobs = {name: partial(train, recipe=recipe) for name, recipe in STAGES.items()}
parents = {name: STAGES[name]["parent"] for name in STAGES if STAGES[name]["parent"]}
wanted = common.several("stage", stage, STAGES)
runs = common.train_runs(globals(), jobs, settings, root, splits, wanted=wanted,
                         unused=UNUSED, parents=parents)

# %% [markdown]
# ## What came out
#
# First `scratch`: does it learn, or learn by heart?

# %%
summaries = {name: run.summary for name, run in runs.items()}
histories = {name: run.history for name, run in runs.items()}
history = histories["scratch"]
fig, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
names = {"train_loss": "training", "eval_loss": "validation"}
for (column, name), color in zip(names.items(), common.CURVES):
    axis.plot(history["epoch"], history[column], color=color, label=name)
axis.set(xlabel="epoch", ylabel="cross-entropy")
axis.set_ylim(0, 1.1 * history["train_loss"].max())
axis.grid(alpha=0.3)
axis.legend(frameon=False)
common.show(fig)

# %% [markdown]
# On forty toy streets both losses still fall slowly at epoch 40, the validation loss in jumps, and the gap between them is small.
# So we see little learning by heart so far. (In the first epochs the averages that batch norm keeps are not good yet, and the
# validation loss lies above the picture.) In the source the validation loss is lowest at epoch 20 (.34) and then rises to .59 at epoch 100, while the
# training loss falls to .04: the network becomes sure of wrong answers. So somebody has to choose an epoch. Three rules, and
# what each would have kept:

# %%
rules = {"highest mean IoU": history["miou"].idxmax(),
         "lowest loss": history["eval_loss"].idxmin(), "last": history.index[-1]}
columns = ["epoch", "eval_loss", "miou", "iou_person"]
history.loc[list(rules.values()), columns].set_axis(list(rules)).round(3)

# %% [markdown]
# Here the first two rules agree, and the last epoch is a little worse. On other data they may not agree. The source keeps the
# epoch of lowest loss in stage 0, and that of the highest mean of batches in the later stages. So a part of what these gain may
# be the rule. Here one rule serves all.
#
# ### The five stages
#
# On test, in per cent; the published scores are those of Cityscapes, and the *majority class* (notebook 01) calls every pixel by
# the commonest class:

# %%
published = common.read_published(NOTEBOOK)
claims = common.headline(published, "miou").set_index("method")["value"].astype(float)
people = published.query("metric == 'iou' and `class` == 'person'")
people = people.set_index("method")["value"].astype(float)
test = pd.DataFrame({name: common.flat(run["test"]) for name, run in summaries.items()})
table = pd.DataFrame({
    "mean IoU": 100 * test.loc["miou"], "person": 100 * test.loc["iou_person"],
    "mean IoU, published": claims, "person, published": people})
table = table.reindex(list(summaries))
majority = next(iter(summaries.values()))["test_majority_baseline"]
print(f"the majority class scores {100 * majority['miou']:.1f}")
table.round(1)

# %% [markdown]
# Training longer brings people from 0.4 to 6.4, class weights to 17.1, and with occlusion to 20.7; Dice adds nothing. All
# this is on twelve toy streets and one seed: it shows how the comparison works, and proves nothing.
#
# ### The mean that the source selected by
#
# It took the mean IoU of each validation batch, with 0 for a class that the batch does not hold, and averaged over batches.
# What does a perfect prediction score, if two of three pictures hold no people?

# %%
three = np.zeros((3, 7, 7), int)
three[:, range(7), range(7)] = 100
three[:2, PERSON] = 0
print(f"of the data set {common.miou(three.sum(axis=0)):.3f},",
      f"mean of batches of two {batch_miou(three, 2):.3f}")

# %% [markdown]
# Less than 1, although nothing is wrong. The score depends on the size of the batches and on the order of the files. The rarer a
# class, the more batches lack it, and each of them counts as 0. To score a data set, add up its confusion matrices.
#
# ## What CamVid says
#
# CamVid holds real streets. The repository keeps the runs of all five stages on it, in mode `laptop`.
# Its test split has 233 frames of two drives. Of one drive, `Seq05VD` (171 frames), no frame was trained on. So we score it
# alone, too. A run keeps the confusion matrix of each test picture, so this takes no network:

# %%
from IPython.display import display

found = common.find_runs()
if len(found):
    found = found.query("notebook == @NOTEBOOK and dataset == 'camvid11'")
    found = found.query("mode == 'laptop' and method in @STAGES")

# %%
def on_test(folder, drive=""):
    """Scores in per cent of a run on its test pictures, or on those of one drive."""
    scores = common.kept_scores(folder, "test", drive)
    return {"mean IoU": 100 * scores["miou"], "person": 100 * scores["iou"]["person"],
            "boundary F1": 100 * scores["boundary_f1"]}


camvid = [{"stage": run.method, "seed": run.seed, "pictures": drive or "all"}
          | on_test(run.folder, drive) for run in found.itertuples()
          for drive in ("", "Seq05VD")]

# %% [markdown]
# The means over the seeds, in per cent:

# %%
if camvid:
    camvid = pd.DataFrame(camvid)
    names = ["mean IoU", "person", "boundary F1"]
    table = camvid.pivot_table(names, "stage", "pictures")[names]
    display(table.reindex(list(STAGES)).round(1))

# %% [markdown]
# So far there is one seed, 42. From scratch the U-Net reaches 60.4 %, and finds people with an IoU of 14.9. Each of the four
# further stages gains: 1 to 3 points of mean IoU, 6 to 9 for people, 1 to 2 of boundary F1. But look at `continued`, our control,
# which only trains longer with the old loss: it gains 2.3 points of mean IoU and 8.6 for people, and no stage has more for people.
# So this run does not show that class weights, occlusion or Dice do anything. A report without a control would have praised
# whichever of them it tried.
#
# On `Seq05VD` alone the scores are about the same, and the order of the stages is another one: there `dice_occlusion` leads
# for people, with 22.2 against 19.7. With one seed we cannot tell such differences from luck.
#
# The same as dots, one for each seed:

# %%
if len(camvid):
    fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.8), layout="constrained")
    camvid["stage"] = pd.Categorical(camvid["stage"], STAGES)
    whole = camvid.query("pictures == 'all'").sort_values("stage")
    for axis, name in zip(axes, names):
        for (number, rows), color in zip(whole.groupby("seed"), common.CURVES):
            label = f"seed {number}"
            axis.plot(rows[name], rows["stage"], "o", color=color, label=label)
        axis.set(xlabel=f"{name} in %", ylim=(4.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside upper center", ncols=3)
    common.show(fig)

# %% [markdown]
# How much does the choice of the epoch do by itself? In the last ten epochs of `scratch` the network hardly changes any more. By
# how many points do the scores of neighbouring epochs differ on val, on average?

# %%
for run in found[found["method"] == "scratch"].itertuples() if len(found) else []:
    late = pd.read_csv(run.folder / "history.csv").tail(10)[["miou", "iou_person"]]
    steps = (100 * late.diff().abs().mean()).round(1)
    print(f"seed {run.seed}: mean IoU {steps['miou']}, person {steps['iou_person']}")

# %% [markdown]
# By 2.4 points of mean IoU, and by 7.8 for people. That is as much as any stage gains. A network that trains with a constant
# learning rate never comes to rest, and which epoch we keep is partly luck. (The later stages take steps a quarter as large, and
# jump less.) The val pictures show streets of a training drive, and the score there is much higher than on test: 75.9 and
# 56.3. Notebook 03 is about that.

# %% [markdown]
# ## Where the source is wrong
#
# Five points from which one learns; [results/sources.md](../results/sources.md) has the others. [report] marks what the
# report says, [code] what its public code does.
#
# **1. Two stages, one caption.** Figure 3 of the report is called "Weighted CE and Occlusion" and shows the numbers of stage 1a, which
# hides nobody. From it the report concludes that occlusion lowers the IoU of people [report]. The run with occlusion is in the
# public notebook [code]:

# %%
for name in ("scratch", "weighted", "weighted_occlusion"):
    print(f"{name:20s} IoU of person {people[name]:.2f}")

# %% [markdown]
# With occlusion people *gain* .29 points on the first stage and 1.01 on stage 1a. But stage 1b trained 30 epochs more than 1a
# and 60 more than stage 0, with another weight for people, and each is one run: not even this measures occlusion.
#
# **2. "Both terms guaranteed positive"** [code, a comment]. This is true, though not obvious. One class's part of the Dice loss
# is $1 - \hat w_c \min(D_c, 0.999)$. What happens to it if the weight is above 1?

# %%
w = inverse_sqrt_weights(FREQUENCIES["1b"])
scaled = 7 * w / w.sum()
dice = np.linspace(0, 1, 101)
terms = 1 - scaled[:, None].numpy() * np.minimum(dice, 0.999)  # (C, 101)
fig, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for c, color in zip((PERSON, 6, 3, 1), common.CURVES):
    label = f"{scheme.classes[c]}, weight {scaled[c]:.2f}"
    axis.plot(dice, terms[c], color=color, label=label)
axis.plot(dice, terms.mean(axis=0), "k--", label="mean of all seven")
axis.axhline(0, color="0.6", linewidth=0.8)
axis.set(xlabel="Dice of the class", ylabel="its part of the loss")
fig.legend(loc="outside right upper", frameon=False)
common.show(fig)

# %% [markdown]
# Classes with a weight above 1 end below zero; person reaches -.98. The mean of all seven parts stays positive, because the
# scaled weights add up to 7: with a Dice of .999 or more everywhere it is .001. So the claim holds for the whole term, but not
# for the part of one class.
#
# **3. A gain without a control.** Stage 2 is compared with stage 0, which trained 30 epochs less. On
# the toy streets `continued` alone has 1.7 of the 2.7 points of mean IoU that `dice_occlusion` gains over `scratch`.
#
# **4. A score of batches.** In the later stages epochs were chosen by the mean of batches above [code].
#
# **5. Red and blue change places.** The public script swaps them, the public notebook does not [code]. Either order would do if
# one keeps to it, but weights trained with one see wrong colours in the other. What would that cost the network of the last
# stage, on val?

# %%
last = list(runs)[-1]
model = UNet(width=settings["width"], depth=settings["depth"])
common.load_weights(runs[last].folder / "best.safetensors", model).eval()
val_data = make_data(splits["val"], settings["size"], seed)


# %% [markdown]
# The mistake, written as an augmentation:

# %%
def swap_red_and_blue(image, label, rng):
    """An augmentation that turns RGB into BGR."""
    return image[..., ::-1].copy(), label


# %%
for name, augment in {"RGB": None, "BGR": swap_red_and_blue}.items():
    val_data.augment = augment
    print(f"{name}: mean IoU {evaluate(model, val_data)[0]['miou']:.3f}")

# %% [markdown]
# The mean IoU falls from .727 to .565. No error is raised, so you notice such a mistake only in the scores.
#
# ## Your own photo
#
# Set `photo` to a JPEG or PNG of yours. Without one, a street serves that was not trained on:

# %%
own = common.own_photo(photo, splits["test"][0])
size = (settings["size"], settings["size"])
answer = common.predict(model, own, size, mean=(0, 0, 0), std=(1, 1, 1))
common.show(common.show_pair(own, answer, scheme))

# %% [markdown]
# `photo` may also name a short video. The picture above is then its first frame. The next cell labels every frame, shows
# them as a small moving picture, and writes a video of frames and labels into the folder of the run:

# %%
from results import video

inputs = {"mean": (0, 0, 0), "std": (1, 1, 1)}
video.show(photo, runs[last].folder, scheme, model, size, **inputs)

# %% [markdown]
# One more thing to try: film a still scene from a window sill. Nothing moves, so wherever the class changes from one frame
# to the next, the network is unsure. The share of such pixels is printed as *flicker*. Where do they lie? Get the frames
# from `common.read_video(photo).frames`, and mark the pixels that change.
#
# ## What we learnt
#
# - A U-Net is one block, used on the way down and on the way up; the skip connections carry the places that pooling forgets.
# - Every training is the same loop: forget the gradients, compute the loss, send it back, take a step.
# - A class weight decides which mistakes cost more; other classes pay for it. Dice gives small classes a say, and forgets absent ones.
# - A gain needs a control: training longer is a method, too. On CamVid it was as good as the others.
# - To score a data set, add up confusion matrices. A mean of batches' scores is not the score.
#
# ## Exercises
#
# Write your answer in place of `raise NotImplementedError`, run the cell, and then the one below, which checks it. An
# exercise that is not done yet stops nothing. None takes more than a minute to run.

# %% [markdown]
# ### Exercise 2.1: the skip connection
#
# Write the step that a U-Net takes on its way up: enlarge `x` with `up`, put it *before* the map `skip` from the way down,
# along the channels, and let `merge` bring them together. If `skip` has an odd side, the enlarged map is a row or a column
# smaller: pad it with zeros, below and on the right, until it fits. (`F.pad` takes left, right, top, bottom. The check below
# has even sides only.)

# %%
# Exercise 2.1
def step_up(x, skip, up, merge):
    """Map (B, C, H, W) of the next level from the map x below it and the skip."""
    raise NotImplementedError


# %%
# Exercise 2.1: check
with common.exercise("Exercise 2.1"):
    torch.manual_seed(0)
    net = UNet(width=4, depth=1)
    x, skip = torch.rand(1, 8, 3, 3), torch.rand(1, 4, 6, 6)
    ours = step_up(x, skip, net.up[0], net.merge[0])
    common.check("shape", list(ours.shape), [1, 4, 6, 6])
    theirs = net.merge[0](torch.cat([net.up[0](x), skip], dim=1))
    common.check("largest difference", (ours - theirs).abs().max(), 0)

# %% [markdown]
# ### Exercise 2.2: write the loop, and overfit one picture
#
# Before you train on thousands of pictures, see whether your loop can learn one by heart. If it cannot, something is wrong
# with the loop. Write it whole: `steps` steps on the same batch with the given optimizer and `F.cross_entropy`, the model in
# training mode. Return the loss of every step, taken before that step, as a list of Python numbers.

# %%
# Exercise 2.2
def overfit(model, image, label, optimizer, steps):
    """Losses of so many steps on one batch, image (B, 3, H, W) and label (B, H, W)."""
    raise NotImplementedError


# %%
# Exercise 2.2: check
with common.exercise("Exercise 2.2"):
    torch.manual_seed(0)
    net, image = UNet(width=8, depth=2), torch.rand(1, 3, 16, 16)
    label = (image[:, 0] > 0.5).long()
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = overfit(net, image, label, adam, 60)
    common.check("losses", len(losses), 60)
    common.check("the first loss, near log 7", losses[0], between=(1.2, 3.0))
    common.check("the last loss", losses[-1], between=(0, 0.2))

# %% [markdown]
# ### Exercise 2.3: your own cross-entropy
#
# Write the weighted cross-entropy of *Idea 1* with nothing but `log_softmax` and indexing: no `cross_entropy`, no `nll_loss`.
# Pixels of class 255 do not count, neither above nor below the fraction line. (`gather` picks one channel per pixel. There is
# no channel 255: put any class in its place first, and give those pixels the weight 0.)

# %%
# Exercise 2.3
def cross_entropy_by_hand(logits, label, weights):
    """Cross-entropy of logits (B, C, H, W) and label (B, H, W), with weights (C,)."""
    raise NotImplementedError


# %%
# Exercise 2.3: check
with common.exercise("Exercise 2.3"):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    common.check("all weights 1", cross_entropy_by_hand(logits, label, torch.ones(3)),
                 F.cross_entropy(logits, label))

# %% [markdown]
# ### Exercise 2.4: find and mend the score
#
# This function is meant to give the mean IoU of a data set that comes in batches. Dealt into batches in one way, a perfect
# prediction gets 1; dealt in another, it does not.

# %%
# Exercise 2.4: as given
def dataset_miou_as_given(batches, num_classes):
    """Mean IoU of a data set: batches of (prediction, label), both (B, H, W)."""
    scores = []
    for prediction, label in batches:
        for c in range(num_classes):
            hits = ((prediction == c) & (label == c)).sum()
            union = ((prediction == c) | (label == c)).sum()
            scores.append(hits / max(union, 1))
    return float(np.mean(scores))


streets = np.array([[[0, 1], [2, 2]], [[0, 1], [1, 0]]])  # the second without class 2
print("perfect, one batch of two:  ", dataset_miou_as_given([(streets, streets)], 3))
halves = [(streets[:1], streets[:1]), (streets[1:], streets[1:])]
print("perfect, two batches of one:", dataset_miou_as_given(halves, 3))

# %% [markdown]
# Write the score that does not depend on the batches: the mean of the IoUs of the whole set, over the classes that occur in its
# labels. Batches may differ in size. Two things are wrong. The example shows one; the other shows only
# with a prediction that is not perfect.

# %%
# Exercise 2.4
def dataset_miou(batches, num_classes):
    """Mean IoU over the classes that occur in the labels of all batches together."""
    raise NotImplementedError


# %%
# Exercise 2.4: check
with common.exercise("Exercise 2.4"):
    two = np.array([[[0, 1], [2, 2]], [[0, 1], [1, 0]]])
    common.check("perfect, one batch of two", dataset_miou([(two, two)], 3), 1)
    halves = [(two[:1], two[:1]), (two[1:], two[1:])]
    common.check("perfect, two batches of one", dataset_miou(halves, 3), 1)

# %% [markdown]
# ### Exercise 2.5: a small project: which people are found?
#
# The IoU counts pixels, so that one near person outweighs ten far ones. Count people instead. A person is a connected set of
# pixels of class `PERSON` in the label, where pixels that touch at a corner belong together; its height is the number of rows of its bounding box; it is *found*
# where at least half of its own pixels are predicted as `PERSON`. Return the share of people found in each group of heights: with
# `edges` (8, 16) for heights below 8, from 8 to below 16, and from 16 on; `nan` for a group without people.

# %%
# Exercise 2.5
def recall_by_height(predictions, labels, edges):
    """Share of people found per group of heights, of lists of arrays (H, W)."""
    raise NotImplementedError


# %%
# Exercise 2.5: check
with common.exercise("Exercise 2.5"):
    crowd = np.zeros((24, 30), int)
    crowd[2:22, 2:8] = crowd[4:9, 12:14] = crowd[4:9, 20:22] = PERSON
    blind = np.where(np.arange(30) < 20, crowd, 0)  # does not see the third
    found = recall_by_height([blind], [crowd], (8, 16))
    common.check("the third missed", found, [0.5, np.nan, 1])

# %% [markdown]
# ### To go further
#
# These need training and are not checked.
#
# - Take the skip connections out: in `UNet.forward`, `torch.zeros_like(skips.pop())`. Which classes suffer?
# - Set `depth = 4`. Is the gain, if there is one, larger than what a second seed changes?
# - Set `select = "as_published"`. Which epochs are kept now?
#
# ## References
#
# - O. Ronneberger, P. Fischer, T. Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation*, MICCAI 2015.
# - F. Milletari, N. Navab, S.-A. Ahmadi, *V-Net* (the Dice loss), 3DV 2016.
# - Z. Zhong et al., *Random Erasing Data Augmentation* (a relative of the occlusion here), AAAI 2020.
# - G. J. Brostow, J. Fauqueur, R. Cipolla, *Semantic Object Classes in Video: A High-Definition Ground Truth Database*
#   (CamVid), Pattern Recognition Letters 2009.
#
# **Next:** [03 What does a cross-validated score tell you?](03_unet_resnet50_cv.ipynb)
