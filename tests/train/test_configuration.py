import inspect
from pathlib import Path

import pytest
import torch
import yaml

from demo_diffusion.cli.config_file import to_yaml
from demo_diffusion.cli.options import options_of
from demo_diffusion.models import DEMOTransformer2DModel
from demo_diffusion.models.transformer_dit import DiTModel
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.train.diffusion.build import create_network, create_objective
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.engine.run_folder import changed_settings
from tests.support.sizes import SIZES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/diffusion/*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_read_and_its_resolved_form_is_the_same(path, tmp_path):
    config = parse_config(["--config", str(path)])
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert parse_config(["--config", str(tmp_path / "resolved.yaml")]) == config


@pytest.mark.parametrize("size", ["128x4", "s_2"])
def test_what_is_compared_on_cifar10_differs_in_network_and_objective_alone(size):
    names = [f"demo_{size}", f"dit_{size}", f"demo_{size}_flow", f"sit_{size}"]
    configs = [parse_config(["--config", str(ROOT / f"configs/diffusion/cifar10/{name}.yaml")]) for name in names]
    for name, config in zip(names, configs, strict=True):
        assert config.run.output_dir == f"runs/cifar10/{name}"
        config.run.output_dir = configs[0].run.output_dir
        for section in ("data", "optimization", "run"):
            assert getattr(config, section) == getattr(configs[0], section)
    assert [config.objective.objective for config in configs] == ["ddpm", "ddpm", "flow", "flow"]


def test_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optimization: {num_steps: 7, learning_rate: 1e-3, compile: true}\nmodel: {num_layers: 3}\n")
    config = parse_config(["--config", str(path), "--num_steps", "9", "--compile", "false"])
    assert config.optimization.num_steps == 9 and config.optimization.learning_rate == 1e-3
    assert config.optimization.compile is False
    assert config.model.overrides() == {"num_layers": 3}


def test_none_undoes_what_a_file_sets(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {vae: some/vae}\noptimization: {max_grad_norm: 1}\nmodel: {num_layers: null}\n")
    config = parse_config(["--config", str(path), "--vae", "none", "--max_grad_norm=None"])
    assert config.data.vae is config.optimization.max_grad_norm is config.model.num_layers is None


def test_none_is_an_attention_mode(tmp_path):
    assert parse_config(["--attention_mode", "none"]).model.attention_mode == "none"
    path = tmp_path / "run.yaml"
    path.write_text("model: {attention_mode: none}")
    assert parse_config(["--config", str(path)]).model.attention_mode == "none"
    assert parse_config(["--config", str(path), "--attention_mode="]).model.attention_mode is None


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("optimizer: {lr: 1}", [], "the file has no ['optimizer']; it may have ['data', 'model'"),
        ("optimization: {lr: 1}", [], "section 'optimization' has no ['lr']"),
        ("", ["--lr", "1"], "Unknown option --lr 1"),
        ("", ["--num_step", "5"], "Unknown option --num_step 5"),
        ("optimization: {num_steps: many}", [], "invalid int value: 'many'"),
        ("optimization: {mixed_precision: fp8}", [], "invalid choice: 'fp8'"),
        ("optimization: {num_steps: 0}", [], "num_steps is 0; it must be positive"),
        ("", ["--ema_decay", "1.0"], r"ema_decay is 1.0; it must be in [0, 1)"),
        ("", ["--label_dropout", "-0.1"], "label_dropout is -0.1"),
        ("", ["--warmup_steps", "5"], "'constant' has no warm-up"),
        ("", ["--max_grad_norm", "-1"], "max_grad_norm is -1.0; it must be positive"),
        ("", ["--learning_rate", "nan"], "learning_rate is nan"),
        ("", ["--sample_every", "-1"], "sample_every is -1; it must be at least 0"),
        ("", ["--seed", "-1"], "seed is -1"),
        ("", ["--attention_mode", "global"], "argument --attention_mode: invalid choice: 'global'"),
        ("", ["--objective", "ddpm", "--timestep_sampling", "logit_normal"], "needs objective 'flow'"),
        ("", ["--objective", "ddpm", "--direction_weight", "1"], "direction_weight 1.0 needs objective 'flow'"),
        ("", ["--objective", "flow", "--min_snr_gamma", "5"], "min_snr_gamma 5.0 needs objective 'ddpm'"),
        ("", ["--min_snr_gamma", "0"], "min_snr_gamma is 0.0; it must be a finite number above 0"),
        ("", ["--zero_terminal_snr"], "zero_terminal_snr needs prediction_type 'v_prediction'"),
        (
            "",
            ["--zero_terminal_snr", "--prediction_type", "v_prediction", "--min_snr_gamma", "5"],
            "would give the last timestep of zero_terminal_snr no weight",
        ),
        ("", ["--transformer", "DiT-S/2", "--window_size", "4"], "DiT-S/2 has no config field ['window_size']"),
        ("", ["--transformer", "DEMO-H/2"], "Unknown transformer 'DEMO-H/2'"),
        ("", ["--eval_every", "5"], "eval_every is 5, which needs eval_reference"),
        ("", ["--reverse_time", "true"], "reverse_time is for the flow objective"),
        ("", ["--transformer", "SiT-S/2"], "SiT-S/2 sees the flow objective's time"),
        (
            "",
            ["--sampler", "sde"],
            "sampler is 'sde'; for objective 'ddpm' it must be one of ['ddpm', 'ddim', 'dpm_solver']",
        ),
        ("", ["--label_dropout", "0"], "null class is not trained"),
        ("model: [", [], "is not valid YAML"),
        ("run: {seed: 1}\nrun: {seed: 2}", [], "['run'] stand twice"),
        ("", ["--objective", "ddpm", "--timestep_scale", "1000"], "use timestep_scale 1"),
        ("- model", [], "the file holds ['model']; it must hold lines 'name: value'"),
        ("model: DEMO-S/2", [], "section 'model' holds 'DEMO-S/2'"),
        ("run: {log_every: }", [], "argument --log_every"),
    ],
)
def test_mistakes_are_named(text, arguments, message, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_config(["--config", str(path), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--config", "nowhere.yaml"])
    assert "There is no config file nowhere.yaml" in capsys.readouterr().err


IMAGENET = ROOT / "configs/diffusion/imagenet256"
FAMILIES = {  # network, objective, sampler
    "demo": (DEMOTransformer2DModel, DDPMObjective, "ddpm"),
    "dit": (DiTModel, DDPMObjective, "ddpm"),
    "sit": (DiTModel, FlowObjective, "sde"),
}


@pytest.mark.parametrize("size", ["s", "b", "l", "xl"])
@pytest.mark.parametrize("family", FAMILIES)
def test_imagenet_presets_are_the_papers_settings(family, size):
    config = parse_config(["--config", str(IMAGENET / f"{family}_{size}_2.yaml")])
    model_class, objective_class, sampler = FAMILIES[family]
    objective = create_objective(config.objective)
    with torch.device("meta"):
        network = create_network(config.model, objective, in_channels=4, sample_size=32, num_classes=1000)
    assert type(network) is model_class and type(objective) is objective_class
    assert sum(p.numel() for p in network.parameters()) == SIZES[config.model.transformer][0]
    assert config.model.transformer.lower() == f"{family}-{size}/2"
    assert set(config.model.overrides()) == ({"out_channels"} if family == "sit" else set())
    assert (network.config.reverse_time, network.config.timestep_scale) == (family == "sit", 1)
    # SPEC of the paper's table XIV, which DiT and SiT share.
    o, d = config.optimization, config.data
    assert (o.num_steps, o.batch_size, o.learning_rate, o.lr_schedule) == (400_000, 256, 1e-4, "constant")
    assert (o.weight_decay, o.max_grad_norm, o.ema_decay, o.warmup_steps) == (0, None, 0.9999, 0)
    assert (d.resolution, d.random_flip, d.vae) == (256, True, "stabilityai/sd-vae-ft-ema")
    assert (config.run.sampler, config.run.num_inference_steps) == (sampler, 250)
    off = parse_config(["--objective", config.objective.objective]).objective
    assert config.objective == off and off.label_dropout == 0.1


@pytest.mark.parametrize("size", ["s", "b", "l", "xl"])
def test_todays_setting_differs_from_the_paper_s_in_what_it_says(size):
    config = parse_config(["--config", str(IMAGENET / f"demo_{size}_2_flow.yaml")])
    objective = create_objective(config.objective)
    with torch.device("meta"):
        network = create_network(config.model, objective, in_channels=4, sample_size=32, num_classes=1000)
    assert network.config.qk_norm and network.config.window_position == "bias" and network.config.out_channels == 4
    assert (objective.timestep_sampling, objective.direction_weight) == ("logit_normal", 1)


TODAYS_FIELDS = {  # by which saved runs and configs are read
    "model": "transformer patch_size num_layers num_attention_heads attention_head_dim expansion_ratio attention_mode "
    "window_size kernel_size batch_norm mlp_ratio out_channels timestep_scale reverse_time qk_norm rotary_positions "
    "window_position",
    "objective": "objective timestep_sampling direction_weight prediction_type min_snr_gamma zero_terminal_snr "
    "label_dropout",
}


def test_sections_are_made_from_networks_and_objectives():
    config = parse_config([])
    for section, names in TODAYS_FIELDS.items():
        assert set(names.split()) <= set(vars(getattr(config, section)))
    for network_class in (DEMOTransformer2DModel, DiTModel):
        arguments = set(inspect.signature(network_class).parameters) - {"sample_size", "in_channels", "num_classes"}
        assert arguments <= set(vars(config.model))
    assert not {"sample_size", "in_channels", "num_classes"} & set(vars(config.model))
    for objective_class in (DDPMObjective, FlowObjective):
        for name, parameter in inspect.signature(objective_class).parameters.items():
            assert getattr(config.objective, name) == parameter.default
    defaults = {each.name: each.default for each in options_of(type(config)) if each.section == "model"}
    assert set(defaults.values()) == {None, "DEMO-S/2"}


def test_every_option_of_a_network_reaches_it():
    config = parse_config(["--norm_eps", "1e-5", "--window_position", "bias", "--batch_norm", "false"])
    with torch.device("meta"):
        network = create_network(config.model, create_objective(config.objective), 4, 8, 10)
    assert (network.config.norm_eps, network.config.window_position, network.config.batch_norm) == (1e-5, "bias", False)
    config = parse_config(["--objective", "flow", "--timestep_sampling", "logit_normal", "--logit_mean", "-0.5"])
    assert create_objective(config.objective).logit_mean == -0.5


def test_a_run_of_an_older_version_is_the_same_run():
    config = parse_config(["--min_snr_gamma", "5"])
    saved = yaml.safe_load(to_yaml(config))
    for section, names in TODAYS_FIELDS.items():
        saved[section] = {name: value for name, value in saved[section].items() if name in names.split()}
    assert changed_settings(saved, config) == []
    assert changed_settings(saved, parse_config(["--min_snr_gamma", "5", "--norm_eps", "1e-5"])) == [
        "norm_eps (was None, now 1e-05)"
    ]


def test_help_has_the_docstrings_lines_and_the_registries_names(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "--attention_mode {none,neighborhood,remote,spanning}" in text
    assert "odd side of the depthwise convolution (DEMO)" in text and "width of the MLP over D (DiT, SiT)" in text
    assert "standard deviation of the logit-normal's z (flow)" in text
    assert "ddpm: ddpm, ddim, dpm_solver; flow: euler, heun, dpm_solver, dopri5, sde" in text
    assert "optimizer steps; positive (default: 400000)" in text


def test_channels_that_do_not_fit_the_objective_are_refused():
    config = parse_config(["--out_channels", "4"])
    with pytest.raises(ValueError, match="gives 4 channels for 4; noise and learned variance need 8"):
        create_network(config.model, create_objective(config.objective), 4, 8, 10)
