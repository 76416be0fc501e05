"""Notebook 03: changed colours, the scores that are kept of a fold, and its runs on CamVid.

The notebook imports by name what it uses; for the record of a run it counts as if it stood there.
"""

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2 import functional as transforms

import common


def jitter_colors(image, rng):
    """Brightness, contrast and saturation of an image (H, W, 3) uint8 times 0.7 to 1.3, hue plus -0.1 to 0.1."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    for step in rng.permutation(4):
        amount = rng.uniform(-1, 1)
        if step == 0:
            pixels = transforms.adjust_brightness(pixels, 1 + 0.3 * amount)
        elif step == 1:
            pixels = transforms.adjust_contrast(pixels, 1 + 0.3 * amount)
        elif step == 2:
            pixels = transforms.adjust_saturation(pixels, 1 + 0.3 * amount)
        else:
            pixels = transforms.adjust_hue(pixels, 0.1 * amount)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def save_matrices(path, data, per_image):
    """Keep the confusion matrices (N, C, C) of `per_image` under the names of the pictures of a data set."""
    names = [f"{frame.city}/{frame.name}" for frame in data.frames]
    np.savez_compressed(path, image=np.array(names), confusion=per_image["confusion"])


def evaluation_grid(folder, model, accelerator, data):
    """mIoU, 0 to 1, by image set, resolution and checkpoint: grid["held_out"]["low"]["best"].

    data: {set: {"low": scenes, "full": scenes}}. The matrices of the held-out pictures go to held_out_per_image.npz.
    """
    grid = {name: {"low": {}, "full": {}} for name in data}
    for checkpoint in ("last", "best"):
        common.load_weights(folder / f"{checkpoint}.safetensors", model)
        for name, sets in data.items():
            for resolution, scenes in sets.items():
                metrics, per_image = common.evaluate(model, scenes, accelerator)
                grid[name][resolution][checkpoint] = metrics["miou"]
                # only these matrices are kept
                wanted = (name, resolution, checkpoint) == ("held_out", "low", "last")
                if wanted and accelerator.is_main_process:
                    path = folder / "held_out_per_image.npz"
                    save_matrices(path, scenes, per_image)
    return grid


def camvid_runs(equal=False):
    """Runs on CamVid of the seeds that have all six, or six of 163 pictures each, with columns kind, fold, folds and runs."""
    found = common.find_runs(notebook="03_unet_resnet50_cv", dataset="camvid11", mode="laptop")
    ending, note = ("-learn163", ", 163 each") if equal else ("", "")
    names = found["method"].str.extract(f"(image|city)-fold([123]){ending}$")
    found = found.assign(kind=names[0], fold=names[1]).dropna(subset="fold")
    found["runs"] = "CamVid, seed " + found["seed"].astype(str) + note
    found["folds"] = "by " + found["kind"].replace("city", "drive")
    return found.groupby("seed").filter(lambda of_seed: len(of_seed) == 6)


def on_test_drives(found):
    """Mean IoU in per cent on each drive of CamVid's test split, a row per fold, of runs as `camvid_runs` gives them."""
    rows = []
    for _, run in found.iterrows():
        for drive in ("Seq05VD", "0001TP"):
            score = 100 * common.kept_scores(run["folder"], "test", drive)["miou"]
            facts = run[["folds", "fold", "seed"]].to_dict()
            facts |= {"learnt from": run["n_train"], "drive": drive, "mIoU": score}
            rows.append(facts)
    index = ["folds", "fold", "learnt from"]
    return pd.DataFrame(rows).pivot_table("mIoU", index, ["seed", "drive"]).round(1)
