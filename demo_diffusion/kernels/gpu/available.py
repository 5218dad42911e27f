"""The Triton kernels where Triton is installed: PyTorch for NVIDIA GPUs brings it."""

import torch
from torch import nn

from demo_diffusion.kernels.guards import is_plain
from demo_diffusion.kernels.switch import is_enabled

try:
    import triton
except ImportError:
    triton = triton_spanning_attention = triton_conv_norm_silu_add = triton_folded_conv_silu_add = None
else:
    from . import attention as triton_attention
    from . import depthwise as triton_depthwise
    from .attention import triton_spanning_attention
    from .depthwise import triton_conv_norm_silu_add, triton_folded_conv_silu_add

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


def triton_depthwise_supports(tokens: torch.Tensor, conv: nn.Module, norm: nn.Module) -> bool:
    """Whether `triton_conv_norm_silu_add` takes these."""
    are_plain = is_plain(tokens, conv, nn.Conv2d) and is_plain(tokens, norm, nn.BatchNorm2d)
    return _are_kernels_for(tokens) and are_plain and triton_depthwise.supports(tokens, conv, norm)


def _are_kernels_for(tokens: torch.Tensor) -> bool:
    return tokens.device.type == DEVICE and triton is not None and is_enabled()
