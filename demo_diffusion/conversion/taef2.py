"""The published format of TAEF2: a folder with encoder.safetensors and decoder.safetensors, in.

What is made of it is an autoencoder folder, as `--vae` takes it.
"""

import re
from pathlib import Path

import torch

from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2

from .checkpoint_file import read_checkpoint
from .state_checks import check_keys, raise_listed

FILES = ("encoder.safetensors", "decoder.safetensors")
# The original decoder's first layer is the clamp of the latents, which has no weights and here no number.
FIRST_LAYER = {"encoder": 0, "decoder": 1}
TELLING = ("encoder.layers.0.weight", "decoder.layers.0.weight", "decoder.layers.18.weight")  # all sizes
KIND = "TAEF2"


def convert_taef2(encoder_state: dict[str, torch.Tensor], decoder_state: dict[str, torch.Tensor]) -> AutoencoderTAEF2:
    """The autoencoder of the original state dicts, in their dtype.

    Raises:
        ValueError: if they are not those of a TAEF2 with four stages of (1, 3, 3, 3) and (3, 3, 3, 1) blocks, not
            finite, or of several dtypes.
    """
    state = {**_renamed("encoder", encoder_state), **_renamed("decoder", decoder_state)}
    if flat := [name for name in TELLING if getattr(state.get(name), "ndim", 4) != 4]:
        raise_listed({"misshapen": flat}, KIND)
    try:
        width, in_channels = state["encoder.layers.0.weight"].shape[:2]
        latent_channels = state["decoder.layers.0.weight"].shape[1]
        out_channels = state["decoder.layers.18.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"These are not TAEF2's weights: {error.args[0]} is not among them.") from error
    with torch.device("meta"):
        autoencoder = AutoencoderTAEF2(in_channels, out_channels, latent_channels, width)
    check_keys(state, autoencoder.state_dict(), KIND)
    if len(dtypes := {str(value.dtype) for value in state.values()}) > 1:
        raise ValueError(f"TAEF2's weights are of {' and '.join(sorted(dtypes))}; they must be of one dtype.")
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
        name = f"{part}.layers.{int(match[1]) - FIRST_LAYER[part]}.{match[2]}"
        if name in renamed:
            raise ValueError(f"The {part}'s weights are not TAEF2's: they have {key!r} twice.")
        renamed[name] = tensor
    return renamed


def is_taef2(folder: Path) -> bool:
    """Whether a folder has one of TAEF2's two files."""
    return any((folder / name).is_file() for name in FILES)


def autoencoder_from_official(folder: Path) -> AutoencoderTAEF2:
    """The autoencoder of a folder with TAEF2's two files.

    Raises:
        ValueError: if a file is missing or damaged, or has other weights.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}; give the folder with TAEF2's two files.")
    return convert_taef2(*(read_checkpoint(folder / name).state_dict for name in FILES))
