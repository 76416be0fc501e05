"""A video of one's own: read by data_prep.py, labelled and shown by results/video.py."""

import io
import re
import struct
import types

import cv2
import IPython.display
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import common
import data_prep
from common import StreetsError
from data_prep import read_video
from results import runs, video

SCHEME = common.SCHEMES["streets7"]


def write_video(path, frames, codec="mp4v", rate=12.5):
    """Write RGB frames (H, W, 3) uint8 as OpenCV does; returns the path."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def blinking(n, height=64, width=96):
    """`n` dark frames; in every other one the left third is white."""
    frames = np.zeros((n, height, width, 3), np.uint8)
    frames[1::2, :, : width // 3] = 255
    return frames


def red_corner(n=20, height=48, width=96):
    """`n` dark frames with a red rectangle at the top left."""
    frames = np.zeros((n, height, width, 3), np.uint8)
    frames[:, : height // 2, : width // 4] = (255, 0, 0)
    return frames


def turned(path, out, a, b, c, d):
    """A copy of an mp4 whose header says to turn the frames, as phones do: the matrix in its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[at : at + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    out.write_bytes(data)
    return out


class Bright(torch.nn.Module):
    """Class 1 where a pixel is bright, else class 0."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(-0.5))

    def forward(self, image):
        bright = image.mean(1, keepdim=True) + self.bias
        return torch.cat([-bright, bright], 1)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed below the cell."""
    pictures = []
    monkeypatch.setattr(IPython.display, "display", pictures.append)
    return pictures


def show(path, folder, size=(64, 96)):
    video.show_video(path, folder, SCHEME, Bright(), size, mean=(0, 0, 0), std=(1, 1, 1))


# reading


def test_frames_come_in_order_in_rgb_with_their_rate(tmp_path):
    rate, length, frames = read_video(write_video(tmp_path / "street.mp4", red_corner()))
    frames = list(frames)
    assert (rate, length, len(frames)) == (12.5, 20, 20)
    assert all(frame.shape == (48, 96, 3) and frame.dtype == np.uint8 for frame in frames)
    assert np.abs(frames[0][:20, :20].astype(int) - (255, 0, 0)).max() < 30 and frames[0][30:].max() < 30
    whites = [frame[:, :20].mean() > 128 for frame in read_video(write_video(tmp_path / "b.mp4", blinking(6))).frames]
    assert whites == [False, True] * 3


@pytest.mark.parametrize(("matrix", "shape", "corner"), [
    ((0, 1, -1, 0), (96, 48), np.s_[:20, -20:]), ((-1, 0, 0, -1), (48, 96), np.s_[-20:, -20:]), ((0, -1, 1, 0), (96, 48), np.s_[-20:, :20])])
def test_a_video_is_turned_as_its_camera_noted(tmp_path, matrix, shape, corner):
    path = turned(write_video(tmp_path / "flat.mp4", red_corner()), tmp_path / "turned.mp4", *matrix)
    assert runs.check_path("photo", str(path)) == str(path)
    first, frame = video.own_photo(str(path), None), next(read_video(path).frames)
    assert first.shape == (*shape, 3) and np.array_equal(first, frame)
    assert first[corner][..., 0].min() > 200 and np.count_nonzero(first[..., 0] > 128) < 0.15 * first[..., 0].size


@pytest.mark.parametrize(("name", "codec"), [("v.mp4", "mp4v"), ("v.avi", "MJPG"), ("v.mkv", "mp4v"), ("V.MOV", "mp4v")])
def test_any_size_and_kind_is_read(tmp_path, name, codec):
    frames = list(read_video(write_video(tmp_path / name, red_corner(7, 51, 131), codec)).frames)
    assert len(frames) == 7 and frames[0].shape == (50, 130, 3)  # OpenCV writes even sides


def test_a_gif_is_a_video_of_any_size(tmp_path):
    pictures = [Image.new("RGB", (41, 51), (25 * k, 0, 0)) for k in range(9)]
    pictures[0].save(tmp_path / "moves.gif", save_all=True, append_images=pictures[1:], duration=100)
    rate, _, frames = read_video(tmp_path / "moves.gif")
    frames = list(frames)
    assert rate == 10 and len(frames) == 9 and frames[-1].shape == (51, 41, 3) and frames[-1][..., 0].min() > 190


@pytest.mark.parametrize("content", ["half", "empty", "text", "noise", "headers"])
def test_a_file_without_a_frame_is_one_sentence_before_anything_is_trained(tmp_path, content, capfd):
    whole = write_video(tmp_path / "whole.mp4", red_corner()).read_bytes()
    headers = bytes(whole[: whole.index(b"mdat") - 4]) + (8).to_bytes(4, "big") + b"mdat" + whole[whole.index(b"moov") - 4 :]
    data = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"road\n" * 500, "headers": headers,
            "noise": np.random.default_rng(0).bytes(20_000)}[content]
    (tmp_path / "street.mp4").write_bytes(data)
    capfd.readouterr()
    with pytest.raises(StreetsError, match=r"^\S+street\.mp4 has no frame that can be read: .*; copy or make it again\.$") as caught:
        runs.check_path("photo", str(tmp_path / "street.mp4"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "OpenCV and ffmpeg say nothing beside it"


def test_a_text_is_not_drawn_as_a_video(tmp_path):
    """OpenCV's reader does draw it, in white on black."""
    (tmp_path / "notes.txt").write_text("road\n" * 500)
    with pytest.raises(StreetsError, match="notes.txt is damaged or cut short, or neither PNG nor JPEG"):
        runs.check_path("photo", str(tmp_path / "notes.txt"))
    with pytest.raises(StreetsError, match="Cannot read .*none.mp4"):
        read_video(tmp_path / "none.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(StreetsError, match="folder.mp4 is no plain file"):
        read_video(tmp_path / "folder.mp4")


@pytest.mark.parametrize(("height", "width"), [(20, 64), (32, 400)])
def test_a_video_too_small_or_narrow_for_a_network_is_one_sentence(tmp_path, height, width):
    path = write_video(tmp_path / "street.mp4", red_corner(3, height, width))
    with pytest.raises(StreetsError, match=f"street.mp4 has {width}x{height} pixels: use photos with at least 32"):
        runs.check_path("photo", str(path))


@pytest.mark.parametrize("kind", ["mkv", "avi"])
def test_what_is_left_of_a_video_cut_short_is_used_and_told(tmp_path, kind, capfd):
    path = write_video(tmp_path / f"whole.{kind}", red_corner(), {"mkv": "mp4v", "avi": "MJPG"}[kind])
    list(read_video(path).frames)
    assert capfd.readouterr() == ("", "")
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    n = len(list(read_video(cut).frames))
    assert 0 < n < 18
    assert capfd.readouterr() == (f"{cut} announces 20 frames, and {n} can be read: it is cut short or damaged.\n", "")


def test_of_a_long_video_the_first_frames_are_used_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    path = write_video(tmp_path / "long.mp4", red_corner())
    monkeypatch.setattr(data_prep, "LONGEST", 5)
    _, length, frames = read_video(path)
    assert length == len(list(frames)) == 5
    assert capsys.readouterr().out == f"{path}: only the first 5 frames are used.\n"
    monkeypatch.setattr(data_prep, "LONGEST", 20)
    assert len(list(read_video(path).frames)) == 20 and capsys.readouterr().out == ""


# labelling


def test_a_video_is_labelled_shown_and_written_beside_the_run(tmp_path, shown, capsys):
    show(write_video(tmp_path / "street.mp4", blinking(10)), tmp_path / "run")
    out = capsys.readouterr().out
    assert re.search(r"^street\.mp4: 10 frames of 96x64, 12\.5 per second; labelled at \d[\d.e+]* frames per second$", out, re.M)
    assert "flicker: from one frame to the next 33.33% of the pixels change their class\n" in out
    assert re.search(r"^run/street_labels\.mp4, 0\.\d MB$", out, re.M)
    rate, _, frames = read_video(tmp_path / "run" / "street_labels.mp4")
    frames = list(frames)
    assert rate == 12.5 and len(frames) == 10 and frames[0].shape == (64, 192, 3)
    road = SCHEME.colors[1].astype(int)
    assert np.abs(frames[1][:, 100:120].astype(int) - road).max() < 40 and frames[0][:, 100:].max() < 40
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["street_labels.mp4"]

    (picture,) = shown
    assert picture.format == "png", "nbconvert leaves image/gif out"
    with Image.open(io.BytesIO(picture.data)) as moving:
        assert (moving.format, moving.n_frames, moving.size) == ("PNG", 10, (192, 64))
        moving.seek(1)
        second = np.asarray(moving.convert("RGB"))
    assert (second[:, 96:128] == SCHEME.colors[1]).all() and (second[:, 128:] == SCHEME.colors[0]).all()
    assert second[:, :30].min() > 225 and second[:, 40:96].max() < 30


def test_a_still_scene_does_not_flicker(tmp_path, shown, capsys):
    show(write_video(tmp_path / "still.avi", red_corner(4, 64, 96), "MJPG"), tmp_path)
    assert "next 0.00% of the pixels" in capsys.readouterr().out


def test_a_single_frame_is_no_reason_to_stop(tmp_path, shown, capsys):
    Image.new("RGB", (96, 64), (255, 255, 255)).save(tmp_path / "one.gif")
    show(tmp_path / "one.gif", tmp_path / "run")
    out = capsys.readouterr().out
    assert "one.gif: 1 frame of 96x64" in out and "flicker" not in out and len(shown) == 1
    assert (tmp_path / "run" / "one_labels.mp4").exists()


def test_large_frames_are_shrunk_and_the_picture_in_the_page_stays_small(tmp_path, shown, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (26, 30, 60, 3), np.uint8)
    frames = [cv2.resize(frame, (1200, 600), interpolation=cv2.INTER_CUBIC) for frame in noise]
    show(write_video(tmp_path / "large.mp4", frames), tmp_path / "run")
    assert "large.mp4: 26 frames of 1200x600" in capsys.readouterr().out
    assert next(read_video(tmp_path / "run" / "large_labels.mp4").frames).shape == (480, 1920, 3)
    with Image.open(io.BytesIO(shown[0].data)) as moving:
        assert moving.n_frames <= 24 and moving.size == (480, 120)
        lasts = 0
        for k in range(moving.n_frames):
            moving.seek(k)
            lasts += moving.info["duration"]
    assert lasts == pytest.approx(1000 * 26 / 12.5, rel=0.02), "as long as the video"
    assert len(shown[0].data) < 1e6


def test_without_an_encoder_or_room_the_picture_is_shown_and_no_broken_file_is_left(tmp_path, shown, capsys, monkeypatch):
    path = write_video(tmp_path / "street.mp4", blinking(4))
    monkeypatch.setattr(cv2.VideoWriter, "write", lambda self, frame: None)
    show(path, tmp_path / "run")
    assert capsys.readouterr().out.endswith("No video was written: the disk is full, or this OpenCV cannot write mp4.\n")
    assert len(shown) == 1 and not (tmp_path / "run").exists()


@pytest.fixture
def frame(tmp_path):
    """A frame of a data set, of which only the photo is read: 40 rows, 100 columns, its left half bright."""
    bright = np.zeros((40, 100, 3), np.uint8)
    bright[:, :50] = 255
    cv2.imwrite(str(tmp_path / "street.png"), bright)
    return types.SimpleNamespace(image=tmp_path / "street.png")


@pytest.mark.parametrize("named", [False, True])
def test_a_photo_or_else_a_frame_of_the_data_is_shown_beside_its_labels(tmp_path, frame, shown, capsys, monkeypatch, named):
    seen, pairs = [], []
    monkeypatch.setattr(common, "show_pair", lambda photo, label, scheme, name: pairs.append((photo, label)))
    monkeypatch.setattr(common, "show", lambda figure: None)
    predict = common.predict
    monkeypatch.setattr(common, "predict", lambda model, image, size, *scale: seen.append(size) or predict(model, image, size, *scale))
    own = cv2.imread(str(frame.image))[:, ::-1] if named else cv2.imread(str(frame.image))
    cv2.imwrite(str(tmp_path / "own.png"), own)
    video.show(str(tmp_path / "own.png") if named else "", frame, tmp_path / "run", SCHEME, Bright(), 64, mean=(0, 0, 0), std=(1, 1, 1))
    [(photo, label)] = pairs
    assert seen == [(64, 160)] and np.array_equal(photo, own) and label.shape == (40, 100)
    assert (label[:, :48] == (not named)).all() and (label[:, 52:] == named).all()
    assert capsys.readouterr().out == "" and not shown and not (tmp_path / "run").exists()


def test_of_a_video_the_first_frame_is_shown_and_then_all(tmp_path, frame, shown, capsys, monkeypatch):
    monkeypatch.setattr(common, "show_pair", lambda photo, label, scheme, name: photo.shape)
    monkeypatch.setattr(common, "show", lambda shape: print("first frame", *shape))
    path = write_video(tmp_path / "street.mp4", blinking(4))
    video.show(str(path), frame, tmp_path / "run", SCHEME, Bright(), 64, mean=(0, 0, 0), std=(1, 1, 1))
    out = capsys.readouterr().out
    assert out.startswith("first frame") and "street.mp4: 4 frames" in out
    assert len(shown) == 1 and (tmp_path / "run/street_labels.mp4").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("0[2-6]_*.py")), ids=lambda path: path.stem[:2])
def test_each_notebook_that_takes_a_photo_takes_a_video(path):
    text = path.read_text()
    assert "\nfrom results import video\n" in text.partition("video.show(photo, ")[0]
