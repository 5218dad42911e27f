import argparse
import json
import math
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

from demo_diffusion import DEMOPipeline, DiTModel, create_transformer
from demo_diffusion.conversion import convert_diffusers_dit, convert_dit, convert_sit, to_official
from demo_diffusion.conversion.__main__ import main, parse_arguments
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from tests.support.goldens import GOLDENS, load_golden
from tests.support.networks import randomize, tiny_dit, tiny_transformer
from tests.support.pipelines import quiet, tiny_vae


def golden() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights with the official shapes, and the other tensors."""
    _, data = load_golden("dit_official_format")
    tensors = load_file(GOLDENS / "dit_official_format.safetensors")
    return {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}, data


@torch.no_grad()
def test_dit_equals_golden():
    state, data = golden()
    model = convert_dit(state, num_attention_heads=3)
    output = model(data["hidden_states"], data["timestep"], data["class_labels"]).sample
    torch.testing.assert_close(output, data["output"], atol=1e-5, rtol=0)
    assert not model.training and not model.pos_embed.requires_grad and model.patch_embed.weight.requires_grad


@torch.no_grad()
def test_sit_predicts_noise_minus_data_at_our_time():
    """The same weights as a SiT: it gives data − noise at its time, which is one minus ours."""
    state, data = golden()
    model = convert_sit(state, num_attention_heads=3)
    output = model(data["hidden_states"], 1 - data["timestep"], data["class_labels"]).sample
    torch.testing.assert_close(output, -data["output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("convert", [convert_dit, convert_sit])
def test_round_trip_is_bit_identical(convert):
    state, _ = golden()
    back = to_official(convert(state, num_attention_heads=3))
    assert back.keys() == state.keys()
    assert all(back[key].numpy().tobytes() == value.numpy().tobytes() for key, value in state.items())


def test_the_weights_are_copies():
    state, _ = golden()
    model = convert_dit(state, num_attention_heads=3)
    with torch.no_grad():
        model.patch_embed.weight.zero_()
        to_official(model)["pos_embed"].zero_()
    assert state["x_embedder.proj.weight"].abs().max() > 0 and model.pos_embed.abs().max() > 0


@pytest.mark.parametrize("name", ["DiT-S/2", "DiT-XL/2", "SiT-B/2"])
def test_heads_of_official_sizes_are_known(name):
    expected = create_transformer(name, num_layers=1)
    model = (convert_sit if name.startswith("SiT") else convert_dit)(to_official(expected))
    ours, theirs = ({k: v for k, v in m.config.items() if not k.startswith("_")} for m in (model, expected))
    assert ours == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("t_embedder.mlp.0.bias"), r"missing: t_embedder.mlp.0.bias"),
        (lambda s: s.update({"blocks.1.attn.q_norm.weight": torch.ones(16)}), "unknown: blocks.1.attn.q_norm.weight"),
        (
            lambda s: s.update({"blocks.3.mlp.fc1.bias": torch.ones(4)}),
            "missing: blocks.2.attn.qkv.weight, .*fc2.bias",
        ),
        (lambda s: s.update({"blocks.x.bias": torch.ones(4)}), "unknown: blocks.x.bias"),
        (lambda s: s.update({"final_layer.linear.weight": 3}), "not a tensor of numbers: final_layer.linear.weight"),
        (
            lambda s: s.update({"blocks.0.mlp.fc2.bias": torch.ones(4)}),
            r"blocks.0.mlp.fc2.bias \(4,\), expected \(48,\)",
        ),
        (lambda s: s.update({"pos_embed": torch.ones(1, 60, 48)}), r"pos_embed \(1, 60, 48\), expected \(1, 49, 48\)"),
        (lambda s: s.update({"pos_embed": torch.ones(60)}), r"misshapen: pos_embed \(60,\)"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(3, 3)}), r"misshapen: .*weight \(3, 3\)"),
        (lambda s: s.clear(), "missing: pos_embed"),
        (lambda s: s.update({0: torch.ones(3)}), "unknown: 0"),
        (
            lambda s: s.update({"final_layer.linear.bias": torch.tensor(1.0)}),
            r"misshapen: final_layer.linear.bias \(\)",
        ),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(48, 4, 0, 0)}), r"weight \(48, 4, 0, 0\)"),
        (lambda s: s.update({"blocks.30000000.attn.qkv.weight": torch.ones(3)}), "unknown: blocks.30000000"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].to_sparse()}), "not a tensor of numbers: pos_embed"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].to("meta")}), "not a tensor of numbers: pos_embed"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].to(torch.complex64)}), "not a tensor of numbers: pos_embed"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].to(torch.int8)}), "not a tensor of numbers: pos_embed"),
        (lambda s: s["pos_embed"].fill_(float("nan")), "not finite: pos_embed"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].double() * 0 + 1e300}), "not finite: pos_embed"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].to(torch.float8_e4m3fn)}), "not a tensor of numbers: pos_emb"),
        (lambda s: s.update({"pos_embed": s["pos_embed"].to(torch.float8_e5m2)}), "not a tensor of numbers: pos_emb"),
    ],
)
def test_wrong_keys_are_listed(change, message):
    state, _ = golden()
    change(state)
    with pytest.raises(ValueError, match=message):
        convert_dit(state, num_attention_heads=3)


def test_unknown_and_missing_keys_are_listed_together():
    state, _ = golden()
    state["projectors.0.weight"] = state.pop("pos_embed")
    with pytest.raises(ValueError, match=r"missing: pos_embed; unknown: projectors.0.weight\."):
        convert_sit(state, num_attention_heads=3)


def test_heads_that_cannot_be_told_are_asked_for():
    state, _ = golden()
    with pytest.raises(ValueError, match="width 48 .*give num_attention_heads"):
        convert_dit(state)
    with pytest.raises(ValueError, match="num_attention_heads is 5; it must divide the width 48"):
        convert_dit(state, num_attention_heads=5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_transformer, "DEMOTransformer2DModel has no official format"),
        (lambda: tiny_dit(qk_norm=True), "no network of width 16 with qk_norm=True"),
        (lambda: tiny_dit(timestep_scale=1000, reverse_time=True), "timestep_scale=1000"),
        (lambda: tiny_dit(sample_size=(8, 16)), r"sample_size=\(8, 16\)"),
        (lambda: tiny_dit(norm_eps=0.1), "norm_eps=0.1"),
        (lambda: tiny_dit(mlp_norm_eps=1e-5), "mlp_norm_eps=1e-05"),
        (lambda: tiny_dit(out_channels=6), "out_channels=6"),
        (lambda: tiny_dit(num_attention_heads=48), "width 384 with num_attention_heads=48"),
        (lambda: tiny_dit().to("meta"), "no weights for pos_embed, patch_embed.weight"),
    ],
)
def test_networks_without_official_format_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        to_official(model())


def diffusers_dit(**overrides) -> DiTTransformer2DModel:
    """A tiny one in which all blocks hold the same embedders, as in the published folder."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 1000,
    }
    model = randomize(DiTTransformer2DModel(**{**config, **overrides})).eval()
    embedders = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(embedders)
    return model


@torch.no_grad()
def test_diffusers_dit_equals_its_conversion():
    theirs = diffusers_dit()
    inputs = torch.randn(3, 4, 8, 8), torch.tensor([0, 17, 999]), torch.tensor([1, 2, 1000])
    expected = theirs(inputs[0], timestep=inputs[1], class_labels=inputs[2]).sample
    torch.testing.assert_close(convert_diffusers_dit(theirs)(*inputs).sample, expected, atol=1e-6, rtol=1e-6)
    official = convert_diffusers_dit(theirs, as_official=True)
    difference = official(*inputs).sample - expected
    assert difference[0].abs().max() < 1e-4  # at timestep 0 every frequency gives the same, and eps matters little
    assert difference[2].abs().max() > 0.1
    to_official(official)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.register_to_config(activation_fn="geglu"), "activation_fn=geglu"),
        (lambda m: m.to("meta"), "no weights for pos_embed.proj.weight"),
        (lambda m: m.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.data.zero_(), "different"),
    ],
)
def test_other_diffusers_networks_are_refused(change, message):
    model = diffusers_dit()
    change(model)
    with pytest.raises(ValueError, match=message):
        convert_diffusers_dit(model)


def test_the_same_dit_samples_the_same_in_diffusers_and_here(tmp_path):
    scheduler = DDIMScheduler.from_config(
        DDPMObjective().scheduler().config, variance_type="fixed_small", timestep_spacing="trailing"
    )
    id2label = {i: f"class {i}" for i in range(1000)}
    theirs = DiTPipeline(diffusers_dit(), tiny_vae(shift_factor=None), scheduler)
    theirs.save_pretrained(tmp_path / "theirs")
    index = tmp_path / "theirs/model_index.json"  # diffusers reads id2label from there, but does not write it
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": id2label}))
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    ours = quiet(DEMOPipeline.from_pretrained(tmp_path / "ours"))
    theirs.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 10, "guidance_scale": 3.0}
    expected = theirs([3, 7], generator=torch.Generator().manual_seed(0), output_type="np", **options).images
    images = ours(["class 3", 7], generator=torch.Generator().manual_seed(0), output_type="np", **options).images
    assert np.abs(images - expected).max() < 1e-5
    assert expected.std() > 0.01 and np.abs(expected[0] - expected[1]).max() > 0.01
    assert type(ours.transformer) is DiTModel and type(ours.scheduler) is DDIMScheduler


def save_checkpoint(path, state, **options) -> str:
    """As the official training scripts do."""
    torch.save({"model": state, "ema": state, "opt": {}, "args": argparse.Namespace(**options)}, path)
    return str(path)


@pytest.fixture
def vae_folder(tmp_path):
    tiny_vae().save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "scheduler_class"), [("DiT", DDPMScheduler), ("SiT", FlowMatchEulerDiscreteScheduler)]
)
def test_checkpoint_to_folder_to_checkpoint(tmp_path, vae_folder, family, scheduler_class):
    state, _ = golden()
    source = save_checkpoint(tmp_path / "0400000.pt", state, model=f"{family}-S/2", num_classes=10)
    main([source, str(tmp_path / "folder"), "--num_attention_heads", "3", "--vae", vae_folder])
    pipeline = quiet(DEMOPipeline.from_pretrained(tmp_path / "folder"))
    assert type(pipeline.scheduler) is scheduler_class and isinstance(pipeline.vae, AutoencoderKL)
    assert pipeline.config.objective == ("flow" if family == "SiT" else "ddpm")
    image = pipeline([1], num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert image.shape == (1, 32, 32, 3)
    main([str(tmp_path / "folder"), str(tmp_path / "back.pt")])
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_a_plain_state_dict_and_the_file_s_name_are_enough(tmp_path):
    state, _ = golden()
    torch.save(state, tmp_path / "SiT-tiny.pt")
    save_file(state, tmp_path / "DiT-tiny.safetensors")
    for name, objective in (("SiT-tiny.pt", "flow"), ("DiT-tiny.safetensors", "ddpm")):
        target = tmp_path / f"{name}-folder"
        main([str(tmp_path / name), str(target), "--num_attention_heads", "3", "--vae", "none"])
        pipeline = DEMOPipeline.from_pretrained(target)
        assert pipeline.config.objective == objective and pipeline.vae is None


def test_a_thousand_classes_get_the_names_of_imagenet(tmp_path):
    torch.save(to_official(tiny_dit(num_classes=1000)), tmp_path / "dit.pt")
    main([str(tmp_path / "dit.pt"), str(tmp_path / "folder"), "--num_attention_heads", "2", "--vae", "none"])
    pipeline = DEMOPipeline.from_pretrained(tmp_path / "folder")
    assert pipeline.label_names.class_ids(["tench", "golden retriever", "otter"]) == [0, 207, 360]
    assert len(pipeline.labels) == 1000


def test_a_dit_without_learned_variance_gets_the_official_fixed_one(tmp_path):
    torch.save(to_official(tiny_dit(out_channels=4)), tmp_path / "dit.pt")
    main([str(tmp_path / "dit.pt"), str(tmp_path / "folder"), "--num_attention_heads", "2", "--vae", "none"])
    pipeline = quiet(DEMOPipeline.from_pretrained(tmp_path / "folder"))
    assert pipeline.scheduler.config.variance_type == "fixed_large"
    assert pipeline([1], num_inference_steps=2, output_type="latent").images.isfinite().all()


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda p: p.write_bytes(b"not a checkpoint"), [], "cannot be read as a checkpoint of tensors"),
        (lambda p: p.write_bytes(b""), [], "cannot be read as a checkpoint of tensors"),
        (lambda p: p.write_bytes(pickle.dumps({"ema": Malicious()})), [], "cannot be read as a checkpoint of tensors"),
        (lambda p: torch.save({"ema": Malicious()}, p), [], "cannot be read as a checkpoint of tensors"),
        (lambda p: torch.save([1], p), [], "holds a list"),
        (
            lambda p: torch.save({"model": {}, "opt": {}}, p),
            [],
            r"without the moving average 'ema'.*\['model', 'opt'\]",
        ),
        (lambda p: torch.save({"ema": 3}, p), ["--family", "dit"], "its 'ema' is a int"),
        (lambda p: torch.save({"ema": golden()[0], "args": [1]}, p), [], "its 'args' a list"),
        (lambda p: save_checkpoint(p, golden()[0], model="SiT-S/2"), ["--family", "dit"], "was trained as SiT-S/2"),
        (lambda p: torch.save(golden()[0], p), ["--as_official"], "--as_official has no meaning for"),
        (lambda p: torch.save(golden()[0], p), ["--as-official"], "--as_official has no meaning for"),
        (lambda p: torch.save(golden()[0], p.with_name("weights.pt")), [], "does not tell"),
        (lambda p: torch.save(golden()[0], p), [], "'weights.pt' does not tell; give --family"),
        (lambda p: torch.save(golden()[0], p), ["--family", "dit"], "give num_attention_heads"),
        (
            lambda p: save_checkpoint(p, golden()[0], model="SiT-S/2", path_type="GVP", prediction="velocity"),
            [],
            "trained with path_type='GVP'; only",
        ),
        (
            lambda p: save_checkpoint(p, golden()[0], model="SiT-S/2"),
            ["--num_attention_heads", "3", "--vae", "./nowhere/vae"],
            r"(?s)nowhere/vae cannot be read.*--vae none",
        ),
    ],
)
def test_wrong_checkpoints_are_named_and_nothing_is_written(tmp_path, capsys, prepare, options, message):
    source = tmp_path / "weights.pt"
    prepare(source)
    with pytest.raises(SystemExit) as stop:
        main([str(source), str(tmp_path / "folder"), *options])
    assert pytest.raises(ValueError, match=message).matches(ValueError(str(stop.value)))
    assert "executed" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [source]


def fails(message, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert re.search(f"^error: .*{message}", str(stop.value), re.DOTALL)


def test_wrong_targets_are_named(tmp_path, monkeypatch):
    source = tmp_path / "DiT.pt"
    torch.save(golden()[0], source)
    options = ["--num_attention_heads", "3", "--vae", "none"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    fails("taken exists already", source, tmp_path / "taken")
    fails("exists already", tmp_path / "folder", source)
    (tmp_path / "empty.pt").mkdir()
    fails("exists already", tmp_path / "folder", tmp_path / "empty.pt")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    fails("exists already", source, tmp_path / "link", *options)
    fails("taken/file is not a folder", source, tmp_path / "taken/file/new", *options)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fails("is the current folder", source, ".", *options)
    assert {path.name for path in tmp_path.iterdir()} == {"DiT.pt", "taken", "empty.pt", "link", "here"}
    main([str(source), str(tmp_path / "a/b/folder/"), *options])
    main([str(tmp_path / "a/b/folder"), str(tmp_path / "c/d/weights.pt")])
    assert (tmp_path / "c/d/weights.pt").is_file()


def test_folders_that_cannot_be_converted_are_named(tmp_path):
    new = tmp_path / "new.pt"
    fails("is no pipeline folder of this package", tmp_path / "nowhere", new)
    fails("There is no file .*nowhere.pt", tmp_path / "nowhere.pt", tmp_path / "new")
    DEMOPipeline(tiny_transformer(), DDPMObjective().scheduler()).save_pretrained(tmp_path / "demo")
    fails("DEMOTransformer2DModel has no official format", tmp_path / "demo", new)
    fails("is a pipeline of this package already", tmp_path / "demo", tmp_path / "new")
    DEMOPipeline(tiny_dit(out_channels=4), FlowObjective().scheduler()).save_pretrained(tmp_path / "flow")
    fails("objective 'flow' with reverse_time=False", tmp_path / "flow", new)
    objective = DDPMObjective(prediction_type="v_prediction", zero_terminal_snr=True)
    DEMOPipeline(tiny_dit(), objective.scheduler()).save_pretrained(tmp_path / "v")
    fails("only noise prediction with linear betas", tmp_path / "v", new)
    DEMOPipeline(tiny_dit(), DDPMObjective().scheduler()).save_pretrained(tmp_path / "dit")
    fails("--vae has no meaning", tmp_path / "dit", new, "--vae", "none")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_config(f, num_layers=3), "there are no transformer_blocks.2"),
        (lambda f: change_config(f, num_layers=1), "there are unknown transformer_blocks.1"),
        (
            lambda f: (f / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"x"),
            "cannot be read as a pip",
        ),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "cannot be read as a pipeline folder"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not a pipeline's index"),
        (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json is not a pipeline's index"),
    ],
)
def test_damaged_pipeline_folders_are_not_exported(tmp_path, damage, message):
    DEMOPipeline(tiny_dit(), DDPMObjective().scheduler()).save_pretrained(tmp_path / "dit")
    damage(tmp_path / "dit")
    fails(message, tmp_path / "dit", tmp_path / "new.pt")
    assert not list(tmp_path.glob("new*"))


def change_config(folder, **changes):
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_diffusers_folders_that_are_not_dit_are_named(tmp_path):
    fails("cannot be read as a folder or hub id of diffusers' DiTPipeline", tmp_path / "nowhere", tmp_path / "new")
    vae = tiny_vae(shift_factor=None)
    DiTPipeline(diffusers_dit(), vae, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "flow")
    fails("FlowMatchEulerDiscreteScheduler; DiT's network predicts noise", tmp_path / "flow", tmp_path / "new")
    DiTPipeline(diffusers_dit(), vae, DDIMScheduler()).save_pretrained(tmp_path / "dit")
    fails("--family has no meaning", tmp_path / "dit", tmp_path / "new", "--family", "dit")
    assert not list(tmp_path.glob("new*"))
    unet = UNet2DModel(8, block_out_channels=(8,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"],
                       norm_num_groups=4)  # fmt: skip
    with pytest.raises(ValueError, match="a UNet2DModel; it must be"):
        convert_diffusers_dit(unet)


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("damage", [lambda x: x * math.nan, lambda x: x.int(), lambda x: x > 0])
def test_diffusers_folders_with_damaged_weights_are_refused(tmp_path, part, damage):
    DiTPipeline(diffusers_dit(), tiny_vae(shift_factor=None), DDIMScheduler()).save_pretrained(tmp_path / "dit")
    file = tmp_path / "dit" / part / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    name = next(name for name, value in state.items() if value.ndim > 1)
    save_file({**state, name: damage(state[name])}, file, {"format": "pt"})
    fails("The weights of .* (must be floating point|.*values that are not finite)", tmp_path / "dit", tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("SiT-XL-2-256.pt", "flow"),
        ("my_dit.pt", "ddpm"),
        ("website.pt", None),
        ("edited.pt", None),
        ("sit-dit.pt", None),
    ],
)
def test_family_by_the_file_s_name(tmp_path, name, family):
    torch.save(golden()[0], tmp_path / name)
    arguments = [tmp_path / name, tmp_path / "folder", "--num_attention_heads", "3", "--vae", "none"]
    if family is None:
        fails("does not tell; give --family", *arguments)
    else:
        main([str(argument) for argument in arguments])
        assert DEMOPipeline.from_pretrained(tmp_path / "folder").config.objective == family


def test_the_command_tells_how_it_is_used():
    command = [sys.executable, "-m", "demo_diffusion.conversion", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "official -> pipeline folder" in done.stdout and "--family" in done.stdout
    assert "--num_attention_heads" in done.stdout and "--num-attention-heads" not in done.stdout


def test_options_have_underscores_and_the_hyphens_of_before():
    spelled = {
        "num_attention_heads": "3",
        "image_size": "256",
        "window_size": "8",
        "attention_mode": "remote",
        "as_official": None,
    }
    for hyphen in ("_", "-"):
        words = [word for name, value in spelled.items() for word in (f"--{name.replace('_', hyphen)}", value) if word]
        options = vars(parse_arguments(["my-model.pt", "a-folder", *words]))
        assert {name: options[name] for name in ("num_attention_heads", "image_size", "window_size")} == {
            "num_attention_heads": 3,
            "image_size": 256,
            "window_size": 8,
        }
        assert options["attention_mode"] == "remote" and options["as_official"] is True
        assert (options["source"], str(options["target"])) == ("my-model.pt", "a-folder")


def test_a_wholly_foreign_state_dict_is_listed_in_part():
    foreign = {f"layer.{i}": torch.ones(1) for i in range(100)}
    with pytest.raises(ValueError, match=r"missing: pos_embed.*; unknown: layer.0, .* layer.19 and 80 more\."):
        convert_dit(foreign)
