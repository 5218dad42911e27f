"""Converts DiT and SiT between the official checkpoints and pipeline folders.

python -m demo_diffusion.conversion DiT-XL-2-256x256.pt FOLDER     official -> pipeline folder
python -m demo_diffusion.conversion facebook/DiT-XL-2-256 FOLDER   diffusers' DiT -> pipeline folder
python -m demo_diffusion.conversion FOLDER weights.pt              pipeline folder -> official
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, DiTPipeline, SchedulerMixin
from torchvision.models import ResNet50_Weights

from demo_diffusion.models import DiTModel
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.pipelines.autoencoder import load_vae

from .checkpoint_file import OfficialCheckpoint, read_checkpoint
from .diffusers_dit import convert_diffusers_dit
from .official import convert_dit, convert_sit, to_official

CONVERTERS = {"dit": convert_dit, "sit": convert_sit}
OFFICIAL_VAE = "stabilityai/sd-vae-ft-{kind}"
SIT_SETTING = {"path_type": "Linear", "prediction": "velocity"}


def pipeline_from_official(path: Path, family: str | None, num_attention_heads: int | None, vae: str) -> DEMOPipeline:
    """The pipeline of an official checkpoint, with its sampler, autoencoder and, for 1,000 classes, ImageNet's names.

    Args:
        family: "dit" or "sit", whose files look alike; None: by the training options or the file's name.
        vae: folder or hub id; "official": that of the training options, or sd-vae-ft-ema; "none": without.

    Raises:
        ValueError: if the file, the family or the autoencoder is not what it must be.
    """
    checkpoint = read_checkpoint(path)
    family = family or _family(checkpoint, path)
    options = checkpoint.training_options
    if differing := [f"{k}={options[k]!r}" for k, value in SIT_SETTING.items() if options.get(k, value) != value]:
        raise ValueError(f"{path} was trained with {', '.join(differing)}; only {SIT_SETTING} is supported.")
    network = CONVERTERS[family](checkpoint.state_dict, num_attention_heads)
    if vae == "official":
        vae = OFFICIAL_VAE.format(kind=options.get("vae", "ema"))
    return DEMOPipeline(
        network,
        FlowObjective().scheduler() if family == "sit" else _dit_scheduler(network),
        _load_vae(vae),
        _label_names(network.config.num_classes),
    )


def pipeline_from_diffusers(source: str, official_frequencies: bool) -> DEMOPipeline:
    """The pipeline of diffusers' DiT, with the folder's own sampler, autoencoder and label names.

    Raises:
        ValueError: if it cannot be read or has other parts than DiT.
    """
    try:
        theirs = DiTPipeline.from_pretrained(source)
        id2label = DiTPipeline.load_config(source).get("id2label")  # the loaded pipeline keeps only name -> id
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} cannot be read as a folder or hub id of diffusers' DiTPipeline: {error}") from error
    network = convert_diffusers_dit(theirs.transformer, official_frequencies)
    return DEMOPipeline(network, theirs.scheduler, theirs.vae, id2label or _label_names(network.config.num_classes))


def save_official(pipeline: DEMOPipeline, target: Path) -> None:
    """Writes the network's weights in the official format, whole or not at all.

    Raises:
        ValueError: if the official codes have no such network.
    """
    is_flow, reversed_time = pipeline.config.objective == "flow", pipeline.transformer.config.get("reverse_time")
    state = to_official(pipeline.transformer)
    if is_flow != reversed_time:
        raise ValueError(
            f"The network has objective {pipeline.config.objective!r} with reverse_time={reversed_time}. SiT's code "
            "needs 'flow' with reverse_time=True, DiT's 'ddpm' with False."
        )
    partial = target.with_name(target.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, target)


def save_folder(pipeline: DEMOPipeline, target: Path) -> None:
    """Writes a pipeline folder, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        partial = Path(temporary) / "pipeline"
        pipeline.save_pretrained(partial)
        os.replace(partial, target)


def _is_ours(folder: Path) -> bool:
    index = folder / "model_index.json"
    return index.is_file() and json.loads(index.read_text()).get("_class_name") == DEMOPipeline.__name__


def _family(checkpoint: OfficialCheckpoint, path: Path) -> str:
    name = str(checkpoint.training_options.get("model", path.name)).lower()
    found = [family for family in CONVERTERS if family in name]
    if len(found) != 1:
        raise ValueError(f"The weights of DiT and SiT look alike and {name!r} does not tell; give --family dit or sit.")
    return found[0]


def _dit_scheduler(network: DiTModel) -> SchedulerMixin:
    scheduler = DDPMObjective().scheduler()
    if network.config.out_channels == 2 * network.config.in_channels:
        return scheduler
    return DDPMScheduler.from_config(scheduler.config, variance_type="fixed_large")  # DiT's without learn_sigma


def _load_vae(name: str) -> AutoencoderKL | AutoencoderTiny | None:
    try:
        return load_vae(None if name == "none" else name, 3, torch.device("cpu"))
    except ValueError as error:
        raise ValueError(f"{error} Give another --vae (folder or hub id), or --vae none to sample latents.") from error


def _label_names(num_classes: int) -> dict[int, str] | None:
    return dict(enumerate(ResNet50_Weights.DEFAULT.meta["categories"])) if num_classes == 1000 else None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo_diffusion.conversion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", help="official checkpoint (.pt, .safetensors), or pipeline folder or hub id")
    parser.add_argument("target", type=Path, help="folder to write, or .pt file for official weights")
    parser.add_argument("--family", choices=list(CONVERTERS), help="if neither file nor file name tells")
    parser.add_argument("--num-attention-heads", type=int, help="if the width is of no official size")
    parser.add_argument("--vae", default="official", help="folder, hub id or 'none'; default: the one trained with")
    parser.add_argument(
        "--official-frequencies",
        action="store_true",
        help="diffusers' DiT: DiT's own timestep frequencies, for weights that the official code trained",
    )
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> None:
    """Carries out one command.

    Raises:
        ValueError: if it cannot be carried out; then nothing is written.
    """
    source = Path(options.source)
    if options.target.exists() and (options.target.is_file() or any(options.target.iterdir())):
        raise ValueError(f"{options.target} exists already; choose another target or remove it.")
    if options.target.suffix == ".pt":
        if not _is_ours(source):
            raise ValueError(f"{source} is no pipeline folder of this package; official weights are made from one.")
        save_official(DEMOPipeline.from_pretrained(source), options.target)
    elif source.is_file():
        heads, family = options.num_attention_heads, options.family
        save_folder(pipeline_from_official(source, family, heads, options.vae), options.target)
    elif _is_ours(source):
        raise ValueError(f"{source} is a pipeline of this package already; for official weights give a .pt target.")
    else:
        save_folder(pipeline_from_diffusers(options.source, options.official_frequencies), options.target)
    print(f"Wrote {options.target}.")


def main(arguments: list[str] | None = None) -> None:
    try:
        convert(parse_arguments(arguments))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
