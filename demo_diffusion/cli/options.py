"""The fields of a config: default, help and range."""

import dataclasses
import math
from collections.abc import Iterable


def option(default, help: str):
    """A field of a section with its default and its line in `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})


def check_ranges(
    values: dict[str, float | None], positive: Iterable[str], not_negative: Iterable[str], shares: Iterable[str]
) -> None:
    """Raises a ValueError if a number is outside its range; shares are in [0, 1), None is always allowed."""
    for names, allowed, fits in (
        (positive, "positive", lambda value: 0 < value < math.inf),
        (not_negative, "at least 0", lambda value: 0 <= value < math.inf),
        (shares, "in [0, 1)", lambda value: 0 <= value < 1),
    ):
        for name in names:
            if values[name] is not None and not fits(values[name]):
                raise ValueError(f"{name} is {values[name]}; it must be {allowed}.")
