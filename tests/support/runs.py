"""A training of seconds, and what it leaves."""

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from demo_diffusion.train.engine.checkpoints import MANIFEST, Checkpoints
from demo_diffusion.train.train_demo import main

ROOT = Path(__file__).parents[2]
SMALL = {
    "config": ROOT / "configs/diffusion/digits/demo.yaml",
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_steps": 8,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "warmup_steps": 0,
    "log_every": 2,
    "checkpoint_every": 3,
    "sample_every": 4,
    "num_inference_steps": 2,
    "grid_columns": 2,
    "knn_samples": 0,
}


def words_of(options: dict[str, object]) -> list[str]:
    """Options of a command as words; a list is one option with several values."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def arguments(output_dir, **options) -> list[str]:
    return words_of({**SMALL, "output_dir": output_dir, **options})


def train(output_dir, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(output_dir, **options))
    return Path(output_dir)


def first_steps_of(run: Path) -> list[int]:
    """Where each part of a resumed run began."""
    return [part["first_step"] for part in json.loads((run / "run.json").read_text())]


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Weights and moving averages of the newest checkpoint."""
    checkpoint = Checkpoints(run / "checkpoints").latest()
    files = [checkpoint / "model.safetensors", *sorted(checkpoint.glob("ema_*.safetensors"))]
    return {f"{file.stem}.{name}": value for file in files for name, value in load_file(file).items()}


def forget_hashes(checkpoint: Path) -> None:
    """Makes a checkpoint one of an older version, whose files have sizes alone."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    older = {name: manifest[name] for name in ("progress", "sharding", "bytes")}
    (checkpoint / MANIFEST).write_text(json.dumps(older, indent=1))
