"""Kills trainings and latent caches at random moments: `python -m tests.kill_proof FOLDER`.

Twenty times a command gets SIGKILL during a step, while it writes a checkpoint or while it writes latents, on one and
on two processes; then the plain command is run to its end. Weights, moving averages, optimizer, schedule, losses, the
pipeline's network and the latents must equal the uninterrupted command's bit by bit. Every fourth one is killed twice.
"""

import argparse
import csv
import random
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from demo_diffusion.train.engine.checkpoints import Checkpoints, step_of
from tests.support.images import image_folder
from tests.support.pipelines import tiny_vae
from tests.support.runs import ROOT, arguments, first_steps_of, state_of

# Epochs of 1,797 images end within steps 3, 6, 9 and 12; a step and a checkpoint take some hundredths of a second.
TRAINING = {
    "batch_size": 600, "gradient_accumulation_steps": 2, "num_steps": 12, "checkpoint_every": 2, "log_every": 5,
    "more_ema_decays": 0.5, "sample_every": 0,
}  # fmt: skip
KILLS = {1: {"step": 5, "checkpoint": 5, "latents": 2}, 2: {"step": 3, "checkpoint": 3, "latents": 2}}  # by processes
LONGEST_DELAY = {"step": 0.3, "checkpoint": 0.12, "latents": 0.02}  # seconds, about what each place takes
PLACES_PASSED = {"step": 12, "checkpoint": 6, "latents": 6}


class Subject:
    """A program on some processes, with its uninterrupted result."""

    def __init__(self, program: str, processes: int, folder: Path):
        self.program, self.processes = program, processes
        self.folder = folder / f"{program}_{processes}"
        self.expected = self.folder / "uninterrupted"
        if self.run(self.expected) != 0:
            raise SystemExit(f"{program} does not run.")

    def run(self, out: Path, *kill: object) -> int:
        """Exit status of the command, plain or with its kill point."""
        script = (
            ["tests/workers/kill_worker.py", *map(str, kill), self.program] if kill else [f"train/{self.program}.py"]
        )
        launcher = [] if self.processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, *launcher, str(ROOT / script[0]), *script[1:], *self.options(out)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode

    def options(self, out: Path) -> list[str]:
        if self.program == "train_demo":
            return arguments(out, **TRAINING)
        data = {"dataset": self.folder.parent / "images", "vae": self.folder.parent / "vae", "out": out}
        options = {**data, "resolution": 16, "shard_size": 2, "batch_size": 2, "num_workers": 0}
        return [f"--{name}={value}" for name, value in options.items()]

    def result(self, out: Path) -> dict[str, object]:
        """Everything that must be equal, by name."""
        if self.program == "cache_latents":
            return {path.name: path.read_bytes() for path in sorted(out.glob("shards/*"))}
        checkpoint = Checkpoints(out / "checkpoints").latest()
        optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
        moments = {f"{i}.{name}": value for i, state in optimizer["state"].items() for name, value in state.items()}
        schedule = torch.load(checkpoint / "scheduler.bin", weights_only=True)
        losses = [(row["step"], row["loss"], row["skipped_steps"]) for row in csv.DictReader((out / "loss.csv").open())]
        network = load_file(out / "pipeline/transformer/diffusion_pytorch_model.safetensors")
        return {**state_of(out), **moments, **network, "schedule": schedule, "losses": losses}

    def difference(self, out: Path) -> str | None:
        """The first thing that differs from the uninterrupted result."""
        expected, actual = self.result(self.expected), self.result(out)
        if expected.keys() != actual.keys():
            return f"names {sorted(expected.keys() ^ actual.keys())[:3]}"
        return next((name for name in expected if not same(expected[name], actual[name])), None)


def same(first: object, second: object) -> bool:
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def kill(subject: Subject, out: Path, place: str, rng: random.Random) -> str | None:
    """Starts the command and kills it at a random point; returns the point in words, None if it ended before."""
    rank, count = rng.randrange(subject.processes), rng.randint(1, PLACES_PASSED[place] // subject.processes)
    delay = rng.uniform(0, LONGEST_DELAY[place])
    killed = subject.run(out, place, count, f"{delay:.4f}", rank) != 0
    return f"{place} {count} + {delay * 1000:.0f} ms on rank {rank}" if killed else None


def kill_and_continue(subject: Subject, place: str, number: int, rng: random.Random) -> str:
    out, points = subject.folder / f"kill_{number}_{place}", [None]
    while None in points:  # a command that ended before its point proves nothing: begin anew, at other points
        shutil.rmtree(out, ignore_errors=True)
        points = [kill(subject, out, place, rng) for _ in range(2 if number % 4 == 0 else 1)]
    left = Checkpoints(out / "checkpoints").latest()
    if subject.run(out) != 0:
        return f"FAILED: {points}: does not continue"
    difference = subject.difference(out)
    verdict = "equal" if difference is None else f"FAILED: {difference} differs"
    went_on = ""
    if subject.program == "train_demo":
        expected, first = 0 if left is None else step_of(left), first_steps_of(out)[-1]
        went_on = f", went on from step {first}"
        verdict = verdict if first == expected else f"FAILED: step {expected} was there{went_on}"
    shutil.rmtree(out)
    return f"{verdict}: {subject.program} on {subject.processes}, killed at {', '.join(points)}{went_on}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--seed", type=int, default=0, help="of the kill points")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    image_folder(options.folder / "images", images_per_class=6)
    tiny_vae().save_pretrained(options.folder / "vae")
    number, failed = 0, 0
    for processes, kills in KILLS.items():
        training, caching = (Subject(name, processes, options.folder) for name in ("train_demo", "cache_latents"))
        for place, subject in (("step", training), ("checkpoint", training), ("latents", caching)):
            for _ in range(kills[place]):
                number += 1
                verdict = kill_and_continue(subject, place, number, rng)
                failed += verdict.startswith("FAILED")
                print(f"{number}: {verdict}", flush=True)
    sys.exit(f"{failed} of {number} differ." if failed else 0)


if __name__ == "__main__":
    main()
