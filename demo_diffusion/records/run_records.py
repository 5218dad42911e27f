"""What a run logs, to write and to read: loss.csv and accuracy.csv, or precision.csv of detectors, in its folder."""

import csv
import hashlib
import io
import json
import math
from itertools import pairwise
from pathlib import Path

from .files import write_text
from .reading import read_parsed

LOSS_FILE, ACCURACY_FILE, PRECISION_FILE = "loss.csv", "accuracy.csv", "precision.csv"
ACCURACY_COLUMNS = ("step", "top1", "top5")
PRECISION_COLUMNS = ("step", "AP", "AP50")
LOSS_COLUMNS = ("step", "loss")  # and any others
REMEDY = "Bring back a good copy, or move it away: a run that goes on begins it anew."

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


def read_accuracies(run: Path) -> list[Row]:
    """Rows of "step", "top1" and "top5"; empty if nothing was measured yet.

    Raises:
        ValueError: if accuracy.csv is damaged.
    """
    rows = _read(run / ACCURACY_FILE, ACCURACY_COLUMNS)
    return [{**{name: float(value) for name, value in row.items()}, "step": row["step"]} for row in rows]


def add_accuracy(run: Path, step: int, top1: float, top5: float) -> None:
    """Adds a row; rows of this step and later ones, from before the run was resumed, go."""
    rows = [row for row in read_accuracies(run) if row["step"] < step]
    _write(run / ACCURACY_FILE, [*rows, {"step": step, "top1": top1, "top5": top5}], ACCURACY_COLUMNS)


def read_precisions(run: Path) -> list[Row]:
    """Rows of "step", "AP" and "AP50" of the boxes; empty if nothing was measured yet.

    Raises:
        ValueError: if precision.csv is damaged.
    """
    return _read(run / PRECISION_FILE, PRECISION_COLUMNS)


def add_precision(run: Path, step: int, ap: float, ap50: float) -> None:
    """Adds a row; rows of this step and later ones, from before the run was resumed, go."""
    rows = [row for row in read_precisions(run) if row["step"] < step]
    _write(run / PRECISION_FILE, [*rows, {"step": step, "AP": ap, "AP50": ap50}], PRECISION_COLUMNS)


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
    return int(text) if text.isdigit() else float(text)
