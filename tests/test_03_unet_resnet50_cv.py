"""Notebook 03: its network, folds and augmentation against counts and oracles, the grid of scores, and whole runs."""

import json
import socket

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from conftest import ROOT, copy_some, run_in_kernel, run_script
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import common
import data_prep
from results import extras_03, report, runs

NAME = "03_unet_resnet50_cv"
TINY = {"epochs": 1, "images": 8, "height": 32, "weights": "none"}
TRAIN_CITIES = {"aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109,
                "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365,
                "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122}


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


@pytest.fixture(scope="module")
def full(nb):
    """The published network, without numbers."""
    with torch.device("meta"):
        return nb.EncoderUNet()


def count(module):
    return sum(p.numel() for p in module.parameters())


def box_of(mask):
    """[left, top, right, bottom] of a mask (H, W) that is not empty."""
    ys, xs = np.nonzero(mask)
    return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


def frames_of(cities):
    return [data_prep.Frame(f"{city}_{i}", city, None, None) for city, count in cities.items() for i in range(count)]


# the network


def test_the_published_network_has_147_million_parameters_half_of_them_in_the_bottleneck(nb, full):
    assert count(full) == 147_376_915
    assert count(full.bottleneck) == 75_505_664
    with torch.device("meta"):
        assert count(full) + count(nb.DoubleConv(2048, 2048)) == 222_882_579
        assert count(full) + count(torchvision.models.resnet50().fc) == 149_425_915
        assert count(nb.EncoderUNet(bottleneck=False)) == 147_376_915 - 75_505_664 == 71_871_251
    assert not any("fc" in name for name, _ in full.named_parameters())


def test_the_encoder_gives_the_maps_of_torchvisions_network(nb):
    net, encoder = torchvision.models.resnet18().eval(), nb.EncoderUNet("resnet18").encoder.eval()
    encoder.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("fc.")})
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted = create_feature_extractor(net, ["relu", "layer1", "layer2", "layer3", "layer4"])(image)
        assert all(torch.equal(a, b) for a, b in zip(encoder(image)[1:], wanted.values(), strict=True))


def test_every_tap_and_step_has_the_published_shape(full):
    shapes = []
    for part in (*full.steps, full.head):
        part.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    image = torch.zeros(2, 3, 512, 1024, device="meta")
    taps = [tuple(tap.shape[1:]) for tap in full.encoder(image)[1:]]
    assert taps == [(64, 256, 512), (256, 128, 256), (512, 64, 128), (1024, 32, 64), (2048, 16, 32)]
    assert full(image).shape == (2, 19, 512, 1024)
    assert shapes == [(1024, 32, 64), (512, 64, 128), (256, 128, 256), (64, 256, 512), (19, 512, 1024)]


def test_the_last_step_goes_from_256_to_64_and_merges_128_channels(full):
    up, merge = full.steps[-1].up, full.steps[-1].merge
    assert (up.in_channels, up.out_channels, merge[0].in_channels, merge[0].out_channels) == (256, 64, 128, 64)


def test_there_is_one_dropout_and_convolutions_before_batch_norm_have_no_bias(full):
    drops = [m for m in full.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert len(drops) == 1 and drops[0].p == 0.3 and drops[0] is full.bottleneck[-1]
    with_bias = [m for m in full.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert with_bias == [full.head[1]]


def test_the_upsampled_map_comes_before_the_skip(nb):
    step, seen = nb.UpStep(4, 2), []
    step.merge.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, skip = torch.rand(2, 4, 2, 2), torch.rand(2, 2, 4, 4)
    step(x, skip)
    torch.testing.assert_close(seen[0][:, :2], step.up(x))
    torch.testing.assert_close(seen[0][:, 2:], skip)


@pytest.mark.parametrize("encoder", ["lite0", "resnet18"])
def test_logits_have_the_size_of_the_image(nb, encoder):
    net = nb.EncoderUNet(encoder).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 64, 96)).shape == (1, 19, 64, 96)


def test_quick_and_laptop_have_the_same_decoder_on_five_smaller_maps(nb, full):
    assert nb.MODES["quick"]["encoder"] == nb.MODES["laptop"]["encoder"] == "lite0"
    with torch.device("meta"):
        small = nb.EncoderUNet("lite0")
    channels = {net: [step.up.in_channels for step in net.steps] + [net.head[0].in_channels] for net in (full, small)}
    assert channels == {full: [2048, 1024, 512, 256, 64], small: [320, 112, 40, 24, 16]}
    parts = [[type(module) for name, module in net.named_modules() if not name.startswith("encoder")][1:] for net in (full, small)]
    assert parts[0] == parts[1]


def test_paper_mode_is_the_published_recipe(nb):
    paper = nb.MODES["paper"]
    assert (paper["encoder"], paper["height"], paper["epochs"], paper["batch_size"]) == ("resnet50", 512, 65, 2)
    assert (paper["lr"], paper["eval_every"], paper["precision"]) == (1e-4, 5, "fp32")


@pytest.mark.parametrize("mode", ["quick", "laptop", "paper"])
def test_each_of_these_modes_validates_thirteen_times(nb, mode):
    settings = nb.MODES[mode]
    assert len(runs.epochs_named(settings["eval_every"], settings["epochs"])) == 13


# the folds


def test_image_folds_of_cityscapes_are_disjoint_cover_all_and_repeat_with_their_seed(nb):
    parts = nb.folds_by_image(range(2975), 42)
    assert [len(part) for part in parts] == [992, 992, 991]
    assert sorted(np.concatenate(parts)) == list(range(2975))
    assert all((a == b).all() for a, b in zip(parts, nb.folds_by_image(range(2975), 42)))
    assert (parts[0] != nb.folds_by_image(range(2975), 43)[0]).any()


def test_city_folds_are_those_of_scikit_learn_and_never_split_a_city(nb):
    selection = pytest.importorskip("sklearn.model_selection")
    frames = frames_of(TRAIN_CITIES)
    parts, cities = nb.folds_by_city(frames), np.array([frame.city for frame in frames])
    assert len(frames) == 2975 and sorted(np.concatenate(parts)) == list(range(2975))
    owners = [set(cities[part]) for part in parts]
    for ours, part, (_, theirs) in zip(owners, parts, selection.GroupKFold(3).split(frames, groups=cities), strict=True):
        assert len(part) == len(theirs)
        # hanover and stuttgart have as many images, and releases of scikit-learn differ in which of them goes first
        assert sorted(TRAIN_CITIES[c] for c in ours) == sorted(TRAIN_CITIES[c] for c in set(cities[theirs]))
    assert sum(map(len, owners)) == 18 and set.union(*owners) == set(TRAIN_CITIES)
    assert sorted(map(len, parts)) == [982, 988, 1005]


def test_image_folds_leak_every_city(nb):
    frames = frames_of(TRAIN_CITIES)
    for part in nb.folds_by_image(frames, 42):
        held = set(part.tolist())
        assert {frames[i].city for i in held} <= {f.city for i, f in enumerate(frames) if i not in held}


def test_too_few_cities_or_images_for_three_folds_are_refused_in_one_sentence(nb):
    with pytest.raises(common.StreetsError, match=r"2 cities \(a, b\) cannot fill 3 folds: use folds = \"image\" or -p folds image\."):
        nb.folds_by_city(frames_of({"a": 5, "b": 4}))
    with pytest.raises(common.StreetsError, match="2 images cannot fill 3 folds"):
        nb.folds_by_image(range(2), 42)


# the augmentation


@pytest.fixture
def street():
    """A photo and a label of 128x256 with one object, rows 48 to 80 and columns 96 to 160, near the middle."""
    image, label = np.full((128, 256, 3), 90, np.uint8), np.zeros((128, 256), np.uint8)
    image[48:80, 96:160], label[48:80, 96:160] = 200, 13
    return image, label


def area(label):
    left, top, right, bottom = box_of(label == 13)
    return (right - left) * (bottom - top)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.2])
def test_intended_scaling_changes_the_size_of_things(nb, street, factor):
    image, label = nb.scale_intended(*street, factor, np.random.default_rng(0))
    assert image.shape == (128, 256, 3) and label.shape == (128, 256)
    assert area(label) == pytest.approx(factor**2 * 32 * 64, rel=0.07)
    bright = image[..., 0] > 145
    assert (bright != (label == 13)).mean() < 0.01, "image and label move together"


def test_a_margin_is_black_in_the_image_and_void_in_the_label(nb, street):
    image, label = nb.scale_intended(*street, 0.8, np.random.default_rng(0))
    margin = np.ones((128, 256), bool)
    margin[13:115, 25:230] = False  # 102 x 205 pixels are left of the photo
    assert (image[margin] == 0).all() and (label[margin] == 255).all()
    assert (image[~margin] > 0).all() and (label[~margin] < 255).all()


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("size", [(64, 128), (128, 256)])
def test_published_scaling_leaves_the_object_where_it_was(nb, street, factor, size):
    _, label = common.resize_pair(*nb.scale_as_published(*street, factor), size)
    _, unscaled = common.resize_pair(*street, size)
    assert np.abs(np.subtract(box_of(label == 13), box_of(unscaled == 13))).max() <= 1
    assert (label < 255).all()


def test_published_scaling_multiplies_by_1_plus_the_factor_as_albumentations_does(nb, street, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    assert nb.scale_as_published(*street, 0.8)[1].shape == (230, 461)
    albumentations = pytest.importorskip("albumentations")
    scaled = albumentations.RandomScale((0.8, 0.8), p=1)(image=np.zeros((100, 200, 3), np.uint8))["image"]
    assert scaled.shape[:2] == (180, 360)


def test_an_enlarged_street_is_cropped_at_random(nb, street):
    boxes = {tuple(box_of(nb.scale_intended(*street, 1.2, np.random.default_rng(seed))[1] == 13)) for seed in range(10)}
    assert len(boxes) > 5


@pytest.mark.parametrize(("version", "function"), [("intended", "scale_intended"), ("as_published", "scale_as_published")])
def test_factors_are_drawn_from_0_8_to_1_2(nb, street, monkeypatch, version, function):
    factors = []
    monkeypatch.setattr(nb, function, lambda image, label, factor, *_: factors.append(factor) or (image, label))
    for seed in range(400):
        nb.street_view(*street, np.random.default_rng(seed), (64, 128), version)
    assert 0.8 <= min(factors) < 0.83 and 1.17 < max(factors) <= 1.2


@pytest.mark.parametrize("version", ["intended", "as_published"])
def test_image_and_label_are_flipped_together(nb, version, monkeypatch):
    monkeypatch.setattr(nb, "jitter_colors", lambda image, rng: image)
    image, label = np.full((128, 256, 3), 90, np.uint8), np.zeros((128, 256), np.uint8)
    image[48:80, 10:70], label[48:80, 10:70] = 200, 13
    for seed in range(40):
        view, mask = nb.street_view(image, label, np.random.default_rng(seed), (128, 256), version)
        assert ((view[..., 0] > 145) != (mask == 13)).mean() < 0.01


@pytest.mark.parametrize("version", ["intended", "as_published"])
def test_a_view_has_the_network_size_depends_on_its_generator_only_and_spares_its_input(nb, street, version):
    before = [array.copy() for array in street]
    for seed in range(20):
        image, label = nb.street_view(*street, np.random.default_rng(seed), (64, 128), version)
        again = nb.street_view(*street, np.random.default_rng(seed), (64, 128), version)
        assert image.shape == (64, 128, 3) and label.shape == (64, 128) and image.dtype == label.dtype == np.uint8
        assert (image == again[0]).all() and (label == again[1]).all()
    assert all((a == b).all() for a, b in zip(before, street))


def test_one_view_in_four_is_scaled_and_half_are_flipped(nb, street):
    boxes = [box_of(nb.street_view(*street, np.random.default_rng(seed), (128, 256), "intended")[1] == 13) for seed in range(300)]
    unscaled = [box for box in boxes if box == [96, 48, 160, 80]]  # flipped or not: the object is in the middle
    assert 0.68 < len(unscaled) / 300 < 0.82
    columns = np.tile(np.arange(256, dtype=np.uint8) // 2, (128, 1))
    flips = [nb.street_view(street[0], columns, np.random.default_rng(s), (128, 256), "as_published")[1][64, 10] > 64 for s in range(300)]
    assert 0.4 < np.mean(flips) < 0.6


def test_colour_jitter_makes_four_changes_within_their_limits(nb, monkeypatch):
    amounts = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    for name, seen in amounts.items():
        monkeypatch.setattr(extras_03.transforms, f"adjust_{name}", lambda pixels, amount, seen=seen: seen.append(amount) or pixels)
    image = np.full((8, 8, 3), 100, np.uint8)
    for seed in range(100):
        nb.jitter_colors(image, np.random.default_rng(seed))
    assert all(len(seen) == 100 for seen in amounts.values())
    for name in ("brightness", "contrast", "saturation"):
        assert 0.7 <= min(amounts[name]) < 0.75 and 1.25 < max(amounts[name]) <= 1.3
    assert -0.1 <= min(amounts["hue"]) < -0.08 and 0.08 < max(amounts["hue"]) <= 0.1


def test_half_of_the_views_are_jittered(nb, street, monkeypatch):
    jittered = []
    monkeypatch.setattr(nb, "jitter_colors", lambda image, rng: jittered.append(1) or image)
    for seed in range(300):
        nb.street_view(*street, np.random.default_rng(seed), (64, 128), "intended")
    assert 120 < len(jittered) < 180


# training and scores


def test_a_fold_learns_from_the_other_two_parts(nb):
    frames, parts = list("abcdefgh"), [np.array([1, 4]), np.array([0, 7, 2]), np.array([3, 5, 6])]
    assert nb.split_of_fold(frames, parts, 2) == (["b", "d", "e", "f", "g"], ["a", "c", "h"])


@pytest.fixture
def fitted(nb, monkeypatch):
    """What train_fold hands to common.fit, for three different lists of frames."""
    seen = {}
    monkeypatch.setattr(common, "fit", lambda folder, model, loss, train, val, **options: seen.update(options, train=train, val=val))
    splits = {name: [data_prep.Frame(name, "city", None, None)] for name in ("train", "val", "official_val", "test")}
    nb.train_fold("f", splits, nb.MODES["quick"], (32, 64), (64, 128), "intended", "published", "none", 0)
    return seen | {"splits": splits}


def test_a_fold_trains_on_its_training_images_augmented_and_is_scored_on_the_held_out_ones(nb, fitted):
    train, val, splits = fitted["train"], fitted["val"], fitted["splits"]
    assert train.frames == splits["train"] and val.frames == splits["val"] and fitted["test_data"].frames == splits["test"]
    assert train.size == (64, 128) and val.size == (32, 64) and val.augment is None
    assert train.augment.func is nb.street_view and train.augment.keywords == {"size": (32, 64), "version": "intended"}
    grid = fitted["final_scores"].keywords["data"]
    for name, split in (("held_out", "val"), ("official_val", "official_val"), ("test", "test")):
        assert all(data.frames == splits[split] for data in grid[name].values())
    settings = nb.MODES["quick"]
    assert all(fitted[key] == settings[key] for key in ("epochs", "batch_size", "eval_every", "precision"))
    for data in (train, val, fitted["test_data"], *grid["held_out"].values()):
        assert data.mean == data.std == common.LITE0_MEAN


def test_the_rate_is_halved_at_the_third_validation_without_a_new_best(fitted):
    scheduler, optimizer = fitted["scheduler"], fitted["optimizer"]
    assert fitted["schedule"] == "plateau" and (fitted["select"], fitted["best_by"]) == ("best", "miou")
    assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["weight_decay"] == 0
    rates = []
    for score in (0.5, 0.4, 0.4, 0.4, 0.6):  # common.fit steps it once per validation
        scheduler.step(score)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [2e-3, 2e-3, 2e-3, 1e-3, 1e-3]


def test_the_grid_holds_the_scores_of_an_independent_computation(nb, toy, tmp_path):
    metrics = pytest.importorskip("torchmetrics.classification")
    size, native, frames = (32, 64), (64, 128), common.list_frames(toy, "val")
    net = nb.EncoderUNet("resnet18")
    for seed, checkpoint in enumerate(("best", "last")):
        torch.manual_seed(seed)
        for p in net.parameters():
            nn.init.normal_(p, std=0.05)
        common.save_weights(tmp_path / f"{checkpoint}.safetensors", net)
    data = {"held_out": nb.both_resolutions(frames[:2], size, native, "resnet18"),
            "official_val": nb.both_resolutions(frames[2:], size, native, "resnet18")}
    grid = nb.evaluation_grid(tmp_path, net, common.make_accelerator("fp32"), data)
    table = common.SCHEMES["cityscapes19"].table
    for checkpoint in ("best", "last"):
        common.load_weights(tmp_path / f"{checkpoint}.safetensors", net).eval()
        for images, chosen in (("held_out", frames[:2]), ("official_val", frames[2:])):
            for resolution in ("low", "full"):
                oracle, truths = metrics.MulticlassJaccardIndex(19, average="none", ignore_index=255), []
                for frame in chosen:
                    photo, label = common.read_image(frame.image), table[common.read_label(frame.label)]
                    photo, low = common.resize_pair(photo, label, size)
                    with torch.no_grad():
                        logits = net(common.to_tensor(photo)[None])
                    if resolution == "full":
                        logits = nn.functional.interpolate(logits, native, mode="bilinear", align_corners=False)
                    truths.append(torch.from_numpy((label if resolution == "full" else low).astype(np.int64))[None])
                    oracle.update(logits.argmax(1), truths[-1])
                present = torch.cat([t.flatten() for t in truths]).unique()
                expected = oracle.compute()[present[present < 255]].mean().item()
                assert grid[images][resolution][checkpoint] == pytest.approx(expected, abs=1e-6)
    assert grid["held_out"]["low"]["best"] != grid["held_out"]["low"]["last"]
    with np.load(tmp_path / "held_out_per_image.npz") as kept:
        assert kept["image"].tolist() == [f"{frame.city}/{frame.name}" for frame in frames[:2]]
        assert common.miou(kept["confusion"].sum(axis=0)) == grid["held_out"]["low"]["last"], "of the last epoch, at the network's size"


def test_each_step_of_the_drop_changes_one_thing(nb):
    values = iter(np.random.default_rng(0).random(8))
    grid = {a: {b: {c: next(values) for c in ("best", "last")} for b in ("low", "full")} for a in ("held_out", "test")}
    first, *steps = nb.one_at_a_time(grid, "test").values()
    assert first == 100 * grid["held_out"]["low"]["best"]
    assert steps == [100 * grid["held_out"]["full"]["best"], 100 * grid["test"]["full"]["best"], 100 * grid["test"]["full"]["last"]]


# statistics


@pytest.fixture
def matrices():
    """Confusion matrices of 40 pictures by two networks, (40, 3, 3) each, the first a little better."""
    rng = np.random.default_rng(3)
    a = rng.integers(0, 50, (40, 3, 3)) + np.diag([400, 200, 30]) * rng.uniform(0.5, 1.5, (40, 1, 1)).astype(int)
    return a + np.diag([30, 20, 3]), a


def test_the_bootstrap_of_the_lesson_is_that_of_common_on_the_same_draws(nb, matrices):
    units = np.repeat(np.arange(10)[::-1], 4)
    ours = nb.bootstrap(matrices[0], units, 5, 200) - nb.bootstrap(matrices[1], units, 5, 200)
    rng = np.random.default_rng(5)
    times = np.array([np.bincount(rng.integers(10, size=10), minlength=10) for _ in range(200)])[:, units]
    theirs = [common._resampled(each, times, common.miou) for each in matrices]
    np.testing.assert_allclose(ours, 100 * (theirs[0] - theirs[1]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("unit", ["picture", "ten neighbours", "city or drive"])
def test_with_draws_of_its_own_common_finds_nearly_the_same_interval(nb, matrices, unit):
    ids = nb.units_of([f"{city}/{k:02d}" for city in "abcd" for k in range(10)])[unit]
    assert len(np.unique(ids)) == {"picture": 40}.get(unit, 4)
    low, high = np.quantile(nb.bootstrap(matrices[0], ids) - nb.bootstrap(matrices[1], ids), [0.025, 0.975])
    difference, *theirs, _ = common.paired_bootstrap(*matrices, common.miou, blocks=ids)
    assert nb.gap(*matrices) == pytest.approx(100 * difference)
    assert [low, high] == pytest.approx([100 * end for end in theirs], abs=0.08 * (high - low))


def test_pictures_are_paired_by_name_whatever_the_order_of_folds_and_files(nb, tmp_path):
    for folder, names in {"a": "pqr", "b": "st", "c": "tsx", "d": "rq"}.items():
        (tmp_path / folder).mkdir()
        stored = np.array([np.full((2, 2), ord(name)) for name in names])
        np.savez(tmp_path / folder / "held_out_per_image.npz", image=np.array(list(names)), confusion=stored)
    folders = {"image": [tmp_path / "a", tmp_path / "b"], "city": [tmp_path / "c", tmp_path / "d"]}
    pictures, by_image, by_city = nb.paired_matrices(folders)
    assert pictures == list("qrst") and (by_image == by_city).all() and by_image[:, 0, 0].tolist() == list(map(ord, "qrst"))
    assert nb.paired_matrices({"image": folders["image"]})[0] == []


def test_students_t_covers_with_three_scores_and_1_96_does_not():
    draws = np.random.default_rng(1).normal(67, 1, (4000, 3))
    means, halves = np.array([common.student_interval(scores) for scores in draws]).T
    error = np.abs(means - 67)
    assert np.mean(error <= halves) == pytest.approx(0.95, abs=0.015)
    narrow = halves * 1.96 / 4.3026527  # 1.96 in the place of Student's 4.30
    assert [np.mean(error <= narrow * (2 / 3) ** 0.5), np.mean(error <= narrow)] == pytest.approx([0.75, 0.81], abs=0.02)


@pytest.mark.parametrize(("text", "kinds"), [("both", ["image", "city"]), ("image", ["image"]), ("city,image", ["city", "image"])])
def test_folds_names_one_kind_or_both(nb, text, kinds):
    assert nb.kinds_of(text) == kinds


def test_another_kind_of_folds_is_refused_in_one_sentence(nb):
    with pytest.raises(common.StreetsError, match="folds does not know 'street': use image, city"):
        nb.kinds_of("street")


def test_the_published_spread_divides_by_n():
    published = common.read_published(NAME)
    for metric, tolerance in (("miou", 0.006), ("miou_full", 0.015)):
        claims = common.headline(published, metric).set_index("method")
        values = claims["value"].astype(float)
        folds = values.drop("mean")
        assert len(folds) == 3 and folds.mean() == pytest.approx(values["mean"], abs=tolerance)
        assert folds.std(ddof=0) == pytest.approx(float(claims.loc["mean", "std"]), abs=tolerance)
        assert folds.std(ddof=1) == pytest.approx(folds.std(ddof=0) * 1.5**0.5)


def test_batch_norm_on_a_single_value_is_refused_in_words(nb, toy, tmp_path):
    frames = common.list_frames(toy, "val")
    settings = nb.MODES["quick"] | {"batch_size": 1, "epochs": 1, "precision": "fp32"}
    splits = {"train": frames[:2], "val": frames[2:], "official_val": frames[2:]}
    common.write_json(tmp_path / "config.json", {"parameters": {"seed": 0}})
    with pytest.raises(common.StreetsError, match="use a batch_size of at least 2"):
        nb.train_fold(tmp_path, splits, settings, (32, 32), (64, 128), "intended", "published", "none", 0)


def test_pretrained_weights_come_without_a_hub_for_lite0_and_from_the_hub_for_the_source(nb, monkeypatch):
    monkeypatch.setattr("results.runs.hub_reachable", lambda: pytest.fail("asked the hub"))
    net, used = nb.build_network("lite0", "published", "imagenet")
    wanted = runs.lite0_weights()
    assert used == "lite0" and all(torch.equal(net.encoder.state_dict()[name], value) for name, value in wanted.items())
    asked = []
    make = nb.smp.encoders.get_encoder
    monkeypatch.setattr(nb.smp.encoders, "get_encoder", lambda name, weights: asked.append((name, weights)) or make(name, weights=None))
    assert nb.build_network("resnet50", "no_bottleneck", "imagenet")[1] == "imagenet" and asked == [("resnet50", "imagenet")]


def test_without_weights_auto_starts_from_scratch_and_says_so_and_imagenet_stops(nb, tmp_path, monkeypatch, capsys):
    def no_network(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr("results.runs.hub_reachable", lambda: False)
    common.say_once.cache_clear()
    assert nb.build_network("resnet18", "published", "auto")[1] == "none"
    assert "random initialisation" in capsys.readouterr().out
    with pytest.raises(common.StreetsError, match="weights imagenet cannot be"):
        nb.build_network("resnet18", "published", "imagenet")


# the whole notebook


def run_notebook(out, cwd=ROOT, kernel=False, **parameters):
    """Summaries by folder name of a run, by papermill in a kernel or as a script."""
    parameters = TINY | {"out_dir": str(out / "results")} | parameters
    if not kernel:
        (out / "printed").write_text(run_script(NAME, out, cwd, **parameters))
        return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}
    run_in_kernel(NAME, out, cwd, **parameters)
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}


def test_one_fold_leaves_its_scores_and_a_second_run_in_course_mode_loads_it(toy, tmp_path):
    wanted = {"mode": "course", "encoder": "resnet18", "fold": 2, "folds": "image", "network": "no_bottleneck",
              "augment": "as_published", "epochs": 3}
    summaries = run_notebook(tmp_path, data_dir=str(toy), **wanted)
    [(name, summary)] = summaries.items()
    assert name.startswith("image-fold2-augmentas_published-networkno_bottleneck-height32-epo") and len(name) < 100
    assert summary["method"] + "_seed42" == name
    for images in ("held_out", "official_val", "test"):
        for resolution in ("low", "full"):
            assert set(summary["final"][images][resolution]) == {"best", "last"}
    assert summary["final"]["held_out"]["low"]["best"] == summary["metrics"]["miou"] and summary["selected"] == "best"
    assert summary["n_train"] + summary["n_val"] == 8 and summary["weights"] == "none"
    history = pd.read_csv(next((tmp_path / "results").rglob("history.csv")))
    assert history["epoch"].tolist() == [2, 3], "a row per validation: every second epoch, and the last"
    again = wanted | {"eval_every": 2}  # the mode's own value is no change
    assert run_notebook(tmp_path, ROOT / "notebooks", data_dir=str(toy), **again) == summaries
    assert f"{name}: trained on" in (tmp_path / "printed").read_text()
    assert "66.96" in report.report(str(tmp_path / "results"))[0], "the report finds the published fold 2"
    config = common.read_json(next((tmp_path / "results").rglob("config.json")))
    published = common.headline(common.read_published(NAME), "miou").set_index("method")["value"]
    assert float(published[config["recipe"]]) == 66.96, "reports find the published fold 2"
    assert config["changes"] == {"augment": "as_published", "network": "no_bottleneck", "height": 32, "epochs": 3, "weights": "none",
                                 "encoder": "resnet18", "images": 8}


def test_both_kinds_of_folds_run_in_quick_mode_and_share_out_every_image(toy, tmp_path):
    summaries = run_notebook(tmp_path, kernel=True, data_dir=str(toy))
    assert set(summaries) == {f"{kind}-fold{k}-height32-epochs1-weightsnone-images8_seed42" for k in (1, 2, 3) for kind in ("image", "city")}
    assert sorted(summary["n_val"] for summary in summaries.values()) == [2, 2, 3, 3, 3, 3]
    assert all(summary["n_train"] + summary["n_val"] == 8 for summary in summaries.values()), "each fold has its own images"
    assert "these runs: 8 pictures" in (tmp_path / "out.ipynb").read_text()


def test_one_fold_by_city_alone_runs_to_the_end_and_reads_no_seed_of_a_shuffle(toy, tmp_path):
    for fold_seed in (42, 7):
        summaries = run_notebook(tmp_path, data_dir=str(toy), fold="1", folds="city", fold_seed=fold_seed)
        assert list(summaries) == ["city-fold1-height32-epochs1-weightsnone-images8_seed42"]
    assert "these runs:" not in (tmp_path / "printed").read_text(), "there is nothing to pair"


def test_a_network_can_learn_from_fewer_pictures_than_its_folds_have(toy, tmp_path):
    summaries = run_notebook(tmp_path, data_dir=str(toy), fold="1", folds="image", learn=4)
    assert list(summaries) == ["image-fold1-learn4-height32-epochs1-weightsnone-images8_seed42"]
    (summary,) = summaries.values()
    assert (summary["n_train"], summary["n_val"]) == (4, 3)


def test_where_there_are_too_few_cities_only_folds_by_image_are_trained(toy, tmp_path):
    root = tmp_path / "street"
    for path in (toy / "leftImg8bit/val", toy / "gtFine/val"):
        for split in ("train", "val"):
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            (root / path.parent.name / split).symlink_to(path)
    summaries = run_notebook(tmp_path, data_dir=str(root), fold="3", images=3, batch_size=2)
    assert list(summaries) == ["image-fold3-height32-epochs1-weightsnone-images3-batch_size2_seed42"]
    assert "too few cities for folds by city" in (tmp_path / "printed").read_text()


@pytest.mark.parametrize("form", ["camvid11", "camvid32"])
def test_the_notebook_runs_on_real_photos(real_data, tmp_path, form):
    data = tmp_path / form
    copy_some(real_data / form, tmp_path / "source", form)
    data_prep.convert_camvid(tmp_path / "source", data)
    summaries = run_notebook(tmp_path, fold="3", data_dir=str(data), images=12, height=64)
    summary = next(iter(summaries.values()))
    assert summary["dataset"] == form and summary["n_train"] + summary["n_val"] == 12
    assert 0 < summary["final"]["official_val"]["full"]["last"] < 1
