"""Pipelines made of official DiT and SiT checkpoints or of diffusers' DiT, and official weights of a pipeline."""

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, DiTPipeline, SchedulerMixin

from demo_diffusion.data.autoencoder import load_vae
from demo_diffusion.models import DiTModel
from demo_diffusion.objectives import OBJECTIVES, DDPMObjective, FlowObjective, Objective
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.pipelines.scheduler_fit import check_scheduler_fits, takes_learned_variance

from .checkpoint_file import OfficialCheckpoint
from .diffusers_dit import convert_diffusers_dit
from .dit import convert_dit, convert_sit, to_official
from .labels import imagenet_names

FAMILIES = {"dit": (convert_dit, DDPMObjective), "sit": (convert_sit, FlowObjective)}  # and their objectives
OFFICIAL_VAE = "stabilityai/sd-vae-ft-{kind}"
SIT_SETTING = {"path_type": "Linear", "prediction": "velocity"}


def pipeline_from_official(
    checkpoint: OfficialCheckpoint, path: Path, family: str | None, num_attention_heads: int | None, vae: str | None
) -> DEMOPipeline:
    """The pipeline of an official checkpoint: sampler, autoencoder and, for 1,000 classes, ImageNet's label names.

    Args:
        path: the file that it was read from.
        family: "dit" or "sit", whose files look alike; None: by the training options or the file's name.
        vae: folder or hub id; None: that of the training options, or sd-vae-ft-ema; "none": without.

    Raises:
        ValueError: if the file, the family or the autoencoder is not what it must be.
    """
    family = _family(checkpoint, path, family)
    options = checkpoint.training_options
    if differing := [f"{k}={options[k]!r}" for k, value in SIT_SETTING.items() if options.get(k, value) != value]:
        raise ValueError(f"{path} was trained with {', '.join(differing)}; only {SIT_SETTING} is supported.")
    convert, objective = FAMILIES[family]
    network = convert(checkpoint.state_dict, num_attention_heads)
    if vae is None:
        vae = OFFICIAL_VAE.format(kind=options.get("vae", "ema"))
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
        pipeline = DEMOPipeline.from_pretrained(folder)
        network = type(pipeline.transformer)
        _, loading = network.from_pretrained(folder / "transformer", output_loading_info=True)
    except Exception as error:  # diffusers raises almost anything on a damaged folder
        raise ValueError(f"{folder} cannot be read as a pipeline folder: {error}") from error
    if problems := {kind: names for kind, names in loading.items() if names}:
        raise ValueError(f"The weights in {folder}/transformer do not fit its config.json: {problems}.")
    return pipeline


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


def _family(checkpoint: OfficialCheckpoint, path: Path, given: str | None) -> str:
    trained_as = checkpoint.training_options.get("model")
    name = path.name if trained_as is None else str(trained_as)
    found = {word.lower() for word in re.findall(r"(?<![A-Za-z])(DiT|SiT)(?![A-Za-z])", name, re.IGNORECASE)}
    if given is not None and trained_as is not None and found and found != {given}:
        raise ValueError(f"--family is {given}, but {path} was trained as {trained_as}.")
    if given is not None:
        return given
    if len(found) != 1:
        raise ValueError(f"The weights of DiT and SiT look alike and {name!r} does not tell; give --family dit or sit.")
    return found.pop()


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
