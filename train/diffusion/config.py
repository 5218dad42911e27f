"""Everything that a training of D-EMO, DiT or SiT can be told."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.arguments import merged_arguments
from demo_diffusion.cli.config_file import read_config
from demo_diffusion.cli.options import check_options, option, with_options
from demo_diffusion.data.images import DataConfig
from demo_diffusion.models.presets import check_fields, network_classes, preset_of
from demo_diffusion.objectives import OBJECTIVES, create_objective
from demo_diffusion.pipelines.samplers import check_sampler, describe_samplers
from demo_diffusion.train.engine.config import OptimizationConfig, RunConfig, check_common

# Not made from the networks: the data decide the first three, and out_channels follows the objective where it is None.
NO_OPTIONS = ("sample_size", "in_channels", "num_classes", "out_channels")
NETWORK_ARGUMENTS = merged_arguments(network_classes(), without=NO_OPTIONS)
OBJECTIVE_ARGUMENTS = merged_arguments(OBJECTIVES, same_defaults=True)


@with_options([(each.name, each.type | None, option(None, each.help)) for each in NETWORK_ARGUMENTS])
class ModelConfig:
    """The network: a preset and what differs from it. None keeps the preset's value."""

    transformer: str = option("DEMO-S/2", "preset, one of demo_diffusion.list_transformers()")
    out_channels: int | None = option(None, "output channels; None: what the objective needs")

    def overrides(self) -> dict:
        """Config fields of the transformer that differ from the preset."""
        fields = dataclasses.asdict(self)
        del fields["transformer"]
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class DiffusionDataConfig(DataConfig):
    """Labelled images, or their latents."""

    random_flip: bool = option(False, "flip half of the images horizontally, anew in every epoch")
    vae: str | None = option(None, "folder or hub id of a diffusers autoencoder; None: train on pixels")
    latents: str | None = option(None, "folder of train/cache_latents.py to read instead of images")
    latent_normalization: Literal["autoencoder", "channels"] = option(
        "autoencoder", "scale latents by the autoencoder's factors, or by each channel's mean and spread in the cache"
    )


@with_options([(each.name, each.type, option(each.default, each.help)) for each in OBJECTIVE_ARGUMENTS])
class ObjectiveConfig:
    """What the network learns to predict: an objective and its arguments."""

    objective: Literal[tuple(OBJECTIVES)] = option(
        "ddpm",
        "; ".join(
            f"{name}: {inspect.getdoc(each).splitlines()[0].removesuffix('.')}" for name, each in OBJECTIVES.items()
        ),
    )
    label_dropout: float = option(0.1, "share of labels replaced by the null class", least=0, below=1)

    def settings(self) -> dict:
        """Arguments of the objective that differ from their defaults."""
        values = {each.name: (getattr(self, each.name), each.default) for each in OBJECTIVE_ARGUMENTS}
        return {name: value for name, (value, default) in values.items() if value != default}


@dataclass
class DiffusionRunConfig(RunConfig):
    """Where results go, how often, and how samples are drawn."""

    sample_every: int = option(10_000, "steps between grids of EMA samples; 0: only at the end", least=0)
    sampler: str | None = option(None, f"{describe_samplers()}; None: the objective's first")
    num_inference_steps: int = option(50, "sampler steps of the grids", above=0)
    guidance_scale: float = option(4.0, "classifier-free guidance of the grids", least=0)
    grid_classes: int = option(10, "rows of a grid: the first n classes", above=0, most=1000)
    grid_columns: int = option(8, "samples a class in a grid", above=0, most=1000)
    eval_every: int = option(0, "steps between scores of EMA samples against eval_reference; 0: never", least=0)
    eval_samples: int = option(5000, "samples of each such score, without guidance", above=0)
    eval_reference: str | None = option(None, "statistics of real images, made by eval/reference.py")
    inception_weights: str | None = option(None, "Inception's state dict; None: torch-fidelity downloads it")
    knn_samples: int = option(
        0, "samples whose class a nearest-neighbour classifier checks at the end; 0: none", least=0
    )


@dataclass
class DiffusionTrainingConfig:
    """All sections of one run."""

    model: ModelConfig
    data: DiffusionDataConfig
    objective: ObjectiveConfig
    optimization: OptimizationConfig
    run: DiffusionRunConfig

    def __post_init__(self):
        _check(self)


def parse_config(arguments: list[str] | None = None) -> DiffusionTrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    return read_config(DiffusionTrainingConfig, arguments)


def _check(config: DiffusionTrainingConfig) -> None:
    check_options(config)
    check_common(config.optimization)
    create_objective(config.objective.objective, **config.objective.settings())
    check_fields(config.model.transformer, config.model.overrides())
    check_sampler(config.run.sampler, config.objective.objective)
    if not OBJECTIVES[config.objective.objective].continuous_time:
        _check_whole_timesteps(config.model, config.objective.objective)
    _check_sources(config.data, config.run)
    if config.objective.label_dropout == 0 and config.run.guidance_scale != 1:
        raise ValueError("With label_dropout 0 the null class is not trained; use guidance_scale 1.")


def _check_whole_timesteps(model: ModelConfig, objective: str) -> None:
    others = " or ".join(name for name, each in OBJECTIVES.items() if each.continuous_time)
    if model.timestep_scale not in (None, 1):
        raise ValueError(
            f"timestep_scale {model.timestep_scale:g} is for the {others} objective's t in [0, 1]; the timesteps of "
            f"{objective!r} are whole numbers: use timestep_scale 1."
        )
    if model.reverse_time:
        raise ValueError(
            f"reverse_time is for the {others} objective's t in [0, 1]; the timesteps of {objective!r} are whole "
            "numbers."
        )
    if preset_of(model.transformer).get("reverse_time") and model.reverse_time is None:
        raise ValueError(
            f"{model.transformer} sees the {others} objective's time; for {objective!r} use a network that does not "
            "reverse it, such as DiT."
        )


def _check_sources(data: DiffusionDataConfig, run: DiffusionRunConfig) -> None:
    if data.latents is not None and run.knn_samples:
        raise ValueError("knn_samples compares samples with the images, which --latents does not read; set it to 0.")
    if data.latents is None and data.latent_normalization == "channels":
        raise ValueError("latent_normalization 'channels' takes the statistics of a cache; give --latents.")
    if run.eval_every and run.eval_reference is None:
        raise ValueError(f"eval_every is {run.eval_every}, which needs eval_reference.")
