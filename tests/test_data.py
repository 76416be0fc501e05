"""Finding and reading data: which folder is taken, what an item holds, and that its randomness is its own."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

import common
import data_prep
from common import StreetsError

SIZE = (64, 128)


def noisy(image, label, rng):
    return cv2.add(image, rng.integers(0, 20, image.shape, dtype=np.uint8)), label


def copy_of(frames, folder):
    """The first frame's two files in another folder, to be damaged."""
    frame = frames[0]
    image, label = folder / frame.image.name, folder / frame.label.name
    image.write_bytes(frame.image.read_bytes())
    label.write_bytes(frame.label.read_bytes())
    return frame._replace(image=image, label=label)


@pytest.fixture
def frames(toy):
    return common.list_frames(toy, "train")


def test_an_item_is_a_normalised_image_with_its_label(frames):
    item = common.StreetScenes(frames, SIZE)[1]
    assert item["image"].shape == (3, *SIZE) and item["image"].dtype == torch.float32
    assert item["label"].shape == SIZE and item["label"].dtype == torch.int64 and item["index"] == 1
    photo = data_prep.read_image(frames[1].image) / 255.0
    expected = (photo - common.IMAGENET_MEAN) / common.IMAGENET_STD
    np.testing.assert_allclose(item["image"].numpy().transpose(1, 2, 0), expected, atol=1e-5)
    assert set(item["label"].unique().tolist()) <= set(range(19)) | {255}


def test_labels_are_resized_without_inventing_classes_and_keep_their_place(frames):
    data = common.StreetScenes(frames, (32, 64))
    image, label = data.read(0)
    full = common.SCHEMES["cityscapes19"].table[data_prep.read_label(frames[0].label)]
    assert image.shape == (32, 64, 3) and set(np.unique(label)) <= set(np.unique(full))
    blocks = full.reshape(32, 2, 64, 2)
    assert (blocks == label[:, None, :, None]).any(axis=(1, 3)).all(), "each pixel comes from its own 2x2 block"


@pytest.mark.parametrize("scheme", common.SCHEMES)
def test_every_scheme_yields_only_its_classes(frames, scheme):
    values = common.StreetScenes(frames, SIZE, scheme)[0]["label"].unique().tolist()
    assert set(values) <= set(range(len(common.SCHEMES[scheme].classes))) | ({255} if scheme == "cityscapes19" else set())


def test_augmentation_depends_on_seed_epoch_and_index_only(frames):
    data = common.StreetScenes(frames, SIZE, augment=noisy, seed=1)
    assert torch.equal(data[2, 5]["image"], data[2, 5]["image"])
    for other in (data[3, 5], data[2, 4], common.StreetScenes(frames, SIZE, augment=noisy, seed=2)[2, 5]):
        assert not torch.equal(data[2, 5]["image"], other["image"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_data(frames, workers):
    def epoch(num_workers):
        data = common.StreetScenes(frames, SIZE, augment=noisy, seed=1)
        sampler = common.EpochSampler(len(data), 1)
        loader = common.make_loader(data, 3, sampler=sampler, num_workers=num_workers)
        seen = []
        for sampler.epoch in (1, 2):
            seen += [(batch["index"], batch["image"]) for batch in loader]
        return seen

    with_workers, without = epoch(workers), epoch(0)
    assert len(without) == 2 * (len(frames) // 3), "the short batch is dropped"
    for (i, a), (j, b) in zip(with_workers, without, strict=True):
        assert torch.equal(i, j) and torch.equal(a, b)
    assert not torch.equal(without[0][0], without[2][0]), "another order in the second epoch"


def test_opencv_used_before_does_not_hang_forked_workers(frames):
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)
    data = common.StreetScenes(frames, SIZE, augment=noisy)
    loader = common.make_loader(data, 4, sampler=common.EpochSampler(len(data), 0), num_workers=2)
    loader.timeout = 60
    assert len(list(loader)) == 2


def test_targets_are_computed_from_the_augmented_label(frames):
    def blank(image, label, rng):
        return image, np.full_like(label, 7)

    item = common.StreetScenes(frames, SIZE, augment=blank, targets=lambda label: {"sum": int(label.sum())})[0]
    assert item["sum"] == 7 * SIZE[0] * SIZE[1]


def test_damaged_files_are_named(frames, tmp_path):
    frame = copy_of(frames, tmp_path)
    frame.image.write_bytes(frame.image.read_bytes()[:-500])
    with pytest.raises(StreetsError, match=rf"{frame.image.name} is damaged or cut short"):
        common.StreetScenes([frame], SIZE)[0]
    frame = copy_of(frames, tmp_path)
    frame.label.unlink()
    with pytest.raises(StreetsError, match=frame.label.name):
        common.StreetScenes([frame], SIZE)[0]


def test_a_label_of_another_size_is_named(frames, tmp_path):
    frame = copy_of(frames, tmp_path)
    data_prep.write_png(frame.label, np.zeros((32, 32), np.uint8))
    with pytest.raises(StreetsError, match=rf"{frame.label.name} is 32x32 pixels, but its photo is 64x128"):
        common.StreetScenes([frame], SIZE)[0]


def test_a_label_id_that_does_not_exist_is_named(frames, tmp_path):
    frame = copy_of(frames, tmp_path)
    data_prep.write_png(frame.label, np.full(SIZE, 77, np.uint8))
    with pytest.raises(StreetsError, match=rf"{frame.label.name} holds the label id 77"):
        common.StreetScenes([frame], SIZE)[0]


def test_an_empty_split_is_told():
    with pytest.raises(StreetsError, match="split is empty"):
        common.StreetScenes([], SIZE)


def test_the_named_folder_comes_before_the_variable_and_the_variable_before_toy(toy, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    (other / "leftImg8bit" / "train").mkdir(parents=True)
    monkeypatch.setenv("CITYSCAPES_DATASET", str(other))
    assert common.find_data(str(toy)) == toy and common.find_data() == other
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"data: toy in {toy}: 8 train, 3 val, 2 test"
    monkeypatch.delenv("CITYSCAPES_DATASET")
    monkeypatch.setattr(data_prep, "toy_streets", lambda: toy)
    monkeypatch.setattr(data_prep, "HERE", tmp_path)
    assert common.find_data() == toy
    (tmp_path / "data" / "cityscapes" / "leftImg8bit").mkdir(parents=True)
    assert common.find_data() == tmp_path / "data" / "cityscapes"


def test_a_relative_folder_is_seen_from_the_working_directory(toy, monkeypatch):
    monkeypatch.chdir(toy.parent)
    assert common.find_data("toy") == toy


@pytest.mark.parametrize("mode", ["laptop", "course", "paper"])
def test_a_mode_for_real_streets_takes_toy_streets_only_where_they_are_asked_for(toy, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    monkeypatch.setattr(data_prep, "HERE", tmp_path)
    monkeypatch.setattr(data_prep, "toy_streets", lambda: toy)
    with pytest.raises(StreetsError, match=f"^mode {mode} is for real streets, and none were found: get some with .* -p data_dir data/camvid, or .* -p data_dir toy"):
        common.find_data("", mode)
    assert common.find_data("", "quick") == common.find_data("toy", mode) == common.find_data(str(toy), mode) == toy
    monkeypatch.setenv("CITYSCAPES_DATASET", str(toy))
    assert common.find_data("", mode) == toy


def test_every_notebook_says_its_mode_where_it_looks_for_data():
    notebooks = list((common.HERE / "notebooks").glob("*.py"))
    assert len(notebooks) == 6 and all("common.find_data(data_dir, mode)" in path.read_text() for path in notebooks)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (2000, 8), (8, 2000), (31, 40), (32, 300)])
def test_photos_that_no_network_takes_are_told_where_the_data_are_found(toy, tmp_path, split, size):
    root = shutil.copytree(toy, tmp_path / "streets")
    for frame in common.list_frames(root, split):
        data_prep.write_png(frame.image, np.zeros((*size, 3), np.uint8))
        data_prep.write_png(frame.label, np.full(size, 7, np.uint8))
    with pytest.raises(StreetsError, match=f"{split}/.*leftImg8bit.png has {size[1]}x{size[0]} pixels: use photos with at least 32 pixels a side"):
        common.find_data(str(root))


@pytest.mark.parametrize(("shape", "height", "size"), [((512, 64), 32, (32, 32)), ((64, 512), 64, (64, 512)), ((64, 128), 128, (128, 256))])
def test_a_network_sees_at_least_32_columns(tmp_path, shape, height, size):
    data_prep.write_png(tmp_path / "label.png", np.zeros(shape, np.uint8))
    assert common.network_size(data_prep.Frame("a", "a", None, tmp_path / "label.png"), height) == size


def test_a_folder_without_streets_is_refused(tmp_path):
    with pytest.raises(StreetsError, match="has no leftImg8bit folder"):
        common.find_data(str(tmp_path))


def test_evenly_spreads_over_the_whole_list():
    assert common.evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert common.evenly([1, 2], 5) == common.evenly([1, 2], 0) == [1, 2]


def test_a_data_set_is_listed_by_split_and_without_test_labels_its_test_split_is_empty(toy, tmp_path):
    splits = common.list_splits(toy)
    assert {split: len(frames) for split, frames in splits.items()} == {"train": 8, "val": 3, "test": 2}
    assert common.list_splits(toy, 2)["train"] == common.evenly(splits["train"], 2)
    blind = shutil.copytree(toy, tmp_path / "streets")
    info = json.loads((blind / "dataset.json").read_text())
    (blind / "dataset.json").write_text(json.dumps(info | {"test_labels": False}))
    assert common.list_splits(blind)["test"] == [] and len(common.list_splits(blind)["val"]) == 3


def test_official_cityscapes_has_no_test_labels_to_score(toy, tmp_path):
    assert common.has_test_labels(toy) and not common.has_test_labels(tmp_path)
    assert common.dataset_name(toy) == "toy"


def test_a_height_that_an_encoder_cannot_halve_five_times_is_refused(toy):
    frame = common.list_frames(toy, "val")[0]
    assert common.network_size(frame, 64) == (64, 128)
    with pytest.raises(common.StreetsError, match="height must be a multiple of 32, not 40"):
        common.network_size(frame, 40)


def test_a_picture_that_becomes_narrower_alone_skips_no_columns():
    photo = np.zeros((64, 256, 3), np.uint8)
    photo[:, ::4] = 255
    small, _ = common.resize_pair(photo, photo[..., 0], (64, 64))
    assert np.all(small == 64)  # the mean of four columns


def test_a_prediction_has_the_size_of_the_photo_and_the_classes_of_the_enlarged_logits():
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 5, 8, stride=8).eval()
    photo = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = net(common.to_tensor(common.resize_pair(photo, photo[..., 0], (32, 64))[0])[None])
    expected = torch.nn.functional.interpolate(logits, (48, 96), mode="bilinear", align_corners=False).argmax(1)[0]
    assert np.array_equal(common.predict(net, photo, (32, 64)), expected.numpy())
