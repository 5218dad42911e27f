"""Files and folders that are written whole or not at all, and read with an error that names them."""

import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from .reading import read_parsed

MARK = ".demo_diffusion-"  # in the name of whatever is not whole yet, between the target's name and a random part
PARTIAL = re.compile(rf"(.+){re.escape(MARK)}\w{{8}}\.partial")
EARLIER = "earlier"


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Has `write(path)` make a file or folder at a temporary path beside `target`, then renames it to `target`.

    An earlier file or folder is replaced; if `write` fails or is killed, it stays. Replacing a folder takes two
    renames, between which there is none. The temporary path bears the target's name (some formats keep it) in a folder
    of its own, so that processes do not disturb each other. Missing parents of `target` are made.

    Raises:
        OSError: names the target and the reason if it cannot be written, whatever the writer of the format raised.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=target.name + MARK, suffix=".partial") as temporary:
            partial = Path(temporary) / target.name
            write(partial)
            if partial.is_dir() and target.is_dir() and not target.is_symlink():
                # A folder cannot be renamed onto one that is not empty.
                os.replace(target, Path(temporary) / EARLIER)
            os.replace(partial, target)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save's on a full disk
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{target} cannot be written: {reason}. Nothing of it is left half-written.") from error


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file."""
    write_whole(path, lambda partial: partial.write_text(text))


def write_json(path: Path, content: dict | list) -> None:
    """Writes a whole JSON file.

    Raises:
        ValueError: if a number is not finite, which JSON has no word for.
    """
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes a whole file of arrays."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # by its name, NumPy would add .npz
            np.savez(file, **arrays)

    write_whole(path, write)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes were writing into a folder. Only before any process writes.

    What `write_whole` had moved aside for a new one comes back. Files of others are not touched, whatever their names.

    Args:
        name: of the one file or folder that they were writing; None: whatever they were writing.
    """
    pattern = "*.partial" if name is None else f"{glob.escape(name + MARK)}*.partial"
    for leftover in filter(is_leftover, list(folder.glob(pattern))):
        target = folder / PARTIAL.fullmatch(leftover.name).group(1)
        if (leftover / EARLIER).exists() and not target.exists():
            os.replace(leftover / EARLIER, target)
        shutil.rmtree(leftover)


def is_leftover(path: Path) -> bool:
    """Whether a path is the temporary folder of a `write_whole` that was killed, or goes on."""
    match = PARTIAL.fullmatch(path.name)
    if match is None or path.is_symlink() or not path.is_dir():
        return False
    return {each.name for each in path.iterdir()} <= {match.group(1), EARLIER}


def read_json(path: Path) -> dict | None:
    """None if there is no such file.

    Raises:
        ValueError: if it is damaged.
    """
    return read_parsed(path, _checked_object, "") if path.exists() or path.is_symlink() else None


def _checked_object(text: str) -> dict:
    if not isinstance(content := json.loads(text), dict):
        raise ValueError("it holds no JSON object")
    return content


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


def check_output_folder(folder: Path) -> None:
    """Raises ValueError if nothing can be written into a folder, which may be there or not."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{folder} cannot be written: {existing} is not a folder that may be written to.")


def check_output_file(
    path: Path,
    suffixes: tuple[str, ...] = (),
    make_parents: bool = False,
    option: str = "--out",
    inputs: Mapping[str, str | Path | None] | None = None,
) -> None:
    """Raises ValueError if the file that an option names cannot be written.

    Args:
        suffixes: allowed endings of the name; none: all.
        make_parents: whether the folder need not exist yet.
        inputs: option -> file or folder that the command reads, which must not be written over.
    """
    for name, source in (inputs or {}).items():
        if source is not None and path.exists() and Path(source).resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"{option} is {path}, a file of {name}, which would be replaced; give another one.")
    is_named_well = path.suffix.lower() in suffixes if suffixes else True
    if not is_named_well or path.is_dir() or not (make_parents or path.absolute().parent.is_dir()):
        kind = f"{', '.join(suffixes)} file" if suffixes else "file"
        place = "" if make_parents else " in a folder there is"
        raise ValueError(f"{option} is {path}; it must be a {kind}{place}.")
    check_output_folder(path.absolute().parent)
