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
# The answer in one sentence: 19 of them become 0 to 18, the other 16 become 255, which is neither trained nor scored, and one
# table with 256 entries does it.
#
# You build this table. In the second half you score predictions (accuracy, IoU, mean IoU), and see why so little is left of a
# pole when its label shrinks.
#
# ![A street, its label ids as grey values, and its label after the look-up](../results/pictures/01_labels.jpg)
#
# *A street of CamVid (Brostow, Fauqueur, Cipolla 2009), shown for teaching: the photo, its ids as `data_prep.py` writes them,
# and the classes that this notebook makes of them (black is void).*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/v1.0/notebooks/01_class_remapping.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/v1.0/notebooks/01_class_remapping.ipynb)
#
# Notebook 1 of 6 · after it: [02 U-Net from scratch](02_unet_from_scratch.ipynb) · [all six](../README.md)
#
# **Sources.** M. Cordts et al., *The Cityscapes Dataset* (CVPR 2016), and the classes of two projects: *the U-Net report*
# (notebook 02) and *the thin-structure project* (notebook 04). The links are in [results/sources.md](../results/sources.md).
#
# **You need** NumPy indexing, and the cross-entropy of PyTorch: it compares a network's 19 outputs per pixel, the *logits*,
# with the true class. Reading takes about 30 minutes. Nothing is trained here.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | about 10 s (November 2026) | poles of a label shrunk to 1/8 match the original with an IoU of .22 (1 is perfect) |
# | `course` | CamVid, 367 training images of 360x480 | any CPU | about 11 s (November 2026) | the same on real streets: .34 |
# | `paper` | Cityscapes, 2975 training images of 1024x2048 | any CPU | not yet measured | not yet run |

# %% [markdown]
# ## Parameters
#
# You can change them here, or from a shell, where papermill runs a whole notebook with other values:
# `papermill notebooks/01_class_remapping.ipynb out.ipynb -p data_dir data/camvid`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (up to 60 images), course and paper (all of them)
split: str = "train"  # which images are counted: train or val
images: int = 0  # number of images to count; 0 takes the mode's
seed: int = 42  # not used here
data_dir: str = ""  # a data set or toy; empty looks for Cityscapes, else toy in quick
out_dir: str = ""  # not used here
num_processes: int = 1  # not used here
max_hours: float = 0.0  # not used here

# %% [markdown]
# The next cells find the helpers of this course, in this folder or the one above it. A notebook that was opened alone
# fetches them. Missing packages are installed; what is there is never replaced.

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
home = next((Path(p) for p in places if (Path(p) / "results/needs.py").exists()), None)

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

# %%
from results import needs

needs.install("accelerate", "opencv-python-headless")

# %% [markdown]
# A *mode* says how many images we look at: `images` are counted pixel by pixel (0 is all), and `resized` are shrunk at the end.

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
# `find_data` takes the folder `data_dir` (for CamVid `data/camvid`, which `python data_prep.py camvid --out data/camvid`
# makes). If you name none, it looks for Cityscapes in the usual places, or else `quick` draws toy streets. `evenly` takes some
# of a list, at even distances.

# %%
root = common.find_data(data_dir, mode)
frames = common.evenly(common.list_frames(root, split), settings["images"])

# %% [markdown]
# A *frame* is a photo with its label. We take one that shows many different things:

# %%
import numpy as np


def ids_in(frame):
    """The different numbers in one frame's label."""
    return np.unique(common.read_label(frame.label))


frame = max(common.evenly(frames, 20), key=lambda f: len(ids_in(f)))
print(frame.image.name)
print(frame.label.name)

# %% [markdown]
# The label is the file that ends in `_labelIds`: a grey picture with one byte per pixel, which must be read unchanged.
# `read_label` is `cv2.imread(path, cv2.IMREAD_UNCHANGED)` with checks.

# %%
photo = common.read_image(frame.image)  # H rows, W columns, 3 colours, in bytes
ids = common.read_label(frame.label)  # (H, W), bytes
print("photo", photo.shape, photo.dtype, "| label", ids.shape, ids.dtype)

# %% [markdown]
# The label has one number per pixel. We show it as a grey value:

# %%
import matplotlib.pyplot as plt

fig, axes = plt.subplots(1, 2, figsize=(8, 2.1), layout="constrained")
axes[0].imshow(photo)
grey = axes[1].imshow(ids, cmap="gray", vmin=0, vmax=33, interpolation="nearest")
fig.colorbar(grey, ax=axes, label="label id", pad=0.01)
for axis in axes:
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# Each grey value is a *label id* of *Cityscapes*. `torchvision` has the table of these ids. The toy streets use them too, and
# `data_prep.py` translates the 11 classes of CamVid into 11 of them:

# %%
from torchvision.datasets import Cityscapes

official = {c.id: c for c in Cityscapes.classes}
for i in np.unique(ids)[:8]:
    print(i, official[int(i)].name)
print("...", len(np.unique(ids)), "ids in this label")

# %% [markdown]
# (The *ego vehicle* is the car that carries the camera.)
#
# ## Two numbers for each class
#
# Each entry of the table has a **label id** and a **train id**. Label ids are for the people who draw labels. Train ids are for
# networks: the classes that are scored have 0 to 18, without a gap, and output number 13 of a network is its score for *car*.
# All others, marked `ignore_in_eval`, are *void*, and get 255.

# %%
car = official[26]
print(car.name, "has the label id", car.id, "and the train id", car.train_id)
evaluated = [c for c in Cityscapes.classes if not c.ignore_in_eval]
print(len(official), "label ids, from", min(official), "to", max(official))
print(len(evaluated), "train ids:", [c.train_id for c in evaluated])
print("with the same number twice:", sum(c.id == c.train_id for c in evaluated))

# %% [markdown]
# For none of the 19 classes are the two numbers the same. Suppose you forget to translate, and train on label ids. With 19
# outputs PyTorch stops you:

# %%
import torch
from torch.nn import functional as F

target = torch.from_numpy(ids.astype(np.int64))[None]  # (B, H, W), a batch of B = 1
try:
    F.cross_entropy(torch.zeros(1, 19, *ids.shape), target)  # logits (B, C, H, W)
except IndexError as error:
    print("IndexError:", error)

# %% [markdown]
# (On a GPU it is a `device-side assert`, and the kernel must be restarted.) With 34 outputs, enough for the ids 0 to 33, it
# does not. All logits are 0 here, so each output has the probability 1/34, and the loss is log 34:

# %%
loss = F.cross_entropy(torch.zeros(1, 34, *ids.shape), target)
print(f"34 outputs: loss {loss:.3f}, and log 34 is {np.log(34):.3f}")

# %% [markdown]
# Nothing complains. But scores and colours expect train ids. Here is the label in the official colours, with and without
# translation. (A *scheme* holds classes, their colours and the table, which you build next.) Black is void on the left, and a
# number above 18 (vegetation, sky, car, person) on the right:

# %%
def show_labels(labels, scheme):
    """Show {title: label (H, W)} in a scheme's official colours, with a legend."""
    height, width = next(iter(labels.values())).shape
    inches = min(4.5, 9 / len(labels))  # a picture's width
    size = inches * len(labels), inches * height / width + 0.3
    fig, axes = plt.subplots(1, len(labels), figsize=size, squeeze=False,
                             layout="constrained")
    for axis, (title, label) in zip(axes[0], labels.items()):
        axis.imshow(common.as_colors(label, scheme), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    seen = np.unique([c for label in labels.values() for c in np.unique(label)])
    common.class_legend(fig, scheme, seen[seen < len(scheme.classes)])
    common.show(fig)


# %%
cityscapes19 = common.SCHEMES["cityscapes19"]
label = cityscapes19.table[ids]  # (H, W), train ids
show_labels({"translated": label, "not translated": ids}, cityscapes19)

# %% [markdown]
# Without a translation the road is called *traffic sign*: 7 is the label id of the one and the train id of the other. Likewise
# buildings are called *person* (11): on the right the legend's names are wrong.
#
# ## A look-up table
#
# A label has one byte per pixel, so every translation fits in a table with 256 entries. Entry $i$ says what becomes of id $i$.
# We start with a number that means "there is no such id":

# %%
table = np.full(256, 254, np.uint8)  # 254: no such label id
print(table.shape, table[7], table[100])

# %% [markdown]
# Then we enter the 35 official ids. In torchvision's list the licence plate has −1 as its label id and as its train id. A byte
# cannot hold −1, so we take both numbers modulo 256: −1 becomes 255.

# %%
for c in Cityscapes.classes:
    table[c.id % 256] = c.train_id % 256
print("7 becomes", table[7], "| 255 (-1) becomes", table[255],
      "| 100, which is no id, becomes", table[100])

# %% [markdown]
# To apply the table we index it with the whole label at once. Every number in `ids` is looked up:

# %%
print("the label of the figure:", (table[ids] == label).all())
row, step = ids.shape[0] // 2, ids.shape[1] // 8
print("along the middle row", ids[row, ::step], "becomes", label[row, ::step])

# %% [markdown]
# The 254 catches numbers that are no id, in a damaged label for instance:

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
# ### Classes of your own
#
# Two of our sources take other classes than the 19. (A tag says where we read it: [report] in the printed text, [code] in its
# author's code.)
#
# - *The U-Net report* has six groups. All other ids are class 0, *background* [code].
# - *The thin-structure project* names six classes, and a background that is 0 [report]. We assume that each means the official
#   class of that name, and background all other ids.

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
# One function makes a table of either:

# %%
def table_from_names(groups, rest=0):
    """(256,) table from label id to the number of the group that holds its name."""
    table = np.full(256, 254, np.uint8)
    id_of = {c.name: c.id % 256 for c in Cityscapes.classes}
    table[list(id_of.values())] = rest
    for number, names in groups.items():
        for name in names:
            table[id_of[name]] = number  # a misspelt name stops here
    return table


# %% [markdown]
# We call these two schemes `streets7` and `thin7`: with background both have seven classes. All 256 entries should agree with
# `common.SCHEMES`:

# %%
tables = {"cityscapes19": table, "streets7": table_from_names(U_NET_REPORT),
          "thin7": table_from_names(THIN_STRUCTURES)}
for name, ours in tables.items():
    print(name, (ours == common.SCHEMES[name].table).sum(), "of 256 entries agree")

# %% [markdown]
# All 35 ids in the three schemes:

# %%
import pandas as pd

ids_of = [c.id for c in Cityscapes.classes]
columns = {name: t[np.array(ids_of) % 256] for name, t in tables.items()}
pd.DataFrame({"name": [c.name for c in Cityscapes.classes], **columns}, index=ids_of)

# %% [markdown]
# Our street:

# %%
for name in ("streets7", "thin7"):
    scheme = common.SCHEMES[name]
    show_labels({name: scheme.table[ids]}, scheme)

# %% [markdown]
# Black is now *background*, a class like any other, and void is part of it. A network learns it, to know what is *not* a pole.
#
# ## Void is not a class
#
# In `cityscapes19` black is void: the bonnet of the camera's car, things that fit no class, classes too rare to score. There is
# no output number 255, so PyTorch would stop again. With `ignore_index` the loss leaves void out of the mean, as if we had
# picked the other pixels ourselves (`movedim` puts the 19 logits last, so that a mask picks pixels):

# %%
logits = torch.randn(1, 19, *label.shape)
target = torch.from_numpy(label.astype(np.int64))[None]
loss = F.cross_entropy(logits, target, ignore_index=255)
counted = target != 255
by_hand = F.cross_entropy(logits.movedim(1, -1)[counted], target[counted])
print(f"void is {np.mean(label == 255):.1%} of this label")
print("the same loss:", torch.isclose(loss, by_hand).item())

# %% [markdown]
# Do not write 0 for void here: 0 is *road*.
#
# ## Three scores on sixteen pixels
#
# Here is a label of 4x4 pixels, with a pole on the left, a car on the right, and one void pixel, and a network's prediction:

# %%
NAMES = ["road", "car", "pole"]
truth = np.array([[2, 0, 0, 0],
                  [2, 0, 1, 1],
                  [2, 0, 1, 1],
                  [0, 0, 0, 255]])
prediction = np.array([[0, 0, 0, 0],
                       [2, 0, 1, 1],
                       [0, 0, 0, 1],
                       [0, 0, 0, 0]])

# %%
colors = np.zeros((256, 3), np.uint8)  # void stays black
colors[:3] = cityscapes19.colors[[0, 13, 5]]
fig, axes = plt.subplots(1, 2, figsize=(5, 2.6), layout="constrained")
for axis, picture in zip(axes, (truth, prediction)):
    axis.imshow(colors[picture], interpolation="nearest")
    for (row, column), value in np.ndenumerate(picture):
        color = "black" if value == 2 else "white"
        axis.text(column, row, value, ha="center", va="center", color=color)
    axis.set_axis_off()
axes[0].set_title("label: 0 road, 1 car, 2 pole", fontsize=10)
axes[1].set_title("prediction", fontsize=10)
common.show(fig)

# %% [markdown]
# **Accuracy** is the share of pixels that are right. Void does not count, so there are 15 pixels, and 12 are right:

# %%
counted = truth != 255
right = (truth == prediction) & counted
print(f"accuracy: {right.sum()} / {counted.sum()} = {right.sum() / counted.sum():.3f}")

# %% [markdown]
# That sounds good, yet the pole is nearly gone. The **intersection over union** of a class, its IoU, asks about this class
# alone. The intersection holds the pixels where truth *and* prediction say "pole", the union those where one *or* the other
# does:

# %%
for c, name in enumerate(NAMES):
    intersection = ((truth == c) & (prediction == c) & counted).sum()
    union = (((truth == c) | (prediction == c)) & counted).sum()
    print(f"{name}: {intersection} / {union} = {intersection / union:.3f}")

# %% [markdown]
# One of the three pixels of pole was found. All eight pixels of road were found, yet its IoU is less than 1, because three
# others are called road, too. The mean over the classes is the **mean IoU**, or *mIoU*. (Ours is over the classes that occur in
# the truth. The official one also counts, as 0, a class that is only predicted.)
#
# All these numbers stand in one table, the **confusion matrix**. Its row is the true class, its column the predicted one, and
# each pixel adds one to its cell:

# %%
matrix = np.zeros((3, 3), int)
for row in range(4):
    for column in range(4):
        if truth[row, column] != 255:
            matrix[truth[row, column], prediction[row, column]] += 1
pd.DataFrame(matrix, NAMES, NAMES).rename_axis("true", columns="predicted")

# %% [markdown]
# The diagonal holds what is right: 8 + 3 + 1 = 12. The bottom row says what became of the pole: one pixel was found, two were
# called road. All three scores can be read from the matrix:

# %%
hits = np.diag(matrix)
union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits  # predicted + true - both
print("accuracy", round(hits.sum() / matrix.sum(), 3))
print("IoU", (hits / union).round(3), "mean", round((hits / union).mean(), 3))

# %% [markdown]
# A Python loop over two million pixels, one label of Cityscapes, takes seconds. `bincount` is faster: we number the $n^2$ cells
# as `n * true + predicted` (pole called road: 3 · 2 + 0 = 6), and count how often each number occurs. `common.confusion_matrix`
# does the same, with checks.

# %%
def confusion(prediction, truth, n):
    """(n, n) pixels by true (row) and predicted class, without void; any shape."""
    counted = truth != 255
    cell = n * truth[counted].astype(int) + prediction[counted]  # 19 * 18 is no byte
    return np.bincount(cell, minlength=n * n).reshape(n, n)


for count in (confusion, common.confusion_matrix):
    print("the same matrix:", (count(prediction, truth, 3) == matrix).all())


# %% [markdown]
# To score a data set we add up the matrices of its images, and compute the IoU once, at the end.
#
# ## How many pixels does each class have?
#
# We count the ids of every image once:

# %%
def count_ids(frame):
    """Pixels per label id in one frame, (256,)."""
    return np.bincount(common.read_label(frame.label).ravel(), minlength=256)


pixels = sum(count_ids(frame) for frame in frames)  # (256,)
require_known_ids(np.flatnonzero(pixels), table, root)
print(f"{pixels.sum():,} pixels in {len(frames)} images")

# %% [markdown]
# The pixels of a class are those of all ids that its scheme's table sends to it:

# %%
def per_class(pixels, scheme):
    """Pixels per class (C,) from pixels per label id (256,); void is left out."""
    classes = range(len(scheme.classes))
    return np.array([pixels[scheme.table == c].sum() for c in classes])


total = per_class(pixels, cityscapes19)
share = total / total.sum()
print(f"void: {1 - total.sum() / pixels.sum():.1%} of all pixels")

# %% [markdown]
# The most frequent class is on top; each labelled tick of the axis is ten times the last:

# %%
order = [c for c in np.argsort(share) if total[c]]
names = [cityscapes19.classes[c] for c in order]
fig, axis = plt.subplots(figsize=(8, 1 + 0.22 * len(order)), layout="constrained")
colors = cityscapes19.colors[order] / 255
axis.scatter(100 * share[order], names, color=colors, edgecolors="black")
for y, c in enumerate(order):
    axis.annotate(f"{share[c]:.2%}", (100 * share[c], y), (7, 0), va="center",
                  textcoords="offset points", fontsize=8)
axis.set(xlabel="share of the pixels that have a class, in per cent", xscale="log")
axis.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
axis.set_xlim(right=100)
axis.grid(alpha=0.3)
common.show(fig)

# %% [markdown]
# On the toy streets road, building and vegetation hold three quarters of the pixels, and road has some 240 times as many as
# traffic light.
#
# ### The laziest network
#
# It answers the most frequent class everywhere. If that class has the share $f$ of the pixels, the accuracy is $f$. Its IoU is
# $f$ for that class and 0 for the others. With $C$ classes that have pixels here, the mean IoU is $f / C$:

# %%
rows = {}
for name, scheme in common.SCHEMES.items():
    n = per_class(pixels, scheme)
    f = n.max() / n.sum()
    rows[name] = {"always answers": scheme.classes[n.argmax()],
                  "accuracy": round(f, 3), "mean IoU": round(f / (n > 0).sum(), 3)}
pd.DataFrame(rows).T

# %% [markdown]
# (Road has a smaller share in `streets7`, where void belongs to *background* and counts.) On the toy streets an accuracy of .78
# for `thin7` looks like a network that has learnt something. A mean IoU of .11 does not: accuracy counts pixels, the mean IoU
# counts classes. So this course reports the mean IoU, and beside it this score, that of the *majority class*.
#
# ## What a smaller picture costs
#
# Photos are often made smaller before training. They are *resized smoothly*: a new pixel is a mean of old ones. Do that with a
# label, and it computes with class numbers. Here are three pixels of road (0), four of building (2), and one of void:

# %%
import cv2

pixel_row = np.array([[0, 0, 0, 2, 2, 2, 2, 255]], np.uint8)
print("nearest: ", cv2.resize(pixel_row, (4, 1), interpolation=cv2.INTER_NEAREST_EXACT))
print("bilinear:", cv2.resize(pixel_row, (4, 1), interpolation=cv2.INTER_LINEAR))

# %% [markdown]
# Bilinear resizing makes a number that is no class (129), and a sidewalk (1) that is not there. The nearest pixel invents
# nothing. (A block of two has no middle pixel: `EXACT` takes the right one.)
#
# On the street we shrink the label, and enlarge it again, to compare the two pixel by pixel:

# %%
def shrink_and_enlarge(label, factor, how=cv2.INTER_NEAREST_EXACT):
    """Label (H, W) after a way through (H / factor, W / factor) and back."""
    h, w = label.shape
    small = cv2.resize(label, (w // factor, h // factor), interpolation=how)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)


# %% [markdown]
# Around the column with the most pixels of pole: the label, and what half the size leaves of it in both ways:

# %%
POLE = cityscapes19.classes.index("pole")
column = (label == POLE).sum(axis=0).argmax()  # with the most pixels of pole
row = (label[:, column] == POLE).argmax()  # the first row where this is True
window = np.s_[max(row - 16, 0) : row + 48, max(column - 48, 0) : column + 48]
smooth = shrink_and_enlarge(label, 2, cv2.INTER_LINEAR)
show_labels({"original": label[window], "nearest": shrink_and_enlarge(label, 2)[window],
             "bilinear": smooth[window]}, cityscapes19)

# %% [markdown]
# Bilinear resizing draws a seam of other classes along many contours. On the toy street it turns the pole that is one pixel
# wide into a traffic sign: half way between pole (5) and vegetation (8) lies 6.5, rounded 7, which is traffic sign. The nearest
# pixel meets this pole, and makes it two pixels wide. So photos are resized smoothly, and **labels by the nearest pixel**.
#
# ### What the nearest pixel does to a pole
#
# At half the size it looks at one pixel in four only, at an eighth at one in 64. The same window again:

# %%
FACTORS = (2, 4, 8, 16)
smaller = {f"1/{k}": shrink_and_enlarge(label, k)[window] for k in FACTORS[1:]}
show_labels({"original": label[window], **smaller}, cityscapes19)

# %% [markdown]
# On the toy street both poles are gone at 1/4 (the two grey blocks are pieces of their arms). At 1/8 one is back, and far too
# wide. The poles fill the columns 299 and 308 to 309 of the label. 1/4 looks at columns 2, 6, and so on, up to 298, 302, 306
# and 310, and misses them; 1/8 looks at 4, 12, and so on, and meets 308. How much is lost in many images? We score the shrunk
# labels as if they were predictions. A network cannot answer void; we count what became void as right:

# %%
matrices = {factor: 0 for factor in FACTORS}
for one in common.evenly(frames, settings["resized"]):
    whole = cityscapes19.table[common.read_label(one.label)]
    for factor in FACTORS:
        again = shrink_and_enlarge(whole, factor)
        again[again == 255] = whole[again == 255]  # void counts as right
        matrices[factor] += common.confusion_matrix(again, whole, 19)

# %% [markdown]
# The IoU of five classes; to the right the labels get smaller:

# %%
iou = pd.DataFrame({f"1/{k}": common.iou_per_class(m) for k, m in matrices.items()},
                   index=cityscapes19.classes)
chosen = ["pole", "traffic sign", "person", "car", "road"]
iou.loc[[n for n in chosen if total[cityscapes19.classes.index(n)]]].round(2)

# %% [markdown]
# Large things lose a little at their rim; thin and small things lose most. At an eighth of the size only every eighth column is
# looked at: a pole three pixels wide is met three times in eight. (Of Cityscapes' 1024x2048 pixels the source of notebook 04
# keeps 512x1024 [code], that of 02 256x256 [report]: every second one, and of the columns every eighth.)
#
# A score on small labels hides this: the poles are missing there, too. So enlarge a prediction, and score it on the full label.
#
# ## Where a source is wrong
#
# One point; [results/sources.md](../results/sources.md) has the others.
#
# **A statistic prints 0 %** [code, commit 8a77d81]: the share of road, building and vehicle together, in truth 60 % of the
# training pixels. The U-Net report's code stores its numbers under *names*, and looks them up under "1", "2" and "3", with
# `dict.get` and the default 0. Square brackets would have stopped with a `KeyError`. (The right shares stand a few lines above,
# and nothing uses the 0.)
#
# ## What we learnt
#
# - A label id is for people, a train id is the number of an output. None of the 19 scored classes has the same for both.
# - A translation is a table with 256 entries, applied to a whole label at once.
# - Void (255) is left out of loss and score. Background is a class.
# - Accuracy counts pixels, the mean IoU counts classes.
# - Photos are resized smoothly, labels by the nearest pixel. Even so, poles are lost first.
#
# ## Exercises
#
# Write your answer in place of `raise NotImplementedError`, run the cell, and then the one below, which tries it on examples.
# An exercise not yet done stops nothing.

# %% [markdown]
# ### Exercise 1.1: a table for pedestrians
#
# A guide for blind pedestrians needs *road* (0), *sidewalk* (1) and *everything else that is scored* (2). What is not scored
# (`ignore_in_eval`) becomes void (255), the licence plate too. Numbers that are no id become 254. Return the table, (256,) of
# type `uint8`.


# %%
# Exercise 1.1
def table_for_pedestrians():
    """(256,) uint8: road 0, sidewalk 1, other classes 2, void 255, unknown ids 254."""
    raise NotImplementedError


# %%
# Exercise 1.1: check
with common.exercise("Exercise 1.1"):
    guide = table_for_pedestrians()
    common.check("shape and type", f"{guide.shape} {guide.dtype}", "(256,) uint8")
    common.check("road, sidewalk", guide[[7, 8]], [0, 1])
    scored = [c.id for c in Cityscapes.classes if not c.ignore_in_eval]
    common.check("the other ids that are scored", guide[scored[2:]], [2] * 17)
    ignored = [c.id for c in Cityscapes.classes if c.ignore_in_eval and c.id >= 0]
    common.check("the ids that are not scored", guide[ignored], [255] * len(ignored))
    common.check("the licence plate (-1)", guide[255], 255)
    common.check("200 (no id)", guide[200], 254)

# %% [markdown]
# ### Exercise 1.2: find and mend the mistake
#
# To send predictions to the Cityscapes server, you translate train ids back to label ids. Here somebody does it in place, one
# class after the other. Before you look at the second cell's output: what becomes of the road (0)?

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
# The 0 becomes 7, and this 7 is later taken for the train id 7. Write it correctly. The argument holds 0 to 18, and 255 where
# nothing was answered, in any shape and integer type, and must not change. Return the label ids, and 0 (*unlabeled*) for 255,
# as a `uint8` array of the same shape.

# %%
# Exercise 1.2
def to_label_ids(prediction):
    """Label ids, uint8, of train ids, integers of any shape; 0 for 255."""
    raise NotImplementedError


# %%
# Exercise 1.2: check
with common.exercise("Exercise 1.2"):
    common.check("road, sidewalk, building", to_label_ids(np.arange(3)), [7, 8, 11])
    given = np.array([[13, 18], [0, 255]], np.uint8)
    back = to_label_ids(given)
    common.check("car, bicycle, road, void", back, [[26, 33], [7, 0]])
    common.check("type", str(back.dtype), "uint8")
    common.check("the argument afterwards", given, [[13, 18], [0, 255]])

# %% [markdown]
# ### Exercise 1.3: what blindness to rare classes costs
#
# A network is right everywhere but on classes with a share below `limit`. There it answers the most frequent class, whose share
# is above `limit`. Return its accuracy and its mean IoU, from the pixels per class (C,) alone. A class without pixels does not
# enter the mean.

# %%
# Exercise 1.3
def scores_of_the_blind(pixels_per_class, limit):
    """(accuracy, mean IoU) of a network blind to classes with a share below `limit`."""
    raise NotImplementedError


# %%
# Exercise 1.3: check
with common.exercise("Exercise 1.3"):
    accuracy, mean_iou = scores_of_the_blind(np.array([700, 200, 60, 40]), limit=0.1)
    common.check("accuracy with shares .7 .2 .06 .04", accuracy, 0.9)
    common.check("mean IoU with shares .7 .2 .06 .04", mean_iou, 0.46875)
    again = scores_of_the_blind(np.array([700, 200, 0, 60, 40]), limit=0.1)
    common.check("both beside a class without pixels", again, [accuracy, mean_iou])
    other = scores_of_the_blind(np.array([60, 300, 640]), limit=0.2)
    common.check("both: .06 .3 .64, limit .2", other, [0.94, 0.638], tolerance=1e-3)

# %% [markdown]
# ### Exercise 1.4: a small project: shrinking a label by a vote
#
# The nearest pixel forgets the other pixels of its block. Let them vote instead. Shrink a label (H, W) so that every block of
# `factor` x `factor` pixels becomes one pixel, of the class with the most votes. A pixel of class $c$ has `weights[c]` votes,
# so that you can give a pole more. Void has no vote; a block without any vote is void; of equal votes the smaller class number
# wins. H and W are multiples of `factor`. Return `uint8`. (Reshaped to `(H // factor, factor, W // factor, factor)`, a label
# has each block on axes 1 and 3.)

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
    two_blocks = np.array([[255, 255, 2, 1], [255, 255, 1, 2]], np.uint8)
    small = shrink_by_vote(two_blocks, 2, [1, 1, 1])
    common.check("a block of void, a tie of 1 and 2", small, [[255, 1]])
    mostly_void = np.array([[255, 255], [255, 1]], np.uint8)
    common.check("one pixel beside void", shrink_by_vote(mostly_void, 2, [1, 1]), [[1]])
    unequal = shrink_by_vote(np.array([[1, 1, 0, 0], [1, 2, 0, 0]]), 2, [0, 0.5, 0.9])
    common.check("three half votes against .9, and none", unequal, [[1, 255]])
    common.check("type", str(small.dtype), "uint8")

# %% [markdown]
# ### To go further
#
# Copy `shrink_and_enlarge` and the cells that score to the end, with your `shrink_by_vote` in place of the first `cv2.resize`.
# Give a class of share $f$ the weight $1/\sqrt{f}$, and 0 if it does not occur. Take the factor 8 alone (at 1/16 CamVid's 360
# rows do not divide). Which classes gain IoU, and which pay for it?
#
# ## References
#
# - M. Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding*, CVPR 2016. Its class table is
#   [labels.py](https://github.com/mcordts/cityscapesScripts/blob/master/cityscapesscripts/helpers/labels.py).
# - G. J. Brostow, J. Fauqueur, R. Cipolla, *Semantic Object Classes in Video: A High-Definition Ground Truth Database*
#   (CamVid), Pattern Recognition Letters 2009.
# - M. Everingham et al., *The Pascal Visual Object Classes Challenge: A Retrospective*, IJCV 2015 (on the IoU).
#
# **Next:** [02 What can a U-Net learn from nothing?](02_unet_from_scratch.ipynb)
