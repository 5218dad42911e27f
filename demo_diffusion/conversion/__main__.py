"""Converts official checkpoints: DiT and SiT to pipeline folders and back, EMOv2 and EMOv1 to classifier folders.

python -m demo_diffusion.conversion DiT-XL-2-256x256.pt FOLDER     official -> pipeline folder
python -m demo_diffusion.conversion facebook/DiT-XL-2-256 FOLDER   diffusers' DiT -> pipeline folder
python -m demo_diffusion.conversion FOLDER weights.pt              pipeline folder -> official
python -m demo_diffusion.conversion EMOv2_5M_224.pth FOLDER        official EMOv2 or EMOv1 -> transformers folder
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.models import ResNet50_Weights

from demo_diffusion.cli.command import one_line_for_mistakes
from demo_diffusion.records.files import check_output_folder, write_whole

from .checkpoint_file import read_checkpoint
from .emov2 import classifier_from_official, is_emov2, save_classifier
from .pipeline_folders import (
    CONVERTERS,
    is_ours,
    official_weights,
    pipeline_from_diffusers,
    pipeline_from_official,
    pipeline_from_ours,
)

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
DIT_OPTIONS = ("family", "num_attention_heads", "vae")
EMOV2_OPTIONS = ("image_size", "window_size", "attention_mode")


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
        if not is_ours(source):
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
    if is_ours(source):
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
    check_output_folder(target.absolute().parent)


def _check_unused(options: argparse.Namespace, *names: str) -> None:
    if given := [name for name in names if getattr(options, name)]:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{flags} has no meaning for {options.source}; leave it out.")


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    convert(parse_arguments(arguments))


if __name__ == "__main__":
    main()
