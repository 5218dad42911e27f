"""What every command does alike: a user's mistake or Ctrl-C ends in one line, and a missing package is named."""

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from demo_diffusion._start import INTERRUPTED, raise_on_ctrl_c
from demo_diffusion.records.printable import printable_lines

MISTAKES = (ValueError, OSError)  # what a wrong option, file or folder raises


@contextmanager
def one_line_for_mistakes(kinds: tuple[type[Exception], ...] = MISTAKES) -> Iterator[None]:
    """Ends the program with status 1 and the line `error: …` on stderr, without a traceback.

    Ctrl-C ends it with status 130 and the line `error: interrupted`, in which a command may say how to go on: by
    raising its own `KeyboardInterrupt(text)`. Of several processes, the first says so.

    Stands around a command's work, or as decorator above its `main`.

    Args:
        kinds: exceptions that are a user's mistakes here. Others pass.
    """
    raise_on_ctrl_c()
    try:
        yield
    except kinds as error:
        sys.exit(f"error: {printable_lines(error)}")
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: interrupted. {printable_lines(stop)}".rstrip(), file=sys.stderr)
        sys.exit(INTERRUPTED)


def require_packages(names: Iterable[str], extra: str, purpose: str) -> None:
    """Raises ValueError that names the packages that are missing and the extra that brings them.

    Args:
        names: as they are imported.
        extra: of this package.
        purpose: what needs them, the sentence's subject.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{purpose} needs {', '.join(missing)}: pip install 'demo-diffusion[{extra}]'.")
