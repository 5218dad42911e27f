"""Layers whose neighbours (BatchNorm, a scale) can be folded into their weights for inference."""

import torch
import torch.nn.functional as F
from torch import nn

from demo_diffusion.models.operators import linear


class Linear(nn.Linear):
    """nn.Linear by `operators.linear`: (…, in) -> (…, out)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class Foldable(nn.Module):
    """A layer that may compute with a folded weight and bias instead of its own.

    The folded tensors are extra: the layer's own weights stay, so that the state dict never changes. Going back to
    training, or loading weights, undoes the folding; changing them in place does not. Own weights get no gradients
    while they are folded.
    """

    fused_weight: torch.Tensor | None
    fused_bias: torch.Tensor | None

    @property
    def is_fused(self) -> bool:
        return self.fused_weight is not None

    def unfuse(self) -> None:
        self._set_fused(None, None)

    def _set_fused(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        """Registers tensors as buffers; None stays a plain attribute: hooks that offload a model cannot move it."""
        for name, tensor in (("fused_weight", weight), ("fused_bias", bias)):
            if hasattr(self, name):
                delattr(self, name)
            if tensor is None:
                setattr(self, name, None)
            else:
                self.register_buffer(name, tensor.detach(), persistent=False)

    def train(self, mode: bool = True) -> "Foldable":
        if mode:
            self.unfuse()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.unfuse()
        super()._load_from_state_dict(*args, **kwargs)


def is_folded(layer: nn.Module) -> bool:
    """Whether a layer computes with a folded weight.

    An adapter in its place, such as peft's LoRA, adds what is not folded: the layer inside then goes back to its own.
    """
    if isinstance(layer, Foldable):
        return layer.is_fused
    for part in layer.modules():
        if isinstance(part, Foldable):
            part.unfuse()
    return False


class FoldableLinear(Foldable, Linear):
    """A linear layer that takes in a BatchNorm before it or a scale of its outputs: (…, in) -> (…, out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.unfuse()

    @torch.no_grad()
    def fuse_norm_before(self, norm: nn.BatchNorm2d) -> None:
        """Computes Linear(BatchNorm(x)) by the running statistics, as one product."""
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        bias = F.linear(shift, self.weight, self.bias)
        self._set_fused(self.weight * scale, bias)

    @torch.no_grad()
    def fuse_scale_after(self, scale: torch.Tensor) -> None:
        """Computes scale · Linear(x) as one product; `scale`: (out,)."""
        self._set_fused(self.weight * scale[:, None], None if self.bias is None else self.bias * scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.fused_weight, self.fused_bias) if self.is_fused else super().forward(x)
