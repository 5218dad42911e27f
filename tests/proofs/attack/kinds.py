"""The kinds of attacks, and a run of some of them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is first imported: a wrong name is not asked for there

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import ModuleType

from . import api, checkpoints, images, options, run_files
from .runner import Case, Outcome, run_cases

KINDS: dict[str, ModuleType] = {
    "options": options,
    "api": api,
    "run_files": run_files,
    "images": images,
    "checkpoints": checkpoints,
}


def outcomes_of(
    kinds: Iterable[str], root: Path, at_once: int = 2, only: str = "", keep: bool = False, every: int = 1
) -> list[Outcome]:
    """Prepares what the kinds need, each in a copy of this process, and runs the cases.

    Args:
        only: cases whose name has this text.
        every: 1: all of them; n: every n-th of a kind.
    """
    outcomes = []
    for kind in kinds:
        module, folder = KINDS[kind], root / kind
        prepared = run_cases([Case("preparation", kind, partial(_prepare, module, folder))], root / f"{kind}_first")
        if prepared[0].verdict != "right":
            raise RuntimeError(f"{kind} cannot be prepared: {prepared[0].text}")
        cases = [case for case in module.cases(folder) if only in case.name][::every]
        outcomes += run_cases(cases, folder / "cases", at_once, keep)
    return outcomes


def _prepare(module: ModuleType, folder: Path, own_folder: Path) -> str:
    module.prepare(folder)
    return "right"
