"""What a run logs, to write and to read: loss.csv and accuracy.csv in its folder."""

import csv
import io
import math
from pathlib import Path

from .files import write_text

LOSS_FILE, ACCURACY_FILE = "loss.csv", "accuracy.csv"
ACCURACY_COLUMNS = ("step", "top1", "top5")

Row = dict[str, float]  # "step" is a whole number


def read_losses(run: Path, until_step: float = math.inf) -> list[Row]:
    """The logged rows up to a step; empty if there is no loss.csv."""
    return [row for row in _read(run / LOSS_FILE) if row["step"] <= until_step]


def write_losses(run: Path, rows: list[Row]) -> None:
    """Replaces the logged rows; without rows nothing is written."""
    if rows:
        _write(run / LOSS_FILE, rows, list(dict.fromkeys(name for row in rows for name in row)))


def read_accuracies(run: Path) -> list[Row]:
    """Rows of "step", "top1" and "top5"; empty if nothing was measured yet."""
    rows = _read(run / ACCURACY_FILE)
    return [{**{name: float(value) for name, value in row.items()}, "step": row["step"]} for row in rows]


def add_accuracy(run: Path, step: int, top1: float, top5: float) -> None:
    """Adds a row; rows of this step and later ones, from before the run was resumed, go."""
    rows = [row for row in read_accuracies(run) if row["step"] < step]
    _write(run / ACCURACY_FILE, [*rows, {"step": step, "top1": top1, "top5": top5}], ACCURACY_COLUMNS)


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open() as file:
        return [{name: _number(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _write(path: Path, rows: list[Row], columns: list[str] | tuple[str, ...]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)
