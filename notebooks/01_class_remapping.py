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
# # What do 35 label ids become before a network may see them?
#
# A label is a picture of numbers. Here you translate these numbers into classes, compute accuracy, IoU and mean IoU on a
# picture of sixteen pixels, and find out why so little is left of a pole when its label shrinks.
#
# ![A street, its label as it lies on disk, and its label after the look-up](../.github/01_labels.jpg)
#
# *A street of CamVid (Brostow, Fauqueur, Cipolla 2009), shown for teaching: the photo, its label ids as grey values, and
# the classes that this notebook makes of them.*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/main/notebooks/01_class_remapping.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/main/notebooks/01_class_remapping.ipynb)
#
# Notebook 1 of 6 · after it: [02 U-Net from scratch](02_unet_from_scratch.ipynb) · [all six](../README.md)
#
# **Sources.** M. Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding* (CVPR 2016), and two
# student projects that chose classes of their own: *the U-Net report* (subject of notebook 02) and *the thin-structure
# project* (subject of notebook 04). [results/sources.md](../results/sources.md) names their authors and has the links.
#
# **You need** NumPy indexing and a little PyTorch: a network for 19 classes has 19 outputs per pixel, the *logits*, and the
# cross-entropy compares them with the true class. It takes about 40 minutes to read. Nothing is trained here.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | about 10 s on 2 cores (November 2026) | all of it, from up to 60 images |
# | `course` | CamVid, 367 images of 360x480 | any CPU | about 30 s on 2 cores (November 2026) | the same for a whole split |
# | `paper` | Cityscapes, 2975 images of 1024x2048 | any CPU | not yet measured | a comparison with published counts |

# %% [markdown]
# ## Parameters
#
# You can change them here, or from a shell:
# `papermill notebooks/01_class_remapping.ipynb out.ipynb -p data_dir data/camvid`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (up to 60 images), course and paper (all of them)
split: str = "train"  # which images are counted: train or val
images: int = 0  # number of images to count; 0 takes the mode's
seed: int = 42
data_dir: str = ""  # a data set or toy; empty is toy in quick, else looks for one
out_dir: str = ""  # as in the other notebooks; nothing is kept here
num_processes: int = 1  # threads that read labels
max_hours: float = 0.0  # as in the other notebooks; nothing here takes an hour

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

NEEDS = {"accelerate": "accelerate", "cv2": "opencv-python-headless"}
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
# A *mode* says how many images we look at. `images` of them are counted pixel by pixel (0 is all of them, and if there are
# fewer, all are taken), and `resized` of them are shrunk at the end.

# %%
MODES = {
    "quick": {"images": 60, "resized": 20},
    "course": {"images": 0, "resized": 200},
    "paper": {"images": 0, "resized": 500},
}

# %%
import common

NOTEBOOK = "01_class_remapping"
settings = common.check_parameters(globals(), MODES, {"split": ("train", "val")})
print(common.device_line())

# %% [markdown]
# ## A street and its label
#
# `find_data` takes the folder that you named in `data_dir`. If you named none, it looks for Cityscapes in the usual places;
# where there is none, `quick` draws toy streets. (CamVid has to be named: `data_dir = "data/camvid"`.)

# %%
root = common.find_data(data_dir, mode)
frames = common.evenly(common.list_frames(root, split), settings["images"])

# %% [markdown]
# A *frame* is a photo with its label. We look for one that shows many different things:

# %%
import numpy as np


def ids_in(frame):
    """The different numbers in one frame's label."""
    return np.unique(common.read_label(frame.label))


frame = max(common.evenly(frames, 20), key=lambda f: len(ids_in(f)))
photo = common.read_image(frame.image)  # (H, W, 3), bytes
ids = common.read_label(frame.label)  # (H, W), bytes
print("photo", photo.shape, photo.dtype, "| label", ids.shape, ids.dtype)

# %% [markdown]
# The photo has three numbers per pixel, its red, green and blue. The label has one. If we show that number as a grey
# value, the label looks like this:

# %%
import matplotlib.pyplot as plt

fig, axes = plt.subplots(1, 2, figsize=(8, 2.1), layout="constrained")
axes[0].imshow(photo)
shown = axes[1].imshow(ids, cmap="gray", vmin=0, vmax=33, interpolation="nearest")
fig.colorbar(shown, ax=axes, label="label id", pad=0.01)
for axis in axes:
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# Every region has one grey value, its *label id*. *Cityscapes* is a data set of street photos from some fifty cities, with a
# class for every pixel, and its table of classes is the standard of this field. It comes with `torchvision`; the toy streets
# use its ids, and CamVid is translated into them:

# %%
from torchvision.datasets import Cityscapes

official = {c.id: c for c in Cityscapes.classes}
for i in np.unique(ids)[:8]:
    print(i, official[int(i)].name)
print("...", len(np.unique(ids)), "ids in this label")

# %% [markdown]
# (The *ego vehicle* is the car that carries the camera; its bonnet is the dark part at the bottom.)
#
# ## Two numbers for each class
#
# Let us look at one entry of the table:

# %%
official[26]

# %% [markdown]
# A car has the **label id** 26 and the **train id** 13. Label ids are for the people who draw labels: everything that
# they can name has one. Train ids are for networks: the classes that are scored have 0 to 18, without a gap, and output
# number 13 of a network is its score for *car*.

# %%
scored = [c for c in Cityscapes.classes if not c.ignore_in_eval]
print(len(official), "label ids, from", min(official), "to", max(official))
print(len(scored), "train ids:", [c.train_id for c in scored])
print("with the same number twice:", sum(c.id == c.train_id for c in scored))

# %% [markdown]
# For none of the 19 classes are the two numbers the same. What happens if you forget to translate? Suppose you train on label
# ids. With 19 outputs PyTorch stops you:

# %%
import torch
from torch.nn import functional as F

target = torch.from_numpy(ids.astype(np.int64))[None]  # (B, H, W)
try:
    F.cross_entropy(torch.zeros(1, 19, *ids.shape), target)  # logits (B, C, H, W)
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# (On a GPU the same mistake is called a *device-side assert*. Run the cell on the CPU to learn which number it was.) You
# could now be tempted to raise the number of outputs until the message goes away:

# %%
loss = F.cross_entropy(torch.zeros(1, 34, *ids.shape), target)
print(f"34 outputs: loss {loss:.3f}, and log 34 is {np.log(34):.3f}")

# %% [markdown]
# Nothing complains. All logits are equal, so the loss is log 34, as it should be. But our scores, our colour tables and most
# ready-made weights expect train ids. Here is a *perfect* prediction in label ids, read as if its numbers were train ids.
# (`common.SCHEMES` holds the finished tables; in a moment you build them yourself. 255 marks pixels that are not scored.)

# %%
cityscapes19 = common.SCHEMES["cityscapes19"]
label = cityscapes19.table[ids]  # train ids; 255 is void
misread = np.where(ids < 19, ids, 255)
print(f"counted as right: {np.mean(misread[label != 255] == label[label != 255]):.1%}")

# %%
from matplotlib.patches import Patch


def draw_label(axis, label, scheme, title):
    """Show a label (H, W) in its official colours, with a legend of its classes."""
    axis.imshow(common.as_colors(label, scheme), interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
    seen = [c for c in np.unique(label) if c < len(scheme.classes)]
    handles = [Patch(color=scheme.colors[c] / 255, label=scheme.classes[c])
               for c in seen]
    axis.legend(handles=handles, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0),
                frameon=False, fontsize=8, columnspacing=1, handlelength=1.2)


# %% [markdown]
# Left, the label as it should be read; right, as it is misread:

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained")
draw_label(axes[0], label, cityscapes19, "train ids, read as train ids")
draw_label(axes[1], misread, cityscapes19, "label ids, read as train ids")
common.show(fig)

# %% [markdown]
# On the right the road is called *traffic sign*, because 7 is the label id of the one and the train id of the other.
# Every number from 19 on is black. On the left black is what is not scored; we come to that soon.
#
# ## A look-up table
#
# A label has one byte per pixel, so there are at most 256 different numbers in it, and every translation fits in a table
# with 256 entries. Entry $i$ says what becomes of id $i$. We start with a number that means "there is no such id":

# %%
table = np.full(256, 254, np.uint8)  # 254: no such label id
print(table.shape, table[7], table[100])

# %% [markdown]
# Then we enter the 35 official ids. Two things need care. The train id 255 is shared by many ids: it stands for what is not
# scored, and we call it *void*. And the licence plate has twice −1, which a byte cannot hold. Written into a byte, −1 becomes
# 255. (The official label pictures leave the plate out and show the car behind it.)

# %%
print(official[-1].name, "->", np.array(-1).astype(np.uint8), "=", -1 % 256)

# %%
for c in Cityscapes.classes:
    table[c.id % 256] = c.train_id % 256
print("ids 0 to 33 become", table[:34].tolist())
print("255 (-1) becomes", table[255], "| 100, which is no id, becomes", table[100])

# %% [markdown]
# To apply the table we index it with the whole label at once. `table[ids]` has the shape of `ids`, and every number in it
# was looked up:

# %%
remapped = table[ids]
print(ids.shape, "->", remapped.shape, remapped.dtype)
middle = np.s_[ids.shape[0] // 2, :: ids.shape[1] // 8]
print("along the middle row", ids[middle], "becomes", remapped[middle])

# %% [markdown]
# The 254 shows at once whether a label is damaged, or belongs to another data set:

# %%
def require_known_ids(ids, table, where):
    """Raise StreetsError if label ids, of any shape, hold a number that is no id."""
    unknown = np.unique(ids[table[ids] == 254]).tolist()
    if unknown:
        raise common.StreetsError(f"{where} holds {unknown}, which are no label ids: "
                                  "try `python data_prep.py check --deep`.")


require_known_ids(ids, table, frame.label)
print("this label holds nothing but ids")

# %% [markdown]
# We damage one pixel of a copy, to see that it notices:

# %%
damaged = ids.copy()
damaged[0, 0] = 100
try:
    require_known_ids(damaged, table, "The damaged copy")
except common.StreetsError as error:
    print("StreetsError:", error)

# %% [markdown]
# ### Classes of your own
#
# Nobody forces you to take the 19 official classes. The U-Net report takes six groups, the thin-structure project six
# classes, and both call everything else class 0, *background*. (The thin-structure project gives names only. We assume that
# each means the official class of that name.)

# %%
U_NET_REPORT = {
    1: ["road"],
    2: ["building"],
    3: ["car", "truck", "bus", "train", "motorcycle", "bicycle", "caravan", "trailer"],
    4: ["person", "rider"],
    5: ["vegetation"],
    6: ["sky"],
}
THIN_STRUCTURES = {1: ["fence"], 2: ["car"], 3: ["vegetation"],
                   4: ["pole"], 5: ["traffic sign"], 6: ["traffic light"]}

# %% [markdown]
# One function makes a table of either. We call the U-Net report's classes `streets7` and the thin-structure project's
# `thin7`, as each has seven with background. Such a set of classes, with its table and its colours, is a *scheme*:

# %%
def table_from_names(groups, rest=0):
    """(256,) table from label id to the number of the group that holds its name."""
    table = np.full(256, 254, np.uint8)
    for c in Cityscapes.classes:
        table[c.id % 256] = rest
        for number, names in groups.items():
            if c.name in names:
                table[c.id % 256] = number
    return table


tables = {"cityscapes19": table, "streets7": table_from_names(U_NET_REPORT),
          "thin7": table_from_names(THIN_STRUCTURES)}

# %% [markdown]
# The course keeps the same three tables in `common.SCHEMES`. If yours are right, all 256 entries agree:

# %%
for name, ours in tables.items():
    print(name, (ours == common.SCHEMES[name].table).sum(), "of 256 entries agree")

# %% [markdown]
# Side by side, the three tables tell the same 35 ids apart in three ways:

# %%
import pandas as pd

ids_of = [c.id for c in Cityscapes.classes]
columns = {name: t[np.array(ids_of) % 256] for name, t in tables.items()}
pd.DataFrame({"name": [c.name for c in Cityscapes.classes], **columns}, index=ids_of)

# %% [markdown]
# And the label, seen through each of them:

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axis, (name, scheme) in zip(axes, common.SCHEMES.items()):
    axis.imshow(common.as_colors(scheme.table[ids], scheme), interpolation="nearest")
    axis.set_title(f"{name}: {len(scheme.classes)} classes", fontsize=10)
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# Black is void on the left. In the other two it is *background*, a class like any other: the network has to learn it, and
# is scored on it.
#
# ## Void is not a class
#
# 255 marks pixels that nobody wants an answer for: the bonnet of the camera's car, things that fit no class, classes too
# rare to score. A loss must leave them out. There is no output number 255, so PyTorch stops:

# %%
logits = torch.zeros(1, 19, *label.shape)
target = torch.from_numpy(label.astype(np.int64))[None]
try:
    F.cross_entropy(logits, target)
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# `ignore_index` leaves them out. All logits are 0, so the loss of the rest has to be log 19, which is 2.944:

# %%
print(f"void is {np.mean(label == 255):.1%} of this label")
print(f"loss of the rest: {F.cross_entropy(logits, target, ignore_index=255):.3f}")

# %% [markdown]
# There are two popular cures for that error that do harm: void becomes 0, which is *road*, or it becomes a class of its
# own. To see how much harm, we need scores.
#
# ## Three scores on sixteen pixels
#
# Here is a label of 4x4 pixels, with a pole on the left, a car on the right, and one void pixel. Somebody's network made
# the prediction beside it:

# %%
NAMES = ["road", "car", "pole"]
truth = np.array([[2, 0, 0, 0],
                  [2, 0, 1, 1],
                  [2, 0, 1, 1],
                  [0, 0, 0, 255]])
answer = np.array([[0, 0, 0, 0],
                   [2, 0, 1, 1],
                   [0, 0, 0, 1],
                   [0, 0, 0, 0]])

# %%
def draw_small(axis, picture, title):
    """Show a small label (H, W) of the three classes, with its numbers."""
    scheme = common.SCHEMES["cityscapes19"]
    numbers = np.array([0, 13, 5])  # road, car, pole
    known = np.where(picture == 255, 255, numbers[picture % 255])
    axis.imshow(common.as_colors(known, scheme), interpolation="nearest")
    for (row, column), value in np.ndenumerate(picture):
        axis.text(column, row, str(value), ha="center", va="center", color="white")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


fig, axes = plt.subplots(1, 2, figsize=(5, 2.6), layout="constrained")
draw_small(axes[0], truth, "truth: 0 road, 1 car, 2 pole")
draw_small(axes[1], answer, "prediction")
common.show(fig)

# %% [markdown]
# **Accuracy** is the share of pixels that are right. Void does not count, so there are 15 pixels, and 12 of them are
# right:

# %%
counted = truth != 255
right = (truth == answer) & counted
print(f"accuracy: {right.sum()} / {counted.sum()} = {right.sum() / counted.sum():.3f}")

# %% [markdown]
# That sounds good, yet the pole is nearly gone. The **intersection over union** of a class, its IoU, asks about this class
# alone. The intersection holds the pixels where truth *and* prediction say "pole", the union those where truth *or*
# prediction says it:

# %%
for c, name in enumerate(NAMES):
    intersection = ((truth == c) & (answer == c) & counted).sum()
    union = (((truth == c) | (answer == c)) & counted).sum()
    print(f"{name}: {intersection} / {union} = {intersection / union:.3f}")

# %% [markdown]
# Count them in the picture: the pole has three pixels, and one was found. The road found all of its eight pixels, and
# still gets less than 1, because it also claims three that are not road. The mean of the three is the **mean IoU**, the
# *mIoU* of the other notebooks. (A class that does not occur in the truth is left out of the mean.)

# %%
print(f"mean IoU: {(8 / 11 + 3 / 4 + 1 / 3) / 3:.3f}")

# %% [markdown]
# All these numbers stand in one small table, the **confusion matrix**. Its row is the true class, its column the
# predicted one, and each pixel adds one to its cell:

# %%
matrix = np.zeros((3, 3), int)
for row in range(4):
    for column in range(4):
        if truth[row, column] != 255:
            matrix[truth[row, column], answer[row, column]] += 1
matrix

# %%
fig, axis = plt.subplots(figsize=(3.6, 3), layout="constrained")
axis.imshow(matrix, cmap="Blues", vmax=12)
for (row, column), number in np.ndenumerate(matrix):
    axis.text(column, row, str(number), ha="center", va="center")
axis.set(xlabel="predicted", ylabel="true")
axis.set_xticks(range(3), NAMES)
axis.set_yticks(range(3), NAMES)
common.show(fig)

# %% [markdown]
# The diagonal holds what is right: 8 + 3 + 1 = 12. The bottom row says what became of the pole: one pixel was found, two
# were called road. The first column says what was called road: eight pixels that are, one of the car, two of the pole. So
# we can read all three scores from it, without looking at the pictures again:

# %%
hits = np.diag(matrix)
union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits  # predicted + true - both
print("accuracy", round(hits.sum() / matrix.sum(), 3))
print("IoU", (hits / union).round(3), "mean", round((hits / union).mean(), 3))

# %% [markdown]
# A Python loop over two million pixels takes seconds. The same matrix comes from one call of `bincount`: we number the
# nine cells as `3 * true + predicted`, and count how often each number occurs.

# %%
cell = 3 * truth[counted] + answer[counted]
print(cell)
fast = np.bincount(cell, minlength=9).reshape(3, 3)
print("the same matrix:", (fast == matrix).all())

# %% [markdown]
# `common.confusion_matrix` does just that, and refuses numbers that are no class. The course reads its scores from it. To
# score a data set we add up the matrices of its images, and compute the IoU once, at the end: a mean over images would give a
# picture with ten pixels of pole as much say as one with ten thousand.

# %%
theirs = common.confusion_matrix(answer, truth, 3)
print("the same matrix:", (theirs == matrix).all())
print(f"accuracy {common.accuracy(theirs):.3f}, mean IoU {common.miou(theirs):.3f}")

# %% [markdown]
# ### What the two cures for void cost
#
# Now we can measure the harm to the score. We need a network that is never wrong. It must answer something on void as well,
# so we give each void pixel the class of the nearest pixel that has one:

# %%
from scipy import ndimage


def fill_void(label):
    """Give every void pixel of a label (H, W) the class that is nearest."""
    nearest = ndimage.distance_transform_edt(label == 255, return_distances=False,
                                             return_indices=True)
    return label[tuple(nearest)]


perfect = fill_void(label)
truths = {"void ignored": label,
          "void is road": np.where(label == 255, 0, label),
          "void is a class": np.where(label == 255, 19, label)}

# %%
for name, wanted in truths.items():
    m = common.confusion_matrix(perfect, wanted, 20)
    print(f"{name:16s} accuracy {common.accuracy(m):.3f}, mIoU {common.miou(m):.3f}")

# %% [markdown]
# This network is right wherever there is something to be right about. Only the first line says so. With void as road, it
# pays for every void pixel that it gave to another class. With void as a class of its own it pays for every void pixel,
# because it never answers "void".
#
# ## How many pixels does each class have?
#
# We count the ids of every image once; the shares in any of the three schemes follow from that.

# %%
from concurrent.futures import ThreadPoolExecutor


def count_ids(frame):
    """Pixels per label id in one frame, (256,)."""
    return np.bincount(common.read_label(frame.label).ravel(), minlength=256)


with ThreadPoolExecutor(num_processes) as pool:
    pixels = sum(pool.map(count_ids, frames))  # (256,)
require_known_ids(np.flatnonzero(pixels), table, root)
print(f"{pixels.sum():,} pixels in {len(frames)} images")

# %% [markdown]
# The pixels of a class are those of all ids that the table sends to it:

# %%
def per_class(pixels, scheme):
    """Pixels per class (C,) from pixels per label id (256,); void is left out."""
    classes = range(len(scheme.classes))
    return np.array([pixels[scheme.table == c].sum() for c in classes])


total = per_class(pixels, cityscapes19)
share = total / total.sum()
print(f"void: {1 - total.sum() / pixels.sum():.1%} of all pixels")

# %%
order = [c for c in np.argsort(share) if total[c]]
names = [cityscapes19.classes[c] for c in order]
fig, axis = plt.subplots(figsize=(8, 1 + 0.22 * len(order)), layout="constrained")
colors = cityscapes19.colors[order] / 255
axis.scatter(share[order], names, color=colors, edgecolors="black")
for y, c in enumerate(order):
    axis.annotate(f"{share[c]:.2%}", (share[c], y), (7, 0), textcoords="offset points",
                  va="center", fontsize=8)
axis.set(xlabel="share of the pixels that have a class (logarithmic)", xscale="log")
axis.set_xlim(right=1.8)
axis.grid(alpha=0.3)
common.show(fig)

# %% [markdown]
# The axis is logarithmic; on a linear one most dots would lie on its left end. How unequal are the classes?

# %%
largest = np.sort(share)[::-1]
print(f"the three largest hold {largest[:3].sum():.0%} of the pixels,")
print(f"and the largest is {largest[0] / share[order[0]]:.0f} times {names[0]}")

# %% [markdown]
# ### The laziest network
#
# It looks at no picture and answers the most frequent class everywhere. If that class has the share $f$ of the pixels,
# the accuracy is $f$. Its IoU is $f$ for that class and 0 for the others. With $C$ classes that have pixels here, the mean
# IoU is $f / C$:

# %%
rows = {}
for name, scheme in common.SCHEMES.items():
    n = per_class(pixels, scheme)
    f = n.max() / n.sum()
    rows[name] = {"always answers": scheme.classes[n.argmax()],
                  "accuracy": round(f, 3), "mean IoU": round(f / (n > 0).sum(), 3)}
pd.DataFrame(rows).T

# %% [markdown]
# An accuracy of .78 for `thin7` looks like a network that has learnt something. A mean IoU of .11 does not. The network that
# always gives this answer is called the *majority class*; you will find it beside the scores in every notebook.
#
# ### A network that is nearly perfect
#
# It makes no mistake, but it has never heard of the classes with less than one per cent of the pixels, and gives them to
# the most frequent one:

# %%
rare = (total > 0) & (share < 0.01)
matrix = np.diag(total)
matrix[rare] = 0
matrix[rare, total.argmax()] = total[rare]
print("never answered:", ", ".join(np.array(cityscapes19.classes)[rare]))
print(f"accuracy {common.accuracy(matrix):.3f}, mean IoU {common.miou(matrix):.3f}")

# %% [markdown]
# Accuracy counts pixels and hardly notices. The mean IoU counts classes: each of the 19 is worth 1/19, and a class that is
# never answered loses all of it. That is why this course reports the mean IoU.
#
# ## What a smaller picture costs
#
# Photos are often made smaller before training, and each new pixel is an average of old ones. Try that with a label, and
# it computes with class numbers: half way between road (0) and building (2) lies sidewalk (1).

# %%
import cv2

half = (label.shape[1] // 2, label.shape[0] // 2)  # OpenCV wants (width, height)
nearest = cv2.resize(label, half, interpolation=cv2.INTER_NEAREST_EXACT)
bilinear = cv2.resize(label, half, interpolation=cv2.INTER_LINEAR)
print("in the label:   ", np.unique(label))
print("nearest pixel:  ", np.unique(nearest))
print("bilinear:       ", np.unique(bilinear))

# %% [markdown]
# Bilinear resizing makes numbers that are no class at all, such as 64 or 128: they are averages with void. Averages of two
# classes are worse, because they look like a class. How many pixels are invented? A pixel of the small label stands for 2x2 pixels of the large one, and should have the class of one of the
# four:

# %%
def invented(small, label):
    """(h, w) bool: pixels of the small label whose class none of their 2x2 has."""
    h, w = small.shape
    blocks = label[: 2 * h, : 2 * w].reshape(h, 2, w, 2)
    return (blocks != small[:, None, :, None]).all(axis=(1, 3))


ghosts = invented(bilinear, label)
contour = cv2.dilate(nearest, np.ones((3, 3))) != cv2.erode(nearest, np.ones((3, 3)))
print(f"nearest pixel: {invented(nearest, label).sum()} invented")
print(f"bilinear: {ghosts.sum()} invented,",
      f"{ghosts[contour].mean():.0%} at contours")

# %% [markdown]
# So three in ten pixels at a contour are invented. To see them we look for the window that holds the most:

# %%
def densest_window(mask, height, width):
    """(row, column) of the window of a mask (H, W) that holds the most True pixels."""
    density = cv2.boxFilter(mask.astype(np.float32), -1, (width, height), anchor=(0, 0),
                            borderType=cv2.BORDER_CONSTANT)
    inside = density[: mask.shape[0] - height + 1, : mask.shape[1] - width + 1]
    return np.unravel_index(inside.argmax(), inside.shape)


h, w = min(32, half[1]), min(48, half[0])
row, column = densest_window(ghosts, h, w)
window = np.s_[row : row + h, column : column + w]
before = np.s_[2 * row : 2 * (row + h), 2 * column : 2 * (column + w)]

# %% [markdown]
# White would mark numbers that are no class at all. This window holds the other kind, classes that are not there:

# %%
no_class = (bilinear >= 19) & (bilinear < 255)
painted = np.where(no_class[..., None], 255, common.as_colors(bilinear, cityscapes19))
panels = {"original": common.as_colors(label, cityscapes19)[before],
          "nearest pixel": common.as_colors(nearest, cityscapes19)[window],
          "bilinear": painted[window]}
fig, axes = plt.subplots(1, 3, figsize=(9, 2.5), layout="constrained")
for axis, (title, panel) in zip(axes, panels.items()):
    axis.imshow(panel, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# On the right many contours have a seam of other classes, and a network that is trained on this label is told that the seam
# is right. So photos are resized smoothly, and **labels by the nearest pixel**.
#
# ### What the nearest pixel does to a pole
#
# It invents nothing, but at half the size it looks at one pixel in four only, and at an eighth at one in 64. We shrink a
# label and enlarge it again, both by the nearest pixel, and score it as if it were a prediction. This is what a network gets
# that has learnt the small labels perfectly, if its answer is enlarged in the same way:

# %%
def shrink_and_enlarge(label, factor):
    """Label (H, W) after a way through (H / factor, W / factor) and back."""
    h, w = label.shape
    size = (w // factor, h // factor)
    small = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)


FACTORS = (2, 4, 8, 16)
matrices = {factor: 0 for factor in FACTORS}
for f in common.evenly(frames, settings["resized"]):
    whole = cityscapes19.table[common.read_label(f.label)]
    for factor in FACTORS:
        left = shrink_and_enlarge(whole, factor)
        left[left == 255] = whole[left == 255]  # void is nobody's mistake
        matrices[factor] += common.confusion_matrix(left, whole, 19)

# %% [markdown]
# Each line is one class; to the right the labels get smaller:

# %%
iou = pd.DataFrame({f"1/{k}": common.iou_per_class(m) for k, m in matrices.items()},
                   index=cityscapes19.classes)
shown = ["pole", "traffic sign", "person", "car", "road"]
shown = [n for n in shown if total[cityscapes19.classes.index(n)]]  # if they occur
fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, color in zip(shown, common.CURVES):
    axis.plot(iou.columns, iou.loc[name], "o-", color=color, label=name)
axis.set(xlabel="size of the labels learnt, as a part of the original's")
axis.set(ylabel="IoU", ylim=(0, 1))
axis.grid(alpha=0.3)
fig.legend(loc="outside right upper", frameon=False)
common.show(fig)

# %%
iou.loc[shown].round(2)

# %% [markdown]
# Large things lose a little at their rim; thin things *are* rim. At an eighth of the size only every eighth column is looked
# at: a pole three pixels wide is met three times in eight. We count the connected pieces of poles that keep at least a pixel:

# %%
def objects_left(mask, factor):
    """(objects in a mask (H, W), how many have a pixel left in the smaller one)."""
    number, objects = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    h, w = mask.shape
    small = cv2.resize(objects.astype(np.float32), (w // factor, h // factor),
                       interpolation=cv2.INTER_NEAREST_EXACT)
    return number - 1, len(np.unique(small[small > 0]))


POLE = cityscapes19.classes.index("pole")
for factor in FACTORS:
    masks = [cityscapes19.table[common.read_label(f.label)] == POLE for f in frames]
    there, left = np.sum([objects_left(mask, factor) for mask in masks], axis=0)
    print(f"at 1/{factor}: {left} of {there} pieces of poles are left")

# %% [markdown]
# Nothing can learn what is not in the label. If you also compute the score on the small labels, you do not see the loss,
# because the poles are missing there, too. So compare scores only at the same size.
#
# ## Where the sources are wrong
#
# A tag says where a statement stands: [report] in the printed text, [code] in its author's code.
#
# **A network is trained on the background that its report says is ignored.** The report of the thin-structure project calls
# class 0 ignored [report]; its losses ignore 255 and treat 0 like any other class [code]. How much of the gradient comes
# from class 0?

# %%
thin7 = common.SCHEMES["thin7"]
target = torch.from_numpy(thin7.table[ids].astype(np.int64))[None]  # (B, H, W)
start = torch.randn(1, 7, *ids.shape, generator=torch.Generator().manual_seed(seed))
for name, ignored in {"255, as in the code": 255, "0, as in the report": 0}.items():
    logits = start.clone().requires_grad_()
    F.cross_entropy(logits, target, ignore_index=ignored).backward()
    pull = logits.grad.abs().sum(dim=1)  # (B, H, W)
    part = pull[target == 0].sum() / pull.sum()
    print(f"ignored {name}: {part:.0%} of the gradient is from class 0")

# %% [markdown]
# The logits are random here, so class 0 pulls about as much as it has pixels. The code is right: a network has to be told what
# is *not* a pole. Only the sentence is wrong. A mean IoU over the six classes without background does not show how well
# background is done, so this course gives both means, over seven classes and over six.
#
# **A statistic prints 0 % and nobody notices.** The code that prepares the U-Net report's labels counts the pixels of each
# class, and stores the counts under the classes' *names*. It then adds up the shares of road, building and vehicle, its "urban
# coverage", but asks for them under the numbers "1", "2" and "3" [code, commit 8a77d81]. With its own counts:

# %%
COUNTED = {"background": 1306362141, "road": 2036416525, "building": 1260636120,
           "vehicle": 459059194, "person": 74789586, "vegetation": 879783988,
           "sky": 221979646}
percent = {name: 100 * n / sum(COUNTED.values()) for name, n in COUNTED.items()}
print("urban coverage:", sum(percent.get(key, 0) for key in ("1", "2", "3")), "%")
right = sum(percent[key] for key in ("road", "building", "vehicle"))
print("it should be:  ", round(right, 1), "%")

# %% [markdown]
# `dict.get` with a default turns a mistake into a number; `percent["1"]` would have stopped with a `KeyError`. The counts are
# right (just above, the same notebook prints the seven shares correctly), and fill the training images to the last pixel:

# %%
print(sum(COUNTED.values()) / (1024 * 2048), "images of 1024x2048; Cityscapes has 2975")
if common.dataset_name(root) == "cityscapes" and len(frames) == 2975:
    ours = per_class(pixels, common.SCHEMES["streets7"])
    print("our counts are the same:", ours.tolist() == list(COUNTED.values()))

# %% [markdown]
# What else we found stands in [results/sources.md](../results/sources.md).
#
# ## What we learnt
#
# - A label id is a name for people, a train id the number of an output channel. No class has the same for both.
# - A translation is a table with 256 entries, applied to a whole label at once.
# - Void is no class: it is left out of the loss and out of the score.
# - Accuracy counts pixels, the mean IoU counts classes. Both are read from the confusion matrix; put the majority class
#   beside them.
# - Photos are resized smoothly, labels by the nearest pixel. Even so, thin things are lost first.
#
# ## Exercises
#
# Write your answer in place of `raise NotImplementedError`, run the cell, and then the one below, which checks it. An
# exercise that is not done yet stops nothing.

# %% [markdown]
# ### Exercise 1.1: a table for pedestrians
#
# A guide for blind pedestrians needs three classes: *road* (0), *sidewalk* (1) and *everything else that is scored* (2).
# What is not scored becomes void (255), and the licence plate is not scored. Numbers that are no id become 254. Return the
# table, (256,) of type `uint8`. Which entry is the licence plate's, and what must stand there?

# %%
# Exercise 1.1
def table_for_pedestrians():
    """(256,) uint8 table: road 0, sidewalk 1, other classes 2, void 255, no id 254."""
    raise NotImplementedError


# %%
# Exercise 1.1: check
with common.exercise("Exercise 1.1"):
    guide = table_for_pedestrians()
    common.check("road, sidewalk, pole, car", guide[[7, 8, 17, 26]], [0, 1, 2, 2])
    common.check("the bonnet of the camera's car", guide[1], 255)

# %% [markdown]
# ### Exercise 1.2: find and mend the way back
#
# To send predictions to the Cityscapes server, you translate train ids back to label ids. Here somebody does it in place,
# one class after the other. Cover the output of the second cell and say what becomes of the road (0), and why.

# %%
# Exercise 1.2: as given
def to_label_ids_as_given(prediction):
    """Label ids of a prediction in train ids, integers of any shape; 0 for 255."""
    for c in Cityscapes.classes:
        if not c.ignore_in_eval:
            prediction[prediction == c.train_id] = c.id
    prediction[prediction == 255] = 0
    return prediction


# %%
# Exercise 1.2: the symptom
back = to_label_ids_as_given(np.arange(3))
by_id = {c.id: c.name for c in Cityscapes.classes}
print("road, sidewalk, building become", [by_id[int(i)] for i in back])

# %% [markdown]
# Write it correctly. The argument holds train ids 0 to 18 and 255, in any shape and integer type, and must not change. Return
# the label id of each class, and 0 for 255, as a `uint8` array of the same shape.

# %%
# Exercise 1.2
def to_label_ids(prediction):
    """Label ids, uint8, of train ids, integers of any shape; 0 for 255."""
    raise NotImplementedError


# %%
# Exercise 1.2: check
with common.exercise("Exercise 1.2"):
    common.check("road, sidewalk, building", to_label_ids(np.arange(3)), [7, 8, 11])
    vehicles = to_label_ids(np.array([12, 13, 14]))
    common.check("rider, car, truck", vehicles, [25, 26, 27])

# %% [markdown]
# ### Exercise 1.3: what blindness to rare classes costs
#
# Take the network of "A network that is nearly perfect": it answers the most frequent class wherever the true class has a
# share below `limit`, and is right everywhere else. Return its accuracy and its mean IoU, from the pixels per class (C,) alone.
# First write both on paper, in terms of the shares. A class without pixels does not enter the mean.

# %%
# Exercise 1.3
def scores_of_the_blind(pixels_per_class, limit):
    """(accuracy, mean IoU) of a network blind to classes with a share below `limit`."""
    raise NotImplementedError


# %%
# Exercise 1.3: check
with common.exercise("Exercise 1.3"):
    scored = scores_of_the_blind(np.array([700, 200, 60, 40]), limit=0.1)
    common.check("accuracy with shares .7 .2 .06 .04", scored[0], 0.9)
    common.check("mean IoU with shares .7 .2 .06 .04", scored[1], between=(0.45, 0.5))

# %% [markdown]
# ### Exercise 1.4: a small project: shrinking a label by a vote
#
# The nearest pixel forgets the other pixels of its block. Let them vote instead. Shrink a label (H, W) so that every block
# of `factor` x `factor` pixels becomes one pixel, of the class with the most votes. A pixel of class $c$ has `weights[c]`
# votes, so that you can give a pole more. Void has no vote; a block without any vote is void; of equal votes the smaller
# class number wins. If H or W is no multiple of `factor`, the last blocks are smaller, so the result has ceil(H / factor) rows
# and ceil(W / factor) columns. Return `uint8`. Labels hold classes, or 255; `weights` has a number for each class.

# %%
# Exercise 1.4
def shrink_by_vote(label, factor, weights):
    """Label (H, W) at 1 / factor of its size, uint8: each block of pixels votes."""
    raise NotImplementedError


# %%
# Exercise 1.4: check
with common.exercise("Exercise 1.4"):
    street = np.zeros((8, 8), np.uint8)
    street[:, 3] = 2  # a post one pixel wide, on class 0
    for votes, left in (([1, 1, 1], 0), ([1, 1, 4], 2)):
        post = (shrink_by_vote(street, 4, votes) == 2).sum()
        common.check(f"pixels of the post at 1/4 with votes {votes}", post, left)

# %% [markdown]
# ### To go further
#
# These are not checked.
#
# - In `shrink_and_enlarge`, put your `shrink_by_vote` in place of the first `cv2.resize`. Give a class of share $f$ the weight
#   $1/\sqrt{f}$, and 0 if it does not occur. Which classes gain IoU at 1/8, and which pay for it?
# - Run the notebook with `data_dir = "data/camvid"` and compare the order of the classes by share. Which moves most?
# - A translation that searches the label once per class (`new[ids == 7] = 0`, and so on) gives the same result. Time it
#   against `table[ids]` on 1024x2048 pixels.
#
# ## References
#
# - M. Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding*, CVPR 2016. Its class table is
#   [labels.py](https://github.com/mcordts/cityscapesScripts/blob/master/cityscapesscripts/helpers/labels.py).
# - G. J. Brostow, J. Fauqueur, R. Cipolla, *Semantic Object Classes in Video: A High-Definition Ground Truth Database*
#   (CamVid), Pattern Recognition Letters 2009.
# - M. Everingham et al., *The Pascal Visual Object Classes Challenge: A Retrospective*, IJCV 2015 (where the IoU became the
#   score of segmentation).
#
# **Next:** [02 What can a U-Net learn from nothing?](02_unet_from_scratch.ipynb)
