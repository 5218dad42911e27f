"""The linear layer of the blocks."""

import torch
from torch import nn

from demo_diffusion.kernels import linear


class Linear(nn.Linear):
    """nn.Linear with the faster product in CPU inference: (…, in) -> (…, out)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)
