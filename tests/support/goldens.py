"""Reads the input/output pairs of the official codes."""

from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parents[1] / "goldens"


def load_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights (1×1 convolutions as matrices) and the other tensors of a golden file."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    weights = {key: v.flatten(1) if v.ndim == 4 and v.shape[2:] == (1, 1) else v for key, v in weights.items()}
    return weights, {key: value for key, value in tensors.items() if not key.startswith("state.")}
