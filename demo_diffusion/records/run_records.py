"""What a run logs, to write and to read: loss.csv and, by its task, a file of scores in its folder."""

import csv
import hashlib
import io
import json
import math
from itertools import pairwise
from pathlib import Path

from demo_diffusion.checks import shown

from .files import write_text
from .reading import read_parsed

LOSS_FILE = "loss.csv"
# What is measured of classifiers, of a detector's boxes and of segmenters: kind, which names the file -> numbers.
SCORES = {"accuracy": ("top1", "top5"), "precision": ("AP", "AP50"), "overlap": ("miou", "aacc", "macc", "mdice")}
LOSS_COLUMNS = ("step", "loss")  # and any others
REMEDY = "Bring back a good copy, or move it away: a run that goes on begins it anew."
LARGEST = 2**53  # whole number that is one as float64 too

Row = dict[str, float]  # "step" is a whole number


def read_losses(run: Path, until_step: float = math.inf) -> list[Row]:
    """The logged rows up to a step; empty if there is no loss.csv.

    Raises:
        ValueError: if it is damaged.
    """
    return [row for row in _read(run / LOSS_FILE, LOSS_COLUMNS) if row["step"] <= until_step]


def rows_hash(rows: list[Row]) -> str:
    """By what logged rows are recognised."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def write_losses(run: Path, rows: list[Row]) -> None:
    """Replaces the logged rows; without rows nothing is written."""
    if rows:
        _write(run / LOSS_FILE, rows, list(dict.fromkeys(name for row in rows for name in row)))


def read_scores(run: Path, kind: str) -> list[Row]:
    """Rows of "step" and the numbers of a kind of `SCORES`; empty if nothing was measured yet.

    Raises:
        ValueError: if the file is damaged.
    """
    rows = _read(run / f"{kind}.csv", ("step", *SCORES[kind]))
    return [{**{name: float(value) for name, value in row.items()}, "step": row["step"]} for row in rows]


def add_scores(run: Path, kind: str, step: int, scores: Row) -> None:
    """Adds a row; rows of this step and later ones, from before the run was resumed, go."""
    rows = [row for row in read_scores(run, kind) if row["step"] < step]
    _write(run / f"{kind}.csv", [*rows, {"step": step, **scores}], ("step", *SCORES[kind]))


def _read(path: Path, columns: tuple[str, ...]) -> list[Row]:
    if not (path.exists() or path.is_symlink()):
        return []
    return read_parsed(path, lambda text: _rows(text, columns), REMEDY)


def _rows(text: str, columns: tuple[str, ...]) -> list[Row]:
    if not text.endswith("\n"):
        raise ValueError("its end is missing")
    rows = csv.DictReader(io.StringIO(text))
    if not set(columns) <= set(rows.fieldnames or ()):
        raise ValueError(f"it has no columns {', '.join(columns)}")
    read = [{name: _number(value) for name, value in row.items() if name is None or value} for row in rows]
    if any(not set(columns) <= set(row) or type(row["step"]) is not int for row in read):
        raise ValueError(f"it has rows without {', '.join(columns)}")
    if any(before["step"] >= after["step"] for before, after in pairwise(read)):
        raise ValueError("its steps do not rise")
    return read


def _write(path: Path, rows: list[Row], columns: list[str] | tuple[str, ...]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _number(text: str | list[str]) -> int | float:
    if isinstance(text, list):
        raise ValueError("it has rows of more columns than names")
    number = int(text) if text.isdigit() else float(text)
    if isinstance(number, int) and number > LARGEST:
        raise ValueError(f"it has the number {shown(number)}; the largest is {LARGEST}")
    return number
