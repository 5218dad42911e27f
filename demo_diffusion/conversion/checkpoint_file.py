"""Reads and writes the files of the official codes; nothing in them is executed."""

import argparse
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


@dataclass
class OfficialCheckpoint:
    """Weights of one network and, from a training checkpoint, the options that it was trained with."""

    state_dict: dict[str, torch.Tensor]
    training_options: dict = field(default_factory=dict)


def read_checkpoint(path: Path) -> OfficialCheckpoint:
    """Reads a state dict (.pt or .safetensors), or of a training checkpoint the moving average "ema" and "args".

    Raises:
        ValueError: if the file cannot be read, holds something but tensors and options, or no weights.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # The official training scripts save their parsed arguments beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {reason}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} holds a {type(content).__name__}; it must hold a state dict or a training checkpoint."
        )
    if "ema" in content:
        if not isinstance(content["ema"], dict):
            raise ValueError(f"{path} is no training checkpoint: its 'ema' is a {type(content['ema']).__name__}.")
        return OfficialCheckpoint(content["ema"], vars(content.get("args", argparse.Namespace())))
    if "model" in content:
        raise ValueError(
            f"{path} holds a training checkpoint without the moving average 'ema', which is what is sampled from; its "
            f"entries are {list(content)}."
        )
    return OfficialCheckpoint(content)
