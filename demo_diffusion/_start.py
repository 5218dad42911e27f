"""What a command does before the seconds that its imports take, in which its launcher may die and Ctrl-C may come."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

PROCESS, PARENT = os.getpid(), os.getppid()
INTERRUPTED = 128 + signal.SIGINT  # the exit status of what SIGINT ends

_HERE = Path(__file__).resolve().parent
_FOLDERS = [folder / name for folder in (_HERE, _HERE.parent) for name in ("train", "eval")]  # installed, in a clone


def first_parent() -> int:
    """The number of the process that started this one; of a training, its launcher."""
    return PARENT if os.getpid() == PROCESS else os.getppid()  # a fork has imported nothing


def end_on_ctrl_c() -> None:
    """Lets Ctrl-C end a command in one line until `raise_on_ctrl_c`; does nothing in other programs."""
    if (
        _is_command()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _end)


def raise_on_ctrl_c() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again, if `end_on_ctrl_c` changed that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether this process runs a file of train/ or eval/, or a module of this package."""
    words = sys.orig_argv
    is_module = "-m" in words and "".join(words[words.index("-m") + 1 :][:1]).startswith(f"{__package__}.")
    return is_module or Path(sys.argv[0]).resolve().parent in _FOLDERS


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # nothing is held yet; an exception would pass through modules that are half imported


end_on_ctrl_c()
