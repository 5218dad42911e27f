"""Everything that a training of D-EMO, DiT or SiT can be told."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.config_file import read_config
from demo_diffusion.cli.options import check_ranges, option
from demo_diffusion.data.images import DataConfig
from demo_diffusion.models.presets import check_fields
from demo_diffusion.pipelines.samplers import SAMPLERS
from demo_diffusion.train.engine.config import OptimizationConfig, RunConfig, check_common


@dataclass
class ModelConfig:
    """The network: a preset and what differs from it. None keeps the preset's value."""

    _argument_group_name = "model"

    transformer: str = option("DEMO-S/2", "preset, one of demo_diffusion.list_transformers()")
    patch_size: int | None = option(None, "side of a token's patch in (latent) pixels")
    num_layers: int | None = option(None, "number of blocks")
    num_attention_heads: int | None = option(None, "attention heads")
    attention_head_dim: int | None = option(None, "width of a head; heads times this is the network's width")
    expansion_ratio: float | None = option(None, "width of a block's value over the network's width")
    attention_mode: str | None = option(None, "none, neighborhood, remote or spanning")
    window_size: int | None = option(None, "side of the attention windows in tokens")
    kernel_size: int | None = option(None, "odd side of the depthwise convolution")
    batch_norm: bool | None = option(None, "BatchNorm after the depthwise convolution, or else its bias")
    mlp_ratio: float | None = option(None, "width of DiT's MLP over the network's width")
    out_channels: int | None = option(None, "output channels; None: what the objective needs")
    timestep_scale: float | None = option(None, "factor on the timestep; 1000 suits the flow objective's t in [0, 1]")
    reverse_time: bool | None = option(None, "see 1 - t instead of t, as SiT does (flow)")
    qk_norm: bool | None = option(None, "RMSNorm of each head's queries and keys")
    rotary_positions: bool | None = option(None, "turn queries and keys by their row and column in the grid")
    window_position: str | None = option(None, "position inside the windows: embedding, bias or rotary")

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


@dataclass
class ObjectiveConfig:
    """What the network learns to predict."""

    _argument_group_name = "objective"

    objective: Literal["ddpm", "flow"] = option("ddpm", "noise with learned variance, or velocity")
    timestep_sampling: Literal["uniform", "logit_normal"] = option("uniform", "distribution of t (flow)")
    direction_weight: float = option(0.0, "weight of an added 1 - cos(prediction, velocity) (flow)")
    prediction_type: Literal["epsilon", "v_prediction"] = option("epsilon", "noise or v (ddpm)")
    min_snr_gamma: float | None = option(None, "min-SNR weighting of the MSE, 5 in its paper; None: none (ddpm)")
    zero_terminal_snr: bool = option(False, "the last timestep is pure noise; needs v_prediction (ddpm)")
    label_dropout: float = option(0.1, "share of labels replaced by the null class")


@dataclass
class DiffusionRunConfig(RunConfig):
    """Where results go, how often, and how samples are drawn."""

    sample_every: int = option(10_000, "steps between grids of EMA samples; 0: only at the end")
    sampler: str | None = option(
        None, "ddpm, ddim, dpm_solver; euler, heun, dpm_solver, dopri5, sde (flow); None: the first"
    )
    num_inference_steps: int = option(50, "sampler steps of the grids")
    guidance_scale: float = option(4.0, "classifier-free guidance of the grids")
    grid_classes: int = option(10, "rows of a grid: the first n classes")
    grid_columns: int = option(8, "samples a class in a grid")
    eval_every: int = option(0, "steps between scores of EMA samples against eval_reference; 0: never")
    eval_samples: int = option(5000, "samples of each such score, without guidance")
    eval_reference: str | None = option(None, "statistics of real images, made by eval/reference.py")
    inception_weights: str | None = option(None, "Inception's state dict; None: torch-fidelity downloads it")
    knn_samples: int = option(0, "samples whose class a nearest-neighbour classifier checks at the end; 0: none")


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


def _check(config: DiffusionTrainingConfig) -> None:
    check_common(config.data, config.optimization, config.run)
    values = {name: value for section in vars(config).values() for name, value in vars(section).items()}
    check_ranges(
        values,
        positive=("min_snr_gamma", "num_inference_steps", "grid_classes", "grid_columns", "eval_samples"),
        not_negative=("sample_every", "guidance_scale", "knn_samples", "direction_weight", "eval_every"),
        shares=("label_dropout",),
    )
    _check_objective(config.objective)
    check_fields(config.model.transformer, config.model.overrides())
    if values["latents"] is not None and values["knn_samples"]:
        raise ValueError("knn_samples compares samples with the images, which --latents does not read; set it to 0.")
    if values["latents"] is None and values["latent_normalization"] == "channels":
        raise ValueError("latent_normalization 'channels' takes the statistics of a cache; give --latents.")
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
