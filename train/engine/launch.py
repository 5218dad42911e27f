"""Runs a training as a command."""

from collections.abc import Callable

from demo_diffusion.cli.command import MISTAKES, one_line_for_mistakes

from .stop_request import StopRequest
from .trainer import Trainer


def run_training(create_trainer: Callable[[], Trainer]) -> None:
    """Creates and runs a trainer: a user's mistake ends in one line, a SIGTERM in a checkpoint.

    Raises:
        SystemExit: with one line, if the trainer cannot be created, is interrupted, or meets data, a disk or numbers
            that it cannot work with.
    """
    with StopRequest() as stop_request:
        with one_line_for_mistakes((ValueError,)):
            trainer = create_trainer()
        with one_line_for_mistakes((*MISTAKES, FloatingPointError)):
            try:
                trainer.run(stop_request)
            except KeyboardInterrupt:
                kept = trainer.folder.checkpoints.latest() or "no checkpoint yet"
                raise KeyboardInterrupt(f"The same command continues from what is kept: {kept}.") from None
