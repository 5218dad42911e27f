"""Notices SIGTERM, by which a cluster announces preemption."""

import signal
from types import FrameType


class StopRequest:
    """Context manager that remembers a SIGTERM instead of ending the process.

    Attributes:
        is_set: whether one has come.
    """

    def __init__(self):
        self.is_set = False

    def __enter__(self) -> "StopRequest":
        self.before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
