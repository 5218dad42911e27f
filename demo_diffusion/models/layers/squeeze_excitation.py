"""Squeeze-and-excitation (arXiv 1709.01507) as EMOv1's stem has it."""

import torch
import torch.nn.functional as F
from torch import nn


class SqueezeExcitation(nn.Module):
    """x · sigmoid(Linear(SiLU(Linear(mean of x over positions)))), without reduction: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = nn.Linear(channels, channels)
        self.expand = nn.Linear(channels, channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.expand(F.silu(self.reduce(tokens.mean((1, 2), keepdim=True)))).sigmoid()
