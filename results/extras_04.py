"""Notebook 04: its data, the scores of a run, two schedules of the learning rate, and what an approach does not read.

The notebook imports by name what it uses; for the record of a run it counts as if it stood there.
"""

import numpy as np
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR

import common

UNUSED = {  # parameters that an approach does not read
    "baseline": ["paste_classes", "paste_share", "normalize"],
    "bas": ["paste_classes", "paste_share", "normalize"],
    "bas_copypaste": ["normalize"],
}


def evaluate(model, data, accelerator=None, **options):
    """common.evaluate with contours and the mean IoU of six classes."""
    options["contours"] = True
    metrics, per_image = common.evaluate(model, data, accelerator, **options)
    six = [iou for name, iou in metrics["iou"].items()
           if name != "background" and iou is not None]
    return metrics | {"miou6": float(np.mean(six)) if six else None}, per_image


def more_scores(folder, model, accelerator, data, terms):
    """What a run records beside val and test: scores of other data, and its terms."""
    scores = {name: evaluate(model, one, accelerator)[0] for name, one in data.items()}
    return scores | {"coefficients": terms}


def make_scheduler(optimizer, schedule, steps):
    """A straight line to zero, as the source's library, or one cycle: up, then down."""
    if schedule == "linear":
        return PolynomialLR(optimizer, total_iters=steps, power=1.0)
    peak, steps = optimizer.param_groups[0]["lr"], max(3, steps)
    rise = max(0.1, 2 / steps)  # a very short training, too, has a rise and a fall
    return OneCycleLR(optimizer, peak, total_steps=steps, pct_start=rise)


def make_data(frames, size, scheme, network, seed):
    """common.StreetScenes of a scheme, colours scaled as the network's weights want."""
    scaling = {}
    if network == "lite0":
        scaling = {"mean": common.LITE0_MEAN, "std": common.LITE0_STD}
    data = common.StreetScenes(frames, size, "thin7", seed=seed, **scaling)
    data.scheme = scheme
    return data


def on_poles(folder, pole=4):
    """Recall, precision and boundary F1 of poles on test, in per cent."""
    with np.load(folder / "test_per_image.npz") as kept:
        total, contours = kept["confusion"].sum(0), kept["boundary_f1"][:, pole]
    hits = total[pole, pole]
    return {"recall": 100 * hits / total[pole].sum(),
            "precision": 100 * hits / max(1, total[:, pole].sum()),
            "boundary F1": 100 * np.nanmean(contours)}
