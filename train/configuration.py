"""Everything that a training run can be told, read from YAML and overridden on the command line.

A YAML file has one section for each dataclass below; on the command line the fields stand alone: `--num_steps 500`.
"""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from transformers import HfArgumentParser


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
    timestep_scale: float | None = _field(None, "factor on the timestep; 1000 suits the flow objective's t in [0, 1]")

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
    num_inference_steps: int = _field(50, "sampler steps of the grids")
    guidance_scale: float = _field(4.0, "classifier-free guidance of the grids")
    grid_classes: int = _field(10, "rows of a grid: the first n classes")
    grid_columns: int = _field(8, "samples a class in a grid")
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

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False))


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path, help="YAML file with the sections " + ", ".join(SECTIONS))
    chosen, overrides = config_parser.parse_known_args(arguments)
    parser = HfArgumentParser(SECTIONS.values(), parents=[config_parser], allow_abbrev=False)
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


def yaml_as_arguments(path: Path) -> list[str]:
    """A config file as command-line arguments, so that one parser checks both.

    Raises:
        ValueError: if the file is missing or has a section or a field that does not exist.
    """
    if not path.is_file():
        raise ValueError(f"There is no config file {path}.")
    arguments = []
    for section, values in (yaml.safe_load(path.read_text()) or {}).items():
        if section not in SECTIONS:
            raise ValueError(f"{path} has a section {section!r}; the sections are {', '.join(SECTIONS)}.")
        allowed = {f.name for f in dataclasses.fields(SECTIONS[section])}
        if unknown := set(values or {}) - allowed:
            raise ValueError(f"{path}: section {section!r} has no field {sorted(unknown)}; it has {sorted(allowed)}.")
        for name, value in (values or {}).items():
            if value is not None:
                arguments.append(f"--{name}={value}")
    return arguments


def _check(config: TrainingConfig) -> None:
    optimization, run = config.optimization, config.run
    positive = {
        "num_steps": optimization.num_steps,
        "batch_size": optimization.batch_size,
        "gradient_accumulation_steps": optimization.gradient_accumulation_steps,
        "learning_rate": optimization.learning_rate,
        "resolution": config.data.resolution,
        "log_every": run.log_every,
        "checkpoint_every": run.checkpoint_every,
        "num_inference_steps": run.num_inference_steps,
        "grid_classes": run.grid_classes,
        "grid_columns": run.grid_columns,
    }
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive.")
    for name, value in {"ema_decay": optimization.ema_decay, "label_dropout": config.objective.label_dropout}.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; it must be in [0, 1).")
    if optimization.warmup_steps and optimization.lr_schedule == "constant":
        raise ValueError("lr_schedule 'constant' has no warm-up; use 'constant_with_warmup' or warmup_steps 0.")
