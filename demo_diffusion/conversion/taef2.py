"""Converts TAEF2's published weights: `python -m demo_diffusion.conversion.taef2 SOURCE_FOLDER TARGET_FOLDER`.

The source holds encoder.safetensors and decoder.safetensors with the original keys; the target becomes a folder that
`--vae` takes.
"""

import argparse
import os
import re
from pathlib import Path

import torch

from demo_diffusion.cli.command import one_line_for_mistakes
from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2
from demo_diffusion.records.files import write_whole

from .checkpoint_file import read_checkpoint

FILES = ("encoder.safetensors", "decoder.safetensors")
# The original decoder's first layer is the clamp of the latents, which has no weights and here no number.
FIRST_LAYER = {"encoder": 0, "decoder": 1}


def convert_taef2(encoder_state: dict[str, torch.Tensor], decoder_state: dict[str, torch.Tensor]) -> AutoencoderTAEF2:
    """The autoencoder of the original state dicts, in their dtype.

    Raises:
        ValueError: if they are not those of a TAEF2 with four stages of (1, 3, 3, 3) and (3, 3, 3, 1) blocks.
    """
    state = {**_renamed("encoder", encoder_state), **_renamed("decoder", decoder_state)}
    try:
        width, in_channels = state["encoder.layers.0.weight"].shape[:2]
        latent_channels = state["decoder.layers.0.weight"].shape[1]
        out_channels = state["decoder.layers.18.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"These are not TAEF2's weights: {error.args[0]} is not among them.") from error
    with torch.device("meta"):
        autoencoder = AutoencoderTAEF2(in_channels, out_channels, latent_channels, width)
    try:
        autoencoder.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"These are not TAEF2's weights. {error}") from error
    return autoencoder.eval()


def _renamed(part: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"(\d+)\.(.+)", key)
        if match is None:
            raise ValueError(f"The {part}'s weights are not TAEF2's: they have the key {key!r}.")
        renamed[f"{part}.layers.{int(match[1]) - FIRST_LAYER[part]}.{match[2]}"] = tensor
    return renamed


def convert_folder(source: Path, target: Path) -> None:
    """Reads SOURCE/{encoder,decoder}.safetensors and writes the converted autoencoder into a new folder.

    Raises:
        ValueError: if a file is missing or damaged, or the target is there already.
    """
    if missing := [name for name in FILES if not (source / name).is_file()]:
        raise ValueError(f"{source} has no {' and no '.join(missing)}; give the folder with TAEF2's two files.")
    if os.path.lexists(target):
        raise ValueError(f"{target} exists already; choose another target or remove it.")
    autoencoder = convert_taef2(*(read_checkpoint(source / name).state_dict for name in FILES))
    write_whole(target, autoencoder.save_pretrained)


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of encoder.safetensors and decoder.safetensors")
    parser.add_argument("target", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    convert_folder(options.source, options.target)


if __name__ == "__main__":
    main()
