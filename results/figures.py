"""Figures of the notebooks: pictures side by side, drawings of networks, curves. The notebooks reach them through common."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from PIL import Image

if TYPE_CHECKING:
    from common import Scheme

# Okabe and Ito's colours, which colour-blind readers can tell apart
CURVES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def show(fig) -> None:
    """Show a figure below the cell, once: as PNG or as JPEG (many photos), whichever is smaller."""
    files = {"png": io.BytesIO(), "jpeg": io.BytesIO()}
    fig.savefig(files["png"], format="png", dpi=75, bbox_inches="tight")
    plt.close(fig)
    Image.open(files["png"]).convert("RGB").save(files["jpeg"], format="jpeg", quality=84)  # to draw again takes longer
    kind = min(files, key=lambda name: files[name].tell())
    IPython.display.display(IPython.display.Image(files[kind].getvalue(), format=kind))


def as_colors(label: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Class indices (H, W) -> (H, W, 3) uint8 in the scheme's colours; everything that is not a class is black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(scheme.colors)] = scheme.colors
    return palette[label]


def class_legend(fig, scheme: Scheme, present: Iterable[int]) -> None:
    """Legend of the given classes in their official colours, below the pictures."""
    handles = [Patch(color=scheme.colors[i] / 255, label=scheme.classes[i]) for i in present]
    fig.legend(handles=handles, ncols=7, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False)


def show_pair(photo: np.ndarray, label: np.ndarray, scheme: Scheme, name: str = "label"):
    """Figure of a photo (H, W, 3) and a label or prediction (H, W), its name, side by side, with a legend; returns it."""
    height, width = label.shape
    fig, axes = plt.subplots(1, 2, figsize=(8.5, min(4.4, 4.2 * height / width + 0.4)), layout="constrained")
    for axis, title, panel in zip(axes, ("photo", name), (photo, as_colors(label, scheme)), strict=True):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    class_legend(fig, scheme, np.unique(label[label < 255]))
    return fig


def show_panels(panels: dict[str, np.ndarray], scheme: Scheme | None = None, columns: int = 0):
    """Figure of pictures of one size under their titles, all in one row or in columns; returns it.

    panels: {title: photo (H, W, 3), or label (H, W) that is shown in the scheme's colours}. A scheme adds its legend.
    """
    columns = columns or len(panels)
    rows = math.ceil(len(panels) / columns)
    h, w = next(iter(panels.values())).shape[:2]
    size = (8.5, rows * (8.5 / columns * h / w + 0.3))
    fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, panel) in zip(axes.flat, panels.items()):
        axis.imshow(as_colors(panel, scheme) if panel.ndim == 2 else panel, interpolation="nearest")
        axis.set_title(title, fontsize=9)
    if scheme:
        seen = [np.unique(panel) for panel in panels.values() if panel.ndim == 2] or [range(len(scheme.classes))]
        class_legend(fig, scheme, [c for c in np.unique(np.concatenate(seen)) if c < len(scheme.classes)])
    return fig


def show_confusion(confusion: np.ndarray, classes: Sequence[str]):
    """Figure of a confusion matrix (C, C), rows in per cent of the true class, of the classes that occur; returns it."""
    keep = np.flatnonzero(confusion.sum(axis=1))
    shares = 100 * confusion[keep][:, keep] / confusion[keep].sum(axis=1, keepdims=True)
    fig, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
    axis.set_xticks(range(len(keep)), [classes[c] for c in keep], rotation=90)
    axis.set_yticks(range(len(keep)), [classes[c] for c in keep])
    axis.set(xlabel="predicted", ylabel="true")
    return fig


def show_unet(photo: np.ndarray, label: np.ndarray, width: int = 64, depth: int = 3, size: int = 256):
    """Figure of a U-Net between a photo and a label, both (H, W, 3): a box for each map, its channels and side below.

    Maps of one level stand at one height; orange arrows are the skip connections.
    """
    levels = [*range(depth + 1), *range(depth - 1, -1, -1)]
    arrow = {"arrowstyle": "->", "color": "0.4"}
    fig, axis = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
    for x, level in enumerate(levels, start=1):
        side = 0.8 * 0.8**level
        axis.add_patch(plt.Rectangle((x, -level), 0.5, side, color=CURVES[0], alpha=0.7))
        text = f"{width << level} channels\n{size >> level} x {size >> level}"
        axis.text(x + 0.25, -level - 0.06, text, ha="center", va="top", fontsize=7.5)
        if x > 1:
            before = levels[x - 2]
            axis.annotate("", (x, side / 2 - level), (x - 0.5, 0.4 * 0.8**before - before), arrowprops=arrow)
        if x > depth + 1:
            y = 0.9 * side - level
            axis.annotate("", (x, y), (2 * (depth + 1) - x + 0.5, y), arrowprops=arrow | {"color": CURVES[1]})
    last = len(levels) + 1
    axis.text(last / 2 + 0.25, 0.75, "skip connection: the map is copied", ha="center", color=CURVES[1], fontsize=9)
    for x, text in ((1.9, "max pooling"), (last - 1.4, "transposed\nconvolution")):
        axis.text(x, 0.2, text, ha="left" if x < last / 2 else "right", va="center", color="0.3", fontsize=7.5)
    axis.text(last / 2 + 0.65, 0.25 - depth, "bottleneck", va="center", color="0.3", fontsize=7.5)
    for x, picture, text in ((-0.2, photo, "photo"), (last, label, "class of each pixel")):
        axis.imshow(picture, extent=(x, x + 0.8, 0, 0.8), interpolation="nearest", aspect="auto", zorder=2)
        axis.text(x + 0.4, -0.06, text, ha="center", va="top", fontsize=7.5)
    for x in (0.6, last - 0.5):
        axis.annotate("", (x + (0.4 if x < 1 else 0.5), 0.4), (x, 0.4), arrowprops=arrow)
    axis.set(xlim=(-0.3, last + 0.9), ylim=(-depth - 0.6, 1.0))
    axis.set_axis_off()
    return fig


def show_encoder_unet(channels: Sequence[int], num_classes: int = 19):
    """Figure of a U-Net on an encoder whose maps, each of half the size of the one before, have these channels; returns it."""
    n = len(channels)
    levels = [0, *range(1, n + 1), *range(n, -1, -1)]
    names = ["photo", *channels, *channels[::-1], num_classes]
    colors = ["0.6"] + [CURVES[k] for k in [0] * n + [2] + [1] * n]
    arrow = {"arrowstyle": "->", "color": "0.4"}
    fig, axis = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
    for x, (level, name, color) in enumerate(zip(levels, names, colors)):
        axis.bar(x, 0.6, 0.7, bottom=-level, color=color, alpha=0.7)
        axis.text(x, -level + 0.3, name, ha="center", va="center", fontsize=9)
        if x:
            axis.annotate("", (x - 0.35, 0.3 - level), (x - 0.65, 0.3 - levels[x - 1]), arrowprops=arrow)
    for level in range(n + 1):
        axis.text(-1, 0.3 - level, f"1/{2**level}", va="center", fontsize=9)
        if 0 < level < n:
            axis.annotate("", (2 * n + 0.65 - level, 0.3 - level), (level + 0.35, 0.3 - level), arrowprops=arrow)
    axis.set(xlim=(-1.2, 2 * n + 1.5), ylim=(-n - 0.1, 0.7))
    axis.set_axis_off()
    return fig


def show_seeds(table: pd.DataFrame, xlabel: str):
    """Figure of a table with rows (method, seed): a panel for each column, a row of dots for each method; returns it."""
    names = [str(name) for name in dict.fromkeys(table.index.get_level_values(0))]
    size = (8.5, 0.3 * len(names) + 1.2)
    fig, axes = plt.subplots(1, len(table.columns), figsize=size, sharex=True, layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], table, strict=True):
        seeds = table[name].groupby(level=1)
        for color, aside, (seed, dots) in zip(cycle(CURVES), np.linspace(-0.2, 0.2, len(seeds)), seeds):
            rows = [names.index(method) + aside for method in dots.index.get_level_values(0)]
            axis.plot(dots.to_numpy(), rows, "o", color=color, label=f"seed {seed}")
        axis.axvline(0, color="0.6", linewidth=0.8)
        axis.set_yticks(range(len(names)), names if axis is axes[0][0] else [])
        axis.set(title=name, xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="x", alpha=0.3)
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return fig


def show_intervals(table: pd.DataFrame, xlabel: str):
    """Figure of differences with intervals, rows (what, panel) of a table with columns difference, low, high; returns it.

    Where the table has a column "significant", the other dots are hollow.
    """
    names, panels = (list(dict.fromkeys(table.index.get_level_values(level))) for level in (0, 1))
    size = (8.5, 0.3 * len(names) + 1)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, layout="constrained", squeeze=False)
    for axis, panel in zip(axes[0], panels):
        axis.axvline(0, color="0.6", linewidth=0.8)
        for name, row in table.xs(panel, level=1).iterrows():
            filled = CURVES[0] if row.get("significant", True) else "white"
            axis.plot([row["low"], row["high"]], [names.index(name)] * 2, color=CURVES[0])
            axis.plot(row["difference"], names.index(name), "o", color=CURVES[0], markerfacecolor=filled)
        axis.set(title=panel, xlabel=xlabel, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axis.locator_params(axis="x", nbins=6)
        axis.grid(axis="x", alpha=0.3)
    return fig


def show_curves(tables: dict[str, pd.DataFrame], ylabel: str, dashed: Iterable[str] = ()):
    """Figure of tables {title: a curve per column, over the named index}, side by side on one scale, one legend; returns it."""
    size = (5.5 if len(tables) == 1 else 8.5, 2.8)
    fig, axes = plt.subplots(1, len(tables), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axis, (title, table) in zip(axes[0], tables.items()):
        styles = ["x--" if name in dashed else "o-" for name in table]
        table.plot(ax=axis, style=styles, ms=4, color=CURVES, legend=False, title=title, grid=True)
        axis.set(xlabel=table.index.name, ylabel=ylabel, xticks=table.index)
    lines, names = axes[0][0].get_legend_handles_labels()
    fig.legend(lines, names, loc="outside lower center", ncols=4, frameon=False)
    return fig


def show_pulls(pulls: dict, slides: dict, names: dict[str, str], shift: int = 6):
    """Figure of losses that pull on an object which slides: each loss by shift, and its pull on thin and thick; returns it.

    pulls: {(term, kind): [(loss, pull (H, W)) by shift]}; slides: {kind: [(label, prediction), each (1, H, W), by shift]};
    names: {term: title}. Blue raises the object's logit. A title says how hard the mean missed pixel is pulled, and which
    share of all pull falls on pixels that are right. `shift` is a place in these lists; the strongest 1 % have one colour.
    """
    fig, axes = plt.subplots(1 + len(slides), len(names), figsize=(9, 7), layout="constrained")
    for column, (term, name) in zip(axes.T, names.items()):
        column[0].set(title=name, xlabel="shift (px)")
        column[0].set_prop_cycle(color=CURVES)
        largest = max(pulls[term, kind][shift][1].abs().quantile(0.99) for kind in slides)  # a few pixels of noise are larger
        for axis, (kind, slid) in zip(column[1:], slides.items()):
            losses, forces = zip(*pulls[term, kind])
            column[0].plot(losses, marker=".", label=kind)
            force, (truth, moved) = forces[shift], slid[shift]
            axis.imshow(force, cmap="RdBu", vmin=-largest, vmax=largest)
            axis.contour(truth[0], [0.5], colors="black", linewidths=0.7)
            missed = force[(truth > moved)[0]].mean()
            right = force.abs()[(truth == moved)[0]].sum() / force.abs().sum()
            axis.set_title(f"missed {missed:.2f}, right {right:.0%}", fontsize=9)
            axis.set(xticks=[], yticks=[])
        column[0].set_ylim(0, None)
    axes[0, 0].legend(frameon=False)
    for axis, name in zip(axes[:, 0], ("loss", *slides)):
        axis.set_ylabel(name)
    return fig


def show_segformer(channels: Sequence[int], height: int):
    """Figure, to scale, of a photo of `height` rows, an encoder's four maps, the mixed map of the head and the logits."""
    fig, axis = plt.subplots(figsize=(8.5, 1.9), layout="constrained")
    names = ("photo", "stage 1", "stage 2", "stage 3", "stage 4", "mixed", "logits")
    strides, x = (1, 4, 8, 16, 32, 4, 4), 0
    for name, n, stride in zip(names, (3, *channels, 256, 7), strides):
        side, title = 4 / stride, f"{name}\n{n} channels\n{height // stride} rows"
        color = "0.6" if name == "photo" else CURVES[name in ("mixed", "logits")]
        middle = x + max(side, 1.8)
        axis.add_patch(plt.Rectangle((middle - side, 0), 2 * side, side, color=color, alpha=0.7))
        axis.text(middle, side + 0.15, title, ha="center", fontsize=8)
        x = middle + max(side, 1.8) + 0.4
    axis.set(xlim=(-0.2, x), ylim=(-0.1, 6.4), aspect="equal")
    axis.set_axis_off()
    return fig


def show_folds(parts: dict[str, Sequence[np.ndarray]], groups: Sequence[str]):
    """Figure of folds {kind: [indices, ...]} of pictures (N,): a band a kind, a colour a fold, dashes between the groups."""
    groups = np.asarray(groups)
    fig, axes = plt.subplots(len(parts), figsize=(8, 2), squeeze=False, sharex=True, layout="constrained")
    for axis, (kind, split) in zip(axes.flat, parts.items()):
        fold_of = np.zeros((1, len(groups)))
        for number, part in enumerate(split, start=1):
            fold_of[0, part] = number
        band = axis.imshow(fold_of, aspect="auto", cmap=ListedColormap(CURVES[: len(split)]), vmin=0.5, vmax=len(split) + 0.5)
        for group in np.unique(groups):
            first, last = np.flatnonzero(groups == group)[[0, -1]]
            axis.axvline(last + 0.5, color="white", linestyle="--")
            axis.text((first + last) / 2, -0.6, group, ha="center", fontsize=9)
        axis.set_yticks([0], [f"by {kind}"])
    axes[-1, 0].set_xlabel("picture")
    fig.colorbar(band, ax=axes, ticks=range(1, len(split) + 1), label="fold")
    return fig


def show_history(histories: dict[str, pd.DataFrame], metrics: Sequence[str] = ("train_loss", "miou"),
                 colors: Sequence[str] = CURVES, styles: Sequence[str] = ("-",)):
    """A panel per column of history.csv, two in a row, one curve per run, colours and styles in turn; returns the figure."""
    rows = math.ceil(len(metrics) / 2)
    fig, axes = plt.subplots(rows, 2, figsize=(8.5, 2.8 * rows), layout="constrained", squeeze=False)
    for axis, metric in zip(axes.flat, metrics):
        for color, style, (name, history) in zip(cycle(colors), cycle(styles), histories.items()):
            axis.plot(history["epoch"], history[metric], style, color=color, label=name, marker=".")
        label = metric.replace("_", " ").replace("miou", "mIoU").replace("iou", "IoU").replace("f1", "F1")
        axis.set(xlabel="epoch", ylabel=label)
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return fig
