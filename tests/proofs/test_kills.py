"""Kills trainings and latent caches at random moments, and compares what the same command then makes of them.

`pytest -m proof -s tests/proofs/test_kills.py` (12 minutes on two cores): twenty times a command gets SIGKILL during a
step, while it writes a checkpoint or while it writes latents, on one and on two processes; then the plain command runs
to its end. Weights, moving averages, optimizer, schedule, losses, the pipeline's network and the latents must equal the
uninterrupted command's bit by bit. Every fourth command is killed twice. The tests without the marker hold what the
proof needs.
"""

import csv
import inspect
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo_diffusion.train.engine.checkpoints import Checkpoints, step_of
from tests.support.images import image_folder
from tests.support.pipelines import tiny_vae
from tests.support.runs import ROOT, arguments, first_steps_of, state_of, train
from tests.workers.kill_worker import PLACES

# Epochs of 1,797 images end within steps 3, 6, 9 and 12; a step and a checkpoint take some hundredths of a second.
TRAINING = {
    "batch_size": 600, "gradient_accumulation_steps": 2, "num_steps": 12, "checkpoint_every": 2, "log_every": 5,
    "more_ema_decays": 0.5, "sample_every": 0,
}  # fmt: skip
SEED = 0  # of the kill points
KILLS = {1: {"step": 5, "checkpoint": 5, "latents": 2}, 2: {"step": 3, "checkpoint": 3, "latents": 2}}  # by processes
LONGEST_DELAY = {"step": 0.3, "checkpoint": 0.12, "latents": 0.02}  # seconds, about what each place takes
PLACES_PASSED = {"step": 12, "checkpoint": 6, "latents": 6}


class Subject:
    """A program on some processes, with its uninterrupted result."""

    def __init__(self, program: str, processes: int, folder: Path):
        self.program, self.processes = program, processes
        self.folder = folder / f"{program}_{processes}"
        self.expected = self.folder / "uninterrupted"
        assert self.run(self.expected).returncode == 0, f"{program} does not run."

    def run(self, out: Path, *kill: object) -> subprocess.CompletedProcess:
        """Runs the command to its end, plain or with its kill point."""
        script = (
            ["tests/workers/kill_worker.py", *map(str, kill), self.program] if kill else [f"train/{self.program}.py"]
        )
        launcher = [] if self.processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, *launcher, str(ROOT / script[0]), *script[1:], *self.options(out)]
        return subprocess.run(command, capture_output=True, text=True)

    def options(self, out: Path) -> list[str]:
        if self.program == "train_demo":
            return arguments(out, **TRAINING)
        data = {"dataset": self.folder.parent / "images", "vae": self.folder.parent / "vae", "out": out}
        options = {**data, "resolution": 16, "shard_size": 2, "batch_size": 2, "num_workers": 0}
        return [f"--{name}={value}" for name, value in options.items()]


def result_of(program: str, out: Path) -> dict[str, object]:
    """Everything that must be equal, by name."""
    if program == "cache_latents":
        return {path.name: path.read_bytes() for path in sorted(out.glob("shards/*"))}
    checkpoint = Checkpoints(out / "checkpoints").latest()
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    moments = {f"{i}.{name}": value for i, state in optimizer["state"].items() for name, value in state.items()}
    schedule = torch.load(checkpoint / "scheduler.bin", weights_only=True)
    losses = [(row["step"], row["loss"], row["skipped_steps"]) for row in csv.DictReader((out / "loss.csv").open())]
    network = load_file(out / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    return {**state_of(out), **moments, **network, "schedule": schedule, "losses": losses}


def difference(program: str, out: Path, uninterrupted: Path) -> str | None:
    """The first thing that differs from the uninterrupted result."""
    expected, actual = result_of(program, uninterrupted), result_of(program, out)
    if expected.keys() != actual.keys():
        return f"names {sorted(expected.keys() ^ actual.keys())[:3]}"
    return next((name for name in expected if not same(expected[name], actual[name])), None)


def same(first: object, second: object) -> bool:
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def was_killed(done: subprocess.CompletedProcess) -> bool:
    """Whether SIGKILL ended it; False if it came to its end.

    Raises:
        AssertionError: if it failed in another way, because then nothing was proven.
    """
    by_signal = done.returncode == -signal.SIGKILL or "SIGKILL" in done.stderr  # of a process, or in torchrun's report
    assert by_signal or done.returncode == 0, done.stderr
    return by_signal


def kill(subject: Subject, out: Path, place: str, rng: random.Random) -> str | None:
    """Starts the command and kills it at a random point; returns the point in words, None if it ended before."""
    rank, count = rng.randrange(subject.processes), rng.randint(1, PLACES_PASSED[place] // subject.processes)
    delay = rng.uniform(0, LONGEST_DELAY[place])
    killed = was_killed(subject.run(out, place, count, f"{delay:.4f}", rank))
    return f"{place} {count} + {delay * 1000:.0f} ms on rank {rank}" if killed else None


def kill_and_continue(subject: Subject, place: str, number: int, rng: random.Random) -> str:
    """The verdict, in words: "equal: …" or "FAILED: …"."""
    out, points = subject.folder / f"kill_{number}_{place}", [None]
    while None in points:  # a command that ended before its point proves nothing: begin anew, at other points
        shutil.rmtree(out, ignore_errors=True)
        points = [kill(subject, out, place, rng) for _ in range(2 if number % 4 == 0 else 1)]
    left = Checkpoints(out / "checkpoints").latest()
    if subject.run(out).returncode != 0:
        return f"FAILED: {points}: does not continue"
    different = difference(subject.program, out, subject.expected)
    verdict = "equal" if different is None else f"FAILED: {different} differs"
    went_on = ""
    if subject.program == "train_demo":
        expected, first = 0 if left is None else step_of(left), first_steps_of(out)[-1]
        went_on = f", went on from step {first}"
        verdict = verdict if first == expected else f"FAILED: step {expected} was there{went_on}"
    shutil.rmtree(out)
    return f"{verdict}: {subject.program} on {subject.processes}, killed at {', '.join(points)}{went_on}"


@pytest.fixture
def folder(tmp_path) -> Path:
    image_folder(tmp_path / "images", images_per_class=6)
    tiny_vae().save_pretrained(tmp_path / "vae")
    return tmp_path


@pytest.mark.proof
def test_twenty_kills(folder):
    rng, verdicts = random.Random(SEED), []
    for processes, kills in KILLS.items():
        training, caching = (Subject(name, processes, folder) for name in ("train_demo", "cache_latents"))
        for place, subject in (("step", training), ("checkpoint", training), ("latents", caching)):
            for _ in range(kills[place]):
                verdicts.append(kill_and_continue(subject, place, len(verdicts) + 1, rng))
                print(f"{len(verdicts)}: {verdicts[-1]}", flush=True)
    assert len(verdicts) == 20
    assert [verdict for verdict in verdicts if verdict.startswith("FAILED")] == []


def test_every_place_is_there():
    assert PLACES.keys() == LONGEST_DELAY.keys() == PLACES_PASSED.keys() == KILLS[1].keys()
    assert all(inspect.isfunction(getattr(owner, name)) for owner, name in PLACES.values())


def test_one_kill(tmp_path):
    """The third step's beginning, on one process; the uninterrupted training and the plain command run in this one."""
    options = {"checkpoint_every": 1, "sample_every": 0, "num_steps": 4}
    whole, out = train(tmp_path / "whole", **options), tmp_path / "killed"
    command = [sys.executable, str(ROOT / "tests/workers/kill_worker.py"), "step", "3", "0", "0", "train_demo"]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # as many as here, for equal bits
    killed = subprocess.run([*command, *arguments(out, **options)], capture_output=True, text=True, env=threads)
    assert was_killed(killed)
    assert step_of(Checkpoints(out / "checkpoints").latest()) == 2 and not (out / "pipeline").exists()
    train(out, **options)
    assert first_steps_of(out) == [0, 2]
    assert difference("train_demo", out, whole) is None
    other = train(tmp_path / "other", **options, seed=1)
    assert difference("train_demo", other, whole) is not None


def test_a_program_that_fails_is_not_called_killed():
    with pytest.raises(AssertionError, match="no such place"):
        was_killed(subprocess.CompletedProcess([], 1, "", "no such place"))
    assert not was_killed(subprocess.CompletedProcess([], 0, "", ""))
