"""Checkpoints of a run: writes them to a temporary path, renames them, finds the newest whole one, removes old ones."""

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file

from demo_diffusion.records.files import MARK
from demo_diffusion.records.hashes import hash_files, is_sealed, sealed
from demo_diffusion.records.reading import read_parsed

from .moving_averages import MovingAverages

NAME = re.compile(r"step-(\d{9})")
MANIFEST = "checkpoint.json"
PARTIAL = f"{MARK}checkpoint.partial"  # the same on all processes, which write into it together


@dataclass
class Progress:
    """What a checkpoint holds beside tensors.

    Attributes:
        step: number of optimizer steps done.
        skipped_steps: how many of them had no effect, because their loss or gradient was not finite.
        skipped_in_a_row: how many of the latest steps were skipped without a break.
        recent_losses: losses of the finite steps since the last logged row.
    """

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)


class Checkpoints:
    """The folders `step-N` in `folder`, of which the newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep
        self._told: set[tuple[Path, str]] = set()  # damages that were warned of
        self._found: dict[Path, str | None] = {}  # damage that this process found by hashing, or by loading

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None without any; skips damaged checkpoints with a warning.

        The files of a checkpoint are hashed once in a process.

        Raises:
            ValueError: if all checkpoints are damaged.
        """
        found = self._all()
        for checkpoint in reversed(found):
            damage = self._damage(checkpoint)
            if damage is None:
                return checkpoint
            if (checkpoint, damage) not in self._told:
                warnings.warn(f"The checkpoint {checkpoint} is passed over: {damage}.", stacklevel=2)
                self._told.add((checkpoint, damage))
        if found:
            raise ValueError(
                f"None of the checkpoints in {self.folder} is whole. Bring back a good copy, or choose another "
                "--output_dir to start anew."
            )
        return None

    def newest_manifest(self) -> dict | None:
        """What the newest checkpoint says that can be read; nothing is hashed. None if there is none."""
        for checkpoint in reversed(self._all()):
            with contextlib.suppress(ValueError):
                return read_manifest(checkpoint)
        return None

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint of a step, whole or not."""
        return self._of(step).is_dir()

    def of_step(self, step: int) -> Path:
        """The checkpoint of a step.

        Raises:
            ValueError: if it was not kept or is damaged.
        """
        checkpoint = self._of(step)
        if checkpoint not in (found := self._all()):
            steps = ", ".join(str(step_of(each)) for each in found) or "none"
            raise ValueError(f"{self.folder} has no checkpoint of step {step}; it has {steps}.")
        if damage := self._damage(checkpoint):
            raise ValueError(f"The checkpoint {checkpoint} is damaged: {damage}.")
        return checkpoint

    def check_sharding(self, accelerator: Accelerator) -> None:
        """Checks that this launch can read the newest checkpoint.

        Raises:
            ValueError: if the checkpoint was divided among processes in another way.
        """
        checkpoint, here = self.latest(), sharding_of(accelerator)
        if checkpoint is not None and (saved := read_manifest(checkpoint)["sharding"]) != here:
            raise ValueError(
                f"{checkpoint} was saved {saved} and cannot be continued {here}. Launch it as it was, or make a "
                "pipeline of it with train/export_pipeline.py."
            )

    def save(
        self, accelerator: Accelerator, averages: MovingAverages, progress: Progress, records: Mapping[str, object]
    ) -> None:
        """Writes everything that a resumed run needs to a temporary path, renames it, then removes old checkpoints.

        Every process must call it.

        Args:
            records: what the run's other files must agree with, for the main process's manifest: "data" and "losses".

        Raises:
            OSError: if it cannot be written. Earlier checkpoints stay whole.
        """
        target = self._of(progress.step)
        partial = target.with_name(target.name + PARTIAL)
        if not self.folder.is_dir():
            raise OSError(f"The folder {self.folder} is gone, so step {progress.step} cannot be saved.")
        try:
            self._write(partial, accelerator, averages, progress, records)
        except Exception as error:  # the writers of tensors raise almost anything when a disk is full
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"The checkpoint of step {progress.step} cannot be written to {self.folder} (is the disk "
                f"full?): {error}. Those before it are whole; the same command continues from them."
            ) from error
        if accelerator.is_main_process:
            if target.exists():  # damaged, or a run that stopped before it went on
                shutil.rmtree(target)
            os.replace(partial, target)
            _flush(self.folder)
            self._remove_old(target)
        self._found[target] = None
        accelerator.wait_for_everyone()

    def load_latest(self, accelerator: Accelerator, averages: MovingAverages) -> Progress | None:
        """Restores the newest checkpoint that can be loaded; None if there is none. Every process must call it.

        Raises:
            ValueError: if none can be loaded.
        """
        while checkpoint := self.latest():
            progress, damage = None, ""
            try:
                progress = self.load(checkpoint, accelerator, averages)
            except Exception as error:  # readers of tensors raise almost anything on damaged ones
                damage = f"it cannot be loaded: {error or type(error).__name__}"
            if not any(gather_object([damage])):
                return progress
            self._found[checkpoint] = damage or "another process cannot load it"
        return None

    def load(self, checkpoint: Path, accelerator: Accelerator, averages: MovingAverages) -> Progress:
        """Restores a checkpoint, on any number of processes.

        accelerate reads the optimizer's file with `torch.load(weights_only=True)`; weights are safetensors.
        """
        accelerator.load_state(str(checkpoint))
        for decay in averages.decays:
            averages.load(decay, load_file(checkpoint / average_file(decay)))
        return progress_of(checkpoint)

    def _of(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if NAME.fullmatch(path.name))

    def _damage(self, checkpoint: Path) -> str | None:
        if damage := find_damage(checkpoint):
            return damage
        if checkpoint not in self._found:
            self._found[checkpoint] = find_changed_file(checkpoint)
        return self._found[checkpoint]

    def _write(
        self,
        partial: Path,
        accelerator: Accelerator,
        averages: MovingAverages,
        progress: Progress,
        records: Mapping[str, object],
    ) -> None:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(partial)
        for decay in averages.decays:
            state = averages.full_state(decay)
            if accelerator.is_main_process:
                save_file({name: value.contiguous() for name, value in state.items()}, partial / average_file(decay))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
            sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
            manifest = {"progress": asdict(progress), "sharding": sharding_of(accelerator), "bytes": sizes}
            manifest |= {"sha256": hash_files(partial, sizes), **records}
            (partial / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1))
            for path in [*files, partial / MANIFEST, partial]:
                _flush(path)

    def _remove_old(self, newest: Path) -> None:
        """Removes unfinished folders, damaged checkpoints of later steps, and all others but the newest `keep`."""
        for partial in self.folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(partial)
        before = [path for path in self._all() if path < newest]
        later = [path for path in self._all() if path > newest]
        for old in [*before[: max(0, len(before) - (self.keep - 1))], *later]:
            shutil.rmtree(old)


def average_file(decay: float) -> str:
    """File name of a moving average in a checkpoint."""
    return f"ema_{decay}.safetensors"


def read_manifest(checkpoint: Path) -> dict:
    """What `checkpoint.json` holds: "progress", "sharding", "bytes"; of newer versions "sha256", "data" and "losses".

    Raises:
        ValueError: if it cannot be read or is not as it was written.
    """
    return read_parsed(checkpoint / MANIFEST, lambda text: _checked_manifest(json.loads(text), checkpoint), "")


def _checked_manifest(manifest: dict, checkpoint: Path) -> dict:
    if is_sealed(manifest) is False:
        raise ValueError("its hash is not that of its content")
    progress = Progress(**manifest["progress"])
    if progress.step != step_of(checkpoint):
        raise ValueError(f"it is of step {progress.step}")
    entries = {"sharding": str, "bytes": dict, "sha256": dict, "data": dict, "losses": str}
    if any(not isinstance(manifest.get(name, kind()), kind) for name, kind in entries.items()):
        raise ValueError(f"{', '.join(entries)} are not what they should be")
    if not isinstance(progress.recent_losses, list) or not all(
        type(size) is int for size in manifest["bytes"].values()
    ):
        raise ValueError("its numbers are not what they should be")
    if not manifest["bytes"] or manifest["bytes"].keys() != manifest.get("sha256", manifest["bytes"]).keys():
        raise ValueError("it does not list all files")
    return manifest


def progress_of(checkpoint: Path) -> Progress:
    """Raises ValueError as `read_manifest` does."""
    return Progress(**read_manifest(checkpoint)["progress"])


def sharding_of(accelerator: Accelerator) -> str:
    """How weights and optimizer are divided among processes; checkpoints of one kind do not load as another."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"by DeepSpeed on {accelerator.num_processes} processes"
    return "by FSDP" if accelerator.distributed_type == DistributedType.FSDP else "whole"


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest and the sizes of its files, as a text; None if nothing."""
    try:
        sizes = read_manifest(checkpoint)["bytes"]
    except ValueError as error:
        return str(error)
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def find_changed_file(checkpoint: Path) -> str | None:
    """The same by the hashes of its files, if it has any: those of older versions do not."""
    saved = read_manifest(checkpoint).get("sha256", {})
    try:
        found = hash_files(checkpoint, saved)
    except OSError as error:
        return f"a file cannot be read ({error})"
    changed = [name for name, value in saved.items() if found[name] != value]
    return f"{', '.join(changed)} changed since it was written" if changed else None


def step_of(checkpoint: Path) -> int:
    return int(NAME.fullmatch(checkpoint.name).group(1))


def _flush(path: Path) -> None:
    """Forces a file or folder to the disk, so that a loss of power cannot undo it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
