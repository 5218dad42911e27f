"""The folder of a run: its records and its checkpoints."""

import csv
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import yaml
from accelerate import Accelerator, PartialState

from demo_diffusion.train.checkpoints import Checkpoints, step_of
from demo_diffusion.train.config_parsing import to_yaml

# Fields that may change between the parts of one run; num_steps only where the learning rate does not depend on it.
FREE_FIELDS = {
    "num_steps",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "compile",
    "num_workers",
    "max_skipped_steps",
}
RESULTS = ("pipeline", "model")  # what a finished run of any training leaves, one of them
PACKAGES = ("torch", "diffusers", "accelerate", "transformers", "datasets", "safetensors")


class RunFolder:
    """Files of one run under `path`: config.yaml, run.json, loss.csv, checkpoints/ and its result."""

    def __init__(self, path: str | Path, keep_checkpoints: int = 2):
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep_checkpoints)
        self.loss_file = self.path / "loss.csv"
        self.config_file = self.path / "config.yaml"

    def check(self, config: object) -> None:
        """Raises a ValueError if the folder cannot be written or holds a run that this one cannot continue."""
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ValueError(f"{self.path} cannot be written: {existing} is not a folder that may be written to.")
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            if any((self.path / result).exists() for result in RESULTS):
                raise ValueError(f"{self.path} holds a finished run without checkpoints. Choose another --output_dir.")
            return
        if not self.config_file.is_file():
            raise ValueError(
                f"{self.path} has checkpoints, but no config.yaml to tell whose; choose another --output_dir."
            )
        changed = changed_settings(yaml.safe_load(self.config_file.read_text()), config)
        if step_of(checkpoint) > config.optimization.num_steps:
            changed.append(f"num_steps ({step_of(checkpoint)} done, now {config.optimization.num_steps})")
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other settings: {', '.join(changed)}. Choose another --output_dir, or "
                "give the same settings to resume it."
            )

    def start(self, config: object, accelerator: Accelerator, first_step: int) -> None:
        """Writes the resolved config and, for each part of a resumed run, what makes it."""
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.config_file, to_yaml(config))
        record = self.path / "run.json"
        parts = json.loads(record.read_text()) if record.is_file() and self.checkpoints.latest() else []
        replace_text(record, json.dumps([*parts, {"first_step": first_step, **provenance(accelerator)}], indent=1))

    def read_losses(self, until_step: int) -> list[dict[str, float]]:
        """The logged rows up to a step."""
        if not self.loss_file.is_file():
            return []
        with self.loss_file.open() as file:
            rows = [{name: _number(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return [row for row in rows if row["step"] <= until_step]

    def write_losses(self, rows: list[dict[str, float]]) -> None:
        """Replaces the logged rows."""
        if not rows:
            return
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))  # an older version wrote fewer
        writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_text(self.loss_file, text.getvalue())


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


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


def provenance(accelerator: Accelerator | PartialState) -> dict:
    """The command, machine, versions and commit that make a result."""
    return {
        "command": shlex.join(sys.argv),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this code; None if it is not run from its own repository."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return None


def changed_settings(saved: dict, config: object) -> list[str]:
    """Differences that make it another run, as texts."""
    changed = []
    depends_on_length = config.optimization.lr_schedule in ("linear", "cosine")
    for section, settings in vars(config).items():
        if section == "run":
            continue
        for name, value in vars(settings).items():
            # A run of an older version lacks newer fields, whose defaults are what it did.
            before = saved.get(section, {}).get(name, getattr(type(settings)(), name))
            is_free = name in FREE_FIELDS and not (name == "num_steps" and depends_on_length)
            if not is_free and before != value:
                changed.append(f"{name} (was {before}, now {value})")
    return changed
