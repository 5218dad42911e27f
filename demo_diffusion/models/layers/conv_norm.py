"""Convolution with BatchNorm on a channels-last token grid, foldable into one convolution for inference."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from demo_diffusion import kernels
from demo_diffusion.models.operators import add, silu

from .folding import Foldable


class ConvNorm(Foldable):
    """BatchNorm(Conv(x)), (B, H, W, in_channels) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, out_channels).

    Args:
        kernel_size: odd side of the convolution, which pads by half of it.
        groups, bias: of the convolution.
        batch_norm: False: without BatchNorm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-6,
        batch_norm: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=eps) if batch_norm else nn.Identity()
        self.unfuse()

    @torch.no_grad()
    def fuse(self) -> None:
        """Computes one convolution's weight and bias from the two layers and the running statistics."""
        norm = self.norm
        if isinstance(norm, nn.Identity):
            return
        self._set_fused(
            *fuse_conv_bn_weights(
                self.conv.weight, self.conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = tokens.permute(0, 3, 1, 2)
        if self.fused_weight is None:
            x = self.norm(self._convolve(x))
        else:
            x = F.conv2d(
                x, self.fused_weight, self.fused_bias, self.conv.stride, self.conv.padding, groups=self.conv.groups
            )
        return x.permute(0, 2, 3, 1)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class DepthwiseConvNorm(ConvNorm):
    """BatchNorm(DepthwiseConv(x)); the convolution has a bias, zero at first, only without BatchNorm.

    Shapes: (B, H, W, C) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, C).
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, eps: float = 1e-6, batch_norm: bool = True):
        bias = not batch_norm
        super().__init__(
            channels, channels, kernel_size, stride, groups=channels, bias=bias, eps=eps, batch_norm=batch_norm
        )
        if bias:
            nn.init.zeros_(self.conv.bias)

    def add_silu(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens + SiLU(self(tokens)), of stride 1: (B, H, W, C) -> (B, H, W, C)."""
        if not kernels.triton_depthwise_supports(tokens, self.conv, self.norm):
            return add(silu(self(tokens)), tokens)
        if self.is_fused:
            return kernels.triton_folded_conv_silu_add(tokens, self.fused_weight, self.fused_bias)
        return kernels.triton_conv_norm_silu_add(tokens, self.conv, self.norm)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.permute(0, 2, 3, 1)
        if not (torch.is_grad_enabled() and kernels.cpu_depthwise_supports(tokens, self.conv)):
            return self.conv(x)
        weight = self.conv.weight.to(x.dtype)  # as autocast has it
        output = kernels.cpu_depthwise_conv(tokens, weight, self.conv.stride[0])
        output = output if self.conv.bias is None else output + self.conv.bias.to(x.dtype)
        return output.permute(0, 3, 1, 2)
