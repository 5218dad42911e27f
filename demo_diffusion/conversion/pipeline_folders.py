"""Pipelines made of official DiT and SiT checkpoints or of diffusers' DiT, and official weights of a pipeline."""

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, DiTPipeline, SchedulerMixin

from demo_diffusion.data.autoencoder import load_vae
from demo_diffusion.models import DiTModel
from demo_diffusion.models.loading import check_part
from demo_diffusion.objectives import OBJECTIVES, DDPMObjective, FlowObjective, Objective
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.pipelines.scheduler_fit import check_scheduler_fits, takes_learned_variance

from .checkpoint_file import OfficialCheckpoint
from .diffusers_dit import convert_diffusers_dit
from .dit import REPA_PROJECTORS, convert_dit, convert_repa, convert_sit, to_official
from .labels import imagenet_names

FAMILIES = {  # and their objectives
    "dit": (convert_dit, DDPMObjective),
    "sit": (convert_sit, FlowObjective),
    "repa": (convert_repa, FlowObjective),
}
OFFICIAL_VAE = "stabilityai/sd-vae-ft-{kind}"
VAE_KINDS = {"dit": "ema", "sit": "ema", "repa": "mse"}  # where the training options do not say
FLOW_SETTING = {"path_type": ("Linear", "linear"), "prediction": ("velocity", "v")}  # SiT's and REPA's words
LABEL_DROPOUT = ("class_dropout_prob", "cfg_prob")  # DiT's and REPA's words
IMAGENET_CLASSES = 1000


def pipeline_from_official(
    checkpoint: OfficialCheckpoint, path: Path, family: str | None, num_attention_heads: int | None, vae: str | None
) -> DEMOPipeline:
    """The pipeline of an official checkpoint: sampler, autoencoder and, for 1,000 classes, ImageNet's label names.

    Args:
        path: the file that it was read from.
        family: "dit", "sit" or "repa"; DiT's and SiT's files look alike; None: by the projectors, the training options
            or the file's name.
        vae: folder or hub id; None: that of the training options, or sd-vae-ft-ema (REPA: -mse); "none": without.

    Raises:
        ValueError: if the file, the family or the autoencoder is not what it must be, or there is no null class.
    """
    family = _family(checkpoint, path, family)
    options = checkpoint.training_options
    differing = [f"{k}={options[k]!r}" for k, values in FLOW_SETTING.items() if options.get(k, values[0]) not in values]
    if differing:
        raise ValueError(f"{path} was trained with {', '.join(differing)}; only {FLOW_SETTING} is supported.")
    convert, objective = FAMILIES[family]
    network = convert(checkpoint.state_dict, num_attention_heads)
    _check_null_class(network.config.num_classes + 1, options, path)
    if vae is None:
        vae = OFFICIAL_VAE.format(kind=options.get("vae", VAE_KINDS[family]))
    return DEMOPipeline(
        network,
        _scheduler(objective(), network),
        _load_vae(vae),
        imagenet_names(network.config.num_classes),
    )


def pipeline_from_diffusers(source: str, as_official: bool) -> DEMOPipeline:
    """The pipeline of diffusers' DiT, with the folder's own sampler, autoencoder and label names.

    Raises:
        ValueError: if it cannot be read or has other parts than DiT.
    """
    try:
        theirs = DiTPipeline.from_pretrained(source)
        id2label = DiTPipeline.load_config(source).get("id2label")  # the loaded pipeline keeps only name -> id
    except Exception as error:  # diffusers raises almost anything on a damaged folder
        raise ValueError(f"{source} cannot be read as a folder or hub id of diffusers' DiTPipeline: {error}") from error
    check_part(theirs.transformer)
    network = convert_diffusers_dit(theirs.transformer, as_official)
    if not DDPMObjective.fits(theirs.scheduler):
        raise ValueError(f"{source} has the scheduler {type(theirs.scheduler).__name__}; DiT's network predicts noise.")
    return DEMOPipeline(network, theirs.scheduler, theirs.vae, id2label or imagenet_names(network.config.num_classes))


def pipeline_from_ours(folder: Path) -> DEMOPipeline:
    """A pipeline of this package, all of whose weights are there.

    Raises:
        ValueError: if it cannot be read, or weights are missing or left over.
    """
    try:
        return DEMOPipeline.from_pretrained(folder)
    except Exception as error:  # diffusers raises almost anything on a damaged folder
        raise ValueError(f"{folder} cannot be read as a pipeline folder: {error}") from error


def official_weights(pipeline: DEMOPipeline) -> dict[str, torch.Tensor]:
    """The network's weights in the official format.

    Raises:
        ValueError: if the official codes have no such network, or not for this objective.
    """
    state, objective = to_official(pipeline.transformer), pipeline.config.objective
    reverse_time = pipeline.transformer.config.reverse_time
    if OBJECTIVES[objective].continuous_time != reverse_time:
        raise ValueError(
            f"The network has objective {objective!r} with reverse_time={reverse_time}. SiT's code needs 'flow' with "
            "reverse_time=True, DiT's 'ddpm' with False."
        )
    try:
        check_scheduler_fits(pipeline.scheduler, objective, trained_with=OBJECTIVES[objective]().scheduler())
    except ValueError as error:
        raise ValueError(f"DiT's code has only noise prediction with linear betas. {error}") from error
    return state


def is_ours(folder: Path) -> bool:
    index = folder / "model_index.json"
    if not index.is_file():
        return False
    try:
        return json.loads(index.read_text()).get("_class_name") == DEMOPipeline.__name__
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{index} is not a pipeline's index: {error}") from error


def _check_null_class(rows: int, options: dict, path: Path) -> None:
    """Raises ValueError if the label table's last row is a class.

    The official networks that are trained without dropping labels have no row for the null class.
    """
    num_classes = options.get("num_classes", IMAGENET_CLASSES if rows == IMAGENET_CLASSES else rows - 1)
    without_dropout = [name for name in LABEL_DROPOUT if _is_zero(options.get(name))]
    if num_classes != rows - 1 or without_dropout:
        raise ValueError(
            f"The label table in {path} has {rows} rows for {num_classes} classes; it must have one more, the last one "
            "for the null class. A network that was trained without label dropout has none, and is not supported."
        )


def _is_zero(option: object) -> bool:
    """Whether an option is 0, as a number or written out."""
    try:
        return float(option) == 0
    except (TypeError, ValueError, OverflowError):
        return False


def _family(checkpoint: OfficialCheckpoint, path: Path, given: str | None) -> str:
    if _is_repa(checkpoint):
        if given not in (None, "repa"):
            raise ValueError(f"--family is {given}, but {path} was trained by REPA; leave --family out.")
        return "repa"
    trained_as = checkpoint.training_options.get("model")
    name = path.name if trained_as is None else str(trained_as)
    found = {word.lower() for word in re.findall(r"(?<![A-Za-z])(DiT|SiT)(?![A-Za-z])", name, re.IGNORECASE)}
    if given is not None and trained_as is not None and found and found != {"sit" if given == "repa" else given}:
        raise ValueError(f"--family is {given}, but {path} was trained as {trained_as}.")
    if given is not None:
        return given
    if len(found) != 1:
        raise ValueError(f"The weights of DiT and SiT look alike and {name!r} does not tell; give --family dit or sit.")
    return found.pop()


def _is_repa(checkpoint: OfficialCheckpoint) -> bool:
    has_projectors = any(str(key).startswith(REPA_PROJECTORS) for key in checkpoint.state_dict)
    return has_projectors or "enc_type" in checkpoint.training_options  # which encoder it was aligned with


def _scheduler(objective: Objective, network: DiTModel) -> SchedulerMixin:
    scheduler = objective.scheduler()
    if not takes_learned_variance(scheduler) or network.config.out_channels == 2 * network.config.in_channels:
        return scheduler
    return DDPMScheduler.from_config(scheduler.config, variance_type="fixed_large")  # DiT's without learn_sigma


def _load_vae(name: str) -> AutoencoderKL | AutoencoderTiny | None:
    try:
        return load_vae(None if name == "none" else name, 3, torch.device("cpu"))
    except ValueError as error:
        raise ValueError(f"{error} Give another --vae (folder or hub id), or --vae none to sample latents.") from error
