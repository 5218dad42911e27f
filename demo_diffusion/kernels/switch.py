"""Whether fused operators may be chosen: one setting for the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_enabled = os.environ.get("DEMO_KERNELS", "1") != "0"


def is_enabled() -> bool:
    return _enabled


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
