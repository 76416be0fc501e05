"""Networks, losses and scores of notebooks 02 to 06 on a GPU that is not there: a tensor left on the CPU is an error.

Such tensors have a shape and a device and no numbers. Only the forward pass runs so; the backward pass needs a real GPU.
"""
from contextlib import nullcontext
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from fake_steps import NOTEBOOKS, NumbersUnknown, handed_to_fit, trainings
from torch._subclasses.fake_tensor import FakeTensorMode

import common

SMALL = {"02": {"size": 64}, "03": {"height": 64}, "04": {"height": 64}, "05": {"height": 64, "crop": 64}, "06": {"height": 64}}
GPU = mock.Mock(device=torch.device("cuda"), process_index=0, num_processes=1, unwrap_model=lambda model: model, autocast=nullcontext)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Calls in which "cuda" is a GPU without numbers."""
    move = torch.nn.Module.to

    def move_once(module, device):  # torch cannot move what has become fake, not even to where it is
        there = {tensor.device.type for tensor in module.parameters()} == {torch.device(device).type}
        return module if there else move(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", move_once)
    with FakeTensorMode(allow_non_fake_inputs=True), NumbersUnknown():
        yield


def given_by(name, toy, folder):
    """What the methods of a notebook hand to `common.fit`; what they move to the accelerator's device lies on "meta"."""
    methods, _ = trainings(name, common.list_frames(toy, "train"), folder, "quick", "toy", batch_size=2, **SMALL[name[:2]])
    return [handed_to_fit(train, folder, "meta") for train in methods.values()]


def moved_to_gpu(given):
    """(model, batch, loss_fn) where `common.fit` and the notebook put them; the rest of the loss stays where it is."""
    model = given.model.to("cuda").train()
    batch = {name: values.to("cuda") for name, values in given.batch.items()}
    on_gpu = {name: torch.empty_like(value, device="cuda") for name, value in getattr(given.loss_fn, "keywords", {}).items()
              if torch.is_tensor(value) and value.device.type == "meta"}  # fmt: skip
    return model, batch, partial(given.loss_fn, **on_gpu)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_stays_on_the_cpu(name, toy, tmp_path, request):
    methods = given_by(name, toy, tmp_path)
    request.getfixturevalue("fake_gpu")
    for given in methods:
        model, batch, loss_fn = moved_to_gpu(given)
        assert loss_fn(model, batch).device.type == "cuda"
    metrics, per_image = given.evaluate(model, given.val_data, GPU)  # of the last method; all are scored alike
    assert 0 <= metrics["miou"] <= 1 and len(per_image["confusion"]) == len(given.val_data)
    photo = np.zeros((64, 128, 3), np.uint8)
    assert common.predict(model.eval(), photo, (64, 64)).shape == (64, 128)


def test_score_of_the_proxy_network_is_made_where_that_is(notebook, request):
    nb = notebook("05_semeda")
    proxy, labels = nb.EdgeNet(), [{"label": torch.zeros(16, 16, dtype=torch.int64)}]
    request.getfixturevalue("fake_gpu")
    assert nb.evaluate_edges(proxy.to("cuda"), labels)[0]["edge_f1"] == 0  # there is no edge in one class


@pytest.mark.parametrize("planted", [
    lambda model, batch: model(batch["image"]).sum() + torch.ones(3).sum(dim=0, keepdim=True),
    lambda model, batch: model(batch["image"].cpu()).sum(),
    lambda model, batch: torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"], weight=torch.ones(7)),
])  # fmt: skip
def test_a_tensor_left_on_the_cpu_is_an_error(planted, toy, tmp_path, request):
    given = given_by("02_unet_from_scratch", toy, tmp_path)[0]
    request.getfixturevalue("fake_gpu")
    model, batch, _ = moved_to_gpu(given)
    with pytest.raises(RuntimeError, match="device"):
        planted(model, batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_backward_pass(name, toy, tmp_path):
    for given in given_by(name, toy, tmp_path):
        model, batch, loss_fn = moved_to_gpu(given)
        loss_fn(model, batch).backward()
        assert all(p.grad is None or p.grad.device.type == "cuda" for p in model.parameters())
