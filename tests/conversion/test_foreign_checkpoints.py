"""Checkpoints of wrapped networks, of REPA, and of networks without a null class."""

import argparse

import pytest
import torch

from demo_diffusion import DEMOPipeline
from demo_diffusion.conversion import convert_repa, convert_sit, to_official
from demo_diffusion.conversion.__main__ import main
from demo_diffusion.conversion.checkpoint_file import read_checkpoint
from tests.support.networks import inputs_for, tiny_dit

OPTIONS = ["--num_attention_heads", "2", "--vae", "none"]
WRAPPERS = {
    "plain": lambda name: name,
    "distributed": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, distributed": lambda name: f"module._orig_mod.{name}",
    "distributed, compiled": lambda name: f"_orig_mod.module.{name}",
    "compiled blocks": lambda name: name.replace("blocks.1.", "blocks.1._orig_mod."),
}


def official(**config) -> dict[str, torch.Tensor]:
    return to_official(tiny_dit(**config))


def saved(path, weights: dict, entry: str | None = "ema", **options) -> str:
    torch.save(weights if entry is None else {entry: weights, "args": argparse.Namespace(**options)}, path)
    return str(path)


@pytest.mark.parametrize("entry", [None, "ema"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_networks_are_read_by_their_own_names(wrapper, entry, tmp_path):
    weights = official()
    path = tmp_path / "DiT.pt"
    saved(path, {WRAPPERS[wrapper](name): value for name, value in weights.items()}, entry)
    read = read_checkpoint(path).state_dict
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.mark.parametrize("entry", [None, "ema"])
@pytest.mark.parametrize(
    "wrapped", ["blocks.0._orig_mod.attn.qkv.weight", "_orig_mod.blocks.0.attn.qkv.weight", "all wrapped"]
)
def test_a_weight_under_two_names_is_refused(wrapped, entry, tmp_path):
    weights, name = official(), "blocks.0.attn.qkv.weight"
    if wrapped == "all wrapped":
        weights = {f"module.{each}": value for each, value in weights.items()}
        wrapped = f"_orig_mod.{name}"
    saved(tmp_path / "DiT.pt", {**weights, wrapped: torch.zeros(3)}, entry)
    with pytest.raises(ValueError, match=f"holds {name} twice"):
        read_checkpoint(tmp_path / "DiT.pt")


@torch.no_grad()
def test_repa_s_network_predicts_noise_minus_data_at_our_time():
    """The same weights as SiT's are the opposite velocity at 1 − t (REPA's loss: noise − data at t of noise)."""
    weights = official(out_channels=4)
    projectors = {"projectors.0.0.weight": torch.randn(3, 16), "projectors.0.0.bias": torch.randn(3)}
    repa, sit = convert_repa({**weights, **projectors}, 2), convert_sit(weights, 2)
    x, _, labels = inputs_for(repa)
    t = torch.tensor([0.2, 0.7])
    torch.testing.assert_close(repa(x, t, labels).sample, -sit(x, 1 - t, labels).sample)
    assert not repa.config.reverse_time


@pytest.mark.parametrize("name", ["last.pt", "SiT-XL.pt"])
@pytest.mark.parametrize("has_projectors", [True, False])
def test_repa_s_checkpoints_are_told(name, has_projectors, tmp_path):
    weights = official(out_channels=4)
    if has_projectors:
        weights["projectors.0.0.weight"] = torch.zeros(2, 2)
    options = {"model": "SiT-S/2", "num_classes": 10, "cfg_prob": 0.1, "path_type": "linear", "prediction": "v"}
    source = saved(tmp_path / name, weights, enc_type="dinov2-vit-b", **options)
    main([source, str(tmp_path / "folder"), *OPTIONS])
    pipeline = DEMOPipeline.from_pretrained(tmp_path / "folder")
    assert pipeline.config.objective == "flow" and not pipeline.transformer.config.reverse_time
    with pytest.raises(SystemExit, match="was trained by REPA; leave --family out"):
        main([source, str(tmp_path / "other"), "--family", "sit", *OPTIONS])


WITHOUT_NULL = {  # training options; rows of the label table; whether the last row is the null class
    "DiT's options": ({"num_classes": 10}, 10, False),
    "DiT's options, with it": ({"num_classes": 10}, 11, True),
    "no options": ({}, 11, True),
    "dropout 0 said": ({"class_dropout_prob": 0.0}, 10, False),
    "dropout 0 written out": ({"class_dropout_prob": "0"}, 10, False),
    "dropout 0.0 written out": ({"cfg_prob": "0.0"}, 10, False),
    "dropout that is none": ({"class_dropout_prob": [0]}, 11, True),
    "REPA's dropout 0": ({"cfg_prob": 0.0, "num_classes": 10}, 10, False),
    "ImageNet, no options": ({}, 1000, False),
    "ImageNet, with it": ({}, 1001, True),
    "fewer classes than said": ({"num_classes": 1000}, 11, False),
}


@pytest.mark.parametrize("case", WITHOUT_NULL)
@pytest.mark.parametrize("family", ["dit", "sit", "repa"])
def test_a_label_table_without_null_class_is_refused(family, case, tmp_path):
    options, rows, has_null = WITHOUT_NULL[case]
    weights = official(num_classes=rows - 1, out_channels=4)
    arguments = [
        saved(tmp_path / "last.pt", weights, **options),
        str(tmp_path / "folder"),
        "--family",
        family,
        *OPTIONS,
    ]
    if has_null:
        main(arguments)
        assert DEMOPipeline.from_pretrained(tmp_path / "folder").transformer.config.num_classes == rows - 1
        return
    with pytest.raises(SystemExit, match=rf"error: The label table in .*last.pt has {rows} rows"):
        main(arguments)
    assert not (tmp_path / "folder").exists()
