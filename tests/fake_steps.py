"""Training steps without data and without a GPU: what a notebook trains with, and tensors that have a shape but no numbers."""
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from conftest import notebook_definitions
from torch.overrides import TorchFunctionMode
from torch.utils.data import default_collate

import common

NOTEBOOKS = ("02_unet_from_scratch", "03_unet_resnet50_cv", "04_segformer_thin_structures", "05_semeda", "06_kervadec_ablation")
SHAPES = {"toy": 2, "CamVid": 4 / 3, "Cityscapes": 2}  # width over height of a photo
DATA = {"quick": ["toy"], "laptop": ["CamVid"], "course": ["CamVid", "Cityscapes"], "paper": ["Cityscapes"]}  # of a mode


def trainings(name: str, frames: list, folder: Path, mode: str, data: str, **changes) -> tuple[dict, dict]:
    """({method: its training, to be called with a folder}, settings) of a notebook; one method for each kind of loss.

    frames: of any size, stand for each split; data: one of SHAPES; changes: of the mode's settings.
    """
    nb, built = notebook_definitions(name), {}
    build = getattr(nb, "build_network", None)

    def build_once(*arguments):  # one network serves all methods that ask for the same
        if repr(arguments) not in built:
            built[repr(arguments)] = build(*arguments)
        return built[repr(arguments)]

    nb.build_network = build_once
    settings = nb.MODES[mode] | changes
    splits = {split: frames for split in ("train", "val", "test")}
    rows = settings.get("height", 0)
    size = (rows, round(rows * SHAPES[data] / 32) * 32)
    given = {"settings": settings, "splits": splits, "seed": 0}
    if name.startswith("02"):
        methods = {recipe["loss"]: recipe for recipe in nb.STAGES.values()}
        train = partial(nb.train_stage, frequency="published", fill="noise", select="miou", **given)
        return {loss: partial(train, recipe=recipe) for loss, recipe in methods.items()}, settings
    given |= {"size": size, "weights": "none"}
    if name.startswith("03"):
        given["splits"] = splits | {"official_val": frames}
        train = partial(nb.train_fold, native=size, version="intended", **given)
        return {network: partial(train, network=network) for network in ("published", "no_bottleneck")}, settings
    if name.startswith("04"):
        recipes = {}
        for recipe in nb.APPROACHES.values():
            if "match" not in recipe:  # another coefficient
                recipes.setdefault("+".join(recipe["terms"]), recipe)
        train = partial(nb.train_approach, network=settings["network"], scheme=common.SCHEMES["thin7"], pasting={}, normalize="present", **given)
        return {terms: partial(train, recipe=recipe) for terms, recipe in recipes.items()}, settings
    if name.startswith("05"):
        common.runs.save_weights(folder / "best.safetensors", nb.EdgeNet())
        recipes = {recipe["loss"]: recipe for recipe in nb.RECIPES.values() if "parent" not in recipe}
        train = partial(nb.train_method, rate=0.0, proxy_folder=folder, **given)
        return {loss: partial(train, recipe=recipe) for loss, recipe in recipes.items()}, settings
    given["settings"] = settings | common.network_facts(settings["network"], nb.NETWORKS, "none")
    train = partial(nb.train_variant, own={}, class_weights=torch.ones(19), norm="clip127", **given)
    return {letter: partial(train, terms=nb.loss_terms(letter, "paper", 1.0, 0.2)) for letter in nb.VARIANTS}, settings


def handed_to_fit(train, folder: Path, device: str = "cpu") -> SimpleNamespace:
    """What a training hands to `common.fit`: model, loss_fn, optimizer, clip_norm, accumulation ..., and a batch of its data.

    device: the accelerator's, as the notebook sees it. The loss is the one that a GPU compiles, and runs as it is written.
    """
    given = SimpleNamespace(clip_norm=0.0, accumulation=1, evaluate=common.evaluate)

    def fit(folder, model, loss_fn, train_data, val_data, **others):
        vars(given).update(others, model=model, loss_fn=loss_fn, data=train_data, val_data=val_data)

    def as_a_gpu_has_it(as_written, otherwise, wanted, device):
        return otherwise if wanted == "no" else as_written

    accelerator = SimpleNamespace(device=torch.device(device))
    with mock.patch.multiple(common, fit=fit, compile_loss=as_a_gpu_has_it, make_accelerator=lambda *_: accelerator):
        train(folder)
    item = given.data[0]
    given.batch = {key: value for key, value in default_collate([item] * given.batch_size).items() if key != "index"}
    return given


class NumbersUnknown(TorchFunctionMode):
    """Answers for tensors without numbers: every condition holds, each pixel belongs to every mask, each number is 1."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__bool__:
            return True
        if func is torch.Tensor.item:
            return 1
        if func is torch.Tensor.numpy and args[0].device.type == "cpu":
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if func is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
            values, mask = args  # as torch does, by the place of each pixel
            return values[tuple(torch.zeros(mask.numel(), dtype=torch.int64, device=mask.device) for _ in mask.shape)]
        return func(*args, **(kwargs or {}))
