"""Kills every command that writes at random moments; the same command then gives what an uninterrupted one does.

`python -m pytest -m proof -s tests/proofs/test_kills_of_commands.py`. Commands run in copies of this process.
"""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from demo_diffusion.records import folder_lock
from demo_diffusion.records.hashes import file_hash
from tests.support.commands import COMMANDS, make_ground
from tests.support.processes import Child

pytestmark = pytest.mark.forks
KILLS = 5  # of each command
RESULTS = (".safetensors", ".bin", ".pt", ".npz", ".png")


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


def content_of(out: Path) -> dict[str, str]:
    """Hashes of the files whose bytes a command determines: no times, no speeds."""
    files = [path for path in out.rglob("*") if path.suffix in RESULTS and "tensorboard" not in path.parts]
    return {str(path.relative_to(out)): file_hash(path) for path in sorted(files)}


def new_folder(out: Path, name: str) -> Path:
    if not COMMANDS[name].makes_folder:
        out.mkdir(parents=True)
    return out


def run(name: str, ground: Path, out: Path, kill_after: float | None = None) -> tuple[int, str]:
    """Status and output of a command; killed after so many seconds if it has not ended by then."""
    child = Child(lambda: COMMANDS[name].main(COMMANDS[name].arguments(ground, out, 0)))
    if kill_after is not None:
        threading.Timer(kill_after, kill, [child.pid]).start()
    return child.wait()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended before
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.proof) for name in COMMANDS])
def test_a_killed_command_begun_again_gives_the_same(name, ground, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "GRACE_SECONDS", 0)
    chance, kills, whole = random.Random(name), 0, new_folder(tmp_path / "whole/out", name)
    started = time.monotonic()
    assert run(name, ground, whole)[0] == 0
    duration, expected = time.monotonic() - started, content_of(whole)
    for number in range(20 * KILLS):
        out = new_folder(tmp_path / f"{number}/out", name)
        if run(name, ground, out, chance.uniform(0, duration))[0] != -signal.SIGKILL:
            continue
        kills += 1
        status, output = run(name, ground, out)
        assert status == 0, output
        if not name.startswith("train_"):  # a training that goes on has more parts than that check allows
            COMMANDS[name].check(out, 0)
        assert content_of(out) == expected
        assert [path for path in out.parent.rglob("*") if ".lock" in path.name or ".partial" in path.name] == []
        if kills == KILLS:
            break
    print(f"{name}: {kills} kills, 0 differences")
    assert kills == KILLS
