"""Whether fused operators may be chosen: one setting for the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_enabled = os.environ.get("DEMO_KERNELS", "1") != "0"


def is_enabled() -> bool:
    """False as well in export and tracing: a saved program is to hold operators that every PyTorch knows."""
    return _enabled and not torch.compiler.is_exporting() and not torch.jit.is_tracing()


def set_enabled(enabled: bool) -> None:
    """Lets blocks choose fused operators, or holds them to their definitions; compiled models follow by recompiling."""
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
