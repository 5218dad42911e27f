"""Converts official checkpoints: DiT and SiT to pipeline folders and back, EMOv2 and EMOv1 to classifier folders.

python -m demo_diffusion.conversion DiT-XL-2-256x256.pt FOLDER     official -> pipeline folder
python -m demo_diffusion.conversion facebook/DiT-XL-2-256 FOLDER   diffusers' DiT -> pipeline folder
python -m demo_diffusion.conversion FOLDER weights.pt              pipeline folder -> official
python -m demo_diffusion.conversion EMOv2_5M_224.pth FOLDER        official EMOv2 or EMOv1 -> transformers folder
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, DiTPipeline, SchedulerMixin
from torchvision.models import ResNet50_Weights

from demo_diffusion.models import DiTModel
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.pipelines.autoencoder import load_vae
from demo_diffusion.pipelines.scheduler_fit import check_scheduler_fits, objective_of

from .checkpoint_file import OfficialCheckpoint, read_checkpoint
from .diffusers_dit import convert_diffusers_dit
from .emov2 import is_emov2
from .emov2_folder import classifier_from_official, save_classifier
from .official import convert_dit, convert_sit, to_official

CONVERTERS = {"dit": convert_dit, "sit": convert_sit}
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
OFFICIAL_VAE = "stabilityai/sd-vae-ft-{kind}"
DIT_OPTIONS = ("family", "num_attention_heads", "vae")
EMOV2_OPTIONS = ("image_size", "window_size", "attention_mode")
SIT_SETTING = {"path_type": "Linear", "prediction": "velocity"}


def pipeline_from_official(
    checkpoint: OfficialCheckpoint, path: Path, family: str | None, num_attention_heads: int | None, vae: str | None
) -> DEMOPipeline:
    """The pipeline of an official checkpoint, with its sampler, autoencoder and, for 1,000 classes, ImageNet's names.

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
    network = CONVERTERS[family](checkpoint.state_dict, num_attention_heads)
    if vae is None:
        vae = OFFICIAL_VAE.format(kind=options.get("vae", "ema"))
    return DEMOPipeline(
        network,
        FlowObjective().scheduler() if family == "sit" else _dit_scheduler(network),
        _load_vae(vae),
        _label_names(network.config.num_classes),
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
    if objective_of(theirs.scheduler) != "ddpm":
        raise ValueError(f"{source} has the scheduler {type(theirs.scheduler).__name__}; DiT's network predicts noise.")
    return DEMOPipeline(network, theirs.scheduler, theirs.vae, id2label or _label_names(network.config.num_classes))


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
    if (objective == "flow") != reverse_time:
        raise ValueError(
            f"The network has objective {objective!r} with reverse_time={reverse_time}. SiT's code needs 'flow' with "
            "reverse_time=True, DiT's 'ddpm' with False."
        )
    if objective == "ddpm":
        try:
            check_scheduler_fits(pipeline.scheduler, objective, trained_with=DDPMObjective().scheduler())
        except ValueError as error:
            raise ValueError(f"DiT's code has only noise prediction with linear betas. {error}") from error
    return state


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file or folder beside `target` and gives it its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        partial = Path(temporary) / target.name
        write(partial)
        os.replace(partial, target)


def _is_ours(folder: Path) -> bool:
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
    parser.add_argument("source", help="official checkpoint (.pt, .pth, .safetensors), or pipeline folder or hub id")
    parser.add_argument("target", type=Path, help="folder to write, or .pt file for official weights")
    official = parser.add_argument_group("official DiT and SiT")
    official.add_argument("--family", choices=list(CONVERTERS), help="if neither file nor file name tells")
    official.add_argument("--num-attention-heads", type=int, help="if the width is of no official size")
    official.add_argument("--vae", help="folder, hub id or 'none'; default: the one that it was trained with")
    emov2 = parser.add_argument_group("official EMOv2 and EMOv1")
    emov2.add_argument("--image-size", type=int, help="trained at; default: that in the file's name, or 224")
    emov2.add_argument("--window-size", type=int, help="default: 7 at 224 pixels, 8 at 256 and 512")
    emov2.add_argument(
        "--attention-mode",
        choices=["neighborhood", "remote", "spanning"],
        help="for ablations, whose weights do not tell; default: spanning, in EMOv1 remote",
    )
    parser.add_argument_group("diffusers' DiT").add_argument(
        "--as-official",
        action="store_true",
        help="compute as the official code, for weights that it trained: its timestep frequencies and LayerNorm eps",
    )
    return parser.parse_args(arguments)


def convert(options: argparse.Namespace) -> None:
    """Carries out one command.

    Raises:
        ValueError: if it cannot be carried out; then nothing is written.
    """
    source, target = Path(options.source), options.target
    _check_target(target)
    if target.suffix == ".pt":
        if not _is_ours(source):
            raise ValueError(f"{source} is no pipeline folder of this package; official weights are made from one.")
        _check_unused(options, *DIT_OPTIONS, *EMOV2_OPTIONS, "as_official")
        state = official_weights(pipeline_from_ours(source))
        write_whole(target, lambda partial: torch.save(state, partial))
    else:
        write_whole(target, _read_foreign(source, options))
    print(f"Wrote {target}.")


def _read_foreign(source: Path, options: argparse.Namespace) -> Callable[[Path], None]:
    """What writes the folder made of a file or of another library's folder."""
    if source.is_file():
        return _read_official(source, options)
    _check_unused(options, *EMOV2_OPTIONS)
    if source.suffix in CHECKPOINT_SUFFIXES:
        raise ValueError(f"There is no file {source}.")
    if _is_ours(source):
        raise ValueError(f"{source} is a pipeline of this package already; for official weights give a .pt target.")
    _check_unused(options, *DIT_OPTIONS)
    return pipeline_from_diffusers(options.source, options.as_official).save_pretrained


def _read_official(source: Path, options: argparse.Namespace) -> Callable[[Path], None]:
    checkpoint = read_checkpoint(source)
    _check_unused(options, "as_official")
    if is_emov2(checkpoint.state_dict):
        _check_unused(options, *DIT_OPTIONS)
        chosen = (options.image_size, options.window_size, options.attention_mode)
        names = {1000: ResNet50_Weights.DEFAULT.meta["categories"]}
        model = classifier_from_official(checkpoint.state_dict, source, *chosen, names)
        return lambda folder: save_classifier(model, folder)
    _check_unused(options, *EMOV2_OPTIONS)
    chosen = (options.family, options.num_attention_heads, options.vae)
    return pipeline_from_official(checkpoint, source, *chosen).save_pretrained


def _check_target(target: Path) -> None:
    is_empty_folder = target.is_dir() and not target.is_symlink() and target.suffix != ".pt"
    if os.path.lexists(target) and not (is_empty_folder and not any(target.iterdir())):
        raise ValueError(f"{target} exists already; choose another target or remove it.")
    if target.resolve() == Path.cwd():
        raise ValueError("The target is the current folder; give the name of a new one.")
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{target} cannot be written: {existing} is not a folder that may be written to.")


def _check_unused(options: argparse.Namespace, *names: str) -> None:
    if given := [name for name in names if getattr(options, name)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{flags} has no meaning for {options.source}; leave it out.")


def main(arguments: list[str] | None = None) -> None:
    try:
        convert(parse_arguments(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
