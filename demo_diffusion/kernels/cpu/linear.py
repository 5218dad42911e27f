"""The linear layer of CPU inference by oneDNN, where eager PyTorch has MKL."""

import torch

from demo_diffusion.kernels.guards import PLAIN_TENSORS
from demo_diffusion.kernels.switch import is_enabled


def is_eager_cpu_inference(x: torch.Tensor) -> bool:
    """Whether operators of oneDNN may be called on `x` by name: they know no gradients, autocast, tracing or export."""
    if torch.compiler.is_compiling():  # first: Dynamo cannot look into the other questions
        return False
    return (
        is_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    )


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `cpu_linear` takes these.

    What does not fit is F.linear's, which says why, or a tensor subclass's (quantised, sharded).
    """
    if not is_eager_cpu_inference(x):
        return False
    is_plain = type(weight) in PLAIN_TENSORS and weight.dtype == x.dtype and weight.device == x.device
    return is_plain and x.shape[-1] == weight.shape[1]


def cpu_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear by oneDNN: (…, in) -> (…, out).

    On AMD's processors MKL makes no use of AVX-512, and oneDNN takes about half the time.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
