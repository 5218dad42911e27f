"""Files and folders that are written whole or not at all, and read with an error that names them."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file or folder beside `target` and gives it its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        partial = Path(temporary) / target.name
        write(partial)
        os.replace(partial, target)


def write_json(path: Path, content: dict | list) -> None:
    """The whole file or, if it is interrupted, nothing."""
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict | None:
    """None if there is no such file.

    Raises:
        ValueError: if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def replace_text(path: Path, text: str) -> None:
    """Writes a whole file or, if it is interrupted, nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make a whole folder beside `path` and gives it its name; an earlier one is removed."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    if path.exists():
        shutil.rmtree(path)
    os.replace(partial, path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing in it is executed.

    Raises:
        ValueError: if it is missing, damaged or holds something but arrays.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # a damaged file makes NumPy raise almost anything
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}") from error


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes a file of arrays, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)
