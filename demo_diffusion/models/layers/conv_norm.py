"""Convolution with BatchNorm on a channels-last token grid, foldable into one convolution for inference."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from demo_diffusion.models.operators import depthwise_conv

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
        if self.is_fused:
            x = F.conv2d(
                x, self.fused_weight, self.fused_bias, self.conv.stride, self.conv.padding, groups=self.conv.groups
            )
        else:
            x = self.norm(self._convolve(x))
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

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv(x, self.conv)


class DepthwiseConvLayerNorm(nn.Module):
    """LayerNorm over channels of DepthwiseConv(x), the convolution without bias (U-EMO).

    Shapes: (B, H, W, C) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, C).
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, eps: float = 1e-6):
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels, bias=False
        )
        self.norm = nn.LayerNorm(channels, eps=eps)

    def fuse(self) -> None:
        """Nothing: LayerNorm depends on its input and cannot be folded."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(depthwise_conv(tokens.permute(0, 3, 1, 2), self.conv).permute(0, 2, 3, 1))
