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
# # Which loss draws the sharpest streets?
#
# Four networks, alike in everything but their loss (cross-entropy alone, with Dice, with a boundary loss, with both),
# learn to label street scenes, and we look at what each loss buys at the contours and what it costs elsewhere. As it
# stands the notebook trains one of them, D; `variant = "ABCD"` trains all four.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/main/notebooks/06_kervadec_ablation.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/main/notebooks/06_kervadec_ablation.ipynb)
#
# **Source.** A. Cassez, *Boundary Loss Ablation for Full-Resolution Cityscapes Segmentation* (2026, corrected in v0.2),
# after H. Kervadec et al., *Boundary loss for highly unbalanced segmentation* (MIDL 2019).
#
# **You need** softmax, cross-entropy and the IoU. Notebook 01 explains class indices and the void label.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | 2 min in all, 2 min more per further variant (2 cores of an AMD EPYC, November 2026) | big classes learnt, thin ones not: it works, and is no evidence |
# | `course` | CamVid, or Cityscapes at half size | one 16 GB GPU | not yet measured | curves of four variants that one can compare |
# | `paper` | Cityscapes, 1024x2048 | one large GPU | not yet measured (the source: 28 h a run) | the published table |

# %% [markdown]
# ## Parameters
#
# From a shell, any of them can be set with `papermill notebooks/06_kervadec_ablation.ipynb out.ipynb -p variant ABCD`.

# %% tags=["parameters"]
mode: str = "quick"  # quick (CPU, minutes), course (one free GPU session), paper (the published recipe)
variant: str = "D"  # A, B, C, D, several such as A,D or ABCD, or all
recipe: str = "paper"  # paper (the text's formulas) or author_config (the one configuration that its author published)
lambda_d: float = 1.0  # weight of the Dice loss
lambda_b: float = 0.2  # weight of the boundary loss
norm: str = "clip127"  # scale of the distance maps: clip127, absmax, signwise, readme, none
network: str = ""  # ConvNeXt-V2 of size atto, nano or base; empty takes the mode's
height: int = 0  # image height in pixels, a multiple of 32 (the width follows); 0 takes the mode's
images: int = 0  # number of training images, a quarter as many for validation; 0 takes the mode's
batch_size: int = 0  # images per step and process, at least 2; 0 takes the mode's
accumulation: int = 0  # steps whose gradients are added before the weights change; 0 takes the mode's
lr: float = 0.0  # learning rate; 0 takes the mode's, which depends on the weights
epochs: int = 0  # 0 takes the mode's
evaluate_at: str = ""  # validate after these epochs: 10 is every tenth, "5,20,80" just these; empty takes the mode's
keep_at: str = ""  # keep the weights of these epochs, too: 10, or "5,20,80"; empty keeps the best and the last
flip: float = 0.5  # share of the training images that are mirrored
jitter: float = 0.25  # largest change of brightness, contrast and saturation, as a fraction
hue: float = 0.03  # largest turn of the hue, as a fraction of the circle
blur: float = 1.0  # largest standard deviation of the Gaussian blur, in pixels (half of the images are blurred)
weights: str = "auto"  # auto (pretrained if the hub can be reached), imagenet (insist), none
precision: str = "auto"  # auto, bf16, fp16, fp32
compile_loss: str = "auto"  # yes lets torch.compile fuse the loss; auto does on a GPU, but not in quick mode
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
NOTEBOOK = "06_kervadec_ablation"
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

VARIANTS = {"A": ("ce",), "B": ("ce", "dice"), "C": ("ce", "dice", "boundary"), "D": ("ce", "boundary")}
NORMS = ("clip127", "absmax", "signwise", "readme", "none")
NETWORKS = {"atto": {"encoder": "tu-convnextv2_atto.fcmae_ft_in1k", "decoder_width": 64},
            "nano": {"encoder": "tu-convnextv2_nano.fcmae_ft_in22k_in1k", "decoder_width": 256},
            "base": {"encoder": "tu-convnextv2_base.fcmae_ft_in22k_in1k_384", "decoder_width": 512}}
common.check_parameters(
    globals(),
    {"mode": ("quick", "course", "paper"), "recipe": ("paper", "author_config"), "norm": NORMS,
     "network": ("", *NETWORKS), "weights": ("auto", "imagenet", "none"), "precision": ("auto", "bf16", "fp16", "fp32"),
     "compile_loss": ("auto", "no", "yes"), "rerun": ("no", "yes")},
    {"variant": VARIANTS},
)
if photo and not Path(photo).is_file():
    raise common.StreetsError(f"photo: there is no file {photo} (seen from {Path.cwd()}).")
print(common.device_line())

# %% [markdown]
# ## The recipe, by mode
#
# `paper` is the published recipe: ConvNeXt-V2 base, whole frames of 1024x2048 without a crop, AdamW with a learning
# rate of 6e-5 that falls to zero along a straight line, once per epoch, batches of 2 accumulated over 4. `quick` trains
# a network of about 4 million parameters instead of 122 on small pictures, with a larger learning rate, because it must also learn from random weights.

# %%
MODES = {
    "quick": {"network": "atto", "height": 128, "images": 40, "epochs": 50, "batch_size": 4, "accumulation": 1,
              "lr": 2e-3, "scratch_lr": 2e-3, "weight_decay": 0.01, "evaluate_at": "10"},
    "course": {"network": "nano", "height": 512, "images": 0, "epochs": 30, "batch_size": 4, "accumulation": 2,
               "lr": 2e-4, "scratch_lr": 2e-3, "weight_decay": 0.01, "evaluate_at": "5"},
    "paper": {"network": "base", "height": 1024, "images": 0, "epochs": 160, "batch_size": 2, "accumulation": 4,
              "lr": 6e-5, "scratch_lr": 6e-5, "weight_decay": 0.01, "evaluate_at": "10"},
}


def epochs_named(text, epochs):
    """List of epochs up to the last: "10" is every tenth, "5,20,80" just these."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) for part in parts):
        raise common.StreetsError(f"{text!r} does not name epochs: use one number such as 10, or several: 5,20,80.")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1 and "," not in text:
        numbers = range(numbers[0], epochs + 1, numbers[0])
    return [epoch for epoch in numbers if epoch <= epochs]


# %%
named = {"network": network, "height": height, "images": images, "batch_size": batch_size, "accumulation": accumulation,
         "epochs": epochs}
changes = {name: value for name, value in named.items() if value} | ({"lr": lr, "scratch_lr": lr} if lr else {})
settings = MODES[mode] | changes
settings |= NETWORKS[settings["network"]]
settings["evaluate_at"] = epochs_named(evaluate_at or settings["evaluate_at"], settings["epochs"])
settings

# %% [markdown]
# ## Streets
#
# `find_data` takes the folder you named, else `$CITYSCAPES_DATASET`, `data/cityscapes` or what Kaggle mounted, and if
# there is none of these it draws toy streets.

# %%
root = common.find_data(data_dir)
train_frames = common.evenly(common.list_frames(root, "train"), settings["images"])
val_frames = common.evenly(common.list_frames(root, "val"), settings["images"] // 4)
test_frames = common.list_frames(root, "test") if common.has_test_labels(root) else []
test_frames = common.evenly(test_frames, settings["images"] // 4)

# %% [markdown]
# The encoder halves its input five times, so both sides must be multiples of 32. The width follows from the shape of
# the photos, because squeezing them would make thin things thinner.

# %%
size = common.network_size(train_frames[0], settings["height"])
print(f"the network sees {size[0]} x {size[1]} pixels; {len(train_frames)} images to learn from, {len(val_frames)} to judge by")

# %%
import matplotlib.pyplot as plt
import numpy as np

scheme = common.SCHEMES["cityscapes19"]
scenes = common.StreetScenes(train_frames, size)
first = next((i for i in range(len(scenes)) if (scenes.read(i)[1] == scheme.classes.index("pole")).any()), 0)
example, label = scenes.read(first)  # the first picture with a pole
print("photo", example.shape, "label", label.shape)

# %%
common.show(common.show_pair(example, label, scheme))

# %% [markdown]
# Left the photo, right its label. Every pixel has one of 19 classes, or none (black: *void*, stored as 255, never
# trained on and never scored).
#
# ### Augmentation
#
# The source flips, jitters the colours and blurs, and keeps its magnitudes to itself; these are ours. The label is
# flipped with the image and touched by nothing else.

# %%
import cv2


def jitter_colors(image, rng, jitter=0.25, hue=0.03):
    """Random brightness, contrast, saturation and hue of an (H, W, 3) uint8 image."""
    brightness, contrast, saturation = rng.uniform(-1, 1, 3) * jitter
    steps = np.arange(256)
    curve = np.clip((steps - 128) * (1 + contrast) + 128 + 255 * brightness, 0, 255).astype(np.uint8)
    hsv = cv2.cvtColor(cv2.LUT(image, curve), cv2.COLOR_RGB2HSV_FULL)
    hues = (steps + round(256 * rng.uniform(-1, 1) * hue)) % 256
    tables = np.stack([hues, np.clip(steps * (1 + saturation), 0, 255), steps], axis=1)  # (256, 3): a curve per channel
    return cv2.cvtColor(cv2.LUT(hsv, tables.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB_FULL)


# %%
def augment(image, label, rng, flip=0.5, jitter=0.25, hue=0.03, blur=1.0):
    """Mirror a share of the images, jitter the colours of all, blur half; the label is mirrored with its image."""
    if rng.random() < flip:
        image, label = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])
    image = jitter_colors(image, rng, jitter, hue)
    if rng.random() < 0.5 and blur > 0.1:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, blur))
    return image, label


# %%
fig, axes = plt.subplots(2, 2, figsize=(8.5, 4.5), layout="constrained")
for k, axis in enumerate(axes.flat):
    axis.imshow(augment(example, label, np.random.default_rng(k), flip, jitter, hue, blur)[0])
    axis.set_axis_off()
common.show(fig)

# %% [markdown]
# Four views of one photo. An augmented sample depends on (seed, epoch, index) only, so that all variants see the same
# pictures in the same order.
#
# ## The network
#
# An encoder (ConvNeXt-V2) turns the image into feature maps of stride 4, 8, 16 and 32. UPerNet pools the coarsest map
# over 1, 2, 3 and 6 bins, walks back up to stride 4 and classifies there. In training a second, small head (an *FCN*)
# reads the stride-16 map and pays the same loss with a weight of 0.4: it gives the encoder a shorter way to its gradient.

# %%
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

if not hasattr(smp, "UPerNet"):
    raise common.StreetsError("segmentation-models-pytorch is too old: pip install -U segmentation-models-pytorch")


# %%
def fcn_head(channels, num_classes):
    """The auxiliary classifier: 3x3 convolution to 256 channels, batch norm, ReLU, dropout, 1x1 to the classes."""
    return nn.Sequential(
        nn.Conv2d(channels, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True),
        nn.Dropout2d(0.1), nn.Conv2d(256, num_classes, 1),
    )


# %% [markdown]
# `smp.UPerNet` differs from the source in three ways. It upsamples with `align_corners=True` and has no dropout before
# its classifier: both are put right here. It normalises each encoder feature with a LayerNorm of its own: that stays.

# %%
class UPerNetWithAux(nn.Module):
    """UPerNet with an auxiliary head on stride 16: two (B, C, H, W) logits in training, the main one in eval mode."""

    def __init__(self, encoder, width, num_classes=19, pretrained=False):
        super().__init__()
        net = smp.UPerNet(encoder, encoder_weights=pretrained or None, decoder_channels=width, classes=num_classes,
                          upsampling=1)
        self.encoder, self.decoder = net.encoder, net.decoder
        self.head = nn.Sequential(nn.Dropout2d(0.1), net.segmentation_head)
        self.aux_head = fcn_head(self.encoder.out_channels[-2], num_classes)

    def forward(self, image):
        features = self.encoder(image)
        outputs = [self.head(self.decoder(features))]
        if self.training:
            outputs.append(self.aux_head(features[-2]))
        outputs = [F.interpolate(o, image.shape[-2:], mode="bilinear", align_corners=False) for o in outputs]
        return tuple(outputs) if self.training else outputs[0]


# %%
net = UPerNetWithAux(settings["encoder"], settings["decoder_width"])
batch = torch.stack([common.to_tensor(example[:128, :160])] * 2)  # (B, 3, H, W); a corner is enough to see the shapes
with torch.no_grad():
    for stride, features in zip((1, 2, 4, 8, 16, 32), net.encoder(batch)):
        print(f"stride {stride:2d}: {tuple(features.shape)}")
    print("logits:", [tuple(o.shape) for o in net(batch)])

# %%
parts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
print({name: f"{count:,}" for name, count in parts.items()}, f"all: {sum(parts.values()):,} parameters")
del net

# %% [markdown]
# Nearly all parameters are the encoder's. Stride 2 is empty: ConvNeXt begins with a 4x4 patch. So the finest map that the decoder sees has one value for 4x4
# pixels, and a pole 4 pixels wide is one value wide.
#
# ## The three losses
#
# Write $p_{c}(x)$ for the softmax probability of class $c$ at pixel $x$, $y_c(x)$ for 1 where the label is $c$ and 0
# elsewhere, and $V$ for the pixels that are not void.
#
# ### Cross-entropy: every pixel counts once
#
# $$L_{CE} = -\frac{1}{|V|}\sum_{x\in V} \log p_{y(x)}(x)$$

# %%
def one_hot(label, num_classes=19):
    """y: (B, C, H, W) bool, true for each pixel's class; a void pixel (255) has none."""
    return label.unsqueeze(1) == torch.arange(num_classes, device=label.device).view(1, -1, 1, 1)


def cross_entropy(log_probs, label, class_weights=None):
    """Mean of -log p of the true class over valid pixels; log_probs (B, C, H, W), label (B, H, W), 255 void."""
    y = one_hot(label, log_probs.shape[1])
    if class_weights is not None:
        y = y * class_weights.view(1, -1, 1, 1)
    return -(log_probs * y).sum() / y.sum().clamp(min=1e-6)


# %% [markdown]
# ### Dice: every class counts once
#
# $$L_{Dice} = 1 - \frac{1}{C}\sum_c \frac{2\sum_{x\in V} p_c y_c + \varepsilon}{\sum_{x\in V} p_c + \sum_{x\in V} y_c + \varepsilon}$$
#
# with $\varepsilon = 1$ and the sums over the whole batch. A class that the batch does not hold takes part too: its
# term is $\varepsilon / (\sum p_c + \varepsilon)$, so that a few stray pixels of it already cost nearly everything.

# %%
def dice_loss(probs, label, smooth=1.0):
    """1 - mean Dice over all classes of the batch; probs (B, C, H, W), label (B, H, W), 255 void."""
    y, valid = one_hot(label, probs.shape[1]), (label != 255).unsqueeze(1)
    hits, mass, counts = ((probs * y).sum((0, 2, 3)), (probs * valid).sum((0, 2, 3)), y.sum((0, 2, 3)))
    return 1 - ((2 * hits + smooth) / (mass + counts + smooth)).mean()


# %% [markdown]
# ### Boundary: a pixel counts by its distance from the contour
#
# $$L_{B} = \frac{1}{C\,|V|}\sum_c\sum_{x\in V} \phi_c(x)\, p_c(x)$$
#
# $\phi_c$ is the *signed distance map* of class $c$: outside it, the distance in pixels to the class; inside, minus the
# distance to its border; zero on its rim. Probability far outside is dear, probability deep inside earns, and so the
# loss is **negative for a good prediction**. That is no bug.

# %%
import data_prep

phi = data_prep.signed_distance_maps(label, 19, norm=norm)  # (C, H, W)
fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.1), layout="constrained")
for axis, name in zip(axes, ("road", "pole")):
    one = phi[scheme.classes.index(name)]
    shown = axis.imshow(one, cmap="RdBu_r", vmin=-np.abs(one).max(), vmax=np.abs(one).max())
    axis.set(title=f"{name}: from {one.min():.3f} to {one.max():.2f}", xticks=[], yticks=[])
    fig.colorbar(shown, ax=axis, label=f"phi ({norm})")
common.show(fig)

# %% [markdown]
# Red is far outside, blue inside; the titles give the extremes. A road has a deep inside. A pole of one or two pixels
# has none: all of it is rim, where $\phi$ is zero. The boundary loss can punish a pole drawn in the wrong place; it hardly
# rewards one drawn in the right place.
#
# The source says that its maps lie in [-1, 1] with one byte per value, and not how distances become such values. We
# clip at 127 pixels, as its author later described, and divide by 127, which is published only for a sibling network:
# the scale inside this loss is unknown, so that no result here repeats it exactly. The scale gives $\lambda_b$ its
# meaning; it is a parameter (`norm`) and stands in every run's config.json.
#
# **Why no cache of distance maps?** This is what the maps of Cityscapes would take, and what one costs to compute:

# %%
import time

full = cv2.resize(label, (2048, 1024), interpolation=cv2.INTER_NEAREST)
started = time.perf_counter()
data_prep.signed_distance_maps(full, 19)
print(f"{2975 * 19 * full.size / 1e9:.0f} GB as bytes for 2975 images; one map of {full.shape} in "
      f"{time.perf_counter() - started:.2f} s, from the label of {full.size / 1e6:.1f} MB")

# %% [markdown]
# Compressed they still take about 3 GB, and unpacking one costs 25 to 80 ms. The loader's worker processes share the
# computation, within each class's own box, while the network is busy with the batch before; the flip is in the label
# already, and nothing can go stale.

# %%
def distance_targets(label, num_classes, norm):
    """{"phi": (C, H, W)} for the loader: int8 with 127 for 1 where the maps lie in [-1, 1], else float32."""
    phi = data_prep.signed_distance_maps(label, num_classes, norm=norm)
    return {"phi": torch.from_numpy(phi if norm == "none" else data_prep.quantise_distance_maps(phi))}


def boundary_loss(probs, phi, label):
    """Mean of phi * p over valid pixels and classes; probs and phi (B, C, H, W), label (B, H, W), 255 void."""
    valid = (label != 255).unsqueeze(1)
    scale = 127 if phi.dtype == torch.int8 else 1
    return (phi * probs * valid).sum() / (scale * probs.shape[1] * valid.sum().clamp(min=1))


# %% [markdown]
# What each loss says of three predictions for the picture above: the truth, the truth moved 4 pixels to the side, and
# road everywhere (with 0.99 on the class that is predicted and the rest shared).

# %%
def soft_one_hot(label, num_classes=19, confidence=0.99):
    """(1, C, H, W) probabilities that put `confidence` on the class of `label` (H, W)."""
    index = torch.from_numpy(np.where(label == 255, 0, label).astype(np.int64))
    rest = (1 - confidence) / (num_classes - 1)
    return F.one_hot(index, num_classes).movedim(-1, 0)[None] * (confidence - rest) + rest


truth, maps = torch.from_numpy(label.astype(np.int64))[None], torch.from_numpy(phi)[None]
for name, guess in {"truth": label, "moved": np.roll(label, 4, axis=1), "road": np.zeros_like(label)}.items():
    probs = soft_one_hot(guess)
    print(f"{name:6s} CE {cross_entropy(probs.log(), truth):6.3f}   Dice {dice_loss(probs, truth):.3f}   "
          f"boundary {boundary_loss(probs, maps, truth):+.4f}")

# %% [markdown]
# ### Four variants
#
# | variant | loss |
# |---|---|
# | A | $L_{CE}$ |
# | B | $L_{CE} + \lambda_d L_{Dice}$ |
# | C | $L_{CE} + \lambda_d L_{Dice} + \lambda_b L_B$ |
# | D | $L_{CE} + \lambda_b L_B$ |
#
# The auxiliary head pays the whole sum, too. The one configuration that the author published, of B, says something
# else: $\tfrac12 L_{CE} + \tfrac12 \lambda_d L_{Dice}$, with classes in the cross-entropy weighted by one over the root of their
# frequency. `recipe = "author_config"` takes that; for A, C and D, whose configurations are not public, it weights the
# classes in the same way.

# %%
def loss_terms(variant, recipe, lambda_d, lambda_b):
    """{term: weight} of a variant."""
    weights = {"ce": 1.0, "dice": lambda_d, "boundary": lambda_b}
    if recipe == "author_config" and "dice" in VARIANTS[variant]:
        weights |= {"ce": 0.5, "dice": 0.5 * lambda_d}
    return {term: weights[term] for term in VARIANTS[variant]}


def composite_as_written(logits, batch, terms, class_weights=None):
    """Weighted sum of the terms named, for one head's logits (B, C, H, W)."""
    label, log_probs = batch["label"], logits.float().log_softmax(1)
    loss = 0.0
    if "ce" in terms:
        loss = loss + terms["ce"] * cross_entropy(log_probs, label, class_weights)
    if "dice" in terms:
        loss = loss + terms["dice"] * dice_loss(log_probs.exp(), label)
    if "boundary" in terms:
        loss = loss + terms["boundary"] * boundary_loss(log_probs.exp(), batch["phi"], label)
    return loss


# %% [markdown]
# ### The same sum, several times faster
#
# At 1024x2048 one tensor of 19 classes takes 160 MB per image, and the lines above make a dozen of them. But all three
# losses are made of a few sums over pixels, which can be taken strip by strip: a strip stays in the processor's cache,
# and the backward pass computes it again instead of keeping it. `torch.compile` does nearly as well with the lines above
# (`compile_loss = "yes"`), where it finds a compiler.

# %%
from itertools import repeat

from torch.utils.checkpoint import checkpoint


def pixel_sums(logits, label, phi=None, class_weights=None):
    """What the losses need of a strip: sums of w log p_y and of w, and per class those of p y, p and y; and of phi p."""
    log_probs, valid = logits.float().log_softmax(1), label != 255
    probs, truth, n = log_probs.exp(), label.where(valid, 0), logits.shape[1]
    true_log_probs = log_probs.gather(1, truth.unsqueeze(1)).squeeze(1) * valid
    weight = valid.to(probs.dtype) if class_weights is None else class_weights[truth] * valid
    hits = probs.new_zeros(n).index_add(0, truth.flatten(), (true_log_probs.exp() * valid).flatten())
    counts = probs.new_zeros(n).index_add(0, truth.flatten(), valid.to(probs.dtype).flatten())
    distance = probs.new_zeros(()) if phi is None else (phi * valid.unsqueeze(1) * probs).sum()
    return ((true_log_probs * weight).sum(), weight.sum(), hits, (probs * valid.unsqueeze(1)).sum((0, 2, 3)), counts, distance)


def composite_loss(logits, batch, terms, class_weights=None, smooth=1.0):
    """`composite_as_written` in strips of rows: the same value and gradient, faster and with less memory."""
    label, phi = batch["label"], batch["phi"] if "boundary" in terms else None
    budget = 2**19 if logits.device.type == "cpu" else 2**24  # numbers in a strip: what a cache holds, or a few kernels
    rows = max(1, budget * logits.shape[2] // logits.numel())
    strips = zip(logits.split(rows, 2), label.split(rows, 1), phi.split(rows, 2) if phi is not None else repeat(None))
    sums = [checkpoint(pixel_sums, *strip, class_weights, use_reentrant=False, preserve_rng_state=False) for strip in strips]
    likelihood, weight, hits, mass, counts, distance = (sum(column) for column in zip(*sums))
    loss = terms.get("ce", 0) * -likelihood / weight.clamp(min=1e-6)
    if "dice" in terms:
        loss = loss + terms["dice"] * (1 - ((2 * hits + smooth) / (mass + counts + smooth)).mean())
    if "boundary" in terms:
        scale = 127 if phi.dtype == torch.int8 else 1
        loss = loss + terms["boundary"] * distance / (scale * len(hits) * counts.sum().clamp(min=1))
    return loss


# %%
def training_loss(model, batch, composite, **options):
    """The main head's loss and 0.4 times the auxiliary head's."""
    main, aux = model(batch["image"])
    return composite(main, batch, **options) + 0.4 * composite(aux, batch, **options)


# %% [markdown]
# ## Training
#
# `common.fit` holds the loop: Accelerate for the device, bf16 and accumulation, a checkpoint after every epoch, and
# validation. What follows only says what this study trains.

# %%
from functools import partial


def build_network(settings, weights):
    """The network of a mode, and which pretrained weights it got ("none" if it had to start from scratch)."""
    def build(pretrained):
        return UPerNetWithAux(settings["encoder"], settings["decoder_width"], pretrained=pretrained)

    return common.with_weights(build, weights, name=settings["encoder"].split(".")[-1])


def pick_composite(compile_loss):
    """`composite_as_written`, compiled, or `composite_loss` where that is not wanted or not possible."""
    if compile_loss == "no":
        return composite_loss
    compiled = torch.compile(composite_as_written)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        compiled(torch.zeros(1, 2, 4, 4, device=device, requires_grad=True),
                 {"label": torch.zeros(1, 4, 4, dtype=torch.int64, device=device)}, {"ce": 1.0}).backward()
    except Exception as error:  # whatever the compiler lacks, the loss can do without
        common.say_once(f"compile_loss: {type(error).__name__}, so the loss runs as it is")
        return composite_loss
    return compiled


def frequency_weights(frames, scheme):
    """One over the root of each class's share of the valid pixels, with mean 1; 0 for a class that never occurs."""
    labels = (scheme.table[common.read_label(frame.label)] for frame in frames)
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in labels)[: len(scheme.classes)]
    weights = np.where(counts > 0, np.maximum(counts / counts.sum(), 1e-12) ** -0.5, 0)
    return torch.from_numpy(weights / weights[counts > 0].mean()).float()


# %%
CONTOURS = {"boundary_f1_as_published": "boundary_f1", "trimap_iou_as_published": "trimap_iou", "boundary_f1_strict": "boundary_f1"}


def more_contours(pred, truth):
    """Contour scores of one image: the first, wrong estimators, and boundary F1 without frame and void rims."""
    wrong, strict = {"estimator": "as_published"}, {"count_frame": False, "count_void_rim": False}
    return {"boundary_f1_as_published": common.boundary_f1(pred, truth, 19, **wrong),
            "trimap_iou_as_published": common.trimap_iou(pred, truth, 19, **wrong),
            "boundary_f1_strict": common.boundary_f1(pred, truth, 19, **strict)}


def mean_over_images(scores):
    """Mean over images of the mean over their classes, of (N, C) scores with nan for what is absent."""
    scores = scores[~np.isnan(scores).all(1)]
    return float(np.nanmean(scores, axis=1).mean()) if len(scores) else None


def evaluate(model, data, accelerator=None, **options):
    """`common.evaluate` with all contour scores."""
    metrics, per_image = common.evaluate(model, data, accelerator, contours=True, score=more_contours, **options)
    return metrics | {name: mean_over_images(per_image[name]) for name in CONTOURS}, per_image


# %%
def train_variant(folder, terms, settings, size, splits, weights, norm, seed, augmentation, weighted, compile_loss, **options):
    """Train one variant and leave it in `folder`."""
    torch.manual_seed(seed)
    model, started_from = build_network(settings, weights)
    targets = partial(distance_targets, num_classes=19, norm=norm) if "boundary" in terms else None
    train, val, test = (common.StreetScenes(s, size, seed=seed) if s else None for s in splits)
    train.augment, train.targets = partial(augment, **augmentation), targets
    rate = settings["scratch_lr" if started_from == "none" else "lr"]
    fused = {"fused": True} if torch.cuda.is_available() else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=settings["weight_decay"], **fused)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=settings["epochs"], power=1.0)
    loss_fn = partial(training_loss, composite=pick_composite(compile_loss), terms=terms)
    if weighted:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loss_fn = partial(loss_fn, class_weights=frequency_weights(train.frames, train.scheme).to(device))
    common.fit(folder, model, loss_fn, train, val, optimizer=optimizer, scheduler=scheduler, test_data=test,
               epochs=settings["epochs"], batch_size=settings["batch_size"], accumulation=settings["accumulation"],
               evaluate=evaluate, eval_every=settings["evaluate_at"], weights=started_from, **options)


# %% [markdown]
# Three details of the source. Its loop drops the gradients of the last, incomplete group of an epoch; here they make one
# more step, from fewer images. It reports the last epoch, not the best one on the images it is judged by, and so do we.
# And its corrected contour scores count matches along the image frame and along void; ours do too, so that the numbers
# compare (`count_frame` and `count_void_rim` of `common.boundary_f1` switch that off).

# %%
defaults, _ = common.parameter_cells(globals())
augmentation = {"flip": flip, "jitter": jitter, "hue": hue, "blur": blur}
changes |= {name: value for name, value in augmentation.items() if value != defaults[name]}
changes |= {"weights_": weights} if weights in ("imagenet", "none") else {}
compiling = compile_loss
if compile_loss == "auto":
    compiling = "yes" if mode != "quick" and shutil.which("nvidia-smi") else "no"


# %%
def loss_facts(letter, recipe, lambda_d, lambda_b, norm):
    """What of the loss's parameters a variant uses; None for what it does not."""
    terms = loss_terms(letter, recipe, lambda_d, lambda_b)
    return {"variant": letter, "recipe": recipe, "lambda_d": lambda_d if "dice" in terms else None,
            "lambda_b": lambda_b if "boundary" in terms else None, "norm": norm if "boundary" in terms else None}


def run_name(facts, defaults, changes):
    """A run's name: the variant, and all that departs from the mode, as in D-lambda_b0.5-epochs20."""
    departs = {k: v for k, v in facts.items() if k != "variant" and v not in (None, defaults[k])}
    return "-".join([facts["variant"], *(f"{key}{value}" for key, value in (departs | changes).items())])


# %%
summaries, folders = {}, {}
splits = {"train": train_frames, "val": val_frames, "test": test_frames}
for letter in common.several("variant", variant, VARIANTS):
    facts = loss_facts(letter, recipe, lambda_d, lambda_b, norm)
    method = run_name(facts, defaults, changes)
    folder = common.run_folder(out_dir, NOTEBOOK, common.dataset_name(root), mode, method, seed)
    config = common.run_config(globals(), method, settings, root, splits, **facts)
    train = partial(train_variant, terms=loss_terms(letter, recipe, lambda_d, lambda_b), settings=settings, size=size,
                    splits=list(splits.values()), weights=weights, norm=norm, seed=seed, augmentation=augmentation,
                    weighted=recipe == "author_config", compile_loss=compiling, precision=precision,
                    keep_at=epochs_named(keep_at, settings["epochs"]), max_hours=max_hours)
    summary = common.train_or_load(folder, config, train, rerun=rerun, num_processes=num_processes)
    if summary is None:
        break
    summaries[letter], folders[letter] = summary, folder

# %% [markdown]
# ## What came out
#
# A run that `max_hours` stopped has no summary yet; run the notebook again and it goes on.

# %%
if not summaries:
    raise common.StreetsError("No variant is finished yet: run the notebook again to go on.")
import pandas as pd

histories = {f"variant {k}": pd.read_csv(f / "history.csv") for k, f in folders.items()}
fig = common.show_history(histories, ("train_loss", "miou", "boundary_f1", "trimap_iou"))
common.show(fig)

# %% [markdown]
# The losses of different variants are different sums and cannot be compared (C's and D's contain a negative term); the
# other three panels can. *Boundary F1* asks whether contours lie within 3 pixels of the true ones; *trimap IoU*
# is the IoU in a band of 3 pixels around the true seams.

# %%
published = common.read_published(NOTEBOOK)
tables = {m: common.comparison_table(summaries, published, m) for m in ("miou", "boundary_f1", "trimap_iou")}
pd.concat(tables, names=["in per cent", "variant"])

# %% [markdown]
# Beside ours stand the source's numbers: 160 epochs of Cityscapes at 1024x2048 from pretrained weights. The columns
# *data* and *weights* and the settings above say in what ours differs. Ours are measured at the size that the network
# sees, where a tolerance of 3 pixels in 128 rows is one of 24 in 1024. What a quick run can show is by how much it beats
# the majority class, that is, naming the most frequent class everywhere.

# %%
for letter, summary in summaries.items():
    if summary["test"]:
        print(f"{letter}: mIoU {summary['metrics']['miou']:.3f} on val, {summary['test']['miou']:.3f} on test")

# %% [markdown]
# The test images were scored once, after everything was decided on the validation images. (On CamVid one drive lies in
# train and in val, in neighbouring frames, and another in train and test: its scores flatter, and the evidence is a few
# drives, however many frames they have.)
#
# Class by class, in per cent:

# %%
ours = pd.DataFrame({k: s["metrics"]["iou"] for k, s in summaries.items()}, dtype=float) * 100
claimed = published.query("metric == 'iou'").pivot(index="class", columns="method", values="value").astype(float)
pd.concat({"ours": ours, "published": claimed[list(summaries)]}, axis=1).loc[scheme.classes].round(1)

# %%
fig = common.show_per_class({f"variant {k}": s["metrics"]["iou"] for k, s in summaries.items()})
common.show(fig)

# %% [markdown]
# Best class first. Compare the order with the pixel shares of notebook 01: is the end of the list rare, thin, or both? A
# class missing here does not occur in the validation labels and does not count in the mean.

# %%
best = max(summaries, key=lambda k: summaries[k]["metrics"]["miou"])
model = UPerNetWithAux(settings["encoder"], settings["decoder_width"])
common.load_weights(folders[best] / "last.safetensors", model).eval()
model.to("cuda" if torch.cuda.is_available() else "cpu")
scenes = common.StreetScenes(common.evenly(val_frames, 3), size)
photos, labels = zip(*(scenes.read(i) for i in range(len(scenes))))
predictions = [common.predict(model, p, size) for p in photos]
fig = common.show_predictions(photos, labels, predictions, scheme, [f"(variant {best})"] * 3)
common.show(fig)

# %%
bands = np.stack([common.trimap_band(one, 19) for one in labels])
wrong = (np.stack(labels) != np.stack(predictions)) & (np.stack(labels) != 255)
print(f"{wrong[bands].sum() / wrong.sum():.0%} of the mistakes lie in a band of 3 pixels around the true seams, "
      f"which covers {bands.mean():.0%} of the picture")

# %% [markdown]
# In the right column red is wrong and black is void. What lies outside the band are whole objects that were missed.
#
# ## Where the source is wrong
#
# **Its intervals are too narrow.** It has three seeds and multiplies the standard error by 1.96, which is right for
# many. For three, Student's t gives 4.303. From its own mIoU per seed:

# %%
from scipy import stats

mious = published.query("metric == 'miou' and seed != ''").groupby("method")["value"].apply(lambda v: v.astype(float).tolist())
for method, values in mious.items():
    mean, half = common.student_interval(values)
    print(f"{method}: {mean:.2f} ± {half:.2f} (source: ± {half * 1.96 / stats.t.ppf(0.975, 2):.2f})")

# %% [markdown]
# (The seeds are printed with two digits, so that our means and intervals can differ from the corrected ones by .01.)
# Whether two intervals overlap does not decide, as the seeds are paired. `common.paired_t` and `common.holm` compare the
# differences instead:

# %%
from itertools import combinations

pairs = {f"{a}-{b}": common.paired_t(mious[a], mious[b]) for a, b in combinations(mious.index, 2)}
adjusted = common.holm([p for _, _, p in pairs.values()])
for (name, (difference, half, _)), p in zip(pairs.items(), adjusted):
    print(f"{name}: {difference:+.2f} ± {half:.2f}, p = {p:.3f} after Holm's correction")

# %% [markdown]
# Of the six differences, only that between C and D survives the correction.
#
# **Its first contour metrics saw one contour only.** They dilated and eroded the map of class numbers as if it were
# a mask, so that class 0 (road) was the background and everything else one object. A wrong seam between building and
# vegetation, as here, does not exist for them.

# %%
truth = np.full((64, 128), 2, np.uint8)  # building
truth[48:], truth[:48, 64:] = 0, 8  # road below, vegetation on the right
guess = truth.copy()
guess[:48, 64:84] = 2  # the building is drawn 20 pixels too wide
for estimator in ("as_published", "per_class"):
    scores = common.boundary_f1(guess, truth, 19, estimator=estimator)
    print(f"{estimator:13s} boundary F1 = {np.nanmean(scores):.3f}")

# %% [markdown]
# A perfect score for a wrong picture. The author corrected it in v0.2; we compare with the corrected values.
#
# ## Your own photo
#
# Set `photo` to any JPEG or PNG. Without one, an image that was not trained on serves.

# %%
own = common.read_image(Path(photo) if photo else (test_frames or val_frames)[0].image)
h, w = own.shape[:2]
classes = common.predict(model, own, (size[0], max(32, round(w * size[0] / h / 32) * 32)))
common.show(common.show_pair(own, classes, scheme))

# %% [markdown]
# ## For the official evaluation
#
# The Cityscapes server and the official script want one PNG per photo, at the photo's size, holding label ids (road is
# 7), not the class indices that networks use (road is 0). This writes them for the validation images, in quick mode for
# four of them; for the server, pass `common.list_frames(root, "test")`.

# %%
from torchvision.datasets import Cityscapes

ID_OF_CLASS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
assert ID_OF_CLASS == [c.id for c in Cityscapes.classes if 0 <= c.train_id < 255]


def export_predictions(model, frames, folder, size):
    """Write one labelId PNG per frame, named after its photo, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for frame in frames:
        ids = np.array(ID_OF_CLASS, np.uint8)[common.predict(model, common.read_image(frame.image), size)]
        paths.append(folder / frame.image.name.replace("leftImg8bit", "predictions"))
        common.write_atomic(paths[-1], cv2.imencode(".png", ids)[1].tobytes())
    return paths


# %%
to_export = val_frames[:4] if mode == "quick" else common.list_frames(root, "val")
paths = export_predictions(model, to_export, folders[best] / "predictions", size)
print(len(paths), "files such as", paths[0].name)

# %% [markdown]
# ## What we learnt
#
# - Cross-entropy counts pixels, Dice counts classes, the boundary loss counts distances: a pole is 1/19 of Dice, only its
#   few pixels of cross-entropy, and all rim to the boundary loss.
# - The boundary loss is negative when all is well, and its weight means nothing without the scale of its maps.
# - A metric can be perfect for a wrong picture. Look at a case that you can check by eye before you trust one.
# - Three seeds need a factor of 4.3, not 1.96.
#
# ## Exercises
#
# 1. Predict, then check: what happens to the boundary loss of the truth if you flip the sign of $\phi$?
# 2. `-p norm none` uses distances in raw pixels. By what factor would you change $\lambda_b$ to compensate?
# 3. Run `-p variant ABCD`. Which classes does Dice help, and which does it cost, and is that beyond what a second seed
#    changes?
#
# ## References
#
# - H. Kervadec et al., *Boundary loss for highly unbalanced segmentation*, MIDL 2019 and Medical Image Analysis 2021.
# - T. Xiao et al., *Unified Perceptual Parsing for Scene Understanding* (UPerNet), ECCV 2018.
# - S. Woo et al., *ConvNeXt V2*, CVPR 2023. Its weights are for non-commercial use (CC BY-NC 4.0).
# - M. Cordts et al., *The Cityscapes Dataset for Semantic Urban Scene Understanding*, CVPR 2016.
