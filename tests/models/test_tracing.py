"""`torch.jit.trace` of every network gives its outputs, also for other inputs of the traced size."""

import pytest
import torch

from demo_diffusion import EMOv2Backbone
from demo_diffusion.models.layers.window_positions import WINDOW_POSITIONS
from tests.support.classifiers import tiny_emov2
from tests.support.detectors import DETECTORS, TINY, confident, small_detector
from tests.support.networks import inputs_for, randomize, tiny_dit, tiny_transformer
from tests.support.pipelines import tiny_taef2

TRANSFORMERS = {
    "D-EMO": tiny_transformer,
    "D-EMO, padded windows": lambda: tiny_transformer(window_size=3),
    "D-EMO, without BatchNorm": lambda: tiny_transformer(batch_norm=False),
    "D-EMO, rotary": lambda: tiny_transformer(rotary_positions=True, qk_norm=True),
    **{f"D-EMO, {name}": lambda name=name: tiny_transformer(window_position=name) for name in WINDOW_POSITIONS},
    "DiT": tiny_dit,
    "DiT, rotary": lambda: tiny_dit(rotary_positions=True, qk_norm=True),
}
CLASSIFIERS = {
    "EMOv2": lambda: tiny_emov2("EMOv2-1M"),
    "EMOv1": lambda: tiny_emov2("EMOv1-1M"),
    "EMOv2, neighborhood": lambda: tiny_emov2("EMOv2-1M", attention_modes=("none", "none", *("neighborhood",) * 2)),
    "EMOv2, large window": lambda: tiny_emov2("EMOv2-1M", window_size=5),
}
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")


def traced(model, *inputs):
    with torch.no_grad():
        return torch.jit.trace(model, inputs, strict=False)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_can_be_traced(name, batch):
    model = TRANSFORMERS[name]().eval()
    program, inputs = traced(model, *inputs_for(model)), inputs_for(model, batch)
    torch.testing.assert_close(program(*inputs)["sample"], model(*inputs).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_can_be_traced(name, batch, is_fused):
    model = randomize(CLASSIFIERS[name]()).eval()
    if is_fused:
        model.fuse()
    program, images = traced(model, torch.randn(2, 3, 64, 64)), torch.randn(batch, 3, 64, 64)
    torch.testing.assert_close(program(images)["logits"], model(images).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_backbone_can_be_traced():
    model = randomize(EMOv2Backbone(tiny_emov2("EMOv2-1M").config)).eval()
    program, images = traced(model, torch.randn(2, 3, 64, 64)), torch.randn(3, 3, 64, 64)
    for actual, expected in zip(program(images)["feature_maps"], model(images).feature_maps, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_autoencoder_can_be_traced():
    model = tiny_taef2()
    program, images = traced(model, torch.randn(2, 3, 16, 16)), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(program(images)["sample"], model(images).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.proof] * (n == "MaskRCNN")) for n in DETECTORS])
def test_detectors_can_be_traced(name):
    """Their program gives tuples."""
    model = confident(small_detector(name, **TINY))
    program, image = traced(model, [torch.rand(3, 64, 64)]), torch.rand(3, 64, 64)
    (actual,), (expected,) = program([image]), model([image])
    assert len(expected["boxes"]) > 0
    names = ("boxes", "labels", "scores", "masks")[: len(expected)]
    for tensor, each in zip(actual, names, strict=True):
        torch.testing.assert_close(tensor, expected[each], atol=1e-3, rtol=1e-4)
