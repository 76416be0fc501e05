"""Data as people have it: other layouts, odd and damaged files, archives of all kinds, paths that lead nowhere."""

import errno
import io
import json
import lzma
import os
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

import common
import data_prep
from data_prep import StreetsError, check_dataset, convert_camvid, convert_pairs, find_data, list_frames, read_image, read_label
from results import report, video

TRAIN_ID = np.array([255 if c.train_id < 0 else c.train_id for c in Cityscapes.classes[:-1]], np.uint8)  # by labelId
ROAD = np.full((24, 32), 7, np.uint8)


def paint(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def lay(root: Path, split: str, city: str, label: np.ndarray, number: int = 0) -> tuple[Path, Path]:
    """A photo and its label where the official data set has them."""
    names = data_prep._targets(split, city, number, 19)
    return save(root / names[0], paint(number, *label.shape)), save(root / names[1], label)


def street(seed: int) -> np.ndarray:
    """A label of all 34 ids."""
    return np.random.default_rng(seed).permutation(np.arange(24 * 32) % 34).reshape(24, 32).astype(np.uint8)


@pytest.fixture
def part(tmp_path) -> Path:
    """Two train and two val images as of the official data set."""
    for split, city in (("train", "ulm"), ("val", "lindau")):
        for number in range(2):
            lay(tmp_path / "city", split, city, street(number), number)
    return tmp_path / "city"


def said(capfd, *arguments) -> str:
    """The one sentence with which a command ends."""
    capfd.readouterr()
    assert data_prep.main(list(map(str, arguments))) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.endswith(".") and "Traceback" not in line and len(line) < 500
    return line


def remarks(root: Path) -> str:
    return " | ".join(f"{row.part}: {row.remark}" for row in check_dataset(root)[0])


# Labels that hold something else


def relabel(root: Path, change) -> None:
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        save(path, change(np.asarray(Image.open(path))))


def test_train_ids_in_label_files_are_named_by_check_and_before_and_in_training(part, monkeypatch):
    relabel(part, lambda ids: TRAIN_ID[ids])
    rows, usable = check_dataset(part)
    assert not usable and "but trainIds do, as void: use labelIds" in remarks(part)
    frames = [common.Frame("x", "ulm", *pair) for pair in zip(*(sorted(part.glob(f"{top}/train/*/*.png")) for top in data_prep.SUFFIXES))]
    for see in (lambda: find_data(str(part)), lambda: common.StreetScenes(frames, (32, 32))[0]):
        with pytest.raises(StreetsError, match=r"_labelIds\.png holds the label id 255, .* trainIds"):
            see()


@pytest.mark.parametrize("void", [0, 19, 20])
def test_train_ids_with_another_void_are_named_because_nothing_is_above_them(void, part):
    relabel(part, lambda ids: np.where(TRAIN_ID == 255, void, TRAIN_ID).astype(np.uint8)[ids])
    assert not check_dataset(part)[1] and "trainIds" in remarks(part)
    with pytest.raises(StreetsError, match="no vegetation .21., sky .23. or car .26., which means trainIds: use labelIds"):
        find_data(str(part))


def test_streets_of_one_s_own_without_sky_and_cars_are_used_with_a_remark(part, capsys):
    relabel(part, lambda ids: np.where(ids % 2, 7, 8).astype(np.uint8))
    assert check_dataset(part)[1] and "which may mean trainIds" in remarks(part)
    assert find_data(str(part)) == part and "which may mean trainIds" in capsys.readouterr().out
    relabel(part, lambda ids: np.where(ids % 2, 7, 26).astype(np.uint8))
    assert "trainIds" not in remarks(part) and "trainIds" not in (find_data(str(part)), capsys.readouterr().out)[1]


def test_label_ids_themselves_are_no_train_ids(part, capsys):
    assert check_dataset(part)[1] and "trainIds" not in remarks(part)
    assert find_data(str(part)) == part and "trainIds" not in capsys.readouterr().out


@pytest.mark.parametrize("pixels, what", [
    (np.zeros((24, 32), np.uint16), "16 bits, as _instanceIds.png"), (paint(0), "in colours, as _color.png"), (None, "palette"),
    (np.full((24, 32, 2), 99, np.uint8), "a PNG with transparency"),
])  # fmt: skip
def test_other_pictures_of_labels_are_named_as_what_they_are(pixels, what, part):
    path = next(part.glob("gtFine/train/*/*_labelIds.png"))
    save(path, pixels) if pixels is not None else Image.new("P", (32, 24)).save(path)
    assert not check_dataset(part)[1] and what in remarks(part)
    with pytest.raises(StreetsError, match=what):
        find_data(str(part))


def test_a_jpeg_in_place_of_a_label_is_named(part):
    path = next(part.glob("gtFine/train/*/*_labelIds.png"))
    Image.fromarray(street(0)).save(path, "JPEG")
    assert not check_dataset(part)[1] and f"{path.name} is no PNG" in remarks(part)


def test_test_labels_of_one_s_own_are_scored_and_dummies_are_not(part):
    assert not data_prep.has_test_labels(part)  # no test split
    lay(part, "test", "bonn", street(5), 0)
    assert data_prep.has_test_labels(part)
    lay(part, "test", "bonn", 0 * street(6), 1)
    assert data_prep.has_test_labels(part)  # one street with a class is enough
    next(part.glob("gtFine/test/*/*")).unlink()
    assert not data_prep.has_test_labels(part)  # one has none
    for kept in ({"test_labels": "no"}, {}, {"name": None, "images": {}}):
        (part / "dataset.json").write_text(json.dumps({"images": {}} | kept))
        assert not data_prep.has_test_labels(part)
    assert data_prep.dataset_name(part) == part.name


# Photos as they are stored


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_data_is_read_as_stored_and_only_a_photo_of_one_s_own_is_turned_upright(suffix, tmp_path, part):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to see it so
    pixels = cv2.GaussianBlur(paint(0, 40, 60), (0, 0), 4)
    path = save(tmp_path / f"photo{suffix}", pixels, exif=exif, **{"quality": 98} if suffix == ".jpg" else {})
    assert np.abs(read_image(path).astype(int) - pixels).max() <= 8
    frame = list_frames(part, "train")[0]
    upright = video.own_photo(str(path), frame)
    assert upright.shape == (60, 40, 3) and np.abs(upright.astype(int) - np.rot90(pixels, -1)).max() <= 8
    assert np.array_equal(video.own_photo("", frame), read_image(frame.image))
    frame = frame._replace(image=path, label=save(tmp_path / "label.png", np.full((40, 60), 7, np.uint8), exif=exif))
    image, label = common.StreetScenes([frame], (40, 60)).read(0)
    assert image.shape[:2] == label.shape and np.abs(image.astype(int) - pixels).max() <= 8


def test_a_camvid_jpeg_is_converted_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = cv2.GaussianBlur(paint(0, 40, 60), (0, 0), 4)
    save(tmp_path / "train/0016E5_00390.jpg", pixels, exif=exif, quality=98)
    save(tmp_path / "trainannot/0016E5_00390.png", np.zeros((40, 60), np.uint8))
    convert_camvid(tmp_path, tmp_path / "out")
    assert np.abs(read_image(list_frames(tmp_path / "out", "train")[0].image).astype(int) - pixels).max() <= 8


# Whole and half pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(kind: str, pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


SOFT = cv2.GaussianBlur(paint(2, 90, 120), (0, 0), 2)
PNG, JPEG, PROGRESSIVE = encoded("png", SOFT), encoded("jpeg", SOFT), encoded("jpeg", SOFT, progressive=True)
TEXT = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(3 << 20))) + chunk(b"tEXt", b"note\0" + b"x" * (2 << 20))


@pytest.mark.parametrize("data, plain", [
    (PNG[:33] + TEXT + PNG[33:], PNG), (PNG + b"\n", PNG), (PNG + PNG[:60], PNG), (JPEG[:-2], JPEG), (JPEG[:-1], JPEG),
    (JPEG + bytes(999), JPEG), (PROGRESSIVE[:-2], PROGRESSIVE), (encoded("jpeg", SOFT, restart_marker_blocks=3)[:-2], JPEG),
], ids=["texts", "a newline", "a second start", "no end", "half an end", "padded", "no end, progressive", "no end, restarts"])  # fmt: skip
def test_a_picture_whose_pixels_are_all_there_is_read_whatever_else_is_wrong(data, plain, tmp_path):
    for name, content in (("odd.png", data), ("plain.png", plain)):
        (tmp_path / name).write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "odd.png"), read_image(tmp_path / "plain.png"))
    assert data_prep._glance(tmp_path / "odd.png") == (90, 120)


@pytest.mark.parametrize("whole", [JPEG, PROGRESSIVE, encoded("jpeg", paint(3, 90, 120), quality=98)], ids=["plain", "progressive", "noise"])
def test_half_a_jpeg_is_refused_whatever_follows(whole):
    rng = np.random.default_rng(0)
    for share in (0.5, 0.6, 0.7, 0.8):
        half, rest = whole[: int(len(whole) * share)], len(whole) - int(len(whole) * share)
        tails = [b"", b"\xff\xd9", bytes(rest), *(rng.bytes(rest) for _ in range(6)), rng.bytes(5 * rest) + b"\xff\xd9"]
        for tail in tails:
            with pytest.raises(StreetsError, match="damaged or cut short"):
                read_image("half.jpg", half + tail)


def test_a_jpeg_of_many_pixels_is_read_up_to_a_limit_of_our_own(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many; ours has 10800
    assert read_image("large.jpg", JPEG).shape == (90, 120, 3)
    monkeypatch.setattr(data_prep, "LARGEST", 10_000)
    for data in (JPEG, PNG):
        with pytest.raises(StreetsError, match=r"large has 90x120 pixels, more than 10,000 in all"):
            read_image("large", data)


def test_a_png_that_claims_a_million_columns_is_one_sentence(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 8, 0, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(data_prep.PNG_START + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    for read in (read_image, read_label, data_prep._glance):
        with pytest.raises(StreetsError, match="1048576x1048576 pixels"):
            read(tmp_path / "bomb.png")


def test_check_finds_a_whole_picture_usable_that_ends_in_an_odd_byte(part):
    for path in part.glob("*/train/*/*_000001_*.png"):
        path.write_bytes(path.read_bytes() + b"\n")
    next(part.glob("leftImg8bit/val/*/*.png")).write_bytes(encoded("jpeg", paint(0)))
    assert check_dataset(part)[1] and check_dataset(part, deep=True)[1]


# Sources


@pytest.fixture
def camvid(tmp_path) -> Path:
    for split, stem in (("train", "0016E5_00390"), ("val", "0016E5_07959"), ("test", "Seq05VD_f00000")):
        save(tmp_path / f"camvid/{split}/{stem}.png", paint(0))
        save(tmp_path / f"camvid/{split}annot/{stem}.png", (np.arange(24 * 32) % 12).reshape(24, 32).astype(np.uint8))
    return tmp_path / "camvid"


@pytest.fixture
def made(camvid, tmp_path) -> dict[str, bytes]:
    convert_camvid(camvid, tmp_path / "plain")
    return snapshot(tmp_path / "plain")


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def packed(source: Path, archive: Path, mode: str, separator: str = "/") -> Path:
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    if mode == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in paths:
                file.writestr(str(path.relative_to(source)).replace("/", separator), path.read_bytes())
    else:
        with tarfile.open(archive, mode) as file:
            file.add(source, "camvid")
    return archive


def test_linked_folders_are_read_and_a_circle_of_links_ends(camvid, made, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for path in camvid.iterdir():
        (links / path.name).symlink_to(path)
    (links / "again").symlink_to(links)
    convert_camvid(links, tmp_path / "out")
    assert snapshot(tmp_path / "out") == made


def test_a_zip_with_backslashes_is_read(camvid, made, tmp_path):
    convert_camvid(packed(camvid, tmp_path / "windows.zip", "zip", "\\"), tmp_path / "out")
    assert snapshot(tmp_path / "out") == made


def test_folders_and_drives_in_other_case_are_read(camvid, made, tmp_path):
    for path in list(camvid.iterdir()):
        for file in list(path.iterdir()):
            file.rename(file.with_name(file.name.swapcase()))
        path.rename(path.with_name(path.name.upper()))
    convert_camvid(camvid, tmp_path / "out")
    assert snapshot(tmp_path / "out") == made


def test_palette_labels_give_their_indices_and_of_the_original_form_their_colours(camvid, made, tmp_path):
    for path in camvid.glob("*annot/*.png"):
        image = Image.fromarray(np.asarray(Image.open(path)), "P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        image.save(path)
    convert_camvid(camvid, tmp_path / "out")
    assert snapshot(tmp_path / "out") == made
    colours = np.array([colour for group in data_prep.CAMVID["camvid32"].values() for colour in group.values()], np.uint8)
    index = np.arange(24 * 32).reshape(24, 32) % 32
    for name, image in (("rgb", Image.fromarray(colours[index])), ("palette", Image.fromarray(index.astype(np.uint8), "P"))):
        if name == "palette":
            image.putpalette(colours.ravel().tolist())
        save(tmp_path / name / "0016E5_00390.png", paint(0))
        image.save(tmp_path / name / "0016E5_00390_L.png")
        convert_camvid(tmp_path / name, tmp_path / f"{name}-out")
    assert snapshot(tmp_path / "rgb-out") == snapshot(tmp_path / "palette-out")


@pytest.mark.parametrize("folders", [("Train", "Val"), ("TRAIN", "val")])
def test_image_pairs_in_folders_of_other_case_are_read(folders, tmp_path):
    for name in folders:
        save(tmp_path / "pairs" / name / "1.png", np.hstack([paint(0), np.full((24, 32, 3), (128, 64, 128), np.uint8)]))
    convert_pairs(tmp_path / "pairs", tmp_path / "out")
    assert [len(list_frames(tmp_path / "out", split)) for split in ("train", "val")] == [1, 1]


def test_image_pairs_one_pixel_wide_are_one_sentence(tmp_path, capfd):
    save(tmp_path / "pairs/train/1.png", paint(0, 24, 1))
    assert "1.png is no photo beside a label" in said(capfd, "pairs", "--source", tmp_path / "pairs", "--out", tmp_path / "out")


@pytest.mark.parametrize("mode", ["zip", "w:", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_with_any_damaged_byte_is_one_sentence_or_read_right(mode, camvid, made, tmp_path):
    data = bytearray(packed(camvid, tmp_path / "a.archive", mode).read_bytes())
    rng = np.random.default_rng(0)
    for turn, at in enumerate(rng.integers(0, len(data), 12)):
        damaged = data.copy()
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.archive").write_bytes(damaged)
        out = tmp_path / f"out{turn}"
        try:
            convert_camvid(tmp_path / "a.archive", out)
        except StreetsError:
            assert not (out / "dataset.json").exists()
        else:
            assert mode in ("zip", "w:") or snapshot(out) == made


def test_a_tar_xz_with_a_flipped_byte_says_that_it_cannot_be_read(camvid, tmp_path, capfd):
    save(camvid / "z.png", paint(0, 300, 300))  # so that the first folders come out before the damage is met
    archive = packed(camvid, tmp_path / "camvid.tar.xz", "w:xz")
    data = bytearray(archive.read_bytes())
    data[len(data) * 3 // 4] ^= 255
    archive.write_bytes(data)
    with pytest.raises(lzma.LZMAError):
        lzma.decompress(archive.read_bytes())
    line = said(capfd, "camvid", "--source", archive, "--out", tmp_path / "out")
    assert line.startswith(f"Cannot read {archive}")


def test_a_member_of_40_gigabytes_is_refused_before_it_is_read(tmp_path, capfd):
    lines = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    lines += b"44 GNU.sparse.name=train/0016E5_00390.png\n36 GNU.sparse.realsize=40000000000\n"
    block = b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)
    lines = b"".join(b"%d %s\n" % (len(text) + len(str(len(text) + 3)) + 2, text) for text in (line.split(b" ", 1)[1] for line in lines.splitlines()))
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.USTAR_FORMAT) as file:
        for name, kind, content in (("pax", tarfile.XHDTYPE, lines), ("train/0016E5_00390.png", tarfile.REGTYPE, block)):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content)
            file.addfile(member, io.BytesIO(content))
        label = encoded("png", ROAD % 7)
        member = tarfile.TarInfo("trainannot/0016E5_00390.png")
        member.size = len(label)
        file.addfile(member, io.BytesIO(label))
    with tarfile.open(tmp_path / "sparse.tar") as file:
        assert file.getmember("train/0016E5_00390.png").size == 40_000_000_000
    line = said(capfd, "camvid", "--source", tmp_path / "sparse.tar", "--out", tmp_path / "out")
    assert "train/0016E5_00390.png has 40,000,000,000 bytes, more than the" in line


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, part):
    path = list_frames(part, "train")[0].image
    os.truncate(path, 40_000_000_000)  # a hole: it takes no room
    for read in (read_image, read_label):
        with pytest.raises(StreetsError, match="40,000,000,000 bytes"):
            read(path)
    assert "40,000,000,000 bytes" in remarks(part)
    os.truncate(part / "dataset.json", 1) if (part / "dataset.json").exists() else (part / "dataset.json").touch()
    os.truncate(part / "dataset.json", 40_000_000_000)
    with pytest.raises(StreetsError, match="dataset.json has 40,000,000,000 bytes"):
        check_dataset(part)


def ends(work) -> BaseException | None:
    """What `work` raises; the test fails where it does not end at all."""
    raised = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for ever"
    return raised[0] if raised else None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_no_sources_and_no_photos(tmp_path, part):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    frame = list_frames(part, "train")[0]
    for path in (pipe, Path("/dev/zero")):
        for convert in (convert_camvid, convert_pairs):
            assert "is no folder, .zip or .tar.gz" in str(ends(lambda path=path, convert=convert: convert(path, tmp_path / "out")))
        for read in (read_image, read_label, data_prep._glance):
            assert "is no plain file" in str(ends(lambda path=path, read=read: read(path)))
    frame.image.unlink()
    frame.image.symlink_to(pipe)
    assert "is no plain file" in str(ends(lambda: common.StreetScenes([frame], (32, 32))[0]))
    assert ends(lambda: check_dataset(part)) is None and "is no plain file" in remarks(part)
    (part / "dataset.json").symlink_to(pipe)
    assert "is no plain file" in str(ends(lambda: check_dataset(part)))


# Where things lie


def test_both_archives_unpacked_into_folders_of_their_own(part, tmp_path, capfd):
    home = tmp_path / "downloads"
    for top in data_prep.SUFFIXES:
        (home / f"{top}_trainvaltest").mkdir(parents=True)
        (part / top).rename(home / f"{top}_trainvaltest" / top)
    moved = " and ".join(str(home / f"{top}_trainvaltest" / top) for top in data_prep.SUFFIXES)
    for root in (home, home / "leftImg8bit_trainvaltest", home / "gtFine_trainvaltest"):
        assert f"move {moved} into one folder" in remarks(root) and not check_dataset(root)[1]
    for root in (home, home / "gtFine_trainvaltest"):
        with pytest.raises(StreetsError, match=re.escape(f"move {moved} into one folder")):
            find_data(str(root))
    with pytest.raises(StreetsError, match=re.escape(f"move {moved} into one folder")):
        list_frames(home / "leftImg8bit_trainvaltest", "train")


@pytest.mark.parametrize("name, top", [("leftimg8bit", "leftImg8bit"), ("GTFINE", "gtFine")])
def test_a_top_folder_in_other_case_is_to_be_renamed(name, top, part):
    (part / top).rename(part / name)
    assert f"rename {name} to {top}" in remarks(part) and not check_dataset(part)[1]
    with pytest.raises(StreetsError, match=f"rename {name} to {top}"):
        list_frames(part, "train")


@pytest.mark.parametrize("name", ["Train", "training"])
def test_a_split_of_another_name_is_to_be_renamed(name, part):
    for top in data_prep.SUFFIXES:
        (part / top / "train").rename(part / top / name)
        assert f"rename {part / top / name} to train" in remarks(part) and not check_dataset(part)[1]
    with pytest.raises(StreetsError, match=f"{name} to train"):
        list_frames(part, "train")


def test_an_archive_s_own_folder_within_is_named(part):
    for top in data_prep.SUFFIXES:
        (part / top).rename(part / "inner")
        (part / top / f"{top}_trainvaltest").mkdir(parents=True)
        (part / "inner").rename(part / top / f"{top}_trainvaltest" / top)
        assert f"move {part / top / f'{top}_trainvaltest' / top / 'train'} to {part / top}" in remarks(part)


def test_photos_as_jpeg_are_named(part):
    for path in part.glob("leftImg8bit/train/*/*.png"):
        path.rename(path.with_suffix(".jpg"))
    wanted = r"train holds ulm_000000_000019_leftImg8bit\.jpg and the like: make PNGs of them, named <city>/<name>_leftImg8bit\.png"
    assert re.search(wanted, remarks(part)) and not check_dataset(part)[1]
    with pytest.raises(StreetsError, match=wanted):
        list_frames(part, "train")


def test_files_without_city_folders_are_named(part):
    for path in part.glob("*/train/*/*.png"):
        path.rename(path.parent.parent / path.name)
    text = "holds them itself: put them into a folder for each city"
    assert remarks(part).count(text) == 2 and not check_dataset(part)[1]
    with pytest.raises(StreetsError, match=text):
        list_frames(part, "train")


def test_label_files_of_train_ids_alone_are_named(part):
    for path in part.glob("gtFine/*/*/*.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    assert "holds trainIds, but no labelIds (ulm_000000_000019_gtFine_labelTrainIds.png)" in remarks(part)
    with pytest.raises(StreetsError, match=r"holds trainIds, but no labelIds .*get or make \*_gtFine_labelIds\.png"):
        list_frames(part, "train")


def test_the_variable_is_named_where_it_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "nowhere"))
    with pytest.raises(StreetsError, match=r"\$CITYSCAPES_DATASET is .*nowhere, which is no folder"):
        find_data()
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    (tmp_path / "leftImg8bit_trainvaltest.zip").touch()
    with pytest.raises(StreetsError, match=r"\$CITYSCAPES_DATASET is .*holds leftImg8bit_trainvaltest.zip: unpack"):
        find_data()


# Locks and paths


@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP", "EIO"])
def test_toy_streets_on_a_disk_without_locks_are_one_sentence_that_names_a_way_out(number, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, operation):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(data_prep, "HERE", tmp_path)
    with pytest.raises(StreetsError, match=r"Cannot lock .*toy --out DIR`, and use data_dir"):
        data_prep.toy_streets()


def test_drawn_toy_streets_need_no_lock_and_no_right_to_write(toy, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/toy").symlink_to(toy)
    monkeypatch.setattr(data_prep, "HERE", tmp_path)
    monkeypatch.setattr(data_prep, "_lock", None)
    assert data_prep.toy_streets() == tmp_path / "data/toy"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["toy"]


@pytest.mark.parametrize("target", ["nowhere/else", "file"])
def test_a_data_folder_that_is_a_link_to_nowhere_is_one_sentence(target, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "data").symlink_to(tmp_path / target)
    monkeypatch.setattr(data_prep, "HERE", tmp_path)
    with pytest.raises(StreetsError, match="Cannot write .*toy"):
        data_prep.toy_streets()


def test_toy_streets_wait_for_another_process_that_draws_them(tmp_path, monkeypatch):
    monkeypatch.setattr(data_prep, "HERE", tmp_path)
    make = data_prep.make_toy
    monkeypatch.setattr(data_prep, "make_toy", lambda root: make(root, size=(64, 64), train=1, val=0, test=0))
    with data_prep._staging(tmp_path / "data/toy"):
        thread = threading.Thread(target=data_prep.toy_streets, daemon=True)
        thread.start()
        thread.join(1)
        assert thread.is_alive() and not (tmp_path / "data/toy/dataset.json").exists()
    thread.join(60)
    assert (tmp_path / "data/toy/dataset.json").exists()


PATHS = ["~nosuchuser/x", "x" * 5000, "a\0b"]


@pytest.mark.parametrize("path", [*PATHS, ""], ids=["user", "long", "NUL", "empty"])
@pytest.mark.parametrize("command", [
    ("toy", "--out", "PATH"), ("camvid", "--out", "PATH"), ("camvid", "--out", "out", "--source", "PATH"),
    ("pairs", "--out", "out", "--source", "PATH"), ("pairs", "--source", "source", "--out", "PATH"), ("check", "PATH"),
    ("assignment", "02", "--out", "PATH"),
], ids=" ".join)  # fmt: skip
def test_every_path_of_the_command_line_that_cannot_be_one_is_one_sentence(path, command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    line = said(capfd, *(path if word == "PATH" else word for word in command))
    named = "ROOT" if command[0] == "check" else command[command.index("PATH") - 1]
    assert line.startswith(f"{named} cannot be ") and line.endswith(": give another path.") and "\0" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", PATHS, ids=["user", "long", "NUL"])
def test_data_dir_and_photo_that_cannot_be_paths_are_one_sentence(path, monkeypatch):
    with pytest.raises(StreetsError, match="^data_dir cannot be "):
        find_data(path)
    for name in ("data_dir", "photo"):
        scope = {"In": ["", f"mode: str = 'quick'\n{name}: str = {path!r}"]}
        with pytest.raises(StreetsError, match=f"^{name} cannot be "):
            common.check_parameters(scope, {"quick": {}})
    if "\0" not in path:
        monkeypatch.setenv("CITYSCAPES_DATASET", path)
        with pytest.raises(StreetsError, match=r"^\$CITYSCAPES_DATASET cannot be "):
            find_data()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data_prep.make_toy("~/toy", size=(64, 64), train=1, val=0, test=0)
    assert find_data("~/toy") == tmp_path / "toy"


def test_a_folder_whose_name_a_terminal_cannot_show_is_told(tmp_path, monkeypatch):
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert data_prep.main(["check", os.fsdecode(os.fsencode(tmp_path) + b"/\xff")]) == 1
    data_prep.sys.stdout.flush()
    assert b"\\udcff is not usable" in data_prep.sys.stdout.buffer.getvalue()


# What a data set is called, and what it counts as


def has_the_source_s_data(root: Path) -> bool:
    """Whether results/report.py takes a run on this data for one on its source's, whatever else it was made with."""
    recorded, sources = {"mode": "paper", "dataset": common.dataset_name(root)}, report.read_table("sources.csv")
    notebooks = sources[sources["name"] == "dataset"]["notebook"].unique()
    reasons = [reason for notebook in notebooks for reason in report.differences(notebook, "", recorded, {})]
    others = sum(reason.startswith("dataset ") for reason in reasons)
    assert len(notebooks) >= 5 and others in (0, len(notebooks))
    return not others


@pytest.fixture
def official(tmp_path, monkeypatch) -> Path:
    """All of an official data set of two cities in each split, one image each."""
    cities = {"train": "aachen ulm", "val": "frankfurt lindau", "test": "berlin mainz"}
    monkeypatch.setattr(data_prep, "OFFICIAL_CITIES", cities)
    monkeypatch.setattr(data_prep, "OFFICIAL_IMAGES", dict.fromkeys(cities, 2))
    monkeypatch.setattr(data_prep, "OFFICIAL_SIZE", (24, 32))
    for split, names in cities.items():
        for city in names.split():
            lay(tmp_path / "my_streets", split, city, street(0))
    return tmp_path / "my_streets"


def test_the_whole_official_data_set_is_cityscapes_and_counts_as_the_source_s(official, capsys):
    assert common.dataset_name(official) == "cityscapes" and has_the_source_s_data(official)
    find_data(str(official))
    assert "data: cityscapes in" in capsys.readouterr().out and "part" not in remarks(official)


@pytest.mark.parametrize("gone", ["train/ulm", "val/lindau", "test/mainz"])
def test_a_part_of_cityscapes_is_called_a_part_and_never_counts(gone, official, capsys):
    for path in (official / "leftImg8bit" / gone).iterdir():
        path.unlink()
    assert common.dataset_name(official) == "cityscapes-part" and not has_the_source_s_data(official)
    find_data(str(official))
    assert "(a part of Cityscapes, which has 2 train, 2 val, 2 test)" in capsys.readouterr().out
    assert "a part of the official Cityscapes" in remarks(official)


def test_as_many_images_of_fewer_cities_are_a_part(official):
    for top in data_prep.SUFFIXES:
        (path,) = (official / top / "train/ulm").iterdir()
        path.rename(official / top / "train/aachen" / path.name.replace("ulm_000000", "aachen_000001"))
    assert common.dataset_name(official) == "cityscapes-part" and not has_the_source_s_data(official)


def test_a_smaller_copy_of_all_of_cityscapes_does_not_count(official, monkeypatch):
    monkeypatch.setattr(data_prep, "OFFICIAL_SIZE", (1024, 2048))
    assert common.dataset_name(official) == "cityscapes-24x32" and not has_the_source_s_data(official)


@pytest.mark.parametrize("folder, name", [
    ("my_streets", "my_streets"), ("cityscapes", "own-cityscapes"), ("Cityscapes-part", "own-Cityscapes-part"), ("toy", "own-toy"),
    ("camvid11", "own-camvid11"), ("a b\nc", "a_b_c"), ("..hidden", "_hidden"), ("Straßen", "Straßen"),
])  # fmt: skip
def test_streets_of_one_s_own_are_called_after_their_folder(folder, name, tmp_path, monkeypatch, capsys):
    root = tmp_path / folder
    for split in ("train", "val"):
        lay(root, split, "home", street(0))
    assert common.dataset_name(root) == name and not has_the_source_s_data(root)
    monkeypatch.chdir(root)
    assert common.dataset_name(Path(".")) == name
    assert check_dataset(root)[1] and not re.search("unpack|missing|official", remarks(root)) and name in check_dataset(root)[0][0]
    find_data(str(root))
    assert f"data: {name} in" in capsys.readouterr().out


def test_official_images_in_other_splits_or_under_other_names_are_one_s_own(official):
    for top in data_prep.SUFFIXES:
        (official / top / "train/ulm").rename(official / top / "val/ulm")
    assert common.dataset_name(official) == "my_streets" and not has_the_source_s_data(official)


@pytest.mark.parametrize("named, name", [("cityscapes", "own-cityscapes"), ("../../elsewhere", "_.._elsewhere"), (7, "7"), ("ulm", "ulm")])
def test_a_name_in_dataset_json_is_neither_a_path_nor_the_official_one(named, name, official):
    (official / "dataset.json").write_text(json.dumps({"name": named}))
    assert common.dataset_name(official) == name and not has_the_source_s_data(official)


@pytest.mark.parametrize("text", ['{"images": 5}', '{"images": {"train": "many"}}', "[" * 100_000, "[1]", "{", "\x00"])
def test_a_dataset_json_of_other_content_is_one_sentence(text, official):
    (official / "dataset.json").write_text(text)
    for see in (check_dataset, common.dataset_name):
        with pytest.raises(StreetsError, match="dataset.json cannot be read: restore it"):
            see(official)


def test_a_dataset_json_that_promises_no_numbers_does_not_make_an_empty_set_usable(tmp_path):
    (tmp_path / "leftImg8bit").mkdir()
    (tmp_path / "dataset.json").write_text('{"name": "mine"}')
    assert not check_dataset(tmp_path)[1]
    for split in ("train", "val"):
        lay(tmp_path, split, "home", street(0))
    assert check_dataset(tmp_path)[1]


def test_a_default_folder_in_which_nothing_is_found_is_not_passed_over_in_silence(part, toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_prep, "HERE", tmp_path / "repo")
    monkeypatch.setattr(data_prep, "toy_streets", lambda: toy)
    (tmp_path / "repo/data/cityscapes").mkdir(parents=True)
    part.rename(tmp_path / "repo/data/cityscapes/unpacked")
    assert find_data() == toy
    use = f"use {tmp_path / 'repo/data/cityscapes/unpacked'} instead"
    assert f"data: not {tmp_path / 'repo/data/cityscapes'}, which has no leftImg8bit folder: {use}" in capsys.readouterr().out


def test_an_empty_set_of_one_s_own_is_not_usable_and_says_where_files_go(tmp_path):
    (tmp_path / "mine/leftImg8bit").mkdir(parents=True)
    assert not check_dataset(tmp_path / "mine")[1]
    assert f"none in {tmp_path / 'mine/leftImg8bit/train'}: unpack leftImg8bit_trainvaltest.zip, or put yours there" in remarks(tmp_path / "mine")
