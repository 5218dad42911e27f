"""Converts official checkpoints: DiT and SiT to pipeline folders and back, the others into our folders.

python -m demo_diffusion.conversion DiT-XL-2-256x256.pt FOLDER     official -> pipeline folder
python -m demo_diffusion.conversion facebook/DiT-XL-2-256 FOLDER   diffusers' DiT -> pipeline folder
python -m demo_diffusion.conversion FOLDER weights.pt              pipeline folder -> official
python -m demo_diffusion.conversion EMOv2_5M_224.pth FOLDER        official EMOv2 or EMOv1 -> transformers folder
python -m demo_diffusion.conversion TAEF2 FOLDER                   encoder and decoder.safetensors -> autoencoder folder
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

import torch

from demo_diffusion.cli.options import spell_with_underscores
from demo_diffusion.records.files import check_output_folder, write_whole
from demo_diffusion.records.folder_lock import hold_target

from .checkpoint_file import read_checkpoint
from .emov2 import ATTENDING_MODES, classifier_from_official, is_emov2, save_classifier
from .pipeline_folders import (
    FAMILIES,
    is_ours,
    official_weights,
    pipeline_from_diffusers,
    pipeline_from_official,
    pipeline_from_ours,
)
from .taef2 import autoencoder_from_official, is_taef2

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
OPTIONS = {  # kind of source -> the options that it takes
    "dit": ("family", "num_attention_heads", "vae"),
    "emov2": ("image_size", "window_size", "attention_mode"),
    "diffusers": ("as_official",),
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo_diffusion.conversion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", help="official checkpoint (.pt, .pth, .safetensors), or folder or hub id")
    parser.add_argument("target", type=Path, help="folder to write, or .pt file for official weights")
    dit = parser.add_argument_group("official DiT, SiT and REPA")
    dit.add_argument("--family", choices=list(FAMILIES), help="if neither file nor file name tells")
    dit.add_argument("--num_attention_heads", type=int, help="if the width is of no official size")
    dit.add_argument("--vae", help="folder, hub id or 'none'; default: the one that it was trained with")
    emov2 = parser.add_argument_group("official EMOv2 and EMOv1")
    emov2.add_argument("--image_size", type=int, help="trained at; default: that in the file's name, or 224")
    emov2.add_argument("--window_size", type=int, help="default: 7 at 224 pixels, 8 at 256 and 512")
    emov2.add_argument(
        "--attention_mode",
        choices=ATTENDING_MODES,
        help="for ablations, whose weights do not tell; default: spanning, in EMOv1 remote",
    )
    parser.add_argument_group("diffusers' DiT").add_argument(
        "--as_official",
        action="store_true",
        help="compute as the official code, for weights that it trained: its timestep frequencies and LayerNorm eps",
    )
    return parser.parse_args(spell_with_underscores(sys.argv[1:] if arguments is None else arguments))


def convert(options: argparse.Namespace) -> None:
    """Carries out one command.

    Raises:
        ValueError: if it cannot be carried out; then nothing is written.
    """
    _check_target(options.target)
    with hold_target(options.target):
        write_whole(options.target, _writer(Path(options.source), options))
    print(f"Wrote {options.target}.")


def _writer(source: Path, options: argparse.Namespace) -> Callable[[Path], None]:
    """What writes the target; the source's files tell what it is."""
    if options.target.suffix == ".pt":
        return _official_file(source, options)
    if source.is_file():
        return _official_checkpoint(source, options)
    if source.suffix in CHECKPOINT_SUFFIXES:
        raise ValueError(f"There is no file {source}.")
    if is_ours(source):
        raise ValueError(f"{source} is a pipeline of this package already; for official weights give a .pt target.")
    if is_taef2(source):
        _check_options(options)
        return autoencoder_from_official(source).save_pretrained
    _check_options(options, "diffusers")
    return pipeline_from_diffusers(options.source, options.as_official).save_pretrained


def _official_file(source: Path, options: argparse.Namespace) -> Callable[[Path], None]:
    if not is_ours(source):
        raise ValueError(f"{source} is no pipeline folder of this package; official weights are made from one.")
    _check_options(options)
    state = official_weights(pipeline_from_ours(source))
    return lambda file: torch.save(state, file)


def _official_checkpoint(source: Path, options: argparse.Namespace) -> Callable[[Path], None]:
    checkpoint = read_checkpoint(source)
    if is_emov2(checkpoint.state_dict):
        _check_options(options, "emov2")
        chosen = (options.image_size, options.window_size, options.attention_mode)
        model = classifier_from_official(checkpoint.state_dict, source, *chosen)
        return lambda folder: save_classifier(model, folder)
    _check_options(options, "dit")
    chosen = (options.family, options.num_attention_heads, options.vae)
    return pipeline_from_official(checkpoint, source, *chosen).save_pretrained


def _check_target(target: Path) -> None:
    is_empty_folder = target.is_dir() and not target.is_symlink() and target.suffix != ".pt"
    if os.path.lexists(target) and not (is_empty_folder and not any(target.iterdir())):
        raise ValueError(f"{target} exists already; choose another target or remove it.")
    if target.resolve() == Path.cwd():
        raise ValueError("The target is the current folder; give the name of a new one.")
    check_output_folder(target.absolute().parent)


def _check_options(options: argparse.Namespace, kind: str | None = None) -> None:
    """Raises ValueError if an option was given that this kind of source does not take."""
    others = [name for other, names in OPTIONS.items() if other != kind for name in names]
    if given := [f"--{name}" for name in others if getattr(options, name)]:
        raise ValueError(f"{', '.join(given)} has no meaning for {options.source}; leave it out.")


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    convert(parse_arguments(arguments))


if __name__ == "__main__":
    main()
