"""Notebook 06: changed colours, class weights, two schedules, the sum of the losses by strips of rows, and its runs.

The notebook imports by name what it uses; for the record of a run it counts as if it stood there.
"""

import cv2
import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

import common


def jitter_colors(image, rng, jitter=0.25, hue=0.03):
    """Random brightness, contrast, saturation and hue of an (H, W, 3) uint8 image."""
    brightness, contrast, saturation = rng.uniform(-1, 1, 3) * jitter
    shift = 255 * brightness - 128 * contrast
    image = cv2.addWeighted(image, 1 + contrast, image, 0, shift)
    h, s, v = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
    h = h + np.uint8(round(256 * rng.uniform(-1, 1) * hue) % 256)  # a circle of 256
    s = cv2.multiply(s, 1 + saturation)
    return cv2.cvtColor(cv2.merge([h, s, v]), cv2.COLOR_HSV2RGB_FULL)


def frequency_weights(frames, scheme):
    """(C,) one over the root of each class's share, with mean 1; absent classes 0."""
    labels = (scheme.table[common.read_label(frame.label)] for frame in frames)
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in labels)
    counts = counts[: len(scheme.classes)]
    share = np.maximum(counts / counts.sum(), 1e-12)
    weights = np.where(counts > 0, share**-0.5, 0)
    return torch.from_numpy(weights / weights[counts > 0].mean()).float()


def make_scheduler(optimizer, settings, steps_per_epoch):
    """(scheduler, when it steps: per "epoch" or per "step")."""
    if settings["schedule"] == "linear":
        line = torch.optim.lr_scheduler.PolynomialLR
        return line(optimizer, total_iters=settings["epochs"], power=1.0), "epoch"
    steps = max(3, settings["epochs"] * steps_per_epoch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.param_groups[0]["lr"], total_steps=steps,
        pct_start=max(0.1, 2 / steps))  # a very short training has a top, too
    return cycle, "step"


OURS = ("ce", "dice", "boundary")


def sum_of_own(log_probs, label, terms, own):
    """Weighted sum of the terms beside OURS, whose functions are in `own`."""
    names = [name for name in terms if name not in OURS]
    return sum(terms[name] * (own or {})[name](log_probs, label) for name in names)


def pixel_sums(logits, label, phi=None, class_weights=None):
    """Sums over pixels: w log p_y; w; per class p y, p and y; phi p.

    logits, phi: (B, C, h, w); label: (B, h, w), void 255; class_weights: (C,).
    """
    log_probs, valid = logits.float().log_softmax(1), label != 255
    probs, truth, n = log_probs.exp(), label.where(valid, 0), logits.shape[1]
    true = log_probs.gather(1, truth[:, None])[:, 0] * valid  # (B, h, w)
    counted = valid.to(probs.dtype)
    weight = counted if class_weights is None else class_weights[truth] * valid
    hits, counts = (probs.new_zeros(n).index_add(0, truth.flatten(), one.flatten())
                    for one in (true.exp() * valid, counted))
    mass = (probs * valid[:, None]).sum((0, 2, 3))
    distance = 0 * mass.sum() if phi is None else (phi * valid[:, None] * probs).sum()
    return (true * weight).sum(), weight.sum(), hits, mass, counts, distance


def sums_by_strips(logits, label, phi=None, class_weights=None):
    """`pixel_sums` of whole pictures, added up over strips of rows."""
    numbers = 2**19 if logits.device.type == "cpu" else 2**24  # what a cache holds
    rows = max(1, numbers * logits.shape[2] // logits.numel())
    strips = [x.split(rows, 2) for x in (logits, phi) if x is not None]
    options = {"use_reentrant": False, "preserve_rng_state": False}
    sums = [checkpoint(pixel_sums, of_logits, of_label, *of_phi,
                       class_weights=class_weights, **options)
            for of_label, of_logits, *of_phi in zip(label.split(rows, 1), *strips)]
    return [sum(column) for column in zip(*sums)]


def composite_loss(logits, batch, terms, class_weights=None, own=None, smooth=1.0):
    """A scalar with the value and gradient of the notebook's `composite_as_written`; smooth is Dice's epsilon."""
    label, phi = batch["label"], batch["phi"] if "boundary" in terms else None
    sums = sums_by_strips(logits, label, phi, class_weights)
    likelihood, weight, hits, mass, counts, distance = sums
    log_probs = logits.float().log_softmax(1) if own else None
    loss = sum_of_own(log_probs, label, terms, own)
    loss = loss - terms.get("ce", 0) * likelihood / weight.clamp(min=1e-6)
    dice = 1 - ((2 * hits + smooth) / (mass + counts + smooth)).mean()
    scale = 1 if phi is None or phi.dtype != torch.int8 else 127
    far = distance / (scale * len(hits) * counts.sum().clamp(min=1))
    return loss + terms.get("dice", 0) * dice + terms.get("boundary", 0) * far


def strict_contours(pred, truth):
    """Boundary F1 (19,) of each class in one picture (H, W) without matches along the frame and along void."""
    f1 = common.boundary_f1(pred, truth, 19, count_frame=False, count_void_rim=False)
    return {"boundary_f1_strict": f1}


def unread(terms):
    """Parameters that a loss of these terms does not read."""
    if set(terms) - set(OURS):
        return []  # nobody knows what a loss of your own reads
    of_distances = [] if "boundary" in terms else ["lambda_b", "norm"]
    return of_distances + ([] if "dice" in terms else ["lambda_d"])


def camvid_runs(variants, suffix=""):
    """Finished laptop runs on CamVid of the variants, with a column "name": such as A, or D pixels (distances in pixels)."""
    found = common.find_runs(notebook="06_kervadec_ablation", dataset="camvid11", mode="laptop")
    names = {letter + suffix: letter for letter in variants}
    names |= {"D-normnone" + suffix: "D pixels"}
    return found.assign(name=found["method"].map(names)).dropna(subset="name")
