"""Which files of a folder are images, which of its folders are classes, and their order: one rule for all commands."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from demo_diffusion.records.reading import check_regular

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
        ValueError: if two look alike.
    """
    names = order(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
    if not names:
        raise FileNotFoundError(f"there is no class folder in {folder}")
    check_distinct(names)
    return names


def check_distinct(names: Iterable[str]) -> None:
    """Raises ValueError if two names of classes differ in nothing but spaces and what cannot be seen."""
    seen: dict[str, str] = {}
    for name in names:
        words = unicodedata.normalize("NFC", name).split()
        first = seen.setdefault(" ".join("".join(filter(str.isprintable, word)) for word in words), name)
        if first != name:
            raise ValueError(f"the classes {first!r} and {name!r} look alike; rename one, or make them one class")


def image_files(folder: Path) -> list[Path]:
    """Every image under a folder, ordered by folder and name; each folder once, however links lead to it.

    Raises:
        OSError: if something has an image's name that is a pipe, a socket or a device.
    """
    found = [(root, name) for root, names in _walk(str(folder)) for name in names]
    return [Path(root, name) for root, name in sorted(found)]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its images) of all folders below that are not hidden, real ones before links to them."""
    waiting, seen = [top], set()  # a stack, as folders may be nested deeper than calls may
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            files, folders = [], []
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry)
        yield folder, [entry.name for entry in files if _is_image(entry.name) and _can_be_read(entry)]
        folders.sort(key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
        waiting += [entry.path for entry in folders if not is_hidden(entry.name)]


def _can_be_read(entry: os.DirEntry) -> bool:
    """True, also of a link that leads nowhere, which is named when it is read; raises OSError of a pipe or a device."""
    if not entry.is_file() and os.path.exists(entry.path):
        check_regular(entry.path)
    return True
