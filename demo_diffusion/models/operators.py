"""The operators of the networks, each computed by the implementation that fits: the only file that imports kernels.

`demo_diffusion.kernels` has faster implementations for some devices. One that does not fit returns None, and the
operator then calls the definition.

The elementwise operators overwrite their input where no gradient will ask for it: on a CPU a new tensor of a few
megabytes costs more than the arithmetic that fills it, because its pages are new too.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from demo_diffusion import kernels

from .layers.positions import rotate
from .spanning_attention import WINDOW_KINDS, spanning_attention

# Elements of the widest grid that inference computes at once on a CPU: glibc reuses blocks up to this size and returns
# larger ones to the system, unless `keep_freed_memory` was called.
ELEMENTS_AT_ONCE = 2**20

_observe_attention: Callable | None = None


def silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU, in place when no gradient is needed."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU, in place when no gradient is needed."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def add(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x + other, in the place of x when no gradient is needed."""
    return x + other if torch.is_grad_enabled() or x.dtype != other.dtype else x.add_(other)


ACTIVATIONS = {"gelu": gelu, "silu": silu}


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x · weightᵀ + bias: (…, in), (out, in), (out,) -> (…, out)."""
    if kernels.cpu_linear_supports(x, weight):
        return kernels.cpu_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def depthwise_conv(x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    """conv(x) of a depthwise convolution: (B, C, H, W) -> (B, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
    output = _depthwise_conv_in_cpu_training(x, conv)
    return conv(x) if output is None else output


def _depthwise_conv_in_cpu_training(x: torch.Tensor, conv: nn.Module) -> torch.Tensor | None:
    tokens = x.permute(0, 2, 3, 1)
    if not (torch.is_grad_enabled() and kernels.cpu_depthwise_supports(tokens, conv)):
        return None
    output = kernels.cpu_depthwise_conv(tokens, conv.weight.to(x.dtype), conv.stride[0])  # cast as autocast does
    output = output if conv.bias is None else output + conv.bias.to(x.dtype)
    return output.permute(0, 3, 1, 2)


def add_conv_norm_silu(tokens: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """tokens + SiLU(layer(tokens)), `layer` a `DepthwiseConvNorm` of stride 1: (B, H, W, C) -> (B, H, W, C)."""
    output = _add_conv_norm_silu_on_gpu(tokens, layer)
    return add(silu(layer(tokens)), tokens) if output is None else output


def _add_conv_norm_silu_on_gpu(tokens: torch.Tensor, layer: nn.Module) -> torch.Tensor | None:
    if not kernels.triton_depthwise_supports(tokens, layer.conv, layer.norm):
        return None
    if layer.is_fused:
        return kernels.triton_folded_conv_silu_add(tokens, layer.fused_weight, layer.fused_bias)
    return kernels.triton_conv_norm_silu_add(tokens, layer.conv, layer.norm)


def window_attention(
    project: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    tokens: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str,
    activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    rotary: torch.Tensor | None = None,
    window_position: Callable | None = None,
) -> torch.Tensor:
    """`spanning_attention` over the queries, keys and activated values of tokens.

    Args:
        project: gives query, key and value (before its activation) token by token, so that an implementation may hand
            it the tokens in another order, as (B, H · W, C).
        tokens: (B, H, W, C); H and W are multiples of `window_size`.
        activation: of the value, one of `ACTIVATIONS`; None: the value stays as it is.
        rotary: `rotary_table` of the grid, which turns queries and keys; None: nothing turns them.
        num_heads, window_size, mode, window_position: as `spanning_attention` takes them.

    Returns:
        (B, H, W, channels of the value)
    """
    settings = num_heads, window_size, mode
    # 1. Tokens in an order in which windows are views; only without positions, which belong to the order of the grid.
    if rotary is None and window_position is None:
        output = _attend_in_window_order(project, tokens, *settings, activation)
        if output is not None:
            return output
    # 2. One fused kernel for all of the attention.
    query, key, value = project(tokens)
    if rotary is not None:
        query, key = (_rotate_heads(x, num_heads, rotary) for x in (query, key))
    output = None if window_position is not None else _attend_on_gpu(query, key, value, *settings, activation)
    if output is not None:
        return output
    # 3. The definition.
    value = value if activation is None else activation(value)
    if _observe_attention is not None:
        _observe_attention(query, key, value, *settings, window_position)
    return spanning_attention(query, key, value, *settings, window_position)


def _attend_in_window_order(
    project: Callable, tokens: torch.Tensor, num_heads: int, window_size: int, mode: str, activation: Callable | None
) -> torch.Tensor | None:
    if not kernels.cpu_attention_supports(tokens, window_size):
        return None
    query, key, value = project(kernels.to_window_order(tokens, window_size))
    value = value if activation is None else activation(value)
    grid = tokens.shape[1:3]
    return kernels.cpu_spanning_attention(query, key, value, num_heads, window_size, grid, WINDOW_KINDS[mode])


def _attend_on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str,
    activation: Callable | None,
) -> torch.Tensor | None:
    fits = activation in (None, gelu) and kernels.triton_attention_supports(query, key, value, num_heads, window_size)
    if not fits:
        return None
    name = None if activation is None else "gelu"
    return kernels.triton_spanning_attention(query, key, value, num_heads, window_size, WINDOW_KINDS[mode], name)


def _rotate_heads(x: torch.Tensor, num_heads: int, rotary: torch.Tensor) -> torch.Tensor:
    """Turns each head of (B, H, W, heads · d) by its token's place in the grid."""
    heads = x.reshape(len(x), -1, num_heads, x.shape[-1] // num_heads)
    return rotate(heads, rotary, sequence_dim=1).reshape(x.shape)


@contextmanager
def observed_attention(observe: Callable) -> Iterator[None]:
    """Computes attention by its definition inside, and shows it to `observe` each time; not for compiled networks.

    Args:
        observe: called with the arguments of `spanning_attention`, in their order.
    """
    global _observe_attention
    before, _observe_attention = _observe_attention, observe
    try:
        with kernels.disabled():
            yield
    finally:
        _observe_attention = before


def in_parts(forward: Callable) -> Callable:
    """Decorates a module's forward(tokens, …) to work through the batch a few samples at a time in CPU inference.

    The module's `hidden_channels` is the width of the widest grid inside. The batch stays whole where BatchNorm
    normalises by it, and where freed memory is kept.
    """

    @functools.wraps(forward)
    def forward_in_parts(module: nn.Module, tokens: torch.Tensor, *args, **options) -> torch.Tensor:
        # Asked first: a compiled or traced program must not depend on the other answers.
        if not kernels.is_eager_cpu_inference(tokens) or kernels.is_memory_kept() or _normalises_by_batch(module):
            return forward(module, tokens, *args, **options)
        size = max(1, ELEMENTS_AT_ONCE // (tokens.shape[1] * tokens.shape[2] * module.hidden_channels))
        parts = [forward(module, part, *args, **options) for part in tokens.split(size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return forward_in_parts


def _normalises_by_batch(module: nn.Module) -> bool:
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())
