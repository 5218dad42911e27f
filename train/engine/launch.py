"""Runs a training as a command."""

from collections.abc import Callable

from demo_diffusion.cli.command import MISTAKES, one_line_for_mistakes

from demo_diffusion.records.folder_lock import hold_folder

from .stop_request import StopRequest
from .trainer import Trainer


def run_training(create_trainer: Callable[[], Trainer]) -> None:
    """Creates and runs a trainer: a user's mistake ends in one line, a SIGTERM in a checkpoint.

    While it runs, no other command may write into its folder.

    Raises:
        SystemExit: with one line, if the trainer cannot be created, another command writes into its folder, it is
            interrupted, or it meets data, a disk or numbers that it cannot work with.
    """
    with StopRequest() as stop_request, one_line_for_mistakes((*MISTAKES, FloatingPointError)):
        trainer = create_trainer()
        with hold_folder(trainer.folder.path):
            trainer.folder.check(trainer.config)  # again: another command may have written there meanwhile
            try:
                trainer.run(stop_request)
            except KeyboardInterrupt:
                kept = trainer.folder.checkpoints.latest() or "no checkpoint yet"
                raise KeyboardInterrupt(f"The same command continues from what is kept: {kept}.") from None
