"""Data sets that hold some of the nineteen classes only: every notebook runs on them to its end."""

import json
import warnings

import cv2
import numpy as np
from conftest import run_script
from torchvision.datasets import Cityscapes

import data_prep

ID = {c.name: c.id for c in Cityscapes.classes}
SMALL = {  # as little as a notebook can be run with
    "01_class_remapping": {"images": 4},
    "02_unet_from_scratch": {"epochs": 1, "stage_epochs": 1, "images": 8, "size": 32, "width": 4},
    "03_unet_resnet50_cv": {"epochs": 1, "images": 6, "height": 32, "weights": "none", "fold": "1"},
    "04_segformer_thin_structures": {"epochs": 1, "images": 10, "height": 32, "weights": "none", "approach": "baseline,bas_lovasz"},
    "05_semeda": {"height": 64, "crop": 64, "epochs": 1, "images": 6, "batch_size": 3, "weights": "none", "method": "ppce"},
    "06_kervadec_ablation": {"epochs": 1, "images": 4, "height": 32, "weights": "none", "variant": "AD"},
}


def with_classes(root, **splits):
    """Toy streets in which each split holds the classes named: {train id: name of the class that takes its place}."""
    data_prep.make_toy(root, size=(64, 128), train=10, val=4, test=2, seed=1)
    for split, names in splits.items():
        table = np.zeros(256, np.uint8)  # label id 0 is void
        for c in Cityscapes.classes:
            if 0 <= c.train_id < 255:
                table[c.id] = ID[c.name if c.name in names else names[c.train_id % len(names)]]
        for path in sorted(root.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png")):
            cv2.imwrite(str(path), table[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)])
    return root


def classes_scored(results):
    """The classes that each run in a folder of results has a score of, background left out."""
    summaries = [json.loads(path.read_text())["metrics"] for path in sorted(results.rglob("summary.json"))]
    return [{name for name, iou in metrics["iou"].items() if iou is not None} - {"background"} for metrics in summaries if "iou" in metrics]


def test_splits_need_not_hold_the_same_classes(tmp_path):
    three = ("road", "building", "sky")  # streets of these alone: test_exercises
    uneven = {"train": (*three, "car", "fence"), "val": (*three, "person", "pole"), "test": (*three, "bus")}
    parameters = {"data_dir": str(with_classes(tmp_path / "uneven", **uneven)), "out_dir": str(tmp_path / "results")}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # means of nothing and the like, which the reader would see
        run_script("02_unet_from_scratch", tmp_path, **SMALL["02_unet_from_scratch"] | parameters)
    scored = classes_scored(tmp_path / "results")
    assert scored and all(one == {*three, "person"} for one in scored)
