"""Depthwise convolution with BatchNorm on a channels-last token grid, foldable into one convolution for inference."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class DepthwiseConvNorm(nn.Module):
    """BatchNorm(DepthwiseConv(x)) without convolution bias.

    Shapes: (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C).

    `fuse` computes one convolution's weight and bias from the two layers and their running statistics; the layers stay,
    so that the state dict never changes. Going back to training, or loading weights, undoes it.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1, eps: float = 1e-6):
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels, bias=False
        )
        self.norm = nn.BatchNorm2d(channels, eps=eps)
        self.unfuse()

    @torch.no_grad()
    def fuse(self) -> None:
        norm = self.norm
        weight, bias = fuse_conv_bn_weights(
            self.conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.register_buffer("fused_weight", weight.detach(), persistent=False)
        self.register_buffer("fused_bias", bias.detach(), persistent=False)

    def unfuse(self) -> None:
        self.register_buffer("fused_weight", None, persistent=False)
        self.register_buffer("fused_bias", None, persistent=False)

    def train(self, mode: bool = True) -> "DepthwiseConvNorm":
        if mode:
            self.unfuse()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.unfuse()
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = tokens.permute(0, 3, 1, 2)
        if self.fused_weight is None:
            x = self.norm(self.conv(x))
        else:
            x = F.conv2d(
                x, self.fused_weight, self.fused_bias, self.conv.stride, self.conv.padding, groups=self.conv.groups
            )
        return x.permute(0, 2, 3, 1)
