"""The toy streets: the embedded data set that every notebook falls back on."""
import hashlib
import json
import re
import sys

import cv2
import numpy as np
import pytest
from scipy.ndimage import find_objects
from scipy.ndimage import label as components
from torchvision.datasets import Cityscapes

import data_prep

CLASSES = {c.name: c for c in Cityscapes.classes}
EVALUATED = {c.id for c in Cityscapes.classes if not c.ignore_in_eval and c.id >= 0}
LABEL_SHA256 = "22b835cad0a66e96de58f2feaadb6915d1bb707abc0d593f69acb0814e35f2c0"


def draw(size=(256, 512), city="altmoor", seed=7):
    return data_prep.draw_street(size, city, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return data_prep.make_toy(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def labels(toy):
    """split -> (N, H, W) labelIds of the default set."""
    paths = {split: sorted((toy / "gtFine" / split).glob("*/*_labelIds.png")) for split in ("train", "val", "test")}
    return {split: np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in paths[split]]) for split in paths}


@pytest.fixture(scope="module")
def half_size():
    """(12, 512, 1024) labelIds of streets as wide as the pole widths are specified for."""
    cities = [city for city in list(data_prep.CITIES)[:4] for _ in range(3)]
    return np.stack([draw((512, 1024), city, seed)[1] for seed, city in enumerate(cities)])


def holes(mask: np.ndarray):
    """Masks of the gaps that a (H, W) mask encloses."""
    parts, n = components(~mask)
    rim = set(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return [parts == i for i in range(1, n + 1) if i not in rim]


# Determinism


def test_the_same_seed_draws_the_same_pixels():
    (image, label), (image2, label2) = draw(), draw()
    assert np.array_equal(image, image2) and np.array_equal(label, label2)
    assert not np.array_equal(label, draw(seed=8)[1])


def test_the_labels_of_a_seed_never_change():
    assert hashlib.sha256(draw()[1].tobytes()).hexdigest() == LABEL_SHA256


def test_a_seed_draws_the_same_scene_at_every_size():
    small, large = draw((128, 256))[1], draw((512, 1024))[1]
    assert np.mean(small == large[2::4, 2::4]) > 0.9


def test_a_street_does_not_depend_on_how_many_are_drawn(tmp_path, toy):
    few = data_prep.make_toy(tmp_path / "few", train=2, val=1, test=1)
    for path in few.glob("*/*/*/*.png"):
        assert path.read_bytes() == (toy / path.relative_to(few)).read_bytes()


# Layout


def test_the_layout_is_the_official_one(toy):
    for split, count, least_cities in (("train", 40, 3), ("val", 24, 2), ("test", 12, 1)):
        images = sorted((toy / "leftImg8bit" / split).rglob("*.png"))
        assert len(images) == count and len({p.parent.name for p in images}) >= least_cities
        for path in images:
            city = path.parent.name
            assert re.fullmatch(rf"{city}_\d{{6}}_\d{{6}}_leftImg8bit\.png", path.name)
            pair = toy / "gtFine" / split / city / path.name.replace("leftImg8bit", "gtFine_labelIds")
            assert pair.is_file()
    facts = json.loads((toy / "dataset.json").read_text())
    assert facts["name"] == "toy" and facts["test_labels"] is True


def test_no_city_is_in_two_splits(toy):
    cities = [{p.name for p in (toy / "gtFine" / split).iterdir()} for split in ("train", "val", "test")]
    assert len(set.union(*cities)) == sum(map(len, cities))


def test_torchvision_reads_it(toy):
    for split, count in (("train", 40), ("val", 24), ("test", 12)):
        dataset = Cityscapes(toy, split=split, mode="fine", target_type="semantic")
        image, label = dataset[count - 1]
        assert len(dataset) == count and image.size == label.size == (512, 256)
        assert image.mode == "RGB" and set(np.unique(label)) <= {c.id for c in Cityscapes.classes}


@pytest.mark.parametrize("size", [(64, 64), (100, 300), (300, 200), (1024, 2048)])
def test_any_size_can_be_drawn(size):
    image, label = draw(size)
    assert image.shape == (*size, 3) and label.shape == size and image.dtype == label.dtype == np.uint8
    assert np.isin(label, [c.id for c in Cityscapes.classes]).all()


def test_the_horizon_of_a_wide_flat_street_stays_in_the_picture():
    for seed in range(8):
        image, _ = data_prep.draw_street((64, 4096), next(iter(data_prep.CITIES)), np.random.default_rng(seed))
        assert image.shape == (64, 4096, 3)


# Content


def test_every_class_occurs_often_enough_to_be_learnt(labels):
    for name, c in CLASSES.items():
        if c.id in EVALUATED:
            assert np.sum((labels["train"] == c.id).sum(axis=(1, 2)) > 20) >= 6, name
            assert (labels["val"] == c.id).any(), name
    void = ~np.isin(labels["train"], list(EVALUATED))
    assert void.any(axis=(1, 2)).all()
    assert len(np.unique(labels["train"][void])) >= 4  # not the bonnet alone


def test_pixel_shares_resemble_the_real_ones(labels):
    real = {"road": 2036416525, "background": 1306362141, "building": 1260636120, "vegetation": 879783988,
            "vehicle": 459059194, "sky": 221979646, "person": 74789586}  # source 003, Cityscapes train
    groups = {"person": ["person", "rider"], "vehicle": ["car", "truck", "bus", "train", "motorcycle", "bicycle"],
              **{name: [name] for name in ("road", "building", "vegetation", "sky")}}
    drawn = np.concatenate(list(labels.values()))
    ours = {group: np.isin(drawn, [CLASSES[name].id for name in names]).mean() for group, names in groups.items()}
    ours["background"] = 1 - sum(ours.values())
    for group in real:
        assert ours[group] == pytest.approx(real[group] / sum(real.values()), abs=0.05), group
    order = ["road", "building", "vegetation", "vehicle", "sky", "person"]
    assert sorted(order, key=ours.get, reverse=True) == order
    for name in ("pole", "traffic light", "traffic sign", "rider", "motorcycle"):
        assert 0.0005 < (drawn == CLASSES[name].id).mean() < 0.015, name


def test_poles_are_two_to_six_pixels_wide_at_512x1024(half_size):
    def run_lengths(mask):
        """(H, W) length of the horizontal run that each pixel of the mask belongs to, found without a loop."""
        edge = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, starts = np.nonzero(edge[:, :-1] == 1)
        _, ends = np.nonzero(edge[:, 1:] == -1)
        lengths = np.zeros(mask.shape, int)
        lengths[mask] = np.repeat(ends + 1 - starts, ends + 1 - starts)
        return lengths

    widths = []
    for label in half_size:
        pole = label == CLASSES["pole"].id
        thickness = np.minimum(run_lengths(pole), run_lengths(pole.T).T)  # an arm lies flat: its height counts
        widths.append(thickness[pole])
    widths = np.concatenate(widths)
    assert len(widths) > 5000
    assert np.mean((widths >= 2) & (widths <= 6)) > 0.93  # the rest is partly hidden or where poles cross
    assert {2, 6} <= set(np.unique(widths))


def test_fences_can_be_seen_through(half_size):
    seen = []
    for label in half_size:
        fence = label == CLASSES["fence"].id
        for hole in holes(fence):
            seen += np.unique(label[hole]).tolist()
    assert len(seen) > 30
    assert {CLASSES["building"].id, CLASSES["terrain"].id} <= set(seen)


def test_the_sky_and_houses_show_through_the_trees(half_size):
    gaps = [label[hole] for label in half_size for hole in holes(label == CLASSES["vegetation"].id)]
    seen = np.concatenate([np.unique(gap) for gap in gaps])
    assert np.sum(seen == CLASSES["building"].id) > 300 and np.sum(seen == CLASSES["sky"].id) > 3


def test_far_things_are_small(half_size):
    feet, heights = [], []
    for label in half_size:
        for rows, columns in find_objects(components(label == CLASSES["person"].id)[0]):
            if rows.stop - rows.start > 1.5 * (columns.stop - columns.start):  # somebody alone and not cut off
                feet.append(rows.stop)
                heights.append(rows.stop - rows.start)
    low = np.array(feet) > np.median(feet)  # feet low in the picture are near
    assert len(feet) > 30
    assert np.median(np.array(heights)[low]) > 1.5 * np.median(np.array(heights)[~low])


def test_the_same_class_looks_different_from_city_to_city():
    road = {}
    for city in data_prep.CITIES:
        streets = [draw((64, 128), city, seed) for seed in range(6)]
        road[city] = np.concatenate([image[label == CLASSES["road"].id] for image, label in streets]).mean(axis=0)
    warmth = [colour[0] / colour[2] for colour in road.values()]
    assert max(warmth) / min(warmth) > 1.15


# Cost


def test_the_work_does_not_grow_with_the_pixels_but_in_numpy_and_opencv():
    def executed_lines(size):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            if frame.f_code.co_filename != data_prep.__file__:
                return None
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            draw(size)
        finally:
            sys.settrace(before)
        return count

    small = executed_lines((64, 128))
    assert small > 1000 and executed_lines((256, 512)) == pytest.approx(small, rel=0.02)


# Care with files


def test_it_never_writes_over_files_without_force(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(data_prep.StreetsError, match="--force"):
        data_prep.make_toy(tmp_path, size=(64, 128), train=1, val=0, test=0)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_force_replaces_the_data_set_and_nothing_else(tmp_path):
    root = data_prep.make_toy(tmp_path / "toy", size=(64, 128), train=3, val=2, test=1)
    (root / "notes.txt").write_text("mine")
    data_prep.make_toy(root, size=(64, 128), train=1, val=1, test=1, seed=5, force=True)
    assert (root / "notes.txt").read_text() == "mine"
    assert len(list(root.rglob("*_leftImg8bit.png"))) == 3
    assert json.loads((root / "dataset.json").read_text())["seed"] == 5


def test_an_interrupted_run_leaves_nothing_in_the_way_of_the_next(tmp_path, monkeypatch):
    written = []

    def interrupted(path, data):
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(data_prep, "write_atomic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data_prep.make_toy(tmp_path / "toy", size=(64, 128), train=3, val=1, test=1)
    assert not (tmp_path / "toy/dataset.json").exists() and not (tmp_path / "toy/leftImg8bit").exists()
    root = data_prep.make_toy(tmp_path / "toy", size=(64, 128), train=3, val=1, test=1)
    assert len(list(root.rglob("*_labelIds.png"))) == 5
    assert {p.name for p in root.iterdir()} == {"leftImg8bit", "gtFine", "dataset.json"}  # and no temporary folder
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_a_finished_data_set_is_not_drawn_again_and_another_is_refused(tmp_path):
    root = data_prep.make_toy(tmp_path / "toy", size=(64, 128), train=1, val=0, test=0)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    data_prep.make_toy(root, size=(64, 128), train=1, val=0, test=0)
    for other in ({"seed": 1}, {"size": (64, 192)}, {"train": 2}):
        with pytest.raises(data_prep.StreetsError, match="--force"):
            data_prep.make_toy(root, **{"size": (64, 128), "train": 1, "val": 0, "test": 0, **other})
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("wrong", [{"size": (8, 8)}, {"size": (256, 99999)}, {"train": 0}, {"val": -1}, {"seed": -1}])
def test_nonsense_is_refused_in_a_sentence(tmp_path, wrong):
    with pytest.raises(data_prep.StreetsError, match=r"^[^.\n]+; [^.\n]+\.$"):
        data_prep.make_toy(tmp_path / "toy", **wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(data_prep.StreetsError, match="file"):
        data_prep.make_toy(tmp_path / "file" / "toy", size=(64, 128), train=1, val=0, test=0)
