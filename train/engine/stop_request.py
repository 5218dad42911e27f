"""SIGTERM, a cluster's notice of preemption."""

import signal
from types import FrameType


class StopRequest:
    """Remembers a SIGTERM, a cluster's notice of preemption, while it is a context; nothing is interrupted by it."""

    def __init__(self):
        self.is_set = False

    def __enter__(self) -> "StopRequest":
        self.before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
