"""Notebook 05: random crops, the optimizer, counts that make an IoU, and the plan of fine-tunings.

The notebook imports by name what it uses; for the record of a run it counts as if it stood there.
"""

from functools import partial

import cv2
import numpy as np
import torch

import common


def random_crop(image, label, rng, crop=320, scales=(0.5, 1.5)):
    """A random square of a photo (H, W, 3) and its label, resized to crop x crop."""
    side = round(crop / rng.uniform(*scales))
    top, left = (int(rng.integers(max(0, n - side) + 1)) for n in label.shape)
    window = np.s_[top : top + side, left : left + side]
    image, label = image[window], label[window]
    below, right = (side - n for n in label.shape)
    grey = tuple(255 * mean for mean in common.IMAGENET_MEAN)
    beyond = (0, below, 0, right, cv2.BORDER_CONSTANT)
    image = cv2.copyMakeBorder(image, *beyond, value=grey)
    label = cv2.copyMakeBorder(label, *beyond, value=255)
    if rng.random() < 0.5:
        image, label = image[:, ::-1].copy(), label[:, ::-1].copy()
    return common.resize_pair(image, label, (crop, crop))


def make_optimizer(model, settings, lr):
    """SGD with momentum, or AdamW, of what is not frozen."""
    kind = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adamw": torch.optim.AdamW}
    free = [p for p in model.parameters() if p.requires_grad]
    decay = settings["weight_decay"]
    return kind[settings["optimizer"]](free, lr=lr, weight_decay=decay)


def tp_fp_fn(confusion):
    """True and false positives, false negatives (N, C, 3) of matrices (N, C, C)."""
    hits = np.einsum("ncc->nc", confusion)
    wrong = (confusion.sum(axis=1) - hits, confusion.sum(axis=2) - hits)
    return np.stack([hits, *wrong], axis=-1)


def mean_iou(counts):
    """Mean IoU over the classes with true pixels of counts (C, 3); None without."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    there = tp + fn > 0
    return float(np.mean(tp[there] / (tp + fp + fn)[there])) if there.any() else None


def plan_runs(recipes, names, rates, suffix=""):
    """{run: (recipe, learning rate or 0)} of ppce and the recipes named; a fine-tuning once for each rate of "1e-4, 3e-4".

    recipes: {name: recipe}; one with a "parent" is a fine-tuning.
    """
    rates = [common.in_range("stage_lr", rate.strip()) for rate in rates.split(",")]
    plan = {}
    for name in dict.fromkeys(["ppce", *names]):
        for rate in rates if "parent" in recipes[name] else [0.0]:
            written = np.format_float_scientific(rate, exp_digits=1, trim="-")
            run = f"{name}{suffix}_lr{written}" if rate else name + suffix
            plan[run] = name, rate
    return plan


def best_rates(found, planned):
    """Those of a table of runs whose rate was best on val with the first seed, with a column "recipe", in the order planned.

    planned: what `plan_runs` returns.
    """
    found = found[found["method"].isin(planned)]
    found = found.assign(recipe=[planned[name][0] for name in found["method"]])
    first = found[found["seed"] == found["seed"].min()].set_index("method")
    best = first.groupby("recipe")["miou"].idxmax()
    order = {name: k for k, name in enumerate(dict.fromkeys(recipe for recipe, _ in planned.values()))}
    return found[found["method"].isin(best)].sort_values("recipe", key=lambda names: names.map(order))


def unread_by(recipe):
    """Names of the parameters that a recipe does not read."""
    unread = ["stage_lrs"] if "parent" in recipe else ["stage_lrs", "stage_epochs"]
    if recipe["loss"] == "ppce" or "reduction" in recipe:
        unread.append("reduction")
    return unread + ["proxy_lr"] if recipe["loss"] == "ppce" else unread
