"""Layers whose neighbours (BatchNorm, a scale) can be folded into their weights for inference."""

import torch
import torch.nn.functional as F
from torch import nn


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
        for name, tensor in (("fused_weight", weight), ("fused_bias", bias)):
            self.register_buffer(name, None if tensor is None else tensor.detach(), persistent=False)

    def train(self, mode: bool = True) -> "Foldable":
        if mode:
            self.unfuse()
        return super().train(mode)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.unfuse()
        super()._load_from_state_dict(*args, **kwargs)


class FoldableLinear(Foldable, nn.Linear):
    """A linear layer that takes in a BatchNorm before it or a scale of its outputs: (…, in) -> (…, out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.unfuse()

    @torch.no_grad()
    def fuse(self) -> None:
        """Computes with the layer's own weights, by the product that is the faster in inference."""
        self._set_fused(self.weight, self.bias)

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
        if self.fused_weight is None:
            return F.linear(x, self.weight, self.bias)
        return inference_linear(x, self.fused_weight, self.fused_bias)


def is_eager_cpu_inference(x: torch.Tensor) -> bool:
    """Whether operators of oneDNN may be called on `x` by name: they know no gradients, autocast, tracing or export."""
    if torch.compiler.is_compiling():  # first: Dynamo cannot look into the other questions
        return False
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.jit.is_tracing())
    )


def inference_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear, on a CPU by oneDNN as compiled models have it, where eager PyTorch has MKL: (…, in) -> (…, out).

    On AMD's processors MKL makes no use of AVX-512, and oneDNN takes about half the time.
    """
    if is_eager_cpu_inference(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
