"""Reads small files that may be damaged, with one error that names the file, what is wrong and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Content = TypeVar("Content")


def read_parsed(path: Path, parse: Callable[[str], Content], remedy: str) -> Content:
    """`parse` of a text file's content.

    Args:
        parse: raises any Exception if the text is not what it should be.
        remedy: what to do then, as sentences.

    Raises:
        ValueError: if the file is missing, cannot be read, is no UTF-8 text, or `parse` refuses it.
    """
    try:
        return parse(path.read_bytes().decode())
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is no text in UTF-8"
    except Exception as error:  # a damaged file makes a parser raise almost anything
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise ValueError(f"{path} cannot be read: {reason}. {remedy}".rstrip())
