"""Which files of a folder are images, which of its folders are classes, and their order: one rule for all commands."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

OF_PROGRAMS = (
    "__MACOSX",
    "@eaDir",
    "__pycache__",
)  # folders of archivers, servers and Python; others begin with .


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a program's and no user's: .ipynb_checkpoints, ._photo.jpg, __MACOSX, …"""
    return name.startswith(".") or name in OF_PROGRAMS


ClassOrder = Callable[[Iterable[str]], list[str]]  # names of classes, in the order of their ids


def natural_order(names: Iterable[str]) -> list[str]:
    """2 before 10: numbers in names are compared as numbers, the rest as text."""
    return sorted(names, key=lambda name: ([_size(part) for part in re.split("([0-9]+)", name)], name))


def text_order(names: Iterable[str]) -> list[str]:
    """10 before 2: how classes were numbered once, by runs that did not write their data down."""
    return sorted(names)


def known_order(id2label: Mapping[int | str, str]) -> ClassOrder:
    """The order of the ids (texts in JSON) of these names; natural order for any others."""
    known = [id2label[i] for i in sorted(id2label, key=int)]

    def order(names: Iterable[str]) -> list[str]:
        names = natural_order(names)
        return known if natural_order(known) == names else names

    return order


def _size(part: str) -> tuple[int, str]:
    digits = part.lstrip("0") if part.isascii() and part.isdigit() else None
    return (0, part) if digits is None else (len(digits), digits)


def class_folders(folder: Path, order: ClassOrder = natural_order) -> list[str]:
    """Names of the class folders in a folder, in the order of their ids.

    Raises:
        FileNotFoundError: if there is none.
    """
    names = order(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
    if not names:
        raise FileNotFoundError(f"there is no class folder in {folder}")
    return names


def image_files(folder: Path) -> list[Path]:
    """Every image under a folder, ordered by folder and name; each folder once, however links lead to it."""
    found = [(root, name) for root, names in _walk(str(folder), set()) for name in names if _is_image(name)]
    return [Path(root, name) for root, name in sorted(found)]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def _walk(folder: str, seen: set[str]) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of all folders below that are not hidden, real ones before links to them."""
    if (real := os.path.realpath(folder)) in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        files, folders = [], []
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry)
    yield folder, [entry.name for entry in files]
    for entry in sorted(folders, key=lambda entry: (entry.is_symlink(), entry.name)):
        if not is_hidden(entry.name):
            yield from _walk(entry.path, seen)
