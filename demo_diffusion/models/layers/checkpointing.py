"""Gradient checkpointing that leaves BatchNorm's running statistics as they would be without it."""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _running_statistics_kept(module: nn.Module):
    """BatchNorm moves copies of its running statistics inside."""
    kept = [(norm, dict(norm._buffers)) for norm in module.modules() if isinstance(norm, _BatchNorm)]
    for norm, buffers in kept:
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)


def checkpoint_module(module: nn.Module, *args):
    """Calls `module(*args)` and recomputes its activations in the backward pass.

    The recomputation normalises by the batch as the first pass did, but does not move the running mean and variance a
    second time. Under `torch.compile` the compiler itself recomputes without side effects.
    """
    if torch.compiler.is_compiling():
        return checkpoint(module, *args, use_reentrant=False)
    return checkpoint(
        module, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_statistics_kept(module))
    )
