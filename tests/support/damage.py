"""Damages to files: flipped bits, and what may become of a small file."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def random_flips(folder: Path, count: int) -> list[tuple[str, int]]:
    """(name, bit) of random bits, of each file of a folder equally often."""
    chance, files = random.Random(0), sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = [files[number % len(files)] for number in range(count)]
    return [(str(path.relative_to(folder)), chance.randrange(8 * path.stat().st_size)) for path in chosen]


@contextmanager
def flipped_bit(path: Path, bit: int) -> Iterator[None]:
    """A bit of a file is flipped in the context."""
    _flip(path, bit)
    try:
        yield
    finally:
        _flip(path, bit)


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "a number": lambda path: path.write_text("7"),
    "a list": lambda path: path.write_text('["a", {"step": 3}]'),
    "other JSON": lambda path: path.write_text('{"step": {"a": [1]}, "data": 3, "progress": {"x": 1}}'),
    "null": lambda path: path.write_text("null"),
    "nested deeply": lambda path: path.write_text("[" * 100_000),
    "binary": lambda path: path.write_bytes(random.Random(0).randbytes(500)),
    "other encoding": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "folder": _become_folder,
    "missing": lambda path: path.unlink(),
    "unreadable": lambda path: (path.unlink(), path.symlink_to(path.name)),  # permissions do not stop root
}
