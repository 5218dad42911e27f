"""Depthwise convolution of CPU training, by PyTorch's own operators but for the weight's gradient.

oneDNN computes that for all channels at once several times slower than for a few at a time, and in bfloat16 slower than
in float32.
"""

import torch
import torch.nn.functional as F
from torch import nn

from demo_diffusion.kernels.guards import is_plain, is_single_threaded, refuse_second_derivative
from demo_diffusion.kernels.switch import is_enabled

CHANNELS_AT_ONCE = 64


def supports(tokens: torch.Tensor, conv: nn.Module) -> bool:
    """Whether `cpu_depthwise_conv` may stand for `conv`, a depthwise convolution, but for its bias, and is faster."""
    is_serial_cpu = tokens.device.type == "cpu" and is_single_threaded()
    return is_enabled() and is_serial_cpu and is_plain(tokens, conv, nn.Conv2d) and conv.padding_mode == "zeros"


@torch.library.custom_op("demo_diffusion::cpu_depthwise_conv", mutates_args=())
def cpu_depthwise_conv(tokens: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, H, W, C), (C, 1, K, K) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, C), zero-padded by K // 2, with gradients."""
    x = F.conv2d(tokens.permute(0, 3, 1, 2), weight, None, stride, weight.shape[-1] // 2, groups=len(weight))
    return x.permute(0, 2, 3, 1).contiguous()


@cpu_depthwise_conv.register_fake
def _(tokens, weight, stride):
    batch, height, width, channels = tokens.shape
    return tokens.new_empty(batch, -(-height // stride), -(-width // stride), channels)


@torch.library.custom_op("demo_diffusion::cpu_depthwise_conv_backward", mutates_args=())
def _backward_op(
    grad: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of tokens and weight."""
    grad = grad.contiguous()
    grad_tokens = _convolution_backward(grad, tokens, weight, stride, [True, False, False])[0]
    dtype = torch.promote_types(weight.dtype, torch.float32)
    grad_weight = [
        _convolution_backward(*(each.to(dtype).contiguous() for each in (g, x, w)), stride, [False, True, False])[1]
        for g, x, w in zip(
            *(x.split(CHANNELS_AT_ONCE, -1) for x in (grad, tokens)), weight.split(CHANNELS_AT_ONCE), strict=True
        )
    ]
    return grad_tokens.permute(0, 2, 3, 1).contiguous(), torch.cat(grad_weight).to(weight.dtype)


@_backward_op.register_fake
def _(grad, tokens, weight, stride):
    return tokens.new_empty(tokens.shape), torch.empty_like(weight)


def _convolution_backward(
    grad: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor, stride: int, mask: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    padding = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), tokens.permute(0, 3, 1, 2), weight, None,
        [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight), mask,
    )  # fmt: skip


def _save(ctx, inputs, output) -> None:
    tokens, weight, ctx.stride = inputs
    ctx.save_for_backward(tokens, weight)


def _backward(ctx, grad):
    return *_backward_op(grad, *ctx.saved_tensors, ctx.stride), None


cpu_depthwise_conv.register_autograd(_backward, setup_context=_save)
_backward_op.register_autograd(refuse_second_derivative)
