"""Labels without any class: a batch of them teaches nothing and breaks nothing; a whole split of them is told before training."""

import math
import shutil
from functools import partial

import numpy as np
import pytest
import tiny_run
import torch
from test_training import mean_loss

import common
import data_prep
from common import StreetsError


@pytest.fixture
def void_streets(toy, tmp_path):
    """void_streets("val", keep=0): a copy of the toy streets whose labels of that split are void, but for the last `keep`."""

    def make(split, keep=0):
        root = shutil.copytree(toy, tmp_path / f"{split}{keep}")
        frames = common.list_frames(root, split)
        for frame in frames[: len(frames) - keep]:
            data_prep.write_png(frame.label, np.zeros((64, 128), np.uint8))  # unlabelled
        return root

    return make


LOGITS = torch.randn(2, 19, 8, 8, generator=torch.Generator().manual_seed(0))
VOID = torch.full((2, 8, 8), 255)


def loss_of_03(nb):
    return lambda logits: nb.pixel_loss(lambda image: logits, {"image": None, "label": VOID})


def loss_of_04(nb, approach):
    recipe = nb.APPROACHES[approach]
    return lambda logits: nb.hybrid_loss(logits[:, :7], VOID, recipe["terms"], recipe.get("class_weights"))


def loss_of_05(nb, method, reduction):
    run = partial(nb.training_loss, method=method, lambdas=(4.0, 2.0, 1.0), proxy=nb.EdgeNet(), reduction=reduction)
    return lambda logits: run(lambda image: logits, {"image": None, "label": VOID})


def loss_of_06(nb, variant, composite):
    phi = torch.stack([nb.distance_targets(one.numpy().astype(np.uint8), 19, "clip127")["phi"] for one in VOID])
    run = partial(nb.training_loss, composite=getattr(nb, composite), terms=dict.fromkeys(nb.VARIANTS[variant], 0.5))
    return lambda logits: run(lambda image: (logits, logits), {"image": None, "label": VOID, "phi": phi})


CASES = [("03_unet_resnet50_cv", loss_of_03, ())]
CASES += [("04_segformer_thin_structures", loss_of_04, (approach,)) for approach in ("baseline", "bas", "bas_lovasz", "ssim_lovasz")]
CASES += [("05_semeda", loss_of_05, (method, reduction)) for method in ("ppce", "sobel", "semeda") for reduction in ("pixels", "elements", "sum")]
CASES += [("06_kervadec_ablation", loss_of_06, (variant, composite)) for variant in "ABCD" for composite in ("composite_loss", "composite_as_written")]


@pytest.mark.parametrize(("name", "loss_of", "case"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
                         if isinstance(value, tuple) else "")
def test_the_loss_of_a_batch_that_is_all_void_is_0_and_its_gradient_too(notebook, name, loss_of, case):
    logits = LOGITS.clone().requires_grad_()
    loss = loss_of(notebook(name), *case)(logits)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and not logits.grad.isnan().any() and logits.grad.abs().max() < 1e-6


def test_notebook_02_has_no_void_at_all():
    assert set(np.unique(common.SCHEMES["streets7"].table)) == {*range(7), 254}


def quiet_loss(model, batch):
    """As the notebooks' losses: 0 where all is void."""
    valid = (batch["label"] != 255).sum()
    return torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"], ignore_index=255, reduction="sum") / valid.clamp(min=1)


@pytest.mark.parametrize(("split", "word"), [("train", "training"), ("val", "validation"), ("test", "test")])
def test_a_split_without_any_class_is_told_before_training(void_streets, tmp_path, split, word):
    root = void_streets(split)
    with pytest.raises(StreetsError, match=f"All . labels of {word} are void, such as .*gtFine/{split}/.*: nothing can be learnt"):
        tiny_run.run(root, tmp_path / "out", epochs=1, loss_fn=lambda model, batch: pytest.fail("trained"))
    assert not list((tmp_path / "out").rglob("history.csv"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_any_class_is_told_where_the_data_are_found(void_streets, split):
    with pytest.raises(StreetsError, match=f"All . labels of {split} are void"):
        common.find_data(str(void_streets(split)))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_one_label_with_a_class_is_enough(void_streets, tmp_path, split):
    root = void_streets(split, keep=1)
    assert common.find_data(str(root)) == root
    _, summary = tiny_run.run(root, tmp_path / "out", epochs=1, loss_fn=quiet_loss, batch_size=2, evaluate=partial(common.evaluate, loss=mean_loss))
    assert math.isfinite(summary["metrics"]["eval_loss"]) and 0 <= summary["metrics"]["miou"] <= 1


def test_an_image_that_is_all_void_has_no_part_in_the_mean_loss(void_streets):
    data = common.StreetScenes(common.list_frames(void_streets("val", keep=1), "val"), (64, 128))
    metrics, per_image = common.evaluate(tiny_run.tiny_network(), data, loss=mean_loss)
    assert np.isnan(per_image["loss"]).tolist() == [True, True, False] and metrics["eval_loss"] == pytest.approx(per_image["loss"][2])


def test_the_dummies_of_official_cityscapes_test_split_are_no_mistake(void_streets):
    root = void_streets("test")
    (root / "dataset.json").unlink()
    assert common.find_data(str(root)) == root and not common.has_test_labels(root)
