"""Label one's own photo or short video with a network. The last cells of a notebook call `show`."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import IPython.display
import numpy as np
import torch
from PIL import Image

import common
from data_prep import Frame, first_picture, is_video, read_image, read_video, user_path, write_atomic
from results import runs

LARGEST_SIDE = 960  # pixels of a frame; larger ones are shrunk
PAGE_SIDE, PAGE_FRAMES = 240, 24  # in the page: with more, the picture would be larger than all else in a notebook


def own_photo(path: str, otherwise: Frame) -> np.ndarray:
    """What somebody named in `photo`, a photo (H, W, 3) or a video's first frame, turned as its camera noted; else a frame's."""
    return first_picture(user_path("photo", path)) if path else read_image(otherwise.image)


def show(path: str, otherwise: Frame, folder: Path, scheme: common.Scheme, model: torch.nn.Module, size: int | tuple[int, int],
         mean: Sequence[float] = common.IMAGENET_MEAN, std: Sequence[float] = common.IMAGENET_STD) -> None:
    """Show a photo beside its labels by a network in eval mode: the one at `path`, or where that is empty a frame's.

    `size` is what the network sees: (height, width), or a height alone, for a picture of the photo's shape whose width is a
    multiple of 32. Of a video the first frame is shown, and then all of it, as `show_video` does. Raises StreetsError where
    the file cannot be read.
    """
    own = own_photo(path, otherwise)
    if isinstance(size, int):
        height, width = own.shape[:2]
        size = size, max(32, round(width * size / height / 32) * 32)
    common.show(common.show_pair(own, common.predict(model, own, size, mean, std), scheme, "prediction"))
    if is_video(path):
        show_video(path, folder, scheme, model, size, mean, std)


def show_video(path: str | Path, folder: Path, scheme: common.Scheme, model: torch.nn.Module, size: tuple[int, int],
               mean: Sequence[float] = common.IMAGENET_MEAN, std: Sequence[float] = common.IMAGENET_STD) -> None:
    """Label each frame of a video as `common.predict` does.

    Prints frames a second, and the share of pixels that have another class than in the frame before. Shows an animated
    picture below the cell, and leaves <name>_labels.mp4 in `folder`: the frames beside their labels. Raises StreetsError
    where the video cannot be read, or the folder not be written.
    """
    path = user_path("photo", path)
    rate, length, frames = read_video(path)
    photos, labels, changed, seconds, before = [], [], [], 0.0, None
    bar = runs.progress_bar(length, 0, path.name, disable=False)
    with bar, tempfile.TemporaryDirectory() as place:
        written, writer = Path(place) / "labels.mp4", cv2.VideoWriter()
        for frame in frames:
            height, width = frame.shape[:2]
            frame = fit_into(frame, LARGEST_SIDE, cv2.INTER_AREA)
            started = time.perf_counter()
            label = common.predict(model, frame, size, mean, std)
            seconds += time.perf_counter() - started
            changed += [] if before is None else [(label != before).mean()]
            before = label
            pair = np.hstack([frame, common.as_colors(label, scheme)])
            if not photos:
                writer.open(str(written), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), rate, pair.shape[1::-1])
            writer.write(cv2.cvtColor(pair, cv2.COLOR_RGB2BGR))
            photos.append(fit_into(frame, PAGE_SIDE, cv2.INTER_AREA))
            labels.append(fit_into(label, PAGE_SIDE, cv2.INTER_NEAREST_EXACT))
            bar.update()
        writer.release()
        # a writer does not say that the disk is full, or that this OpenCV has no encoder
        whole = int(cv2.VideoCapture(str(written), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)) == len(photos)
        content = written.read_bytes() if whole else b""
    print(f"{path.name}: {len(photos)} frame{'s' * (len(photos) > 1)} of {width}x{height}, {rate:.4g} per second; labelled at "
          f"{len(photos) / seconds:.2g} frames per second")
    if changed:
        print(f"flicker: from one frame to the next {np.mean(changed):.2%} of the pixels change their class")
    picture = animation(common.evenly(photos, PAGE_FRAMES), common.evenly(labels, PAGE_FRAMES), scheme, len(photos) / rate)
    IPython.display.display(IPython.display.Image(picture, format="png"))
    if whole:
        out = folder / f"{path.stem}_labels.mp4"
        write_atomic(out, content)
        print(f"{out.parent.name}/{out.name}, {len(content) / 1e6:.1f} MB")
    else:
        print("No video was written: the disk is full, or this OpenCV cannot write mp4.")


def fit_into(picture: np.ndarray, side: int, how: int) -> np.ndarray:
    """An (H, W) or (H, W, 3) array, its longer side at most `side`."""
    scale = side / max(picture.shape[:2])
    height, width = (max(1, round(n * scale)) for n in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=how) if scale < 1 else picture


def animation(photos: Sequence[np.ndarray], labels: Sequence[np.ndarray], scheme: common.Scheme, seconds: float) -> bytes:
    """Photos (H, W, 3) beside their labels (H, W), as a PNG that moves for so many seconds, again and again.

    A page shows it wherever it shows a PNG, whereas nbconvert leaves a GIF out. All share one palette, in which the
    classes have their exact colours: that makes it three times smaller than true colours.
    """
    n = 256 - len(scheme.colors)
    height, width = labels[0].shape
    reduced = Image.fromarray(np.concatenate(photos)).quantize(n, dither=Image.Dither.NONE)
    palette = bytes(reduced.getpalette()).ljust(3 * n, b"\0")[: 3 * n] + scheme.colors.tobytes()
    of_photos = np.asarray(reduced).reshape(len(photos), height, width)
    pictures = []
    for indices, label in zip(of_photos, labels, strict=True):
        picture = Image.fromarray(np.hstack([indices, label + np.uint8(n)]))
        picture.putpalette(palette)
        pictures.append(picture)
    file = io.BytesIO()
    pictures[0].save(file, "PNG", save_all=True, append_images=pictures[1:], loop=0, optimize=True,
                     duration=round(1000 * seconds / len(pictures)))
    return file.getvalue()
