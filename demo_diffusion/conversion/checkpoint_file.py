"""Reads the files of the official codes; nothing in them is executed."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

MAX_LISTED = 5
WEIGHTS_ENTRIES = ("ema", "net", "net_E")


@dataclass
class OfficialCheckpoint:
    """Weights of one network and, from a training checkpoint, the options that it was trained with."""

    state_dict: dict[str, torch.Tensor]
    training_options: dict = field(default_factory=dict)


def read_checkpoint(path: Path) -> OfficialCheckpoint:
    """Reads a state dict (.pt or .safetensors), or the weights of a training checkpoint.

    Of a checkpoint of DiT's or SiT's training those are the moving average "ema", with the options in "args"; of EMO's
    and EMOv2's, "net", as the official test command reads it, or the moving average "net_E" if that alone is there.
    What DistributedDataParallel and torch.compile put before the names is left out.

    Raises:
        ValueError: if the file cannot be read, holds something but tensors and options, no weights, or some twice.
    """
    content = _load(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}; a state dict or training checkpoint is needed.")
    if "ema" not in content and "model" in content:
        raise ValueError(
            f"{path} holds a training checkpoint without the moving average 'ema', which is what is sampled from; its "
            f"entries are {list(content)}."
        )
    name = next((name for name in WEIGHTS_ENTRIES if name in content), None)
    weights, options = (content, None) if name is None else (content[name], content.get("args"))
    options = vars(options) if isinstance(options, argparse.Namespace) else options or {}
    if not isinstance(weights, dict) or not isinstance(options, dict):
        raise ValueError(
            f"{path} is no training checkpoint: its {name!r} is a {type(weights).__name__}, its 'args' a "
            f"{type(options).__name__}."
        )
    return OfficialCheckpoint(_without_wrappers(weights, path), options)


def _without_wrappers(weights: dict, path: Path) -> dict:
    """The weights under the names of the network itself: without "module." before all, without any "_orig_mod."."""
    while weights and all(str(name).startswith(("module.", "_orig_mod.")) for name in weights):
        weights = _renamed(weights, [str(name).partition(".")[2] for name in weights], path)
    names = [name.replace("_orig_mod.", "") if isinstance(name, str) else name for name in weights]
    return _renamed(weights, names, path)


def _renamed(weights: dict, names: list, path: Path) -> dict:
    """The weights under new names, in their order; raises ValueError if two get the same one."""
    if len(set(names)) < len(names):
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        raise ValueError(
            f"{path} holds {', '.join(twice[:MAX_LISTED])} twice, with and without what torch.compile or "
            "DistributedDataParallel put before the name. Remove one of them."
        )
    return dict(zip(names, weights.values(), strict=True))


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The official training scripts save their parsed arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the reader raise almost anything
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors: it is damaged, of another kind, or holds Python "
            "objects besides tensors and the training options, which are not executed. Save its state_dict() alone."
        ) from error
