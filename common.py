"""Helpers of the notebooks.

Five groups, in the order in which a notebook meets them: parameters, data, metrics and statistics, training, pictures.
What a notebook teaches (its network, its losses, its augmentation) stands in the notebook; what a run leaves on disk is
the business of results/runs.py.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import platform
import reprlib
import shutil
import sys
import textwrap
import time
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

warnings.filterwarnings("ignore", "IProgress not found")  # said on import by others; our bars are plain text
# torch's threads spin while they wait, for so long that beside another program a training becomes many times slower; a
# thousand turns are enough where nothing else runs (tests/bench_shared_machine.py)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, broadcast, gather_object
from scipy import stats
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.datasets import Cityscapes

import data_prep
from data_prep import Frame, StreetsError, class_boxes, grow_box, read_image, read_label, write_atomic
from results import runs
from results.runs import coerce, flat, in_range, load_weights, read_json, save_weights, say_once, setting, shown, write_json

# others reach these through common
from results.figures import CURVES as CURVES, as_colors as as_colors, class_legend as class_legend, show as show  # isort: skip
from results.figures import show_confusion as show_confusion, show_encoder_unet as show_encoder_unet  # isort: skip
from results.figures import show_curves as show_curves, show_folds as show_folds  # isort: skip
from results.figures import show_history as show_history, show_pair as show_pair, show_panels as show_panels  # isort: skip
from results.figures import show_intervals as show_intervals  # isort: skip
from results.figures import show_pulls as show_pulls, show_seeds as show_seeds, show_segformer as show_segformer  # isort: skip
from results.figures import show_unet as show_unet  # isort: skip
from data_prep import dataset_name as dataset_name, has_test_labels as has_test_labels  # isort: skip
from data_prep import HERE as HERE, list_frames as list_frames  # isort: skip
from results.runs import find_runs as find_runs, headline as headline, read_published as read_published  # isort: skip
from results.runs import LITE0_MEAN as LITE0_MEAN, LITE0_STD as LITE0_STD, with_weights as with_weights  # isort: skip
from results.runs import network_errors as network_errors, network_facts as network_facts  # isort: skip
from results.runs import check_stages as check_stages, compile_loss as compile_loss  # isort: skip
from results.runs import own_losses as own_losses, several as several, train_runs as train_runs  # isort: skip

# CUDA that is initialised here could not be used by the processes that a notebook forks; this makes the check harmless
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

if sys.flags.optimize > 1:  # python -OO leaves docstrings out; this module adds to its own while it is imported
    docs = types.ModuleType("segmentation_models_pytorch.metrics.functional")
    path = Path(*importlib.util.find_spec("segmentation_models_pytorch").submodule_search_locations, "metrics/functional.py")
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", optimize=1), docs.__dict__)
    sys.modules[docs.__name__] = docs

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


CHOICES = {"precision": ("auto", "bf16", "fp16", "fp32"), "rerun": ("no", "yes")}  # of parameters that all notebooks share


def check_parameters(scope: dict, modes: dict[str, dict], choices: dict[str, Iterable[str]] | None = None,
                     lists: dict[str, Iterable[str] | Callable] | None = None) -> dict:
    """Check a notebook's parameters, print and return its settings: what its mode says, and what was changed of that.

    `scope` is the notebook's globals(); each parameter is brought there to the type that the parameters cell declares.
    `modes` holds the values of each mode: a parameter of the same name that is not 0 or empty takes their place, and
    papermill's -p reaches them also where the parameters cell does not show them. `choices` names the values allowed for
    parameters that take one, `lists` for those that take several (or the function that reads such a text); `runs.RANGES`
    holds the numbers allowed. Raises StreetsError for a name that is neither (papermill only warns of a misspelt -p), a
    value that is not allowed, also in `modes`, a file or a directory that does not exist, a photo that is too small, and
    where the environment is half that of a launched process.
    """
    if os.environ.get("NBGRADER_EXECUTION") and "get_ipython" in scope:
        scope["get_ipython"]().input_transformers_post.append(runs.exercises_only())
        print("Graded by nbgrader: of the lesson only its definitions are run, then the exercises.")
        return dict(next(iter(modes.values())))
    runs.check_launch()
    declared, said, injected = runs.parameter_cells(scope)
    if said.get("mode") not in list(modes):
        raise StreetsError(f"mode does not know {shown(said.get('mode'))}: use {' or '.join(modes)}.")
    of_mode = modes[said["mode"]]
    for name in injected:
        if name not in declared and name not in of_mode:
            more = [key for key in of_mode if key not in declared]
            raise StreetsError(f"There is no parameter {name!r} here: this notebook has {', '.join(declared)}"
                               + (f", and its modes have {', '.join(more)}." if more else "."))
    values = {}
    for name, value in said.items():
        values[name] = coerce(name, value, declared.get(name, of_mode.get(name)))
    # 0 and "" take the mode's value where the parameters cell shows them; lr also replaces scratch_lr, which is the mode's
    # value for a network without pretrained weights
    given = {name: value for name, value in values.items() if value or name not in declared}
    chosen = {key: given[name] for key in of_mode for name in (key.removeprefix("scratch_"), key) if name in given}
    settings = {name: in_range(name, value) for name, value in (of_mode | chosen).items()}
    values |= {name: in_range(name, value) for name, value in values.items() if name not in settings}
    decided = values | settings
    for name, allowed in (CHOICES | (choices or {})).items():
        if name in decided and decided[name] not in list(allowed):
            raise StreetsError(f"{name} does not know {shown(decided[name])}: use {' or '.join(filter(None, allowed))}.")
    for name, allowed in (lists or {}).items():
        allowed(values[name]) if callable(allowed) else several(name, values[name], allowed)
    for name in ("evaluate_at", "keep_at"):
        runs.epochs_named(decided.get(name, ""), 0)
    for name in runs.PATHS:
        if values.get(name):
            values[name] = runs.check_path(name, values[name])
    scope.update(values)
    defaults = runs.published_defaults(scope.get("NOTEBOOK", ""), declared)
    scope["_parameters"] = runs.Parameters(values, defaults, of_mode, tuple(lists or ()))
    print("\n".join(textwrap.wrap(f"{values['mode']}: " + ", ".join(f"{key}={value}" for key, value in settings.items()), 100)))
    return settings


def find_data(data_dir: str = "", mode: str = "quick") -> Path:
    """Root of the data set to use, as `data_prep.find_data` finds it; "toy" names the embedded toy streets.

    Raises StreetsError where a mode for real streets would get toy streets that were not asked for, where a split's first
    photo is too small for a network, and where no label of a split holds a pixel of the 19 classes.
    """
    root = data_prep.find_data(str(data_prep.toy_streets()) if runs.is_toy(data_dir) else data_dir)
    if mode != "quick" and dataset_name(root) == "toy" and not (data_dir or os.environ.get("CITYSCAPES_DATASET")):
        raise StreetsError(f"mode {mode} is for real streets, and none were found: get some with `python data_prep.py camvid "
                           f"--out data/camvid` (notebooks/README.md: \"Use real streets\") and name them with "
                           f"{setting('data_dir', 'data/camvid')}, or ask for the toy streets with {setting('data_dir', 'toy')}.")
    for split in ("train", "val", "test") if has_test_labels(root) else ("train", "val"):
        try:
            frames = list_frames(root, split)
        except StreetsError:  # a notebook that needs this split says so
            continue
        shape = read_label(frames[0].label).shape
        runs.check_size(shape, frames[0].image)
        StreetScenes(frames, shape).require_classes(split)
    return root


class WrongAnswer(Exception):
    """What `check` finds; the message says what is wrong."""


@contextmanager
def exercise(name: str):
    """Run the self-check of an exercise and print one line: not done yet, not right yet and why, or right.

    The notebook goes on in each case. While nbgrader grades, what is not right earns 0 points.
    """
    try:
        yield
        verdict = "right"
    except NotImplementedError:
        verdict = "not done yet"
    except WrongAnswer as error:
        verdict = f"not right yet: {error}"
    except Exception as error:  # a student's code can raise anything
        verdict = f"not right yet: {type(error).__name__}: {error}"
    print(f"{name}: {' '.join(verdict.split())}")
    if verdict != "right" and os.environ.get("NBGRADER_EXECUTION"):
        sys.displayhook(0.0)  # the result of a check's cell is its points, where it has one


def check(what: str, got, expected=None, *, between: tuple[float, float] | None = None, tolerance: float = 1e-5) -> None:
    """Print a result beside what is expected, and raise WrongAnswer where it is something else.

    expected: a number, an array or tensor (equal within `tolerance`) or a text; between: the lowest and the highest
    number that are right, where there is no single one.
    """
    got, expected = (v.detach().cpu().numpy() if torch.is_tensor(v) else v for v in (got, expected))
    show_number = partial(np.array2string, precision=6, threshold=20)
    wanted = f"between {between[0]} and {between[1]}" if between else show_number(np.asarray(expected))
    shown = reprlib.repr(got)
    try:
        shown = show_number(np.asarray(got))
        if between:
            right = bool(between[0] <= got <= between[1])
        elif np.asarray(expected).dtype.kind == "U":
            right = np.array_equal(got, expected)
        else:
            right = np.shape(got) == np.shape(expected) and np.allclose(got, expected, 0, tolerance, equal_nan=True)
    except (TypeError, ValueError):  # no number at all
        right = False
    if not right:
        raise WrongAnswer(f"{what} is {shown}, expected {wanted}")
    print(f"{what}: {shown} (expected {wanted})")


class Scheme(NamedTuple):
    """A set of classes: names, official colours (n, 3), and `table` (256,) from labelId to class; 254 marks ids that
    do not exist and 255 pixels that are ignored."""

    classes: list[str]
    colors: np.ndarray
    table: np.ndarray


def make_scheme(groups: dict[str, Sequence[str]], rest: int) -> Scheme:
    """Scheme whose class i holds the official class names of the i-th group; the other official classes get `rest`."""
    official = {c.name: c for c in Cityscapes.classes}
    table = np.full(256, 254, np.uint8)
    table[[c.id % 256 for c in Cityscapes.classes]] = rest
    for index, members in enumerate(groups.values()):
        table[[official[member].id for member in members]] = index
    colors = np.array([official[m[0]].color if m else (0, 0, 0) for m in groups.values()], np.uint8)
    return Scheme(list(groups), colors, table)


VEHICLES = ("car", "truck", "bus", "train", "motorcycle", "bicycle", "caravan", "trailer")
THIN = ("fence", "car", "vegetation", "pole", "traffic sign", "traffic light")
SCHEMES = {
    "cityscapes19": make_scheme({c.name: [c.name] for c in Cityscapes.classes if 0 <= c.train_id < 255}, rest=255),
    "streets7": make_scheme({"background": (), "road": ["road"], "building": ["building"], "vehicle": VEHICLES,
                             "person": ["person", "rider"], "vegetation": ["vegetation"], "sky": ["sky"]}, rest=0),
    "thin7": make_scheme({"background": ()} | {name: [name] for name in THIN}, rest=0),
}


def evenly(frames: Sequence, n: int) -> list:
    """`n` of the frames, spread evenly over the list; all of them for n = 0."""
    if not n or n >= len(frames):
        return list(frames)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, n).round().astype(int)]


def list_splits(root: Path, images: int = 0) -> dict[str, list[Frame]]:
    """Frames of train, val and test, at most `images` of each (0: all); test is empty where it has no labels."""
    splits = {split: list_frames(root, split) for split in ("train", "val")}
    splits["test"] = list_frames(root, "test") if has_test_labels(root) else []
    return {split: evenly(frames, images) for split, frames in splits.items()}


def split_frames(frames: Sequence, split_seed: int) -> list[list]:
    """[train, val, test], shuffled, each sorted: 2000, 250 and 250 of Cityscapes' 2975 frames, else 80, 10 and 10 %."""
    whole = len(frames) == 2975
    part = 250 if whole else max(1, len(frames) // 10)
    learn = 2000 if whole else max(0, len(frames) - 2 * part)
    order = np.random.default_rng(split_seed).permutation(len(frames))
    return [sorted(frames[i] for i in one) for one in np.split(order, [learn, learn + part, learn + 2 * part])[:3]]


def halve(frames: Sequence) -> tuple[list, list]:
    """(test, val) halves of a list, as scikit-learn's train_test_split(..., test_size=0.5, random_state=42) gives them."""
    order = np.random.RandomState(42).permutation(len(frames))
    second = (len(frames) + 1) // 2
    return [frames[i] for i in order[second:]], [frames[i] for i in order[:second]]


def resize_pair(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) resized smoothly, label (H, W) by nearest pixel, to `size` = (height, width)."""
    if label.shape != tuple(size):
        # a linear interpolation skips pixels where a side becomes half as long or less
        shrinking = label.shape[0] > size[0] or label.shape[1] >= 2 * size[1]
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
        label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return image, label


def network_size(frame: Frame, height: int) -> tuple[int, int]:
    """(height, width) for a network that halves its input five times: the photo's shape, both multiples of 32.

    Raises StreetsError where height is none; the width is rounded to one.
    """
    if height % 32:
        raise StreetsError(f"height must be a multiple of 32, not {height}: use {setting('height', max(32, height // 32 * 32))}.")
    h, w = read_label(frame.label).shape
    return height, max(32, round(w * height / h / 32) * 32)


def to_tensor(image: np.ndarray, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> torch.Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32, scaled to [0, 1] and normalised."""
    scaled = image.astype(np.float32) * (1 / (255 * np.float32(std))) - np.float32(mean) / np.float32(std)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32))


class StreetScenes(Dataset):
    """Street scenes with labels in one of SCHEMES.

    An item is {"image": (3, H, W) float32, "label": (H, W) int64, "index": int} and whatever `targets(label)` adds.
    Its key is an index, or (epoch, index) as EpochSampler yields: `augment(image, label, rng)` gets uint8 arrays
    (H, W, 3) and (H, W) and a generator made from (seed, epoch, index) alone, so that the same epoch shows the same
    pixels with any number of workers. Raises StreetsError naming the file for damaged, unmatched or unknown data.
    """

    def __init__(self, frames: Sequence[Frame], size: tuple[int, int], scheme: str = "cityscapes19", *,
                 augment: Callable | None = None, targets: Callable | None = None, seed: int = 0,
                 mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        if not frames:
            raise StreetsError("A split is empty: look at the data with `python data_prep.py check ROOT`.")
        self.frames, self.size, self.scheme = list(frames), tuple(size), SCHEMES[scheme]
        self.augment, self.targets, self.seed, self.mean, self.std = augment, targets, seed, mean, std

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and label (H, W) of class indices, both uint8, resized and not augmented."""
        frame = self.frames[index]
        image, ids = read_image(frame.image), read_label(frame.label)
        if image.shape[:2] != ids.shape:
            sizes = ["x".join(map(str, array.shape[:2])) for array in (ids, image)]
            raise StreetsError(f"{frame.label} is {sizes[0]} pixels, but its photo is {sizes[1]}: "
                               "restore the right one.")
        return resize_pair(image, self.scheme.table[ids], self.size)

    def require_classes(self, what: str) -> None:
        """StreetsError where all pixels of all labels are void; reads labels until one is not."""
        if not any((self.read(index)[1] != 255).any() for index in range(len(self))):
            raise StreetsError(f"All {len(self)} labels of {what} are void, such as {self.frames[0].label}: nothing can be "
                               "learnt from them or scored on them; restore them, or use other images.")

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, label = self.read(index)
        if self.augment:
            augmented = self.augment(image, label, np.random.default_rng((self.seed, epoch, index)))
            image, label = require_scene(augmented, len(self.scheme.classes))
        item = {"image": to_tensor(image, self.mean, self.std), "label": torch.from_numpy(label.astype(np.int64))}
        return item | {"index": index} | (self.targets(label) if self.targets else {})


def require_scene(augmented, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) as `augment` returned them; StreetsError unless they are (H, W, 3) uint8 and (H, W) of n classes or 255."""
    try:
        image, label = augmented
        facts = f"{image.dtype} {image.shape} and {label.dtype} {label.shape}"
    except (AttributeError, TypeError, ValueError):
        raise StreetsError(f"augment must return an image and a label as arrays, not {type(augmented).__name__}.") from None
    if not (image.dtype == np.uint8 and image.shape[2:] == (3,) and label.dtype.kind in "ui" and label.ndim == 2 and label.size):
        raise StreetsError(f"augment must return an image (H, W, 3) uint8 and a label (H, W) of integers, not {facts}.")
    if wrong := label[((label < 0) | (label >= n)) & (label != 255)].tolist():
        raise StreetsError(f"augment must return a label of classes 0 to {n - 1}, or 255, but it holds {wrong[0]}.")
    return image, label


class EpochSampler(Sampler):
    """Yields (epoch, index) in an order that depends on (seed, epoch) only; set `epoch` before each pass."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        for index in np.random.default_rng((self.seed, self.epoch)).permutation(self.length):
            yield self.epoch, int(index)


def make_loader(data: Dataset, batch_size: int, *, sampler: Sampler | None = None, num_workers: int = -1) -> DataLoader:
    """DataLoader: training (with a sampler; the last short batch is dropped) or evaluation (in order).

    num_workers = -1 takes none on a CPU, which is busy with the network, and up to 8 beside a GPU. Workers are forked,
    because classes defined in a notebook cannot be spawned; where forking is not safe, or /dev/shm, through which they hand
    over batches, has no room, the main process loads.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # which share this machine
    if num_workers < 0:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_workers = min(8, max(1, cpus // processes)) if torch.cuda.is_available() else 0
    if num_workers and sys.platform != "linux":
        say_once("num_workers: 0, because this system cannot fork worker processes")
        num_workers = 0
    if num_workers and len(data) and Path("/dev/shm").exists():
        batch = sum(v.nbytes for v in data[0].values() if torch.is_tensor(v)) * batch_size
        fit_in = shutil.disk_usage("/dev/shm").free / processes / batch
        room = max(0, int(min(fit_in / 3, (fit_in - 2) / 2)))  # two for each worker, the one in use and the one before it
        if room < num_workers:
            say_once(f"num_workers: {room} instead of {num_workers}, because /dev/shm has no room for more batches")
            num_workers = room
    # OpenCV's own threads gain nothing beside workers, and a process forked while they exist hangs at its first call
    cv2.setNumThreads(1)
    options = {}
    if num_workers:
        # persistent workers draw a seed in their first epoch only; from torch's own generator, that would shift the
        # dropout of a resumed run
        options = {"multiprocessing_context": "fork", "persistent_workers": sampler is not None,
                   "generator": torch.Generator()}
    return DataLoader(data, batch_size, sampler=sampler, drop_last=sampler is not None, num_workers=num_workers,
                      pin_memory=torch.cuda.is_available(), **options)


SQUARE = np.ones((3, 3), np.uint8)  # what contours are found with
CONTOURS = ("boundary_f1", "boundary_f1_strict", "trimap_iou")  # scores of one picture, (C,), that are averaged over pictures


def confusion_matrix(pred, target, n: int, ignore: int = 255) -> np.ndarray:
    """Count pixels by true and predicted class: (n, n) int64, rows truth, columns prediction.

    pred, target: integer arrays, or tensors on any device, of one shape, classes 0..n-1. Pixels whose target is
    `ignore` do not count. Matrices of several images add up. Raises ValueError where the shapes differ or a value that
    counts is no class, and where they are no integers.
    """
    pred, target = _arrays(pred, target)
    valid = target != ignore
    pred, target = pred[valid], target[valid]
    _require_classes(pred, target, n)
    return np.bincount(target.astype(np.int64) * n + pred, minlength=n * n).reshape(n, n)


def iou_per_class(cm: np.ndarray) -> np.ndarray:
    """Return each class's intersection over union, (..., n) in [0, 1]; nan where it is in neither truth nor prediction.

    cm: (..., n, n), one confusion matrix or several.
    """
    hits = np.diagonal(cm, axis1=-2, axis2=-1)
    return _divide(hits, cm.sum(-2) + cm.sum(-1) - hits)


def accuracy(cm: np.ndarray) -> float:
    """Return the share of pixels that are right, in [0, 1]; nan for an empty matrix."""
    return float(_divide(np.trace(cm), cm.sum()))


def miou(cm: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in the truth, in [0, 1]; nan where none does."""
    present = cm.sum(1) > 0
    return float(iou_per_class(cm)[present].mean()) if present.any() else float("nan")


def miou_official(cm: np.ndarray) -> float:
    """Return the mean IoU as cityscapesscripts computes it, to the last bit.

    A class that occurs in the prediction only counts as 0 there, while `miou` leaves it out.
    """
    scores = iou_per_class(cm)
    scores = scores[~np.isnan(scores)]
    # cumsum adds one by one, as the official loop does; mean() adds pairwise and can differ in the last bit
    return float(np.cumsum(scores)[-1] / len(scores)) if len(scores) else float("nan")


def _divide(numerator, denominator) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def boundary_f1(pred, target, n: int, tolerance: int = 3, estimator: str = "per_class", ignore: int = 255,
                count_frame: bool = True, count_void_rim: bool = True) -> np.ndarray:
    """Return how well the contours of one image match within `tolerance` pixels: (n,) F1 scores in [0, 1].

    pred, target: (H, W) integer arrays or tensors. A class's boundary is its 3x3 dilation without its 3x3 erosion; a
    boundary pixel is matched when the other map has one in the (2 tolerance + 1)^2 square around it. Precision is the
    share of predicted boundary pixels that are matched, recall that of the true ones, and F1 = 2PR / (P + R). Void is
    cut out of both maps. A class that is absent from the truth is nan, so that the image's score is the nanmean.

    estimator="as_published" returns the (1,) score of the first, wrong version: to it, id 0 is background and all else,
    void too, one foreground. The defaults are the corrected version, so that numbers compare with the source's (which
    adds 1e-6 to denominators). They keep its two flaws, free matches that raise all scores; compare models with both
    off, where a class without any boundary is nan, too: count_frame=False takes the image frame, where a class is
    merely cut off, for no boundary; count_void_rim=False skips boundary pixels that touch void, whose shape was cut
    into the prediction. Raises ValueError as `confusion_matrix` does.
    """
    pred, target = _arrays(pred, target)
    void = target == ignore
    counted = None if count_void_rim else 1 - cv2.dilate(void.view(np.uint8), SQUARE)
    if _is_as_published(estimator):
        return np.array([_boundary_f1_of_masks(pred != 0, target != 0, counted, tolerance, count_frame)])
    _require_classes(pred[~void], target[~void], n)
    pred = np.where(void, target, pred)
    scores = np.full(n, np.nan)
    for c, (box, pred_box) in enumerate(zip(class_boxes(target, n, ignore), class_boxes(pred, n, ignore))):
        if box is None:
            continue
        if pred_box is not None:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, pred_box))
        at = grow_box(box, 1, target.shape)  # a boundary reaches one pixel beyond its class
        inside = None if counted is None else counted[at]
        scores[c] = _boundary_f1_of_masks(pred[at] == c, target[at] == c, inside, tolerance, count_frame)
    return scores


def _boundary_f1_of_masks(pred, target, counted, tolerance: int, count_frame: bool) -> float:
    pred, target = _boundary(pred, count_frame), _boundary(target, count_frame)
    if counted is not None:
        pred, target = pred & counted, target & counted
    n_pred, n_target = cv2.countNonZero(pred), cv2.countNonZero(target)
    if not n_pred or not n_target:
        return 0.0 if n_pred or n_target else float("nan")
    square = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    precision = cv2.countNonZero(pred & cv2.dilate(target, square)) / n_pred
    recall = cv2.countNonZero(target & cv2.dilate(pred, square)) / n_target
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray, count_frame: bool = True) -> np.ndarray:
    """Return dilation XOR erosion (3x3) of a (H, W) bool mask as uint8 0/1."""
    mask = mask.view(np.uint8)
    outside = 0 if count_frame else 1  # what erosion takes to lie beyond the frame
    eroded = cv2.erode(mask, SQUARE, borderType=cv2.BORDER_CONSTANT, borderValue=outside)
    return cv2.dilate(mask, SQUARE) ^ eroded


def trimap_band(target, n: int, radius: int = 3, estimator: str = "per_class", ignore: int = 255) -> np.ndarray:
    """Return the (H, W) bool band of valid pixels around the seams between classes of a (H, W) label.

    A seam is a pair of 4-neighbours of different classes, both valid; both its pixels are dilated with a
    (2 radius + 1)^2 square. So neither void nor the image frame makes a band. `n` is not used: every seam counts.
    estimator="as_published" bands the boundary that the first, wrong version saw: id 0 against all else, void too.
    """
    target = _numpy(target)
    valid = target != ignore
    if _is_as_published(estimator):
        seam = _boundary(target != 0)
    else:
        seam = np.zeros(target.shape, np.uint8)
        for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
            differ = (target[a] != target[b]) & valid[a] & valid[b]
            seam[a] |= differ
            seam[b] |= differ
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return (cv2.dilate(seam, square) != 0) & valid


def trimap_iou(pred, target, n: int, radius: int = 3, estimator: str = "per_class", ignore: int = 255) -> np.ndarray:
    """Return each class's IoU within the `trimap_band` of one image: (n,) in [0, 1], nan where the union is empty.

    The image's score is the nanmean, and the data set's the mean over images. An image without a band is all nan and
    so skipped (the source scored it 0).
    """
    pred, target = _arrays(pred, target)
    band = trimap_band(target, n, radius, estimator, ignore)
    return iou_per_class(confusion_matrix(pred[band], target[band], n, ignore))


def _arrays(pred, target) -> tuple[np.ndarray, np.ndarray]:
    if tuple(pred.shape) != tuple(target.shape):
        raise ValueError(f"prediction {tuple(pred.shape)} and label {tuple(target.shape)} differ in shape; resize one.")
    return _numpy(pred), _numpy(target)


def _require_classes(pred: np.ndarray, target: np.ndarray, n: int) -> None:
    for name, values in (("prediction", pred), ("label", target)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < n:
            raise ValueError(f"the {name} holds {int(values.min())}..{int(values.max())}; classes are 0..{n - 1}.")


def _numpy(array) -> np.ndarray:
    """Return an integer array or tensor as an array, of bytes where they hold it: argmax gives 8 bytes a pixel."""
    array = array.cpu().numpy() if hasattr(array, "cpu") else np.asarray(array)
    if array.dtype.kind not in "biu":
        raise ValueError(f"class indices are integers, not {array.dtype}: take the argmax of scores, or convert.")
    fits = array.itemsize > 1 and array.size and array.min() >= 0 and array.max() <= 255
    return array.astype(np.uint8) if fits else array


def _is_as_published(estimator: str) -> bool:
    if estimator not in ("per_class", "as_published"):
        raise ValueError(f"estimator={estimator!r} is unknown; use 'per_class' or 'as_published'.")
    return estimator == "as_published"


def student_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of independent values (one per seed) and the half-width of its Student-t interval.

    The half-width is nan for one value: a single run says nothing about its spread.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return float(values.mean()), float(quantile * stats.sem(values))


def paired_bootstrap(a: np.ndarray, b: np.ndarray, statistic: Callable[[np.ndarray], float],
                     blocks: Sequence | None = None, repeats: int = 10000,
                     seed: int = 0) -> tuple[float, float, float, float]:
    """Resample the images of a test set and return (difference, low, high, p) of statistic(a) - statistic(b).

    a, b: (N, n, n) confusion matrices per image, whose sum over the drawn images goes to `statistic` (say `miou`); or
    (N,) or (N, k) scores per image, of which the drawn rows do (say `np.nanmean`). Both models get the same draws.
    blocks: (N,) ids; images of one id, neighbouring frames of a drive, are drawn together, as they are no independent
    evidence. low and high bound the central 95%, and p is two-sided. It says what other images would have given, not
    what another seed would.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"the models were scored on different images: shapes {a.shape} and {b.shape}.")
    blocks = np.arange(len(a)) if blocks is None else blocks
    times = _times_drawn(blocks, repeats, np.random.default_rng(seed))
    differences = _resampled(a, times, statistic) - _resampled(b, times, statistic)
    once = np.ones((1, len(a)), int)
    difference = float((_resampled(a, once, statistic) - _resampled(b, once, statistic))[0])
    if len(np.unique(blocks)) < 2:  # one block is drawn whole, always: it says nothing about others
        return difference, float("nan"), float("nan"), float("nan")
    return difference, *_central(differences)


def film_blocks(cities: Sequence[str], length: int = 10) -> np.ndarray:
    """(N,) block ids for `paired_bootstrap`: runs of neighbouring frames of one city (a drive, on CamVid), in order."""
    cities = pd.Series(list(cities), dtype=str)
    return (cities + "/" + (cities.groupby(cities).cumcount() // length).astype(str)).to_numpy()


def compare_runs(ours: Sequence[Path], theirs: Sequence[Path], metric: str = "miou") -> tuple[float, float, float, float]:
    """(difference, low, high, p) of a score (miou, iou_pole, trimap_iou...), other seeds and pictures in one 95 % interval.

    ours, theirs: folders of finished runs, one per seed, in one order; the scores kept for each test picture are read.
    Seeds are drawn with replacement, the same for both methods, and so are blocks of ten neighbouring pictures, as in
    `paired_bootstrap`, whose interval this is for one seed.
    """
    ours, theirs = list(ours), list(theirs)  # a column of a table has other keys than 0, 1, 2
    kept = [[_kept_arrays(folder, "test") for folder in folders] for folders in (ours, theirs)]
    names = kept[0][0]["image"]
    if len(ours) != len(theirs) or any(not np.array_equal(names, one["image"]) for side in kept for one in side):
        raise ValueError("the methods were scored on different pictures, or have other seeds.")

    def scores_of(one: dict[str, np.ndarray]) -> np.ndarray:
        if metric == "miou":
            return _resampled(one["confusion"], times, miou)
        if metric.startswith("iou_"):
            k = _classes_of(ours[0]).index(metric.removeprefix("iou_"))
            return iou_per_class(_drawn_sums(one["confusion"], times))[:, k]
        return _resampled(pd.DataFrame(one[metric]).mean(axis=1).to_numpy(), times, np.nanmean)

    rng, repeats = np.random.default_rng(0), 1000
    drawn = _times_drawn(film_blocks(name.split("/")[0] for name in names), repeats, rng)
    times = np.vstack([np.ones(len(names), int), drawn])  # (1 + repeats, N), first each picture once
    scores = np.array([[scores_of(one) for one in side] for side in kept])
    differences = scores[0] - scores[1]  # (S, 1 + repeats)
    seeds = rng.integers(len(ours), size=(len(ours), repeats))
    return float(differences[:, 0].mean()), *_central(np.take_along_axis(differences[:, 1:], seeds, axis=0).mean(0))


def compare_pairs(folders: pd.DataFrame, pairs: dict[str, tuple[str, str]], metrics: dict[str, str]) -> pd.DataFrame:
    """`compare_runs` in points: a row (pair, title) with columns difference, low and high (of 95 %), p and seeds.

    folders: folders of runs, a row per seed, a column per method; pairs: {title: (method, other)}; metrics: {metric: title}.
    A pair is compared over the seeds that both methods have, and left out where there is none.
    """
    rows = {}
    for pair, methods in pairs.items():
        both = folders.reindex(columns=list(methods)).dropna()
        for metric, title in metrics.items() if len(both) else ():
            *points, p = compare_runs(*(both[method] for method in methods), metric)
            rows[pair, title] = *(100 * value for value in points), p, len(both)
    return pd.DataFrame(rows, index=["difference", "low", "high", "p", "seeds"]).T


def _central(differences: np.ndarray) -> tuple[float, float, float]:
    """(low, high, p): the central 95 % of drawn differences (nan left out), and the two-sided p of a difference of 0."""
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(low), float(high), float(min(1, 2 * (tail + 1) / (len(differences) + 1)))


def _times_drawn(blocks: Sequence, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """How often each image is drawn, (repeats, N), where whole blocks are, with replacement; blocks: (N,) ids, one per image."""
    _, block_of_image = np.unique(blocks, return_inverse=True)
    n_blocks = block_of_image.max() + 1
    return rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=repeats)[:, block_of_image]


def _resampled(values: np.ndarray, times: np.ndarray, statistic: Callable) -> np.ndarray:
    if values.ndim != 3:
        return np.array([statistic(np.repeat(values, t, axis=0)) for t in times])
    return np.array([statistic(cm) for cm in _drawn_sums(values, times)])


def _drawn_sums(confusion: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(R, n, n) sums of the matrices (N, n, n) of images that are drawn `times` (R, N)."""
    # counts below 2^53 are exact in float64, whose matrix product is far faster than that of integers
    sums = times.astype(float) @ confusion.reshape(len(confusion), -1).astype(float)
    return sums.reshape(-1, *confusion.shape[1:])


def pick_precision(precision: str = "auto") -> str:
    """Accelerate's name for the arithmetic: bf16 where the GPU has it natively, fp16 on older ones, "no" on a CPU."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise StreetsError("precision fp16 needs an NVIDIA GPU: use auto, bf16 or fp32.")
    if precision != "auto":
        return {"fp32": "no"}.get(precision, precision)
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"


def make_accelerator(precision: str = "auto", **options) -> Accelerator:
    """Accelerator for CUDA GPUs, else for the CPU; forgets the precision of an earlier one.

    Apple's GPU is left alone: the pooling of UPerNet failed there in releases of torch that we support.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    loading = DataLoaderConfiguration(non_blocking=True)  # copies to the GPU while it computes
    return Accelerator(mixed_precision=pick_precision(precision), cpu=not torch.cuda.is_available(),
                       dataloader_config=loading, **options)


def device_line() -> str:
    """One line that says what the notebook runs on; it does not touch a GPU, which processes are forked to use."""
    where = f"CPU with {torch.get_num_threads()} threads, fp32 (no GPU found)"
    if torch.cuda.is_available():
        where = f"{torch.cuda.device_count()} GPU" + "s" * (torch.cuda.device_count() > 1)
    return f"device: {where}; torch {torch.__version__}, Python {platform.python_version()}"


@torch.no_grad()  # not inference_mode: it would mark the buffers, and DDP could not synchronise them afterwards
def evaluate(model: torch.nn.Module, data: StreetScenes, accelerator: Accelerator | None = None, *, batch_size: int = 1,
             contours: bool = False, loss: Callable | None = None, score: Callable | None = None) -> tuple[dict, dict]:
    """Score a network that, in eval mode, turns images (B, 3, H, W) into logits (B, C, h, w), resized if need be.

    Returns (metrics, per_image). metrics: accuracy, miou, iou (a dict by class name, None for a class that the labels do
    not hold) and means over images: with `contours`, boundary_f1 and trimap_iou; with `loss(logits, label)`, called with
    one image's (1, C, H, W) float32 and (1, H, W), eval_loss. per_image: arrays with a row per image, "confusion" (N, C,
    C), the contour scores (N, C), the loss (N,) and the arrays that `score(prediction, truth)` returns by name for one
    image's class indices (H, W); one that CONTOURS names becomes a mean over images, too. With several processes each
    takes every k-th image and all return the same.
    """
    accelerator = accelerator or make_accelerator()
    n, rank, world = len(data.scheme.classes), accelerator.process_index, accelerator.num_processes
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()
    broadcast(list(model.buffers()))  # since its last step, each process has had statistics (batch norm) of its own
    rows = []
    part = Subset(data, range(rank, len(data), world))
    for batch in make_loader(part, batch_size):
        label = batch["label"]
        with accelerator.autocast():
            logits = model(batch["image"].to(accelerator.device))
        if logits.shape[-2:] != label.shape[-2:]:
            logits = F.interpolate(logits.float(), label.shape[-2:], mode="bilinear", align_corners=False)
        predictions = logits.argmax(1).to("cpu", torch.uint8)
        for i, (index, pred, truth) in enumerate(zip(batch["index"].tolist(), predictions.numpy(), label.numpy())):
            row = {"confusion": confusion_matrix(pred, truth, n)}
            if contours:
                row |= {"boundary_f1": boundary_f1(pred, truth, n), "trimap_iou": trimap_iou(pred, truth, n)}
            if loss:
                row |= {"loss": loss(logits[i : i + 1].float(), label[i : i + 1].to(logits.device)).item()}
            if score:
                row |= score(pred, truth)
            rows.append((index, row))
    ordered = [row for _, row in sorted(gather_object(rows), key=lambda pair: pair[0])]
    per_image = {name: np.stack([row[name] for row in ordered]) for name in ordered[0]}
    return metrics_of(per_image, data.scheme.classes), per_image


def mean_over_images(scores: np.ndarray) -> float | None:
    """Mean over images of each one's mean over its classes; scores (N, C), nan for an absent class; None without any."""
    scores = scores[~np.isnan(scores).all(1)]
    return float(np.nanmean(scores, axis=1).mean()) if len(scores) else None


def kept_scores(folder: Path, split: str = "test", drive: str = "") -> dict:
    """The metrics of a finished run on a split, or on the pictures of one drive, from the scores kept for each picture."""
    per_image = _kept_arrays(folder, split)
    mine = np.char.startswith(per_image.pop("image"), f"{drive}/" if drive else "")
    if not mine.any():
        raise StreetsError(f"{folder / f'{split}_per_image.npz'} has no picture of {drive or 'any drive'}.")
    return metrics_of({name: values[mine] for name, values in per_image.items()}, _classes_of(folder))


def _kept_arrays(folder: Path, split: str) -> dict[str, np.ndarray]:
    """What a finished run keeps of each picture of a split: "image", its city and name, and the arrays of `evaluate`."""
    with np.load(folder / f"{split}_per_image.npz") as arrays:
        return dict(arrays)


def _classes_of(folder: Path) -> list[str]:
    return list(read_json(folder / "summary.json")["metrics"]["iou"])


def metrics_of(per_image: dict[str, np.ndarray], classes: Sequence[str]) -> dict:
    """The metrics that `evaluate` returns, from its per-image arrays."""
    total = per_image["confusion"].sum(0)
    iou = np.where(total.sum(1) > 0, iou_per_class(total), np.nan)
    metrics = {"accuracy": accuracy(total), "miou": miou(total)}
    metrics |= {name: mean_over_images(per_image[name]) for name in CONTOURS if name in per_image}
    if "loss" in per_image:
        metrics["eval_loss"] = float(np.nanmean(per_image["loss"]))  # nan for an image that is all void
    return metrics | {"iou": {c: None if math.isnan(v) else float(v) for c, v in zip(classes, iou, strict=True)}}


@torch.no_grad()
def predict(model: torch.nn.Module, image: np.ndarray, size: tuple[int, int], mean=IMAGENET_MEAN, std=IMAGENET_STD) -> np.ndarray:
    """Class of every pixel, (H, W) uint8, at the size of a photo (H, W, 3), from a network in eval mode fed at `size`."""
    small, _ = resize_pair(image, image[..., 0], size)
    logits = model(to_tensor(small, mean, std)[None].to(next(model.parameters()).device))
    logits = F.interpolate(logits.float(), image.shape[:2], mode="bilinear", align_corners=False)
    return logits.argmax(1)[0].to("cpu", torch.uint8).numpy()


def majority_baseline(confusion: np.ndarray) -> dict:
    """Accuracy and mIoU of naming the most frequent class everywhere, on the truth behind a confusion matrix (n, n)."""
    truth = confusion.sum(1)
    constant = np.zeros_like(confusion)
    constant[:, truth.argmax()] = truth
    return {"miou": miou(constant), "accuracy": accuracy(constant)}


def steps_per_epoch(data: StreetScenes, batch_size: int, accumulation: int = 1, processes: int = 1) -> int:
    """Optimiser steps of an epoch of `fit`; processes: num_processes, or as many as `accelerate launch` started.

    Raises StreetsError where the data do not fill one batch.
    """
    images = batch_size * max(processes, int(os.environ.get("WORLD_SIZE", 1)))
    if len(data) < images:
        raise StreetsError(f"{len(data)} training images do not fill one batch of {images}: lower batch_size, "
                           f"such as {setting('batch_size', max(1, len(data) * batch_size // images))}, or take more images.")
    return -(-(len(data) // images) // accumulation)


def train_epoch(accelerator, model, loss_fn, loader, optimizer, step_scheduler, clip_norm, bar) -> float:
    """One pass over `loader`, whose batches are items of StreetScenes stacked, image (B, 3, H, W) and label (B, H, W).

    Returns the mean over the batches of `loss_fn(model, batch)`, a scalar. StreetsError where image and label differ in
    size, and as soon as the loss is seen not to be finite.
    """
    model.train()
    total = torch.zeros((), device=accelerator.device)
    shown = time.monotonic()
    for step, batch in enumerate(loader, start=1):
        if batch["image"].shape[-2:] != batch["label"].shape[-2:]:
            sizes = ["x".join(map(str, batch[name].shape[-2:])) for name in ("image", "label")]
            raise StreetsError(f"augment must return image and label of one size, not {sizes[0]} and {sizes[1]}.")
        with accelerator.accumulate(model):
            loss = loss_fn(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients and clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if accelerator.sync_gradients and step_scheduler:
                step_scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        bar.update(len(batch["index"]) * accelerator.num_processes)
        # reading the loss waits for the GPU, so it is read every other second and at the end
        if time.monotonic() - shown > 2 or step == len(loader):
            shown = time.monotonic()
            mean = total.item() / step
            bar.set_postfix_str(f"loss {mean:.3f}", refresh=False)
            if not math.isfinite(mean):
                raise StreetsError(f"The loss is {mean} after {bar.n} images: lower lr, or use {setting('precision', 'fp32')}.")
    return float(accelerator.reduce(total, "mean").item()) / len(loader)


def fit(folder: Path, model: torch.nn.Module, loss_fn: Callable, train_data: StreetScenes, val_data: StreetScenes, *,
        epochs: int, batch_size: int, optimizer: torch.optim.Optimizer, scheduler=None, schedule: str = "epoch",
        accumulation: int = 1, clip_norm: float = 0.0, precision: str = "auto", num_workers: int = -1,
        evaluate: Callable = evaluate, eval_every: int | str | Sequence[int] = 1, keep_at: str | Sequence[int] = (),
        select: str = "last", best_by: str = "miou", test_data: StreetScenes | None = None,
        final_scores: Callable | None = None, weights: str = "none", max_hours: float = 0.0) -> None:
    """Train `model` on `loss_fn(model, batch)` and leave a run in `folder`, resuming what is there.

    A batch holds `batch_size` items of `train_data` for each process; a last one that is not full is left out. The
    optimiser steps after `accumulation` batches, with the gradient scaled down to a length of `clip_norm` where that is
    not 0, in the `precision` of `make_accelerator`. `num_workers` is that of `make_loader`. `weights` says what the
    network started from. `scheduler` steps once per epoch, per optimiser step (schedule = "step") or, with the validation
    mIoU, per evaluation ("plateau"). `evaluate(model, data, accelerator)` returns (metrics, per_image); it runs every
    `eval_every` epochs ("5,20,80": after these), and after the last. The weights of the epochs `keep_at`, named in the
    same way, stay on disk as epoch_NNNN.safetensors. `select` says whether the summary describes the "last" epoch or the
    "best": the one with the highest `best_by`, a column of the history, or the lowest where that name ends in "loss".
    `test_data` is scored once, at the end, and whatever else `final_scores(folder, model, accelerator)` returns goes to
    the summary as "final"; it is called with the selected weights in place and both weight files on disk. Stops cleanly,
    without a summary, when the next epoch would not end within `max_hours` of the start of the program. The state is
    saved at the ends of epochs, and all randomness of an epoch derives from its number and the seed in config.json: a
    resumed run equals an unbroken one. StreetsError where the data fill no batch or hold no class, where a loss or score
    is not finite, memory or disk run out, or the saved state is damaged or another number of processes'.
    """
    accelerator = make_accelerator(precision, gradient_accumulation_steps=accumulation,
                                   step_scheduler_with_optimizer=False)
    config, images_per_batch = read_json(folder / "config.json"), batch_size * accelerator.num_processes
    seed = config["parameters"]["seed"]
    sizes = [name for name in ("batch_size", "dice_batch_size", "height", "crop", "size") if name in config.get("settings", {})]
    steps_per_epoch(train_data, batch_size, processes=accelerator.num_processes)  # refuses what fills no batch
    for what, data in {"training": train_data, "validation": val_data, "test": test_data}.items():
        if data:
            data.require_classes(what)
    evaluated, kept = (runs.epochs_named(named, epochs) for named in (eval_every, keep_at))
    sampler = EpochSampler(len(train_data), seed)
    loader = make_loader(train_data, batch_size, sampler=sampler, num_workers=num_workers)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    scheduler = accelerator.prepare(scheduler) if scheduler else None
    progress = runs.load_checkpoint(accelerator, folder) or {"epoch": 0, "best": None, "seconds": 0.0, "history": []}
    if progress["epoch"]:
        accelerator.print(f"{folder.name}: resuming after epoch {progress['epoch']} of {epochs}")
    saved, shape = -math.inf, train_data[0]["image"].shape
    per_epoch = images_per_batch * len(loader)
    bar = runs.progress_bar(epochs * per_epoch, progress["epoch"] * per_epoch, folder.name, not accelerator.is_main_process)
    with bar, plain_errors(f"batch_size {batch_size} at {shape[1]}x{shape[2]}", sizes):
        for epoch in range(progress["epoch"] + 1, epochs + 1):
            started, lr, sampler.epoch = time.monotonic(), optimizer.param_groups[0]["lr"], epoch
            torch.manual_seed(seed * 1_000_003 + epoch * 1_009 + accelerator.process_index)
            per_step = scheduler if schedule == "step" else None
            loss = train_epoch(accelerator, model, loss_fn, loader, optimizer, per_step, clip_norm, bar)
            if scheduler and schedule == "epoch":
                scheduler.step()
            seconds = time.monotonic() - started
            progress |= {"epoch": epoch, "seconds": progress["seconds"] + seconds}
            if epoch in kept and accelerator.is_main_process:
                save_weights(folder / f"epoch_{epoch:04d}.safetensors", accelerator.unwrap_model(model))
            if epoch == epochs or epoch in evaluated:
                metrics, _ = evaluate(model, val_data, accelerator)
                score = "miou" if "miou" in metrics else best_by
                name = score.replace("miou", "mIoU")
                bar.set_postfix_str(f"loss {loss:.3f}, val {name} {metrics[score]:.3f}", refresh=epoch == epochs)
                if scheduler and schedule == "plateau":
                    scheduler.step(metrics["miou"])
                row = {"epoch": epoch, "train_loss": loss, "lr": lr, "seconds": round(seconds, 3)} | flat(metrics)
                runs.keep_scores(accelerator, folder, model, progress, row, best_by)
            saved = runs.save_if_due(accelerator, folder, progress, epochs, max_hours, started, saved)
            if saved is None:
                return
        facts = {"weights": weights, "num_processes": accelerator.num_processes, "selected": select,
                 "images_per_step": images_per_batch * accumulation}
        facts |= {"best_by": best_by} if select == "best" else {}
        splits = {"val": val_data} | ({"test": test_data} if test_data else {})
        finish_run(accelerator, folder, model, progress, evaluate, splits, select, final_scores, facts)


def finish_run(accelerator: Accelerator, folder: Path, model: torch.nn.Module, progress: dict, evaluate: Callable,
               splits: dict[str, StreetScenes], select: str, final_scores: Callable | None, facts: dict) -> None:
    """Score the chosen weights on validation and test images and write what marks the run as finished."""
    net = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        save_weights(folder / "last.safetensors", net)
    accelerator.wait_for_everyone()
    load_weights(folder / f"{select}.safetensors", net)
    scores = {split: evaluate(net, data, accelerator) for split, data in splits.items()}
    final = {"final": final_scores(folder, net, accelerator)} if final_scores else {}
    if accelerator.is_main_process:
        for split, data in splits.items():
            names = np.array([f"{frame.city}/{frame.name}" for frame in data.frames])
            buffer = io.BytesIO()
            np.savez_compressed(buffer, image=names, **scores[split][1])
            write_atomic(folder / f"{split}_per_image.npz", buffer.getvalue())
        baselines = {split: majority_baseline(per_image["confusion"].sum(0)) for split, (_, per_image) in scores.items()}
        facts |= {"metrics": scores["val"][0], "test": None, "majority_baseline": baselines["val"]}
        if "test" in scores:
            facts |= {"test": scores["test"][0], "test_majority_baseline": baselines["test"]}
        write_json(folder / "summary.json", runs.summarize(folder, progress, facts | final))
        runs.remove_ours(folder, runs.STATES)
    accelerator.wait_for_everyone()
    if accelerator.device.type != "cpu":
        accelerator.free_memory()


@contextmanager
def plain_errors(what: str, sizes: Sequence[str] = ()):
    """Turn what commonly ends a training into one sentence that says what to do; sizes: settings that take less if lowered."""
    smaller = f"lower {' or '.join(sizes or ['batch_size'])}, such as {setting('batch_size', 1)}"
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise StreetsError(f"Out of GPU memory with {what}: {smaller}, or use a smaller mode.") from None
    except StreetsError as error:  # from a worker process it arrives wrapped in that process's traceback
        raise StreetsError(str(error).strip().splitlines()[-1].split("StreetsError: ")[-1]) from None
    except (RuntimeError, ValueError, MemoryError) as error:
        for mark, sentence in {
            "DataLoader worker (pid": f"A data-loading process died, often for lack of memory: end other programs, or {smaller}.",
            " allocate ": f"Out of memory with {what}: {smaller}, or use a smaller mode.",
            **dict.fromkeys(("stack expects each tensor to be equal size", "resize storage that is not resizable"),  # in a worker
                            "augment must return all images in one size, and all labels, too."),
            "more than 1 value per channel": f"Batch norm cannot train on a single value per channel ({what}): "
                                             f"use a batch_size of at least 2 per process, {setting('batch_size', 2)}.",
        }.items():
            if mark in str(error):
                raise StreetsError(sentence) from None
        raise
