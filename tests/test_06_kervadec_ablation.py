"""Notebook 06: its losses against oracles, its network, and the whole notebook in every way people run it."""

import json
import math
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import papermill
import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

import common
import data_prep

NAME = "06_kervadec_ablation"
TINY = {"epochs": 2, "images": 8, "height": 32, "weights": "none"}


@pytest.fixture(scope="module")
def nb(notebook):
    return notebook(NAME)


def random_case(classes=5, void=True, absent=True, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 6, 7, generator=rng, dtype=dtype)
    label = torch.randint(0, classes - absent, (2, 6, 7), generator=rng)
    if void:
        label[torch.rand(2, 6, 7, generator=rng) < 0.2] = 255
    return logits, label


def naive_dice(probs, label, smooth=1.0):
    """The formula, one class at a time."""
    valid = (label != 255).to(probs.dtype)
    terms = []
    for c in range(probs.shape[1]):
        p, y = probs[:, c] * valid, (label == c).to(probs.dtype)
        terms.append((2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth))
    return 1 - sum(terms) / len(terms)


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_torchs_mean_over_valid_pixels(nb, seed):
    logits, label = random_case(seed=seed)
    torch.testing.assert_close(nb.cross_entropy(logits.log_softmax(1), label), F.cross_entropy(logits, label, ignore_index=255))


@pytest.mark.parametrize("seed", range(3))
def test_dice_equals_the_formula_in_value_and_gradient(nb, seed):
    logits, label = random_case(seed=seed)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a, b = nb.dice_loss(ours.softmax(1), label), naive_dice(theirs.softmax(1), label)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*torch.autograd.grad(a, ours), *torch.autograd.grad(b, theirs))


def test_dice_equals_smp_where_every_class_occurs(nb):
    import segmentation_models_pytorch as smp

    logits, label = random_case(void=True, absent=False, dtype=torch.float32)
    assert len(label.unique()) == 6
    oracle = smp.losses.DiceLoss("multiclass", smooth=0.5, ignore_index=255)  # smp doubles what it calls smooth
    torch.testing.assert_close(nb.dice_loss(logits.softmax(1), label), oracle(logits, label), atol=1e-5, rtol=1e-5)


def test_dice_equals_monai_also_with_an_absent_class(nb):
    monai = pytest.importorskip("monai.losses")
    logits, label = random_case(void=False, absent=True, dtype=torch.float32)
    oracle = monai.DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1, batch=True)
    torch.testing.assert_close(nb.dice_loss(logits.softmax(1), label), oracle(logits, label[:, None]), atol=1e-5, rtol=1e-5)


def test_boundary_loss_equals_monai_on_raw_distances(nb):
    losses = pytest.importorskip("monai.losses")
    logits, label = random_case(void=False, absent=False, dtype=torch.float32)
    maps = np.stack([data_prep.signed_distance_maps(one.numpy().astype(np.uint8), 5, norm="none") for one in label])
    oracle = losses.BoundaryLoss(include_background=True, to_onehot_y=True, softmax=True)
    torch.testing.assert_close(nb.boundary_loss(logits.softmax(1), torch.from_numpy(maps), label),
                               oracle(logits, label[:, None]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "dice_loss", "boundary_loss"])
def test_gradients_are_those_of_finite_differences(nb, loss):
    logits, label = random_case(classes=3)
    logits = logits[:, :, :3, :3].contiguous().requires_grad_()
    label, phi = label[:, :3, :3].contiguous(), torch.randn(2, 3, 3, 3, dtype=torch.float64)
    calls = {"cross_entropy": lambda x: nb.cross_entropy(x.log_softmax(1), label.clamp(max=2)),
             "dice_loss": lambda x: nb.dice_loss(x.softmax(1), label),
             "boundary_loss": lambda x: nb.boundary_loss(x.softmax(1), phi, label)}
    assert torch.autograd.gradcheck(calls[loss], logits)


@pytest.mark.parametrize("terms", [("ce",), ("ce", "dice"), ("ce", "dice", "boundary"), ("ce", "boundary")])
def test_void_pixels_get_no_gradient_and_an_all_void_batch_is_finite(nb, terms):
    logits, label = random_case()
    logits.requires_grad_()
    batch = {"label": label, "phi": torch.randn_like(logits)}
    nb.composite_loss(logits, batch, terms, 1.0, 0.2).backward()
    per_pixel = logits.grad.abs().sum(1)
    assert (per_pixel[label == 255] == 0).all() and (per_pixel[label != 255] > 0).all()
    batch["label"] = torch.full_like(label, 255)
    loss = nb.composite_loss(logits, batch, terms, 1.0, 0.2)
    loss.backward()
    assert math.isfinite(loss.item()) and logits.grad.isfinite().all()


def test_composite_is_the_weighted_sum_of_its_terms(nb):
    logits, label = random_case(dtype=torch.float32)
    batch = {"label": label, "phi": torch.randn_like(logits)}
    probs = logits.softmax(1)
    expected = (F.cross_entropy(logits, label, ignore_index=255) + 0.7 * nb.dice_loss(probs, label)
                + 0.3 * nb.boundary_loss(probs, batch["phi"], label))
    torch.testing.assert_close(nb.composite_loss(logits, batch, nb.VARIANTS["C"], 0.7, 0.3), expected)


def test_the_true_label_has_a_lower_boundary_loss_than_any_shift_of_it(nb):
    label = np.zeros((40, 60), np.uint8)
    label[10:30, 20:40], label[5:36, 48:51] = 1, 2
    phi = torch.from_numpy(data_prep.signed_distance_maps(label, 3))[None]
    truth = torch.from_numpy(label.astype(np.int64))[None]

    def loss(shift):
        guess = np.roll(label, shift, (0, 1))
        return nb.boundary_loss(nb.soft_one_hot(guess, 3, 1.0), phi, truth).item()

    shifted = [loss((dy, dx)) for dy in (-3, -1, 0, 1, 3) for dx in (-3, -1, 0, 1, 3) if dy or dx]
    assert loss((0, 0)) < 0 and min(shifted) > loss((0, 0))


def test_maps_travel_as_int8_within_half_a_step_of_the_exact_loss(nb):
    label = np.zeros((32, 32), np.uint8)
    label[8:20, 8:30] = 1
    exact = torch.from_numpy(data_prep.signed_distance_maps(label, 2))[None]
    sent = nb.distance_targets(label, 2, "clip127")["phi"][None]
    assert sent.dtype == torch.int8
    probs, truth = torch.rand(1, 2, 32, 32).softmax(1), torch.from_numpy(label.astype(np.int64))[None]
    assert abs(nb.boundary_loss(probs, sent, truth) - nb.boundary_loss(probs, exact, truth)) < 0.5 / 127


@pytest.mark.parametrize("norm", ["clip127", "absmax", "signwise", "readme", "none"])
def test_maps_are_flipped_with_the_image(nb, norm):
    label = np.random.default_rng(0).integers(0, 4, (24, 32)).astype(np.uint8)
    phi = nb.distance_targets(label, 5, norm)["phi"]
    flipped = nb.distance_targets(np.ascontiguousarray(label[:, ::-1]), 5, norm)["phi"]
    torch.testing.assert_close(flipped, phi.flip(-1))


def test_augmentation_moves_image_and_label_together_and_leaves_the_input_alone(nb):
    ramp = np.tile(np.arange(64, dtype=np.uint8), (32, 1))
    image = np.stack([ramp * 3] * 3, axis=2)
    for seed in range(20):
        new_image, new_label = nb.augment(image, ramp, np.random.default_rng(seed))
        mirrored = new_label[0, 0] == 63
        np.testing.assert_array_equal(new_label, ramp[:, ::-1] if mirrored else ramp)
        slope = np.sign(new_image[16, 40].astype(int).sum() - new_image[16, 20].astype(int).sum())
        assert slope == (-1 if mirrored else 1)
    assert (image[:, :, 0] == ramp * 3).all() and ramp[0, 0] == 0


def test_the_network_answers_twice_in_training_and_once_in_evaluation(nb):
    net = nb.UPerNetWithAux("tu-convnextv2_atto", 32)
    image = torch.randn(2, 3, 64, 96)
    main, aux = net(image)
    assert main.shape == aux.shape == (2, 19, 64, 96)
    assert net.eval()(image).shape == (2, 19, 64, 96)
    assert net.encoder.out_channels[-2] == net.aux_head[0].in_channels


def test_the_paper_network_has_the_published_size(nb):
    settings = nb_settings("paper")
    with torch.device("meta"):
        net = nb.UPerNetWithAux(settings["encoder"], settings["decoder_width"])
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert count["encoder"] == 87_690_752
    assert count["encoder"] + count["decoder"] + count["head"] == 120_943_379


def nb_settings(mode):
    import conftest

    return conftest.notebook_definitions(NAME).MODES[mode]


def test_paper_mode_is_the_published_recipe():
    settings = nb_settings("paper")
    assert (settings["lr"], settings["weight_decay"], settings["epochs"]) == (6e-5, 0.01, 160)
    assert (settings["batch_size"], settings["accumulation"], settings["height"]) == (2, 4, 1024)


def test_published_numbers_give_the_published_means_and_differences():
    published = common.read_published(NAME)
    mious = published.query("metric == 'miou' and epoch == 'last'")
    for method in "ABCD":
        rows = mious[mious["method"] == method]
        seeds = rows[rows["seed"] != ""]["value"].astype(float)
        stated = rows[(rows["seed"] == "") & rows["note"].str.startswith("v0.2")]
        mean, half = common.student_interval(seeds)
        assert mean == pytest.approx(float(stated["value"].iloc[0]), abs=0.011)
        assert half == pytest.approx(float(stated["half_width"].iloc[0]), abs=0.02)
        classes = published.query("metric == 'iou' and method == @method")["value"].astype(float)
        assert len(classes) == 19 and classes.mean() == pytest.approx(mean, abs=0.02)


def run_notebook(out, cwd=ROOT, path=None, **parameters):
    parameters = TINY | {"out_dir": str(out / "results")} | parameters
    path = path or ROOT / "notebooks" / f"{NAME}.ipynb"
    papermill.execute_notebook(str(path), str(out / "out.ipynb"), parameters=parameters, cwd=str(cwd), progress_bar=False)
    return {p.parent.name: json.loads(p.read_text()) for p in (out / "results").rglob("summary.json")}


def test_all_variants_run_in_turn_under_papermill_and_leave_complete_results(toy, tmp_path):
    summaries = run_notebook(tmp_path, variant="all", data_dir=str(toy))
    assert set(summaries) == {f"{letter}_seed42" for letter in "ABCD"}
    losses = set()
    for name, summary in summaries.items():
        assert summary["dataset"] == "toy" and summary["mode"] == "quick" and summary["weights"] == "none"
        assert {"accuracy", "miou", "boundary_f1", "trimap_iou", "iou"} <= set(summary["metrics"])
        assert summary["n_train"] == 8 and summary["n_val"] == 2 and summary["test"]["miou"] > 0
        losses.add((tmp_path / "results" / NAME / "toy-quick" / name / "history.csv").read_text().splitlines()[1].split(",")[1])
    assert len(losses) == 4, "four variants, four losses"
    executed = json.loads((tmp_path / "out.ipynb").read_text())
    pictures = [o for c in executed["cells"] for o in c.get("outputs", []) if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
    assert len(pictures) >= 6
    exported = sorted((tmp_path / "results").rglob("predictions/*.png"))
    assert exported and {p.name for p in exported} <= {f.image.name.replace("leftImg8bit", "predictions") for f in common.list_frames(toy, "val")}


def test_exported_predictions_score_the_same_under_the_official_script(nb, toy, tmp_path, monkeypatch):
    frames = common.list_frames(toy, "val")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(toy))
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path))
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    torch.manual_seed(0)
    net = nb.UPerNetWithAux("tu-convnextv2_atto", 32).eval()
    nb.export_predictions(net, frames, tmp_path, (64, 128))
    args = evaluation.args
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, False
    args.predictionPath, args.predictionWalk = str(tmp_path), None
    truths = [str(frame.label) for frame in frames]
    predictions = [evaluation.getPrediction(args, truth) for truth in truths]
    official = evaluation.evaluateImgLists(predictions, truths, args)["averageScoreClasses"]
    scheme = common.SCHEMES["cityscapes19"]
    ours = sum(common.confusion_matrix(common.predict(net, common.read_image(f.image), (64, 128)), scheme.table[common.read_label(f.label)], 19)
               for f in frames)
    assert common.miou_official(ours) == official


def test_a_misspelt_parameter_stops_the_notebook_with_one_sentence(tmp_path, toy):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        run_notebook(tmp_path, cwd=ROOT / "notebooks", varient="D", data_dir=str(toy))
    assert caught.value.ename == "StreetsError"
    assert caught.value.evalue.startswith("There is no parameter 'varient' here: this notebook has mode, variant")
    assert not list(tmp_path.rglob("config.json"))


def as_script(folder, toy, out, **parameters):
    """The notebook's script with other defaults, as `papermill --prepare-only` and jupytext would make it."""
    source = (ROOT / "notebooks" / f"{NAME}.py").read_text()
    values = TINY | {"data_dir": str(toy), "out_dir": str(out)} | parameters
    injected = "# %% tags=[\"injected-parameters\"]\n# Parameters\n" + "".join(f"{k} = {v!r}\n" for k, v in values.items())
    head, mark, tail = source.partition("# %% [markdown]\n# The next cell finds the helpers")
    assert mark
    (folder / "prepared.py").write_text(head + injected + "\n" + mark + tail)
    return folder / "prepared.py"


def test_the_notebook_runs_as_a_plain_script_from_any_folder(toy, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    script = as_script(folder, toy, tmp_path / "results")
    env = os.environ | {"STREETS_HOME": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, script], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "results").rglob("D_seed42/summary.json"))


def test_a_script_with_a_misspelt_parameter_stops_too(toy, tmp_path):
    script = as_script(tmp_path, toy, tmp_path / "results", varient="D")
    env = os.environ | {"STREETS_HOME": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode and "There is no parameter 'varient' here" in done.stderr


def test_the_notebook_alone_in_an_empty_folder_fetches_its_helpers_and_labels_a_photo_of_ones_own(toy, tmp_path, monkeypatch):
    repo, alone = tmp_path / "repo", tmp_path / "alone"
    alone.mkdir()
    (repo / "results").mkdir(parents=True)
    for name in ("common.py", "data_prep.py", "results/published.csv"):
        shutil.copy(ROOT / name, repo / name)
    git = ["git", "-C", repo, "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    shutil.copy(ROOT / "notebooks" / f"{NAME}.ipynb", alone)
    cv2.imwrite(str(alone / "mine.jpg"), np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))
    monkeypatch.setenv("STREETS_REPO", str(repo))
    summaries = run_notebook(tmp_path, cwd=alone, path=alone / f"{NAME}.ipynb", data_dir=str(toy), photo="mine.jpg")
    assert (alone / "street-segmentation" / "common.py").exists() and set(summaries) == {"D_seed42"}


@pytest.mark.parametrize(("form", "folder"), [("camvid11", "."), ("camvid32", "notebooks")])
def test_the_notebook_runs_on_real_photos_from_either_folder(real_data, tmp_path, form, folder):
    split = real_data / form
    if form == "camvid32":  # every eighth frame will do
        split = tmp_path / form
        for name in ("images", "labels"):
            (split / name).mkdir(parents=True)
            for path in sorted((real_data / form / name).iterdir())[::8]:
                (split / name / path.name).symlink_to(path)
    data_prep.convert_camvid(split, tmp_path / "camvid")
    summaries = run_notebook(tmp_path, ROOT / folder, data_dir=str(tmp_path / "camvid"), images=16, epochs=3, height=64)
    summary = summaries["D_seed42"]
    assert summary["dataset"] == form
    assert sum(iou is not None for iou in summary["metrics"]["iou"].values()) in (10, 11, 12)
    assert summary["metrics"]["accuracy"] > summary["majority_baseline"]["accuracy"]


def test_pretrained_weights_come_from_the_hubs_cache_without_a_network(nb, tmp_path, monkeypatch):
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    source = timm.create_model("convnextv2_atto.fcmae_ft_in1k", pretrained=False)
    revision = tmp_path / "models--timm--convnextv2_atto.fcmae_ft_in1k" / "snapshots" / ("0" * 40)
    revision.mkdir(parents=True)
    save_file(source.state_dict(), revision / "model.safetensors")
    (revision.parent.parent / "refs").mkdir()
    (revision.parent.parent / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(common, "hub_reachable", lambda: False)
    settings = nb.MODES["quick"]
    net, used = nb.build_network(settings, "auto")
    assert used == "fcmae_ft_in1k"
    stem = source.stem[0].weight
    assert any(torch.equal(p, stem) for p in net.encoder.parameters() if p.shape == stem.shape)


def test_without_weights_auto_starts_from_scratch_and_says_so_and_imagenet_stops(nb, capsys, monkeypatch):
    monkeypatch.setattr(common, "hub_reachable", lambda: False)
    common.say_once.cache_clear()
    _, used = nb.build_network(nb.MODES["quick"], "auto")
    assert used == "none" and "random initialisation" in capsys.readouterr().out
    with pytest.raises(common.StreetsError, match="cannot be fetched"):
        nb.build_network(nb.MODES["quick"], "imagenet")
