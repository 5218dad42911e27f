"""Whether fused operators may be chosen: one setting for the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

_enabled = os.environ.get("DEMO_KERNELS", "1").lower() not in ("0", "false", "no", "off")


def is_enabled() -> bool:
    """False as well where fused operators would not do.

    A program that is exported or traced is to hold operators that every PyTorch knows, and `torch.func`'s transforms
    and forward-mode derivatives need operators that they know.
    """
    if not _enabled or torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or not (torch.jit.is_tracing() or _are_derivatives_transformed())


def _are_derivatives_transformed() -> bool:
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def set_enabled(enabled: bool) -> None:
    """Lets blocks choose fused operators, or holds them to their definitions; compiled models follow by recompiling.

    With gradient checkpointing the setting must be the same in the forward and the backward pass.
    """
    global _enabled
    _enabled = enabled


@contextmanager
def disabled() -> Iterator[None]:
    """Blocks compute by their definitions inside."""
    before = _enabled
    set_enabled(False)
    try:
        yield
    finally:
        set_enabled(before)
