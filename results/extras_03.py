"""Notebook 03: changed colours, and the scores that are kept of a fold.

The notebook imports by name what it uses; for the record of a run it counts as if it stood there.
"""

import numpy as np
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
