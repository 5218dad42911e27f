"""The folder of a run: which settings it belongs to, and its files."""

import json
from pathlib import Path

import yaml
from accelerate import Accelerator

from demo_diffusion.cli.config_file import to_yaml
from demo_diffusion.records.files import check_output_folder, remove_leftovers, write_json, write_text
from demo_diffusion.records.provenance import provenance

from .checkpoints import Checkpoints, step_of

# A resumed run may change these fields; num_steps only if the learning rate does not depend on it.
FREE_FIELDS = {
    "num_steps",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "compile",
    "num_workers",
    "max_skipped_steps",
}
RESULTS = ("pipeline", "model")  # a finished run leaves one of them: a diffusers pipeline, or any other model


class RunFolder:
    """Files of one run in `path`: config.yaml, run.json, checkpoints/ and its result."""

    def __init__(self, path: str | Path, keep_checkpoints: int = 2):
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep_checkpoints)
        self.config_file = self.path / "config.yaml"

    def check(self, config: object) -> None:
        """Checks that this run may start or continue in the folder.

        Raises:
            ValueError: if the folder cannot be written, or holds a run that this one cannot continue.
        """
        check_output_folder(self.path)
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
        """Writes the resolved config, and adds command, machine and versions of this part of the run to run.json."""
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        write_text(self.config_file, to_yaml(config))
        record = self.path / "run.json"
        parts = json.loads(record.read_text()) if record.is_file() and self.checkpoints.latest() else []
        write_json(record, [*parts, {"first_step": first_step, **provenance(accelerator)}])


def changed_settings(saved: dict, config: object) -> list[str]:
    """The differences that make `config` another run than the saved one, as texts."""
    changed = []
    depends_on_length = config.optimization.lr_schedule in ("linear", "cosine")
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
