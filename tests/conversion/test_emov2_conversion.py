import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from demo_diffusion import create_emov2, list_emov2
from demo_diffusion.conversion import convert_emov2
from demo_diffusion.conversion.__main__ import main
from demo_diffusion.conversion.checkpoint_file import read_checkpoint
from demo_diffusion.conversion.emov2 import module_map, official_name, official_shape
from tests.support.networks import randomize

# The whole networks' goldens are 6 MB each and live beside the repository.
LARGE_GOLDENS = Path(os.environ.get("LARGE_GOLDENS", Path(__file__).parents[3] / "shared" / "golden"))
FIELDS = ("hidden_sizes", "depths", "expansion_ratios", "attention_head_dims", "attention_modes", "kernel_sizes")
FIELDS += ("norms", "activations", "attend_before_value", "stem_width", "stem_activation", "stem_squeeze_excitation")
FIELDS += ("layer_scale_init_value", "drop_path_rate", "num_labels")


def large_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    path = LARGE_GOLDENS / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not at hand; name its folder in LARGE_GOLDENS")
    tensors = load_file(path)
    weights = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return weights, {key: value for key, value in tensors.items() if not key.startswith("state.")}


def official_state(name: str, **overrides) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """A random network of that size, shallow, in the official keys; and the network."""
    model = randomize(create_emov2(name, **{"num_labels": 3, "depths": (1, 2, 2, 3), **overrides})).eval()
    modules = module_map(model.config, "v1" if name.startswith("EMOv1") else "v2")
    ours = model.state_dict()
    return {official_name(k, modules): v.reshape(official_shape(k, v)) for k, v in ours.items()}, model


@pytest.mark.parametrize("name", ["emov2_1m_official_format", "emov1_1m_official_format"])
@torch.no_grad()
def test_logits_equal_golden(name):
    state, data = large_golden(name)
    model = convert_emov2(state)
    assert not model.training and not any(p.is_meta for p in model.parameters())
    torch.testing.assert_close(model(data["input"]).logits, data["output"], atol=1e-5, rtol=0)
    model.fuse()
    torch.testing.assert_close(model(data["input"]).logits, data["output"], atol=1e-5, rtol=0)


def testofficial_names():
    """Keys of the released files, as the goldens have them."""
    v2, v1 = official_state("EMOv2-1M")[0], official_state("EMOv1-1M")[0]
    shapes = {key: tuple(value.shape) for key, value in v2.items()}
    assert shapes["stage0.0.conv.weight"] == (16, 3, 3, 3) and shapes["stage0.2.conv.weight"] == (16, 16, 1, 1)
    assert shapes["stage1.0.eops.0.net.conv.weight"] == (64, 16, 1, 1)
    assert shapes["stage3.1.eops.0.qk.conv.weight"] == (160, 80, 1, 1)
    assert shapes["stage3.1.eops.0.v.conv.bias"] == (240,) and shapes["stage3.1.ls.gamma"] == (1, 80, 1, 1)
    assert {"stage1.0.norm.running_var", "stage3.1.norm.norm.weight", "norm.norm.bias", "head.weight"} <= set(v2)
    shapes = {key: tuple(value.shape) for key, value in v1.items()}
    assert shapes["stage0.0.convs.0.0.bias"] == (24,) and shapes["stage0.1.se.conv_reduce.weight"] == (24, 24, 1, 1)
    assert shapes["stage4.1.qk.conv.weight"] == (336, 168, 1, 1) and shapes["stage1.0.v.conv.bias"] == (96,)
    assert {"stage0.0.convs.0.1.running_mean", "stage0.1.proj.conv.weight", "stage1.0.norm.weight"} <= set(v1)
    assert not any("gamma" in key for key in v1)


@pytest.mark.parametrize("name", list_emov2())
@torch.no_grad()
def test_config_is_told_from_keys_and_shapes(name):
    state, expected = official_state(name)
    model = convert_emov2(state)
    assert {field: getattr(model.config, field) for field in FIELDS} == {
        field: getattr(expected.config, field) for field in FIELDS
    }
    assert (model.config.window_size, model.config.image_size) == (7, 224)
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pixels).logits, expected(pixels).logits)


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ({"attention_modes": ("none", "none", "none", "none")}, None),
        ({"attention_modes": ("none", "none", "none", "spanning")}, None),
        ({"attention_modes": ("none", "spanning", "spanning", "spanning")}, None),
        ({"attention_modes": ("none", "none", "neighborhood", "neighborhood")}, "neighborhood"),
        ({"attention_modes": ("none", "none", "remote", "remote"), "kernel_sizes": (3, 3, 5, 5)}, None),
        ({"kernel_sizes": (9, 9, 9, 9)}, None),
        ({"num_channels": 1}, None),
    ],
)
def test_ablations_are_told(overrides, mode):
    state, _ = official_state("EMOv2-1M", **overrides)
    config = convert_emov2(state, window_size=8, attention_mode=mode).config
    assert {name: getattr(config, name) for name in overrides} == overrides
    assert (config.window_size, config.image_size) == (8, 256)


def test_wrong_keys_and_shapes_are_listed():
    state, _ = official_state("EMOv2-1M")
    del state["stage3.1.eops.0.qk.conv.bias"]
    state |= {"stage4.1.extra": torch.zeros(1), "norm.norm.bias": torch.full((180,), torch.nan)}
    state["head.bias"] = [0.0]
    message = "EMOv2 or EMOv1.*missing: stage3.1.eops.0.qk.conv.bias.*unknown: stage4.1.extra.*numbers: head.bias"
    with pytest.raises(ValueError, match=message + ".*not finite: norm.norm.bias"):
        convert_emov2(state)
    state, _ = official_state("EMOv1-1M")
    state["stage2.1.v.conv.weight"] = torch.zeros(120, 48)
    with pytest.raises(ValueError, match=r"misshapen: stage2.1.v.conv.weight \(120, 48\), expected \(120, 48, 1, 1\)"):
        convert_emov2(state)


@pytest.mark.parametrize("key", ["stage0.0.conv.weight", "stage2.0.proj.conv.weight", "head.weight"])
def test_missing_telling_keys_are_named(key):
    state, _ = official_state("EMOv2-1M")
    del state[key]
    with pytest.raises(ValueError, match=f"missing: {key}|missing: .*{key}"):
        convert_emov2(state)


def test_wrong_arguments_are_named():
    state, _ = official_state("EMOv2-1M")
    with pytest.raises(ValueError, match="attention_mode is 'global'"):
        convert_emov2(state, attention_mode="global")
    state, _ = official_state("EMOv2-1M", hidden_sizes=(16, 24, 40, 60))
    with pytest.raises(ValueError, match=r"\(16, 24, 40, 60\).*give attention_head_dims"):
        convert_emov2(state)
    assert convert_emov2(state, attention_head_dims=(8, 8, 20, 20)).config.attention_head_dims == (8, 8, 20, 20)


@pytest.mark.parametrize("entries", [{}, {"net": 0, "net_E": 1}, {"net_E": 0}])
def test_layouts_of_official_files(entries, tmp_path):
    state, _ = official_state("EMOv1-1M")
    other = {key: value + 1 for key, value in state.items()}
    content = {name: (state, other)[i] for name, i in entries.items()} | ({"iter": 3} if entries else {}) or state
    torch.save(content, tmp_path / "a.pth")
    assert all(torch.equal(value, state[key]) for key, value in read_checkpoint(tmp_path / "a.pth").state_dict.items())


@torch.no_grad()
def test_command_writes_a_transformers_folder(tmp_path):
    state, expected = official_state("EMOv2-1M", num_labels=1000)
    source = tmp_path / "EMOv2_1M_512.pth"
    torch.save({"net": state}, source)
    folder = tmp_path / "emov2"
    main([str(source), str(folder)])
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert (model.config.window_size, model.config.image_size, model.config.id2label[207]) == (
        8,
        512,
        "golden retriever",
    )
    expected.config.window_size = 8
    pixels = torch.randn(1, 3, 64, 64)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor(torch.zeros(3, 600, 900)).pixel_values[0].shape == (3, 512, 512)
    assert processor.size["shortest_edge"] == 585
    for block in (b for stage in expected.emov2.stages for b in stage):
        block.mixer.window_size = 8
    torch.testing.assert_close(model(pixels).logits, expected(pixels).logits)


def test_command_refuses_options_of_other_networks(tmp_path):
    state, _ = official_state("EMOv2-1M")
    torch.save(state, tmp_path / "a.pth")
    for options, message in (
        (["--family", "dit"], "--family has no meaning"),
        (["--image_size", "300"], "no official window size for 300"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([str(tmp_path / "a.pth"), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()
