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
kinds = [scheme.classes.index(name) for name in ("pole", "bus", "car")]


def most_of(label, kinds, least=50):
    """Which of the classes have pixels enough to look at, the first one first: what to prefer a picture for."""
    return [bool((label == c).sum() >= least) for c in kinds]


first = max(common.evenly(range(len(scenes)), 40), key=lambda i: most_of(scenes.read(i)[1], kinds))
example, label = scenes.read(first)
print("photo", example.shape, "label", label.shape)

# %%
common.show(common.show_pair(example, label, scheme))

# %% [markdown]
# Left the photo, right its label. Every pixel has one of 19 classes, or none (black: *void*, stored as 255, never
# trained on and never scored).
#
# ### Augmentation
#
# The source flips, jitters the colours and blurs, and keeps its magnitudes to itself; ours are the parameters `flip`,
# `jitter`, `hue` and `blur`. The label is flipped with the image and touched by nothing else. ("Randomly cropped to 1024x2048"
# says the source of pictures that have this size; its author later wrote "without cropping", and so do we.)

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

vehicle = "bus" if (label == scheme.classes.index("bus")).any() else "car"
phi = data_prep.signed_distance_maps(label, 19, norm=norm)  # (C, H, W)
fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.3), layout="constrained")
for axis, name in zip(axes, (vehicle, "pole")):
    one = phi[scheme.classes.index(name)]
    shown = axis.imshow(one, cmap="RdBu_r", vmin=-np.abs(one).max(), vmax=np.abs(one).max())
    axis.contour(label == scheme.classes.index(name), [0.5], colors="black", linewidths=0.6)
    axis.set(title=f"{name}: from {one.min():.3f} to {one.max():.2f}", xticks=[], yticks=[])
    fig.colorbar(shown, ax=axis, label=f"phi ({norm})")
common.show(fig)

# %% [markdown]
# Red is far outside, blue inside; black lines are the contours, and the titles give the extremes. A bus has an inside. A
# pole of one or two pixels has none: all of it is rim, where $\phi$ is zero. The boundary loss can punish a pole drawn in
# the wrong place; it hardly rewards one drawn in the right place.
#
# The source says that its maps lie in [-1, 1] with one byte per value, and not how distances become such values. We
# clip at 127 pixels, as its author later described, and divide by 127, which is published only for a sibling network:
# the scale inside this loss is unknown, so that no result here repeats it exactly. The scale gives $\lambda_b$ its
# meaning; it is a parameter (`norm`) and stands in every run's config.json. Five ways to scale the same distances, and the deepest value
# that each gives the two objects above:

# %%
for name in NORMS:
    maps = data_prep.signed_distance_maps(label, 19, norm=name)
    depths = {kind: maps[scheme.classes.index(kind)].min() for kind in (vehicle, "pole")}
    print(f"{name:9s} from {maps.min():8.3f} to {maps.max():8.3f};", "  ".join(f"{kind} down to {depth:.4f}" for kind, depth in depths.items()))

# %% [markdown]
# `none` is the reference implementation (pixels), `readme` and `absmax` divide each class by its largest absolute value, which lies
# far outside, so that the inside of anything small vanishes; `signwise` scales inside and outside apart, so that what is
# inside of a thing, however small, goes down to -1.
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
METRICS = {"miou": "mIoU", "boundary_f1": "boundary F1", "trimap_iou": "trimap IoU"}
published = common.read_published(NOTEBOOK)
tables = {m: common.comparison_table(summaries, published, m) for m in METRICS}
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
claimed = published[published["metric"] == "iou"].pivot(index="class", columns="method", values="value")
pd.concat({"ours": ours, "published": claimed[list(summaries)]}, axis=1).loc[scheme.classes].round(1)

# %%
fig = common.show_per_class({f"variant {k}": s["metrics"]["iou"] for k, s in summaries.items()})
common.show(fig)

# %% [markdown]
# Best class first. Compare the order with the pixel shares of notebook 01: is the end of the list rare, thin, or both? A
# class missing here does not occur in the validation labels and does not count in the mean.

# %%
def load_variant(folder, settings):
    """The network of a finished run, in eval mode, on the GPU if there is one."""
    model = UPerNetWithAux(settings["encoder"], settings["decoder_width"])
    common.load_weights(folder / "last.safetensors", model).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


best = max(summaries, key=lambda k: summaries[k]["metrics"]["miou"])
models = {letter: load_variant(folder, settings) for letter, folder in folders.items()}

# %%
scenes = common.StreetScenes(common.evenly(val_frames, 3), size)
photos, labels = zip(*(scenes.read(i) for i in range(len(scenes))))
predictions = {letter: [common.predict(model, p, size) for p in photos] for letter, model in models.items()}
fig = common.show_predictions(photos, labels, predictions[best], scheme, [f"(variant {best})"] * len(photos))
common.show(fig)

# %%
bands = np.stack([common.trimap_band(one, 19) for one in labels])
wrong = (np.stack(labels) != np.stack(predictions[best])) & (np.stack(labels) != 255)
print(f"{wrong[bands].sum() / wrong.sum():.0%} of the mistakes lie in a band of 3 pixels around the true seams, "
      f"which covers {bands.mean():.0%} of the picture")

# %% [markdown]
# In the right column red is wrong and black is void. What lies outside the band are whole objects that were missed.
#
# ## What each loss tells the network
#
# The source explains its table by *gradient interference*: Dice and the boundary loss are said to pull against each other
# when both are there (C). It does not measure it. So here is a small network that learns with all three, for a minute, on
# half-size pictures, and after some steps we ask each loss for its gradient: at the logits, near a contour (within 2 pixels) and
# inside the regions, and at the network's weights.

# %%
def term_gradients(logits, batch, terms):
    """{term: gradient of the weighted term at the logits, (B, C, H, W)}."""
    found = {}
    for term, weight in terms.items():
        leaf = logits.detach().requires_grad_()
        composite_as_written(leaf, batch, {term: weight}).backward()
        found[term] = leaf.grad
    return found


def cosine(a, b, mask=None):
    """Cosine of the angle between two gradients (B, C, H, W), over the pixels of a (B, H, W) mask."""
    if mask is not None:
        a, b = a.movedim(1, -1)[mask], b.movedim(1, -1)[mask]
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def weight_gradient(model, batch, terms):
    """Gradient of the weighted terms at all weights of a network, one long vector."""
    loss = composite_as_written(model(batch["image"]), batch, terms)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("aux_head")]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


# %%
def look_at_gradients(model, batch, terms, near):
    """Sizes and angles of the three losses' gradients, on one batch with `near` (B, H, W) contours."""
    with torch.no_grad():
        logits = model(batch["image"])
    at_logits = term_gradients(logits, batch, terms)
    at_weights = {term: weight_gradient(model, batch, {term: weight}) for term, weight in terms.items()}
    row = {f"|{term}| / |ce|": at_logits[term].norm().item() / at_logits["ce"].norm().item() for term in ("dice", "boundary")}
    masks = {"near": near, "inside": ~near & (batch["label"] != 255)}
    row |= {f"cos {where}": cosine(at_logits["dice"], at_logits["boundary"], mask) for where, mask in masks.items()}
    return row | {"cos weights": cosine(at_weights["dice"], at_weights["boundary"])}


# %%
def short_training(terms, batches, look, steps=90, every=15, lr=2e-3, seed=0):
    """Train a small network for some steps and return the rows of look(model), one before and one every so many steps."""
    torch.manual_seed(seed)
    model = UPerNetWithAux(NETWORKS["atto"]["encoder"], 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    rows = {}
    for step in range(steps + 1):
        if step % every == 0:
            rows[step] = look(model.eval())
        batch = batches[step % len(batches)]
        loss = training_loss(model.train(), batch, composite=composite_loss, terms=terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pd.DataFrame(rows).T.rename_axis("step")


# %%
from torch.utils.data import default_collate

half = (max(64, size[0] // 2 // 32 * 32), max(64, size[1] // 2 // 32 * 32)) if mode == "quick" else (128, 256)
small = common.StreetScenes(common.evenly(train_frames, 16), half, targets=partial(distance_targets, num_classes=19, norm=norm))
batches = [default_collate([small[i] for i in range(k, k + 4)]) for k in range(0, len(small) - 3, 4)]
small.frames = common.evenly(val_frames, 4)
held_out = default_collate([small[i] for i in range(len(small))])
near = torch.from_numpy(np.stack([common.trimap_band(one.numpy().astype(np.uint8), 19, radius=1) for one in held_out["label"]]))
print(f"{len(batches)} batches of {tuple(batches[0]['image'].shape)}; {near.float().mean():.0%} of the pixels are near a contour")

# %%
all_terms = loss_terms("C", "paper", lambda_d or 1.0, lambda_b or 0.2)
angles = short_training(all_terms, batches, partial(look_at_gradients, batch=held_out, terms=all_terms, near=near))
angles.round(4)

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3), layout="constrained")
for axis, columns, name in zip(axes, (angles.columns[:2], angles.columns[2:]), ("length, as a share of cross-entropy's", "cosine of Dice and boundary")):
    for color, column in zip(common.CURVES, columns):
        axis.plot(angles.index, angles[column], color=color, marker=".", label=column)
    axis.set(xlabel="step", ylabel=name)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
axes[0].set_yscale("log")
common.show(fig)

# %% [markdown]
# PROSE-GRADIENT
#
# How much the boundary loss weighs depends on the size of the picture, as distances are counted in pixels: the same scene,
# the same mistake (everything 3 % to the side), at four sizes.

# %%
def share_of_boundary(label, height, terms, norm):
    """Length of the boundary gradient at the logits as a share of cross-entropy's, for a scene drawn `height` rows high."""
    scaled = cv2.resize(label, None, fx=height / len(label), fy=height / len(label), interpolation=cv2.INTER_NEAREST)
    logits = soft_one_hot(np.roll(scaled, height * 3 // 100, axis=1)).log()
    batch = {"label": torch.from_numpy(scaled.astype(np.int64))[None], **{k: v[None] for k, v in distance_targets(scaled, 19, norm).items()}}
    found = term_gradients(logits, batch, terms)
    return (found["boundary"].norm() / found["ce"].norm()).item()


for rows in (128, 256, 512, 1024):
    print(f"{rows:4d} rows: {share_of_boundary(label, rows, {'ce': 1.0, 'boundary': all_terms['boundary']}, norm):.2%} of cross-entropy's")

# %% [markdown]
# PROSE-SIZE
#
# ### The boundary loss alone
#
# Does it need cross-entropy at all? The same small network with cross-entropy, and with nothing but the boundary loss.
# (AdamW divides a gradient by its own size, so that alone no $\lambda_b$, however large, would change anything.)

# %%
def score_on(model, batch):
    """mIoU of a network on a batch, the share of the pixels that it gives to its favourite class, and the boundary loss."""
    with torch.no_grad():
        logits = model(batch["image"])
    pred, label = logits.argmax(1).numpy(), batch["label"].numpy()
    share = np.bincount(pred.ravel()).max() / pred.size
    return {"mIoU": common.miou(common.confusion_matrix(pred, label, 19)), "largest class": share,
            "boundary loss": boundary_loss(logits.softmax(1), batch["phi"], batch["label"]).item()}


# %%
alone = {name: short_training({term: 1.0}, batches, partial(score_on, batch=held_out), every=30)
         for name, term in {"cross-entropy": "ce", "boundary loss": "boundary"}.items()}
pd.concat(alone, names=["trained on"]).round(4)

# %% [markdown]
# PROSE-ALONE

# %% [markdown]
# ## Two ways to judge a contour
#
# **The source's first contour metrics saw one contour only.** They dilated and eroded the map of class numbers as if it were
# a mask, so that class 0 (road) was the background and everything else, void too, one object. This is what they took for
# contours, and what the corrected ones take:

# %%
contours = {"as_published": common._boundary(labels[0] != 0) > 0, "per_class": np.zeros(labels[0].shape, bool)}
for c in np.unique(labels[0][labels[0] < 255]):
    contours["per_class"] |= common._boundary(labels[0] == c) > 0
fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.3), layout="constrained")
for axis, (name, mask) in zip(axes, contours.items()):
    axis.imshow(np.where(mask, 0, 255), cmap="gray", interpolation="nearest")
    axis.set(title=f"{name}: {mask.mean():.0%} of the pixels", xticks=[], yticks=[])
common.show(fig)

# %% [markdown]
# A wrong seam between building and vegetation does not exist for the first one:

# %%
truth = np.full((64, 128), 2, np.uint8)  # building
truth[48:], truth[:48, 64:] = 0, 8  # road below, vegetation on the right
guess = truth.copy()
guess[:48, 64:84] = 2  # the building is drawn 20 pixels too wide
for estimator in ("as_published", "per_class"):
    f1, iou = (np.nanmean(score(guess, truth, 19, estimator=estimator)) for score in (common.boundary_f1, common.trimap_iou))
    print(f"{estimator:13s} boundary F1 = {f1:.3f}   trimap IoU = {iou:.3f}")

# %% [markdown]
# A perfect score for a wrong picture. (The trimap IoU is flattered too: it compares all classes, but its band follows the
# wrong contour.) The author corrected this in v0.2, and we compare with the corrected values. On our own predictions:

# %%
kinds = ["boundary_f1_as_published", "boundary_f1", "boundary_f1_strict", "trimap_iou_as_published", "trimap_iou"]
(100 * pd.DataFrame({k: {kind: s["metrics"][kind] for kind in kinds} for k, s in summaries.items()})).round(2)

# %% [markdown]
# *Strict* is the corrected boundary F1 without two flaws that it still has, which both give matches for nothing: the frame of
# the picture counts as a contour of whatever it cuts off, and void is cut out of truth and prediction alike, so that its rim
# fits perfectly. Each has its switch. On the three pictures above:

# %%
rows = {}
for frame in (True, False):
    for rim in (True, False):
        scores = [common.boundary_f1(p, t, 19, count_frame=frame, count_void_rim=rim) for p, t in zip(predictions[best], labels)]
        rows[f"frame {'counts' if frame else 'does not'}", f"void's rim {'counts' if rim else 'does not'}"] = np.mean([np.nanmean(s) for s in scores])
pd.Series(rows).unstack().round(3)

# %% [markdown]
# Numbers in the tables of this notebook count both, as the source's do, so that they compare with it. To compare your own models,
# take the strict ones.
#
# ## Three seeds
#
# What follows is the source's analysis, done again from its own numbers, so that it needs no GPU. Below, the same
# functions take your own runs.

# %%
def published_scores(published):
    """Tidy table of the source's scores in per cent: variant, seed ("mean" where only that is known), epoch, metric, value."""
    rows = published[published["metric"].isin(METRICS) & published["method"].isin(VARIANTS) & (published["class"] == "")]
    rows = rows[(rows["seed"] != "") | (rows["epoch"] != "last")]  # the last epoch is known seed by seed
    epochs = rows["epoch"].replace("last", "160").astype(int)
    seeds = rows["seed"].where(rows["seed"] != "", "mean")
    return pd.DataFrame({"variant": rows["method"], "seed": seeds, "epoch": epochs, "metric": rows["metric"], "value": rows["value"].astype(float)})


def last_of(scores, metric):
    """(S, V) table of a metric after the last epoch: a row per seed, a column per variant; seeds that all variants have."""
    rows = scores[(scores["metric"] == metric) & (scores["epoch"] == scores["epoch"].max()) & (scores["seed"] != "mean")]
    return rows.pivot(index="seed", columns="variant", values="value").dropna()


study = published_scores(published)
last_of(study, "miou")

# %% [markdown]
# **1.96 is for many.** The source has three seeds and multiplied the standard error by 1.96. For three, Student's t gives
# 4.303, and an interval made with 1.96 does not hold the true mean in 95 % of all cases:

# %%
from scipy import stats

for n in (2, 3, 5, 10, 30):
    print(f"{n:2d} seeds: t = {stats.t.ppf(0.975, n - 1):6.3f}; an interval with 1.96 holds the mean in {1 - 2 * stats.t.sf(1.96, n - 1):.0%}")


# %%
def interval_table(scores):
    """Mean, Student-t interval and the 1.96 one of every metric and variant, over seeds, after the last epoch."""
    rows = {}
    for metric in METRICS:
        for name, values in last_of(scores, metric).items():
            mean, half = common.student_interval(values)
            normal = 1.96 * stats.sem(values) if len(values) > 1 else np.nan
            rows[METRICS[metric], name] = {"mean": mean, "± t": half, "± 1.96": normal, "seeds": len(values)}
    return pd.DataFrame(rows).T.round(2).astype({"seeds": int})


interval_table(study)

# %% [markdown]
# (The seeds are printed with two digits, so that means and intervals can differ from the source's corrected ones by .01.) "D's
# interval is the tightest" does not hold: C's mIoU has a tighter one.
#
# **Which differences are real?** Whether two intervals overlap does not decide, as the seeds are paired: all variants with
# one seed see the same pictures in the same order. So we test the differences, and correct their p values for their number
# with Holm's method.

# %%
from itertools import combinations


def compare_pairs(scores, metric):
    """Paired differences over seeds of all pairs of variants: mean, half-width of the t interval, p, p after Holm's correction."""
    last = last_of(scores, metric)
    tests = {f"{a}-{b}": common.paired_t(last[a], last[b]) for a, b in combinations(last.columns, 2)}
    table = pd.DataFrame(tests, index=["difference", "± t", "p"]).T
    return table.assign(holm=common.holm(table["p"])).round(3)


pairs = pd.concat({METRICS[m]: compare_pairs(study, m) for m in METRICS}, axis=1)
pairs

# %%
stated = published[published["metric"].str.startswith("p_holm")]
for row in stated.itertuples():
    metric = row.metric.removeprefix("p_holm_")
    print(f"{METRICS[metric]:12s} {row.method}: source p = {row.value:.3f}, ours {pairs.loc[row.method, (METRICS[metric], 'holm')]:.3f}")

# %% [markdown]
# The source's corrected p values come out again, as nearly as two printed digits allow. Of the six differences in mIoU one survives, D over C; and what Dice does to contours
# is clear and double-edged: with it (B, C) the trimap IoU is 1.6 points better and boundary F1 0.8 worse. The published page
# drew the opposite conclusion about boundary F1 from the wrong estimator. Over *images* (a bootstrap with the same networks), the author finds
# D over B (p = .032) and D over A (.043), and D over C not (.092): the two questions, other seeds and other images, are not the same.
#
# **Over the epochs.** Means over seeds; where the seeds themselves are known, a 95 % band.

# %%
def over_epochs(scores, metric):
    """(mean, half-width of the t interval) over seeds, two tables with a row per epoch and a column per variant."""
    rows = scores[scores["metric"] == metric]
    per_seed, means = rows[rows["seed"] != "mean"], rows[rows["seed"] == "mean"]
    complete = per_seed.groupby(["epoch", "variant"])["value"].apply(lambda v: common.student_interval(v) if len(v) > 1 or means.empty else None).dropna()
    middle = pd.concat([means.set_index(["epoch", "variant"])["value"], complete.str[0]])
    middle = middle[~middle.index.duplicated()].unstack().astype(float)
    return middle, complete.str[1].unstack().reindex_like(middle).astype(float)


def show_convergence(scores):
    """One panel per metric, its mean over seeds by epoch with a band; a point with a bar where one epoch is known."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, metric in zip(axes, METRICS):
        middle, half = over_epochs(scores, metric)
        one_epoch = len(middle) == 1  # then the variants stand side by side
        for k, (color, name) in enumerate(zip(common.CURVES, middle)):
            x, y, bar = ([k] if one_epoch else middle.index), middle[name], half[name].fillna(0)
            axis.plot(x, y, color=color, marker=".", label=f"variant {name}")
            axis.fill_between(x, y - bar, y + bar, color=color, alpha=0.15, linewidth=0)
            if half[name].notna().sum() == 1:
                axis.errorbar([x[-1]], [y.iloc[-1]], [bar.iloc[-1]], color=color, capsize=3, marker="o", linestyle="")
        axis.set(xlabel=f"variant, epoch {middle.index[0]}" if one_epoch else "epoch", ylabel=f"{METRICS[metric]} in per cent")
        if one_epoch:
            axis.set_xticks(range(middle.shape[1]), middle.columns)
        axis.grid(alpha=0.3)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return fig


# %%
common.show(show_convergence(study))

# %% [markdown]
# (Boundary F1 and trimap IoU over the epochs were published with the wrong estimator only; the corrected values are those of
# the last epoch.)
#
# **Does a short run pick the winner of a long one?** The order of the variants after every evaluation, and the probability that a
# study with one run of each (or three) would have named another best variant than the last epoch does. It takes the scores of an
# epoch for their true means and adds normal noise with the spread of the seeds (where an epoch's spread is not known, the last epoch's).

# %%
def wrong_pick(scores, metric, seeds=1, draws=20000):
    """Series by epoch: probability that the best mean of `seeds` runs is not the variant that is best in the end."""
    middle, _ = over_epochs(scores, metric)
    rows = scores[(scores["metric"] == metric) & (scores["seed"] != "mean")]
    variances = rows.groupby(["epoch", "variant"])["value"].var().groupby("epoch").mean().dropna()
    spread = np.sqrt(variances.reindex(middle.index).fillna(variances.get(middle.index[-1], np.nan)))
    noise = np.random.default_rng(0).standard_normal((draws, middle.shape[1])) / np.sqrt(seeds)
    winner = middle.iloc[-1].to_numpy().argmax()
    return pd.Series({epoch: (row.to_numpy() + spread[epoch] * noise).argmax(1).__ne__(winner).mean() for epoch, row in middle.iterrows()})


def show_ranks(scores, metric="miou"):
    """Left the rank of every variant by epoch, right the probability of naming the wrong winner there."""
    middle, _ = over_epochs(scores, metric)
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
    for color, (name, rank) in zip(common.CURVES, middle.rank(axis=1, ascending=False).items()):
        left.plot(rank.index, rank, color=color, marker="o", label=f"variant {name}")
    left.set(xlabel="epoch", ylabel=f"rank by {METRICS[metric]}", yticks=range(1, middle.shape[1] + 1))
    left.invert_yaxis()
    for seeds, style in ((1, "-"), (3, "--")):
        right.plot(wrong_pick(scores, metric, seeds), color="black", linestyle=style, label=f"{seeds} run{'s' * (seeds > 1)} of each")
    right.set(xlabel="epoch", ylabel="probability of a wrong winner", ylim=(-0.03, 1.03))
    right.legend(frameon=False)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return fig


# %%
common.show(show_ranks(study))

# %% [markdown]
# So the claim that short runs mislead holds in the source's own numbers, and more strongly than it says: up to epoch 90 D, the
# winner, is mostly third or last, and whoever stops there names C or B. Nor do "80 to 100 epochs" suffice: at 80 and 90 the
# best mean is B's. And even at the end, one run of each would name another winner one time in ten. (Rank 3.5 is a tie.)
#
# **Class by class.** D minus A, sorted, as in the source's second figure:

# %%
def show_deltas(deltas, title):
    """Sorted bars of a difference per class in points, with whiskers where a half-width is known; deltas (C, 2)."""
    deltas = deltas.dropna(subset=["difference"]).sort_values("difference")
    colors = [common.CURVES[0] if d > 0 else common.CURVES[1] for d in deltas["difference"]]
    whiskers = deltas["half"].fillna(0) if deltas["half"].notna().any() else None
    fig, axis = plt.subplots(figsize=(7, 0.6 + 0.22 * len(deltas)), layout="constrained")
    axis.barh(deltas.index, deltas["difference"], color=colors, xerr=whiskers, ecolor="gray", capsize=2)
    axis.set(xlabel=title)
    axis.grid(axis="x", alpha=0.3)
    return fig


# %%
change = pd.DataFrame({"difference": claimed["D"] - claimed["A"], "half": np.nan})
common.show(show_deltas(change, "D - A, points of IoU (published, means of three seeds)"))

# %% [markdown]
# Whiskers are missing as the source gives a class's spread for a few classes of B and D only. For those we can say how much
# D - B is worth (two samples of three, Welch's t interval):

# %%
spreads = published[(published["metric"] == "iou") & (published["std"] != "")].pivot(index="class", columns="method", values=["value", "std"])
spreads = spreads.astype(float)
welch = stats.ttest_ind_from_stats(spreads["value", "D"], spreads["std", "D"], 3, spreads["value", "B"], spreads["std", "B"], 3, equal_var=False)
table = pd.DataFrame({"D - B": spreads["value", "D"] - spreads["value", "B"], "std of B": spreads["std", "B"], "p": welch.pvalue})
table["± t of B"] = stats.t.ppf(0.975, 2) * table["std of B"] / 3**0.5
table.assign(holm=common.holm(table["p"])).sort_values("p").round(3)

# %% [markdown]
# The truck's famous ±4.39 is a standard deviation, printed like an interval; its interval is more than twice as wide. Wall and truck, the two
# classes that the story is about, are not beyond the spread of three seeds; what is, after Holm, is that D is 2 points
# *worse* than B on traffic lights, where Dice helps.

# %% [markdown]
# ## Where the source is wrong
#
# Two mistakes we have met: the estimator of the contour scores and the 1.96. Others are slips of arithmetic, which anyone can
# find who has the numbers. First what the text says, then what its own tables give:

# %%
def claim(metric):
    """The one published value of a claim."""
    return published.loc[published["metric"] == metric, "value"].astype(float).item()


means, _ = over_epochs(study, "miou")
first, end = means.loc[10], means.iloc[-1]
gain, four = claimed["D"] - claimed["B"], ["wall", "truck", "bus", "terrain"]
slips = {
    "IoU of wall, D - B": (claim("claimed_iou_difference"), claimed.loc["wall", "D"] - claimed.loc["wall", "B"]),
    "mIoU, C - B, last epoch": (claim("claimed_miou_difference"), end["C"] - end["B"]),
    "C - B, change from epoch 10 to the last": (claim("claimed_miou_swing"), (first["C"] - first["B"]) - (end["C"] - end["B"])),
    "best - worst variant at epoch 50, below": (claim("claimed_miou_spread_below"), means.loc[50].max() - means.loc[50].min()),
}
shares = {"net gain": gain[four].sum() / gain.sum(), "gains alone": gain[four].sum() / gain[gain > 0].sum()}
slips |= {f"four classes in D - B, % of the {of}": (claim("claimed_share_of_four_classes"), 100 * share) for of, share in shares.items()}

# %%
slips |= {
    "maps of 2975 images as bytes, GB": (claim("claimed_gigabytes_of_maps"), 2975 * 19 * 1024 * 2048 / 1e9),
    "time to make them, minutes": (claim("claimed_minutes_of_maps"), 2975 * claim("seconds_per_map") / 60),
    "twelve runs on one GPU, days": (claim("claimed_days"), 12 * claim("hours_per_run") / 24),
}
pd.DataFrame(slips, index=["the text says", "its numbers give"]).T.round(2)

# %% [markdown]
# Line by line: +3.88 is wall's gain of D over A, not over B. The gap of -.46 is C - *D*; C ends above B, and so their swing is 2.1
# points and not 2.7. At epoch 50 the four are 1.01 apart, not less than 1. Wall, truck, bus and terrain make four fifths of the gains, and more than all of the
# net gain, because other classes lose. Uncompressed maps would take 37 times the room that is stated, their computation ten times
# the time, and the study nearly three times the days.

# %%
print("best mean by epoch:", " ".join(f"{epoch}:{name}" for epoch, name in means.idxmax(axis=1).items()))
late = published[(published["metric"] == "miou") & (published["epoch"] == "120") & (published["seed"] == "456")]
print("epoch 120, seed 456:", dict(zip(late["method"], late["value"])))
early = published[published["metric"] == "miou_difference"]["value"].astype(float)
difference, half, p = common.paired_t(early, np.zeros(len(early)))
print(f"C - B at epoch 10 over three seeds: {difference:+.2f} ± {half:.2f}, p = {p:.2f}")

# %% [markdown]
# "C leads early, D late, in all seeds" is too much: at epoch 20 B leads C already, at 120 one seed has A above D, and C's lead
# over B at epoch 10 is large but not beyond what three seeds can show. D above C in every seed, from 110 on, holds.
#
# "Large classes dominate mIoU" is not so: every class counts 1/19, and the four above are small. And that the boundary loss
# adds "no hyperparameter" is not so either: it has $\lambda_b$ and the scale of its maps, which is not stated. What the source calls
# Kervadec's default of .2 does not exist; the reference implementation starts at .01 with raw distances and raises it every epoch.
#
# What of the mechanism, *gradient interference*? We measured it above; the source did not.

# %% [markdown]
# ## Real streets
#
# The repo holds runs of A, B, C and D on CamVid (real drives, 231 images to learn from, at a third of its height, 20 epochs from random weights, by a
# network of 4 million parameters on a CPU): config, history, summary and the test scores of each image. They are far from
# the source's study, and no test of it; they are what we have that nobody chose for us.

# %%
def find_variants(out_dir, dataset, mode, methods):
    """{(variant, seed): its summary as a row, with `folder`} of the finished runs named in {variant: method}."""
    runs = common.find_runs(out_dir)
    if not len(runs):
        return {}
    runs = runs[(runs["notebook"] == NOTEBOOK) & (runs["dataset"] == dataset) & (runs["mode"] == mode)]
    letters = {method: letter for letter, method in methods.items()}
    return {(letters[row.method], str(row.seed)): row for row in runs.itertuples() if row.method in letters}


def run_scores(found):
    """Tidy table like `published_scores`, from the histories of runs."""
    parts = []
    for (letter, number), row in found.items():
        history = pd.read_csv(row.folder / "history.csv").melt("epoch", list(METRICS), "metric")
        parts.append(history.assign(variant=letter, seed=number, value=100 * history["value"]))
    return pd.concat(parts, ignore_index=True)


# %%
departs = "-networkatto-height256-accumulation1-epochs20"
camvid = find_variants("", "camvid32", "course", {letter: letter + departs for letter in VARIANTS})
for (letter, number), row in sorted(camvid.items()):
    print(f"{letter}, seed {number}: {row.n_train} images, {row.epochs} epochs, weights {row.weights}, {row.seconds / 60:.0f} min on {row.device}, "
          f"val mIoU {row.miou:.3f} (majority class {row.majority_baseline['miou']:.3f})")

# %%
from IPython.display import display

if camvid:
    film = run_scores(camvid)
    common.show(show_convergence(film))

# %%
if camvid:
    display(interval_table(film))

# %%
if camvid:
    display(pd.concat({METRICS[m]: compare_pairs(film, m) for m in METRICS}, axis=1))


# %% [markdown]
# These are validation scores, whose seeds differ by chance only. Another question is whether other *images* would give the
# same. A bootstrap over the test images tells (drawn in runs of ten neighbouring frames, as these are no independent
# evidence); it takes the mean over the seeds that both variants have.

# %%
def image_scores(folders, metric, split):
    """Per-image material of several seeds' runs: (N, S * C, C) confusions for miou, else (N, S) means over classes."""
    kept = [np.load(folder / f"{split}_per_image.npz") for folder in folders]
    if metric == "miou":
        return np.concatenate([one["confusion"] for one in kept], axis=1)
    known = [~np.isnan(one[metric]) for one in kept]
    sums = [np.nansum(one[metric], axis=1) for one in kept]
    return np.stack([np.where(k.any(1), total / k.sum(1).clip(1), np.nan) for k, total in zip(known, sums)], axis=1)


def mean_miou(confusions, num_classes=19):
    """Mean over seeds of the mIoU, of (S * C, C) stacked confusion matrices."""
    return np.mean([common.miou(cm) for cm in confusions.reshape(-1, num_classes, num_classes)])


def image_interval(found, a, b, metric, split="test", film=True):
    """(difference, low, high, p) in points between two variants, by a bootstrap over images."""
    seeds = sorted({s for v, s in found if v == a} & {s for v, s in found if v == b})
    ours, theirs = (image_scores([found[v, s].folder for s in seeds], metric, split) for v in (a, b))
    names = np.load(found[a, seeds[0]].folder / f"{split}_per_image.npz")["image"]
    blocks = common.film_blocks(name.split("/")[0] for name in names) if film else None
    statistic = mean_miou if metric == "miou" else np.nanmean
    difference, low, high, p = common.paired_bootstrap(ours, theirs, statistic, blocks, repeats=2000)
    return 100 * difference, 100 * low, 100 * high, p


def image_table(found, metrics=tuple(METRICS), **options):
    """Differences of all pairs of variants with 95 % intervals over images, and p after Holm's correction."""
    columns = {}
    for metric in metrics:
        tests = {f"{a}-{b}": image_interval(found, a, b, metric, **options) for a, b in combinations(sorted({v for v, _ in found}), 2)}
        adjusted = common.holm([p for *_, p in tests.values()])
        columns[METRICS[metric]] = {pair: f"{d:+.2f} [{low:+.2f}, {high:+.2f}], {p:.3f}" for (pair, (d, low, high, _)), p in zip(tests.items(), adjusted)}
    return pd.DataFrame(columns)


# %%
if camvid:
    display(image_table(camvid))

# %%
def class_changes(found, a="D", b="A", part="metrics"):
    """Mean difference a - b of each class's IoU in points over the seeds that both have, and its t interval's half-width."""
    seeds = sorted({s for v, s in found if v == a} & {s for v, s in found if v == b})
    tables = [pd.DataFrame({s: getattr(found[v, s], part)["iou"] for s in seeds}, dtype=float) for v in (a, b)]
    rows = {name: common.student_interval(values) for name, values in (100 * (tables[0] - tables[1])).dropna().iterrows()}
    return pd.DataFrame(rows, index=["difference", "half"]).T


# %%
if camvid:
    common.show(show_deltas(class_changes(camvid, part="test"), "D - A, points of IoU (CamVid, test images)"))

# %%
if camvid:
    common.show(show_ranks(film))

# %% [markdown]
# PROSE-CAMVID
#
# ## Your own runs
#
# As soon as two variants are trained on the same data with the same settings, the same tables and figures are drawn for them. Quick runs draw
# them as well, and prove nothing.

# %%
methods = {letter: run_name(loss_facts(letter, recipe, lambda_d, lambda_b, norm), defaults, changes) for letter in VARIANTS}
own = find_variants(out_dir, common.dataset_name(root), mode, methods)
letters = sorted({letter for letter, _ in own})
comparable = len(letters) > 1
print("runs:", ", ".join(f"{letter} seed {number}" for letter, number in sorted(own)))
if not comparable:
    print("Nothing to compare yet: -p variant ABCD trains all four.")

# %%
if comparable:
    scores = run_scores(own)
    common.show(show_convergence(scores))
    display(interval_table(scores))

# %%
if comparable and scores["seed"].nunique() > 1:
    display(pd.concat({METRICS[m]: compare_pairs(scores, m) for m in METRICS}, axis=1))
elif comparable:
    print("One seed: there is no spread to judge by. Another -p seed gives the paired tests above.")

# %% [markdown]
# What other validation images would have given, with the same networks:

# %%
if comparable:
    display(image_table(own, split="val", film=common.dataset_name(root).startswith("camvid")))

# %%
if comparable:
    common.show(show_ranks(scores) if scores["seed"].nunique() > 1 else show_deltas(class_changes(own, letters[-1], letters[0]), f"{letters[-1]} - {letters[0]}, points of IoU"))

# %% [markdown]
# ## A page to look around in
#
# One HTML file, which needs no network: choose variants, seed and epoch, and compare two variants on a few validation
# pictures. It is made from the runs above; keep it to yourself where it shows photos that are not yours to publish.

# %%
import base64
import html
import json

import plotly.offline

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Which loss draws the sharpest streets?</title>
<style>body {font: 15px sans-serif; margin: 1em auto; max-width: 1150px} .row {display: flex; gap: 1.2em; margin: .6em 0}
img {width: 49.5%} input[type=range] {vertical-align: middle}</style>
<h1 id="title"></h1>
<div class="row"><span id="variants"></span><label>seed <select id="seed"></select></label>
<label>epoch <input id="epoch" type="range" min="0"> <output id="epoch_shown"></output></label></div>
<div id="curves"></div><div id="classes"></div>
<div class="row" id="pictures"><label>picture <select id="picture"></select></label>
<label>left <select id="left"></select></label><label>right <select id="right"></select></label>
<label><input id="view" type="range" min="0" max="3" value="2"> <output id="view_shown"></output></label></div>
<div><img id="left_image" alt="left"> <img id="right_image" alt="right"></div>
<script>|</script><script>const data = |</script></html>"""

# %%
SCRIPT = """
const $ = id => document.getElementById(id), views = ["photo", "truth", "prediction", "error"];
const fill = (id, names, chosen = 0) => { names.forEach((name, i) => $(id).add(new Option(name, i))); $(id).selectedIndex = chosen; };
const shown = () => data.variants.filter((_, i) => $("variant" + i).checked);
function curves() {
  const traces = [];
  for (const v of shown()) data.metrics.forEach((m, k) => {
    const run = (data.curves[v.name][data.seeds[$("seed").value]] || {})[m.key];
    if (!run) return;
    const axes = {xaxis: "x" + (k + 1), yaxis: "y" + (k + 1), legendgroup: v.name, line: {color: v.color}};
    const upper = run.y.map((y, i) => y + (run.half[i] || 0)), lower = run.y.map((y, i) => y - (run.half[i] || 0));
    traces.push({...axes, x: run.x.concat([...run.x].reverse()), y: upper.concat(lower.reverse()), fill: "toself", opacity: 0.2,
                 fillcolor: v.color, line: {width: 0}, hoverinfo: "skip", showlegend: false});
    traces.push({...axes, x: run.x, y: run.y, name: v.label, showlegend: k == 0, mode: "lines+markers"});
  });
  const layout = {height: 330, margin: {t: 20, b: 40}, grid: {rows: 1, columns: 3, pattern: "independent"}};
  data.metrics.forEach((m, k) => { layout["yaxis" + (k + 1)] = {title: {text: m.label}}; layout["xaxis" + (k + 1)] = {title: {text: "epoch"}}; });
  Plotly.react("curves", traces, layout, {displaylogo: false});
}
"""

# %%
SCRIPT_REST = """
function classes() {
  const epoch = data.epochs[$("epoch").value], seed = data.seeds[$("seed").value];
  $("epoch_shown").textContent = epoch;
  const traces = shown().map(v => ({type: "bar", name: v.label, marker: {color: v.color}, x: data.classes,
                                    y: ((data.iou[v.name][seed] || {})[epoch] || [])}));
  Plotly.react("classes", traces, {height: 340, margin: {t: 20}, yaxis: {title: {text: "IoU in per cent"}, range: [0, 100]}}, {displaylogo: false});
}
function pictures() {
  const picture = data.pictures[$("picture").value], view = views[$("view").value];
  $("view_shown").textContent = view;
  if (picture) for (const side of ["left", "right"]) {
    const own = picture.variants[$(side).value];
    $(side + "_image").src = view == "photo" || view == "truth" ? picture[view] : own[view];
    $(side + "_image").title = view == "photo" || view == "truth" ? view : own.name + ": " + view;
  }
}
function draw() { curves(); classes(); pictures(); }
$("title").textContent = data.title;
data.variants.forEach((v, i) => {
  const label = document.createElement("label"), box = Object.assign(document.createElement("input"), {type: "checkbox", id: "variant" + i, checked: true});
  label.append(box, " " + v.name + " "); label.style.color = v.color; $("variants").append(label);
});
fill("seed", data.seeds); fill("picture", data.pictures.map(p => p.name));
if (data.pictures.length) for (const [side, k] of [["left", 0], ["right", 1]]) fill(side, data.pictures[0].variants.map(v => v.name), Math.min(k, data.pictures[0].variants.length - 1));
else $("pictures").hidden = true;
$("epoch").max = data.epochs.length - 1; $("epoch").value = data.epochs.length - 1;
document.querySelectorAll("input, select").forEach(control => control.addEventListener("input", draw));
draw();
"""


# %%
def data_uri(picture, kind=".jpg"):
    """An (H, W, 3) uint8 picture, at most 768 wide, as text that an HTML page can hold."""
    scale = min(1, 768 / picture.shape[1])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if kind == ".jpg" else cv2.INTER_NEAREST)
    encoded = cv2.imencode(kind, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    return f"data:image/{kind[1:].replace('jpg', 'jpeg')};base64," + base64.b64encode(encoded).decode()


def picture_entries(names, photos, labels, predictions, scheme):
    """Photo, truth and every variant's prediction and errors of a few scenes, for the page."""
    entries = []
    for i, (name, photo, label) in enumerate(zip(names, photos, labels)):
        views = [{"name": letter, "prediction": data_uri(common.as_colors(maps[i], scheme), ".png"),
                  "error": data_uri(common.error_picture(photo, label, maps[i]))} for letter, maps in predictions.items()]
        entries.append({"name": name, "photo": data_uri(photo), "truth": data_uri(common.as_colors(label, scheme), ".png"), "variants": views})
    return entries


# %%
def curve_entries(scores):
    """{variant: {seed or "mean": {metric: {"x", "y", "half"}}}} of a tidy table of scores."""
    curves = {}
    for metric in METRICS:
        middle, half = over_epochs(scores, metric)
        for letter in middle:
            lines = {"mean": (middle[letter], half[letter])}
            of_variant = scores[(scores["metric"] == metric) & (scores["variant"] == letter)]
            lines |= {number: (g.set_index("epoch")["value"], None) for number, g in of_variant.groupby("seed")}
            for number, (line, width) in lines.items():
                width = [None] * len(line) if width is None else [None if np.isnan(w) else w for w in width]
                entry = {"x": line.index.tolist(), "y": line.tolist(), "half": width}
                curves.setdefault(letter, {}).setdefault(number, {})[metric] = entry
    return curves


# %%
def class_entries(found, classes):
    """{variant: {seed or "mean": {epoch: IoU of every class in per cent}}} from the histories of runs."""
    entries = {}
    for (letter, number), row in found.items():
        history = pd.read_csv(row.folder / "history.csv", index_col="epoch")
        entries.setdefault(letter, {})[number] = 100 * history[[f"iou_{name}" for name in classes]]
    for of_variant in entries.values():
        of_variant["mean"] = pd.concat(of_variant.values()).groupby("epoch").mean()
    return {letter: {number: {epoch: [None if np.isnan(v) else round(v, 2) for v in row] for epoch, row in zip(table.index, table.to_numpy())}
                     for number, table in of_variant.items()} for letter, of_variant in entries.items()}


# %%
def write_viewer(path, title, found, pictures, classes):
    """Write the page for runs {(variant, seed): row}. All names in it are escaped."""
    scores = run_scores(found)
    names = sorted({letter for letter, _ in found})
    variants = [{"name": name, "label": html.escape(f"variant {name}"), "color": color} for name, color in zip(names, common.CURVES)]
    data = {"title": title, "variants": variants, "seeds": ["mean", *sorted({number for _, number in found})], "epochs": sorted(scores["epoch"].unique().tolist()),
            "metrics": [{"key": key, "label": f"{label} in per cent"} for key, label in METRICS.items()],
            "curves": curve_entries(scores), "classes": [html.escape(name) for name in classes], "iou": class_entries(found, classes), "pictures": pictures}
    text = json.dumps(data).replace("<", "\\u003c")  # no name can end the script
    head, middle, tail = PAGE.split("|")
    common.write_atomic(path, "".join([head, plotly.offline.get_plotlyjs(), middle, text, ";", SCRIPT, SCRIPT_REST, tail]).encode())
    return path


# %%
names = [scenes.frames[i].image.name for i in range(len(scenes))]
pictures = picture_entries(names, photos, labels, predictions, scheme)
viewer = write_viewer(common.results_folder(out_dir) / NOTEBOOK / "viewer.html", f"{NOTEBOOK}: {common.dataset_name(root)}, {mode}", own, pictures, scheme.classes)
print(f"{viewer.parent.name}/{viewer.name}, {viewer.stat().st_size / 1e6:.1f} MB: open it in a browser")

# %% [markdown]
# ## Your own photo
#
# Set `photo` to any JPEG or PNG. Without one, an image that was not trained on serves.

# %%
own_photo = common.read_image(Path(photo) if photo else (test_frames or val_frames)[0].image)
h, w = own_photo.shape[:2]
classes = common.predict(models[best], own_photo, (size[0], max(32, round(w * size[0] / h / 32) * 32)))
common.show(common.show_pair(own_photo, classes, scheme))

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
paths = export_predictions(models[best], to_export, folders[best] / "predictions", size)
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
