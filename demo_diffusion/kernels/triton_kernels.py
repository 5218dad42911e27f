"""The Triton kernels where Triton is installed: PyTorch for NVIDIA GPUs brings it."""

import torch

from .switch import is_enabled

try:
    from . import triton_attention, triton_depthwise
    from .triton_attention import triton_spanning_attention
    from .triton_depthwise import triton_conv_norm_silu_add, triton_folded_conv_silu_add
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    triton_attention = triton_depthwise = None
    triton_spanning_attention = triton_conv_norm_silu_add = triton_folded_conv_silu_add = None

DEVICE = "cuda"

__all__ = [
    "triton_attention_supports",
    "triton_conv_norm_silu_add",
    "triton_depthwise_supports",
    "triton_folded_conv_silu_add",
    "triton_spanning_attention",
]


def triton_attention_supports(query: torch.Tensor, *others) -> bool:
    """Whether `triton_spanning_attention` takes (query, key, value, num_heads, window_size)."""
    return _are_kernels_for(query) and triton_attention.supports(query, *others)


def triton_depthwise_supports(tokens: torch.Tensor, *others) -> bool:
    """Whether `triton_conv_norm_silu_add` takes (tokens, conv, norm)."""
    return _are_kernels_for(tokens) and triton_depthwise.supports(tokens, *others)


def _are_kernels_for(tokens: torch.Tensor) -> bool:
    return tokens.device.type == DEVICE and triton_attention is not None and is_enabled()
