"""The folder of a run: which settings it belongs to, and its files."""

import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain, count
from pathlib import Path

import yaml
from accelerate import Accelerator

from demo_diffusion.cli.config_file import to_yaml
from demo_diffusion.data.facts import changed_data, checked_facts
from demo_diffusion.data.listing import ClassOrder, known_order, natural_order, text_order
from demo_diffusion.records.files import check_output_folder, remove_leftovers, write_json, write_text
from demo_diffusion.records.provenance import provenance
from demo_diffusion.records.reading import read_parsed
from demo_diffusion.records.run_records import LOSS_FILE, SCORES, read_losses, read_scores, rows_hash

from .checkpoints import Checkpoints, read_manifest, step_of

# A resumed run may change these fields; num_steps only if the learning rate does not depend on it.
FREE_FIELDS = {
    "num_steps",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "compile",
    "num_workers",
    "max_skipped_steps",
}
RECORD_FILE, DATA_FILE = "run.json", "data.json"
LOGS = {LOSS_FILE: "losses", **{f"{kind}.csv": kind for kind in SCORES}}  # file -> where a checkpoint has its hash
DAMAGED = ".damaged"  # ends the name of a record that was damaged
PICTURES = ("samples.png", "loss.png", "accuracy.png", "detections.png", "overlays.png")
OWN_FILES = ("config.yaml", RECORD_FILE, DATA_FILE, *LOGS, "results.json", "nearest_neighbor.json", *PICTURES)
RESULTS = ("pipeline", "model")  # a finished run leaves one of them: a diffusers pipeline, or any other model


class RunFolder:
    """Files of one run in `path`: config.yaml, run.json, data.json, checkpoints/ and its result."""

    def __init__(self, path: str | Path, keep_checkpoints: int = 2):
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep_checkpoints)
        self.config_file = self.path / "config.yaml"
        self._data_facts: dict = {}

    def check(self, config: object) -> None:
        """Checks that this run may start or continue in the folder.

        Raises:
            ValueError: if the folder cannot be written, or holds a run that this one cannot continue.
        """
        check_output_folder(self.path)
        for name in (self.config_file.name, RECORD_FILE, *LOGS):
            if (self.path / name).is_dir():
                raise ValueError(f"{self.path / name} is a folder; it must be a file of this run. Move it away.")
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            if any((self.path / result).exists() for result in RESULTS):
                raise ValueError(f"{self.path} holds a finished run without checkpoints. Choose another --output_dir.")
            self._check_own_files()
            return
        if not self.config_file.is_file():
            raise ValueError(
                f"{self.path} has checkpoints, but no config.yaml to tell whose; choose another --output_dir."
            )
        changed = changed_settings(self._read_config(), config)
        if step_of(checkpoint) > config.optimization.num_steps:
            changed.append(f"num_steps ({step_of(checkpoint)} done, now {config.optimization.num_steps})")
        if changed:
            raise ValueError(
                f"{self.path} holds a run with other settings: {', '.join(changed)}. Choose another --output_dir, or "
                "give the same settings to resume it."
            )

    def _check_own_files(self) -> None:
        """Raises ValueError if files that this run would replace were written by no run: those of a user."""
        try:
            is_run = {"optimization", "run"} <= self._read_config().keys()  # a run's first file
        except ValueError:
            is_run = False
        if not is_run and (there := [name for name in OWN_FILES if _is(self.path / name)]):
            raise ValueError(
                f"{self.path} has {', '.join(there)}, which no run wrote and this one would replace. Choose another "
                "--output_dir."
            )

    def class_order(self) -> ClassOrder:
        """How this run numbers classes that have only names: a run that goes on keeps the order that it began with."""
        if self.checkpoints.newest_manifest() is None:
            return natural_order
        saved = self._begun_with()
        return text_order if saved is None else known_order(saved["id2label"])

    def check_data(self, facts: dict) -> None:
        """Checks that a run in the folder, if there is one, was begun with the same data; `start` writes the facts.

        Args:
            facts: by `describe_images`; empty: the data are not recognised.

        Raises:
            ValueError: if they were others.
        """
        self._data_facts = facts
        saved = self._begun_with() if facts else None
        if saved is not None and (changed := changed_data(saved, facts)):
            raise ValueError(
                f"{self.path} holds a run on other data: now there are {'; '.join(changed)}. Bring the data back as "
                "they were, or choose another --output_dir."
            )

    def start(self, config: object, accelerator: Accelerator, first_step: int) -> None:
        """Writes the resolved config, and adds command, machine and versions of this part of the run to run.json."""
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_text(self.config_file, to_yaml(config))
        if self._data_facts:
            write_json(self.path / DATA_FILE, self._data_facts)
        for file in LOGS:
            self._begin_anew(file, partial(self._check_rows, file, first_step))
        self._begin_anew(RECORD_FILE, partial(read_parts, self.path))
        parts = read_parts(self.path) if first_step else []
        write_json(self.path / RECORD_FILE, [*parts, {"first_step": first_step, **provenance(accelerator)}])

    def records(self, step: int) -> dict[str, object]:
        """What a checkpoint of a step remembers of the other files, so that a change of them is seen."""
        rows = {name: self._rows(file, step) for file, name in LOGS.items()}
        return {"data": self._data_facts, **{name: rows_hash(logged) for name, logged in rows.items() if logged}}

    def _rows(self, file: str, step: int) -> list[dict[str, float]]:
        """What was logged before the checkpoint of a step, whose own scores are measured after it is saved.

        Raises:
            ValueError: if the file is damaged, anywhere.
        """
        if file == LOSS_FILE:
            return read_losses(self.path, step)
        return [row for row in read_scores(self.path, LOGS[file]) if row["step"] < step]

    def _begun_with(self) -> dict | None:
        """The data of the run in the folder, as `describe_images`; None if there is no run, or nothing says so."""
        if (manifest := self.checkpoints.newest_manifest()) is None:
            return None
        facts = manifest.get("data")
        if facts is None and (file := self.path / DATA_FILE).exists():  # of versions whose checkpoints lack it
            remedy = "Bring back a good copy, or choose another --output_dir to start anew."
            facts = read_parsed(file, lambda text: checked_facts(json.loads(text)), remedy)
        return facts or None

    def _check_rows(self, file: str, step: int) -> None:
        """Raises ValueError unless the rows before a step are those that its checkpoint was saved with."""
        if not (rows := self._rows(file, step)):
            return
        checkpoint = self.checkpoints.latest() if step else None
        saved = read_manifest(checkpoint).get(LOGS[file]) if checkpoint is not None else None
        if saved not in (None, rows_hash(rows)):
            raise ValueError(f"{self.path / file} changed since the checkpoint of step {step} was saved.")

    def _read_config(self) -> dict[str, dict]:
        remedy = "Bring back a good copy, or choose another --output_dir to start anew."
        return read_parsed(self.config_file, _checked_sections, remedy)

    def _begin_anew(self, name: str, read: Callable[[], object]) -> None:
        """Moves a record away that is damaged: a run goes on without what was logged before."""
        try:
            read()
        except ValueError as error:
            names = chain([f"{name}{DAMAGED}"], (f"{name}{DAMAGED}.{number}" for number in count(2)))
            kept = next(self.path / each for each in names if not _is(self.path / each))
            os.replace(self.path / name, kept)
            warnings.warn(f"{error} It begins anew; the damaged one is {kept.name} now.", stacklevel=2)


def _is(path: Path) -> bool:
    """Whether there is something at a path, if only a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def read_parts(run: Path) -> list[dict]:
    """What made the parts of a run, in their order; empty if there is no run.json.

    Raises:
        ValueError: if it is damaged.
    """
    file = run / RECORD_FILE
    return read_parsed(file, _checked_parts, "") if _is(file) else []


def _checked_parts(text: str) -> list[dict]:
    parts = json.loads(text)
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "first_step" in part for part in parts):
        raise ValueError("it does not list parts of a run")
    return parts


def _checked_sections(text: str) -> dict[str, dict]:
    sections = yaml.safe_load(text)
    if not isinstance(sections, dict) or not sections or not all(isinstance(s, dict) for s in sections.values()):
        raise ValueError("it does not hold the sections of a config")
    return sections


def changed_settings(saved: dict, config: object) -> list[str]:
    """The differences that make `config` another run than the saved one, as texts."""
    changed = []
    depends_on_length = config.optimization.lr_schedule in ("linear", "cosine", "flat_cosine")
    for section, settings in vars(config).items():
        if section == "run":
            continue
        for name, value in vars(settings).items():
            # A run of an older version lacks newer fields; their defaults are what it did.
            before = saved.get(section, {}).get(name, getattr(type(settings)(), name))
            is_free = name in FREE_FIELDS and not (name == "num_steps" and depends_on_length)
            if not is_free and before != value:
                changed.append(f"{name} (was {before}, now {value})")
    return changed
