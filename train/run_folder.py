"""The folder of a run: its records and its checkpoints."""

import csv
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml
from accelerate import Accelerator, PartialState
from safetensors.torch import load_model, save_model
from torch import nn

from demo_diffusion.train.configuration import TrainingConfig

# Fields that may change between the parts of one run; num_steps only where the learning rate does not depend on it.
FREE_FIELDS = {"num_steps", "gradient_accumulation_steps", "gradient_checkpointing", "compile", "num_workers"}
CHECKPOINT_NAME = re.compile(r"step-(\d{9})")
PACKAGES = ("torch", "diffusers", "accelerate", "transformers", "datasets", "safetensors")


class RunFolder:
    """Files of one run under `path`: config.yaml, run.json, loss.csv, checkpoints/, samples/, pipeline/."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.pipeline = self.path / "pipeline"
        self.loss_file = self.path / "loss.csv"
        self.config_file = self.path / "config.yaml"

    def check(self, config: TrainingConfig) -> None:
        """Raises a ValueError if the folder cannot be written or holds a run that this one cannot continue."""
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ValueError(f"{self.path} cannot be written: {existing} is not a folder that may be written to.")
        checkpoint = self.latest_checkpoint()
        if checkpoint is None:
            if self.pipeline.exists():
                raise ValueError(f"{self.path} holds a finished run without checkpoints. Choose another --output_dir.")
            return
        changed = []
        if self.config_file.is_file():
            changed = changed_settings(yaml.safe_load(self.config_file.read_text()), config)
        if step_of(checkpoint) > config.optimization.num_steps:
            changed.append(f"num_steps ({step_of(checkpoint)} done, now {config.optimization.num_steps})")
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other settings: {', '.join(changed)}. Choose another --output_dir, or "
                "give the same settings to resume it."
            )

    def start(self, config: TrainingConfig, accelerator: Accelerator, first_step: int) -> None:
        """Writes the resolved config and, for each part of a resumed run, what makes it."""
        self.samples.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        replace_text(self.config_file, config.to_yaml())
        record = self.path / "run.json"
        parts = json.loads(record.read_text()) if record.is_file() and self.latest_checkpoint() else []
        replace_text(record, json.dumps([*parts, {"first_step": first_step, **provenance(accelerator)}], indent=1))

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = [path for path in self.checkpoints.glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name)]
        return max(found, default=None)

    def save_checkpoint(self, accelerator: Accelerator, ema: nn.Module, step: int) -> None:
        """Writes everything that a resumed run needs, then gives it its name, then removes the one before.

        Every process must call it.
        """
        target = self.checkpoints / f"step-{step:09d}"
        partial = target.with_suffix(".partial")
        accelerator.save_state(partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_model(ema, str(partial / "ema.safetensors"))
            os.replace(partial, target)
            for old in self.checkpoints.glob("step-*"):
                if old != target and CHECKPOINT_NAME.fullmatch(old.name.removesuffix(".partial")):
                    shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load_checkpoint(self, accelerator: Accelerator, ema: nn.Module) -> int:
        """Restores the newest checkpoint and returns its step; 0 if there is none.

        accelerate reads the optimizer's file with `torch.load(weights_only=True)`; weights are safetensors.
        """
        checkpoint = self.latest_checkpoint()
        if checkpoint is None:
            return 0
        accelerator.load_state(str(checkpoint))
        load_model(ema, checkpoint / "ema.safetensors")
        return step_of(checkpoint)

    def read_losses(self, until_step: int) -> list[dict[str, float]]:
        """The logged rows up to a step."""
        if not self.loss_file.is_file():
            return []
        with self.loss_file.open() as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in rows if row["step"] <= until_step]

    def write_losses(self, rows: list[dict[str, float]]) -> None:
        """Replaces the logged rows."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_text(self.loss_file, text.getvalue())


def step_of(checkpoint: Path) -> int:
    return int(CHECKPOINT_NAME.fullmatch(checkpoint.name).group(1))


def replace_text(path: Path, text: str) -> None:
    """Writes a whole file or, if it is interrupted, nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
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


def changed_settings(saved: dict, config: TrainingConfig) -> list[str]:
    """Differences that make it another run, as texts."""
    changed = []
    depends_on_length = config.optimization.lr_schedule in ("linear", "cosine")
    for section in ("model", "data", "objective", "optimization"):
        settings = getattr(config, section)
        for name, value in vars(settings).items():
            # A run of an older version lacks newer fields, whose defaults are what it did.
            before = saved.get(section, {}).get(name, getattr(type(settings)(), name))
            is_free = name in FREE_FIELDS and not (name == "num_steps" and depends_on_length)
            if not is_free and before != value:
                changed.append(f"{name} (was {before}, now {value})")
    return changed
