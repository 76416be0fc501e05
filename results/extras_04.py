"""Notebook 04: the scores of a run, and two schedules of the learning rate.

They count for a run's record as if they stood in the notebook, which imports them by name.
"""

import numpy as np
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR

import common


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
