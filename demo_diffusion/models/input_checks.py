"""Whether a network can compute with the tensors that it is given."""

import torch
from torch import nn

from demo_diffusion.checks import check_dense


def check_computable(name: str, value: torch.Tensor, layer: nn.Module) -> None:
    """Raises ValueError unless a layer with a weight takes a tensor: a dense one, and in its weight's precision.

    Layers that a library gives their weights only while they compute, autocast, and what shards a network over
    processes cast for themselves.
    """
    weight = layer.weight
    if not weight.is_meta or value.layout != torch.strided:
        check_dense(name, value)
    if value.dtype == weight.dtype or not value.is_floating_point() or _is_cast(value, layer):
        return
    kind = str(value.dtype).removeprefix("torch.")
    raise ValueError(f"{name} is {kind}; this model's weights are {weight.dtype}. Convert one of them.")


def _is_cast(value: torch.Tensor, layer: nn.Module) -> bool:
    if hasattr(layer, "_hf_hook") or hasattr(layer, "_diffusers_hook"):
        return True
    if value.dtype == torch.float64 or value.is_meta:
        return False
    is_sharded = torch.distributed.is_available() and torch.distributed.is_initialized()
    return is_sharded or torch.is_autocast_enabled(value.device.type)
