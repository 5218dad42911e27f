"""Elementwise operations that overwrite their input where no gradient will ask for it.

On a CPU a new tensor of a few megabytes costs more than the arithmetic that fills it, because its pages are new too.
"""

import torch
import torch.nn.functional as F


def silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU of a tensor that nobody else needs."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU of a tensor that nobody else needs."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def add(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x + other, of which nobody else needs x."""
    return x + other if torch.is_grad_enabled() or x.dtype != other.dtype else x.add_(other)


ACTIVATIONS = {"gelu": gelu, "silu": silu}
