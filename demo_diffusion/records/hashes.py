"""SHA-256 of files, modules and tensors, by which a result says what made it."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def state_hash(network: nn.Module) -> str:
    """SHA-256 of the network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def settings_of(component) -> dict:
    """A component's config without diffusers' own entries."""
    return {name: value for name, value in component.config.items() if not name.startswith("_")}


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_hash(*paths: Path) -> str:
    """SHA-256 of the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
