"""SHA-256 of files, modules and tensors, by which a result says what made it.

Digests are saved beside results, so none of them may change.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn


def tensor_hash(
    tensors: Mapping[str, torch.Tensor], *, is_sorted: bool = True, dtype: torch.dtype | None = None, prefix: str = ""
) -> str:
    """SHA-256 of `prefix`, then of each tensor's name and bytes.

    Args:
        is_sorted: whether tensors follow each other by name; False: in the order given.
        dtype: what they are converted to; None: they stay as they are.
    """
    digest = hashlib.sha256(prefix.encode())
    for name in sorted(tensors) if is_sorted else tensors:
        tensor = tensors[name].detach().to("cpu", dtype).flatten()
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()


def state_hash(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers as they are, in its own order."""
    return tensor_hash(network.state_dict(), is_sorted=False)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers as float32, by name: the same whatever dtype it was loaded in."""
    return tensor_hash(module.state_dict(), dtype=torch.float32)


def file_hash(*paths: Path) -> str:
    """SHA-256 of the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def settings_of(component) -> dict:
    """A component's config without diffusers' own entries."""
    return {name: value for name, value in component.config.items() if not name.startswith("_")}
