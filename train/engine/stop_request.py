"""Notices that a training shall stop: by SIGTERM, which announces preemption, or because its launcher is gone.

`torchrun` passes SIGTERM on to its processes, and kills them 30 seconds later. `accelerate launch` with one process
does not: SIGTERM ends the launcher alone.
"""

import os
import signal
from types import FrameType

from demo_diffusion._start import first_parent

LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # what torchrun and accelerate always set


class StopRequest:
    """Context manager that remembers a SIGTERM instead of ending the process, and watches the launcher.

    A process that no launcher started may lose its parent: nohup, setsid and the end of a shell do not stop it.

    Attributes:
        reason: why it is set, for a message.
    """

    def __init__(self):
        self._has_sigterm = False
        self._launcher = _launcher()

    @property
    def is_set(self) -> bool:
        """Whether the training shall stop."""
        return self._has_sigterm or self._is_orphan

    @property
    def reason(self) -> str:
        return "The launcher is gone" if self._is_orphan and not self._has_sigterm else "SIGTERM"

    @property
    def _is_orphan(self) -> bool:
        return self._launcher is not None and os.getppid() != self._launcher

    def __enter__(self) -> "StopRequest":
        self.before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._has_sigterm = True


def _launcher() -> int | None:
    """The launcher's process number; None if there is no launcher, or it is the first process of a container."""
    is_launched = any(name in os.environ for name in LAUNCHER_VARIABLES)
    return first_parent() if is_launched and first_parent() != 1 else None
