"""Undoes and diagnoses a step whose loss or gradient is not finite."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

MAX_LISTED = 5


class RunningStatistics:
    """The BatchNorm buffers of a network.

    A forward pass changes them before anyone knows whether its loss is finite, so a skipped step must restore them.
    """

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self.floating = [buffer for buffer in self.buffers if buffer.is_floating_point()]

    def copy(self) -> list[torch.Tensor]:
        """Copies to restore later."""
        return [buffer.clone() for buffer in self.buffers]

    def restore(self, saved: list[torch.Tensor]) -> None:
        """Writes copies back, in place."""
        for buffer, value in zip(self.buffers, saved, strict=True):
            buffer.copy_(value)

    def average_over_processes(self) -> None:
        """Replaces the statistics by their mean over processes, with one all-reduce. Every process must call it."""
        if not self.floating:
            return
        message = torch.cat([buffer.flatten() for buffer in self.floating])
        torch.distributed.all_reduce(message)
        message /= torch.distributed.get_world_size()
        for buffer, mean in zip(self.floating, message.split([b.numel() for b in self.floating]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def diagnosis(network: nn.Module, losses: list[float], gradient_norm: float, learning_rate: float) -> str:
    """A sentence that says which numbers are not finite: losses, gradients or weights (the first few by name)."""
    bad_gradients = [n for n, p in network.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    bad_weights = [n for n, p in network.named_parameters() if not _is_finite(p)]
    return (
        f"The last losses are {', '.join(f'{loss:.4g}' for loss in losses) or 'none'}; the norm of the gradient is "
        f"{gradient_norm:.4g}; gradients that are not finite: {_named(bad_gradients)}; weights that are not finite: "
        f"{_named(bad_weights)}; the learning rate is {learning_rate:.3g}. Lower learning_rate, set max_grad_norm, or "
        "use bf16 instead of fp16; if the weights are finite and the loss is not, look at the data."
    )


def _is_finite(value: torch.Tensor) -> bool:
    value = value.to_local() if hasattr(value, "to_local") else value
    return bool(value.isfinite().all())


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(names[:MAX_LISTED]) or "none") + more
