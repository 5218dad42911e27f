"""Everything that a training run can be told, read from YAML and overridden on the command line.

A YAML file has one section for each dataclass below; on the command line the fields stand alone: `--num_steps 500`.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from transformers import HfArgumentParser

from demo_diffusion.models.presets import check_fields
from demo_diffusion.pipelines.samplers import SAMPLERS


def _field(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class ModelConfig:
    """The network: a preset and what differs from it. None keeps the preset's value."""

    _argument_group_name = "model"

    transformer: str = _field("DEMO-S/2", "preset, one of demo_diffusion.list_transformers()")
    patch_size: int | None = _field(None, "side of a token's patch in (latent) pixels")
    num_layers: int | None = _field(None, "number of blocks")
    num_attention_heads: int | None = _field(None, "attention heads")
    attention_head_dim: int | None = _field(None, "width of a head; heads times this is the network's width")
    expansion_ratio: float | None = _field(None, "width of a block's value over the network's width")
    attention_mode: str | None = _field(None, "none, neighborhood, remote or spanning")
    window_size: int | None = _field(None, "side of the attention windows in tokens")
    kernel_size: int | None = _field(None, "odd side of the depthwise convolution")
    mlp_ratio: float | None = _field(None, "width of DiT's MLP over the network's width")
    out_channels: int | None = _field(None, "output channels; None: what the objective needs")
    timestep_scale: float | None = _field(None, "factor on the timestep; 1000 suits the flow objective's t in [0, 1]")
    reverse_time: bool | None = _field(None, "see 1 - t instead of t, as SiT does (flow)")
    qk_norm: bool | None = _field(None, "RMSNorm of each head's queries and keys")
    rotary_positions: bool | None = _field(None, "turn queries and keys by their row and column in the grid")
    window_position: str | None = _field(None, "position inside the windows: embedding, bias or rotary")

    def overrides(self) -> dict:
        """Config fields of the transformer that differ from the preset."""
        fields = dataclasses.asdict(self)
        del fields["transformer"]
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class DataConfig:
    """Labelled images."""

    _argument_group_name = "data"

    dataset: str = _field("digits", "'digits' (scikit-learn's), a folder of class folders, a .parquet file or a hub id")
    split: str = _field("train", "split of the dataset")
    image_column: str | None = _field(None, "column of the images; None: the only one of that type")
    label_column: str | None = _field(None, "column of the class labels; None: the only one of that type")
    resolution: int = _field(256, "side in pixels; images are resized and centre-cropped to it")
    random_flip: bool = _field(False, "flip half of the images horizontally")
    vae: str | None = _field(None, "folder or hub id of a diffusers autoencoder; None: train on pixels")
    num_workers: int = _field(0, "processes that decode images")


@dataclass
class ObjectiveConfig:
    """What the network learns to predict."""

    _argument_group_name = "objective"

    objective: Literal["ddpm", "flow"] = _field("ddpm", "noise with learned variance, or velocity")
    timestep_sampling: Literal["uniform", "logit_normal"] = _field("uniform", "distribution of t (flow)")
    direction_weight: float = _field(0.0, "weight of an added 1 - cos(prediction, velocity) (flow)")
    prediction_type: Literal["epsilon", "v_prediction"] = _field("epsilon", "noise or v (ddpm)")
    min_snr_gamma: float | None = _field(None, "min-SNR weighting of the MSE, 5 in its paper; None: none (ddpm)")
    zero_terminal_snr: bool = _field(False, "the last timestep is pure noise; needs v_prediction (ddpm)")
    label_dropout: float = _field(0.1, "share of labels replaced by the null class")


@dataclass
class OptimizationConfig:
    """AdamW and its surroundings."""

    _argument_group_name = "optimization"

    num_steps: int = _field(400_000, "optimizer steps")
    batch_size: int = _field(256, "samples a step, over all processes and accumulation steps")
    gradient_accumulation_steps: int = _field(1, "parts in which a process computes its share of a batch")
    learning_rate: float = _field(1e-4, "peak learning rate")
    lr_schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = _field("constant", "after warm-up")
    warmup_steps: int = _field(0, "steps of linear warm-up (not with 'constant')")
    weight_decay: float = _field(0.0, "AdamW's weight decay")
    max_grad_norm: float | None = _field(None, "clip the gradient to this norm; None: do not")
    ema_decay: float = _field(0.9999, "decay of the moving average of weights and BatchNorm statistics")
    mixed_precision: Literal["no", "fp16", "bf16"] = _field("no", "autocast type")
    gradient_checkpointing: bool = _field(False, "recompute activations in the backward pass")
    compile: bool = _field(False, "torch.compile the blocks")
    seed: int = _field(0, "of initial weights, data order and noise")


@dataclass
class RunConfig:
    """Where results go, how often, and how samples are drawn."""

    _argument_group_name = "run"

    output_dir: str = _field("runs/demo", "folder of this run; an unfinished run in it is resumed")
    log_every: int = _field(100, "steps between logged losses")
    sample_every: int = _field(10_000, "steps between grids of EMA samples; 0: only at the end")
    checkpoint_every: int = _field(10_000, "steps between checkpoints")
    sampler: str | None = _field(None, "ddpm or ddim; euler, heun, dopri5 or sde (flow); None: the first of them")
    num_inference_steps: int = _field(50, "sampler steps of the grids")
    guidance_scale: float = _field(4.0, "classifier-free guidance of the grids")
    grid_classes: int = _field(10, "rows of a grid: the first n classes")
    grid_columns: int = _field(8, "samples a class in a grid")
    eval_every: int = _field(0, "steps between scores of EMA samples against eval_reference; 0: never")
    eval_samples: int = _field(5000, "samples of each such score, without guidance")
    eval_reference: str | None = _field(None, "statistics of real images, made by eval/reference.py")
    inception_weights: str | None = _field(None, "Inception's state dict; None: torch-fidelity downloads it")
    knn_samples: int = _field(0, "samples whose class a nearest-neighbour classifier checks at the end; 0: none")


SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "optimization": OptimizationConfig,
    "run": RunConfig,
}


@dataclass
class TrainingConfig:
    """All sections of one run."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    optimization: OptimizationConfig
    run: RunConfig

    def __post_init__(self):
        _check(self)

    def to_yaml(self) -> str:
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path, help="YAML file with the sections " + ", ".join(SECTIONS))
    chosen, overrides = config_parser.parse_known_args(arguments)
    parser = HfArgumentParser(SECTIONS.values(), parents=[config_parser], allow_abbrev=False)
    _accept_none(parser)
    try:
        from_file = yaml_as_arguments(chosen.config) if chosen.config else []
        *sections, _, unknown = parser.parse_args_into_dataclasses(
            from_file + overrides, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            raise ValueError(f"Unknown option {' '.join(unknown)}; --help lists all of them.")
        return TrainingConfig(*sections)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


def _accept_none(parser: argparse.ArgumentParser) -> None:
    """Lets `--vae none` or `--vae=` undo what a file sets, for each field that may be None."""
    optional = {f.name for section in SECTIONS.values() for f in dataclasses.fields(section) if f.default is None}
    for action in parser._actions:
        if action.dest in optional:
            words = ("",) if action.dest == "attention_mode" else ("", "none")  # there "none" is a mode
            action.type = _none_or(action.type, words)


def _none_or(convert: Callable[[str], object], words: tuple[str, ...]) -> Callable[[str], object]:
    @functools.wraps(convert)
    def converted(text: str) -> object:
        return None if text.lower() in words else convert(text)

    return converted


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping, where YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.YAMLError(f"{sorted(twice)} stand twice, again in line {node.end_mark.line + 1}")
        return super().construct_mapping(node, deep)


def yaml_as_arguments(path: Path) -> list[str]:
    """A config file as command-line arguments, so that one parser checks both.

    Raises:
        ValueError: if the file is missing, is no such YAML, or has a section or a field that does not exist.
    """
    if not path.is_file():
        raise ValueError(f"There is no config file {path}.")
    try:
        content = yaml.load(path.read_text(), UniqueKeyLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    _check_mapping(path, "the file", content, set(SECTIONS))
    arguments = []
    for section, values in content.items():
        fields = {f.name for f in dataclasses.fields(SECTIONS[section])}
        _check_mapping(path, f"section {section!r}", values or {}, fields)
        arguments += [f"--{name}={'' if value is None else value}" for name, value in (values or {}).items()]
    return arguments


def _check_mapping(path: Path, place: str, content: object, allowed: set[str]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {place} holds {content!r:.50}; it must hold lines 'name: value'.")
    if unknown := set(content) - allowed:
        raise ValueError(f"{path}: {place} has no {sorted(map(str, unknown))}; it may have {sorted(allowed)}.")


# Options of one objective: the values that leave the other alone.
OBJECTIVE_OPTIONS = {
    "flow": {"timestep_sampling": "uniform", "direction_weight": 0},
    "ddpm": {"prediction_type": "epsilon", "min_snr_gamma": None, "zero_terminal_snr": False},
}


def _check_objective(config: ObjectiveConfig) -> None:
    for objective, options in OBJECTIVE_OPTIONS.items():
        for name, off in options.items():
            if config.objective != objective and getattr(config, name) != off:
                raise ValueError(f"{name} {getattr(config, name)!r} needs objective {objective!r}.")
    if config.zero_terminal_snr and config.prediction_type != "v_prediction":
        raise ValueError("zero_terminal_snr needs prediction_type 'v_prediction'.")
    if config.zero_terminal_snr and config.min_snr_gamma is not None:
        raise ValueError("min_snr_gamma would give the last timestep of zero_terminal_snr no weight; use one of them.")


def _check_ddpm_time(model: ModelConfig) -> None:
    if model.timestep_scale not in (None, 1):
        raise ValueError(
            f"timestep_scale {model.timestep_scale:g} is for the flow objective's t in [0, 1]; the timesteps of "
            "'ddpm' are 0 … 999: use timestep_scale 1."
        )
    if model.reverse_time:
        raise ValueError("reverse_time is for the flow objective's t in [0, 1]; the timesteps of 'ddpm' are 0 … 999.")
    if model.transformer.startswith("SiT") and model.reverse_time is None:
        raise ValueError(f"{model.transformer} sees the flow objective's time; for 'ddpm' use its twin, DiT.")


POSITIVE = (
    "resolution",
    "num_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_grad_norm",
    "min_snr_gamma",
    "log_every",
    "checkpoint_every",
    "num_inference_steps",
    "grid_classes",
    "grid_columns",
    "eval_samples",
)
NOT_NEGATIVE = (
    "num_workers",
    "warmup_steps",
    "weight_decay",
    "seed",
    "sample_every",
    "guidance_scale",
    "knn_samples",
    "direction_weight",
    "eval_every",
)
SHARES = ("label_dropout", "ema_decay")


def _check(config: TrainingConfig) -> None:
    values = {name: value for section in SECTIONS for name, value in vars(getattr(config, section)).items()}
    for names, allowed, fits in (
        (POSITIVE, "positive", lambda value: 0 < value < math.inf),
        (NOT_NEGATIVE, "at least 0", lambda value: 0 <= value < math.inf),
        (SHARES, "in [0, 1)", lambda value: 0 <= value < 1),
    ):
        for name in names:
            if values[name] is not None and not fits(values[name]):
                raise ValueError(f"{name} is {values[name]}; it must be {allowed}.")
    if values["warmup_steps"] and values["lr_schedule"] == "constant":
        raise ValueError("lr_schedule 'constant' has no warm-up; use 'constant_with_warmup' or warmup_steps 0.")
    _check_objective(config.objective)
    check_fields(config.model.transformer, config.model.overrides())
    if values["eval_every"] and values["eval_reference"] is None:
        raise ValueError(f"eval_every is {values['eval_every']}, which needs eval_reference.")
    samplers = SAMPLERS[values["objective"]]
    if values["sampler"] not in (None, *samplers):
        raise ValueError(
            f"sampler is {values['sampler']!r}; for objective {values['objective']!r} it must be one of "
            f"{list(samplers)}."
        )
    if values["objective"] == "ddpm":
        _check_ddpm_time(config.model)
    if values["label_dropout"] == 0 and values["guidance_scale"] != 1:
        raise ValueError("With label_dropout 0 the null class is not trained; use guidance_scale 1.")
