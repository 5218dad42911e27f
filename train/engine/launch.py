"""Runs a training as a command."""

import sys
from collections.abc import Callable

from demo_diffusion.data.images import ImageError

from .stop_request import StopRequest
from .trainer import Trainer


def run_training(create_trainer: Callable[[], Trainer]) -> None:
    """Builds and runs a trainer as a command: mistakes of its user end in one line, a SIGTERM with a checkpoint."""
    with StopRequest() as stop_request:
        try:
            trainer = create_trainer()
        except ValueError as error:
            sys.exit(f"error: {error}")
        _run(trainer, stop_request)


def _run(trainer: Trainer, stop_request: StopRequest) -> None:
    try:
        trainer.run(stop_request)
    except KeyboardInterrupt:
        kept = trainer.folder.checkpoints.latest() or "no checkpoint yet"
        sys.exit(f"Interrupted. The same command continues from what is kept: {kept}.")
    except (OSError, FloatingPointError, ImageError) as error:
        sys.exit(f"error: {error}")
