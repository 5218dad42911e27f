"""Reads small files that may be damaged, with one error that names the file, what is wrong and what to do."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Content = TypeVar("Content")


def check_regular(path: str | Path) -> None:
    """Raises OSError if a path leads to a pipe, a socket or a device: reading it might wait for ever, or never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(f"{path} is a pipe, a socket or a device; it must be a file")


def read_parsed(path: Path, parse: Callable[[str], Content], remedy: str) -> Content:
    """`parse` of a text file's content.

    Args:
        parse: raises any Exception if the text is not what it should be.
        remedy: what to do then, as sentences.

    Raises:
        ValueError: if the file is missing, cannot be read, is no UTF-8 text, or `parse` refuses it.
    """
    try:
        check_regular(path)
        return parse(path.read_bytes().decode())
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is no text in UTF-8"
    except Exception as error:  # a damaged file makes a parser raise almost anything
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} cannot be read: {reason.rstrip('.')}. {remedy}".rstrip())
