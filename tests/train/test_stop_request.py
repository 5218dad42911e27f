"""A training stops and saves when it gets SIGTERM, and when its launcher is gone; in no other case."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from demo_diffusion import _start
from demo_diffusion.train.engine.checkpoints import Checkpoints, step_of
from demo_diffusion.train.engine.stop_request import LAUNCHER_VARIABLES, StopRequest
from tests.support.processes import Child
from tests.support.runs import ROOT, arguments, first_steps_of, train

pytestmark = pytest.mark.forks

# What a process was started with -> whether a launcher started it.
ENVIRONMENTS = {
    "accelerate": ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "true"}, True),
    "torchrun": ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, True),
    "shell": ({}, False),
    "srun": ({"SLURM_PROCID": "0", "RANK": "0"}, False),
}
ENDLESS = {"num_steps": 100_000, "checkpoint_every": 100_000, "sample_every": 0, "log_every": 1}


def launch(run, monkeypatch, environment: dict[str, str], session: bool = False) -> Child:
    """A launcher that has started `run` and waits; the child's output is of both."""

    def launcher() -> None:
        if os.fork():
            for number in (signal.SIGINT, signal.SIGHUP):  # nohup and a shell's background ignore them
                signal.signal(number, signal.SIG_DFL)
            time.sleep(60)
            os._exit(0)
        if session:
            os.setsid()
        run()
        sys.stdout.flush()
        os._exit(0)

    with monkeypatch.context() as patch:
        for name in LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        return Child(launcher)


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_only_the_end_of_a_launcher_stops(monkeypatch, name, number, session):
    environment, is_launched = ENVIRONMENTS[name]

    def run() -> None:
        with StopRequest() as request:
            parent = os.getppid()
            print("running", request.is_set, flush=True)
            while os.getppid() == parent:
                time.sleep(0.01)
            print(request.is_set, request.reason)

    child = launch(run, monkeypatch, environment, session)
    child.wait_for("running False")
    _, output = child.end(number)
    assert output.splitlines()[-1] == ("True The launcher is gone" if is_launched else "False SIGTERM")


def test_the_first_process_of_a_container_is_no_launcher(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(_start, "PARENT", 1)
    assert not StopRequest().is_set


def test_a_launcher_that_died_during_the_imports_is_noticed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not StopRequest().is_set
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert StopRequest().is_set


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", ["accelerate", "shell"])
def test_a_training_without_its_launcher(tmp_path, monkeypatch, name, number):
    environment, is_launched = ENVIRONMENTS[name]
    options = {**ENDLESS, "num_steps": 100_000 if is_launched else 60, "lr_schedule": "constant"}
    child = launch(lambda: train(tmp_path / "run", **options), monkeypatch, environment)
    while not list(tmp_path.glob("run/tensorboard/*")):
        time.sleep(0.01)
    _, output = child.end(number)
    if not is_launched:
        assert (tmp_path / "run/pipeline").is_dir() and "stopped" not in output
        return
    step = step_of(Checkpoints(tmp_path / "run/checkpoints").latest())
    assert f"The launcher is gone: stopped after step {step}, which is saved; the same command continues." in output
    assert not (tmp_path / "run/pipeline").exists() and not list((tmp_path / "run").glob("*.lock*"))
    train(tmp_path / "run", **{**options, "num_steps": step + 1})
    assert first_steps_of(tmp_path / "run") == [0, step]


TORCHRUN, ACCELERATE = ["-m", "torch.distributed.run", "--standalone"], ["-m", "accelerate.commands.launch"]
LAUNCHERS = {
    "python": [],
    "torchrun 1": [*TORCHRUN, "--nproc_per_node=1"],
    "torchrun 2": [*TORCHRUN, "--nproc_per_node=2"],
    "accelerate 1": [*ACCELERATE, "--cpu", "--num_processes=1"],
    "accelerate 2": [*ACCELERATE, "--multi_gpu", "--num_processes=2"],  # on CPUs too: its one launcher of several
}


def cases() -> list:
    """Every launcher and signal; the one that most people meet runs always."""
    pairs = [(name, number) for name in LAUNCHERS for number in ("SIGTERM", "SIGINT", "SIGKILL")]
    pairs.remove(("python", "SIGKILL"))
    return [
        pytest.param(*pair, marks=() if pair == ("accelerate 1", "SIGTERM") else pytest.mark.proof) for pair in pairs
    ]


@pytest.mark.parametrize(("name", "number"), cases())
def test_a_signal_to_the_launcher_alone_ends_all_and_loses_nothing(tmp_path, name, number):
    """Ctrl-C ends `python` and what torchrun passes it on to without a checkpoint; all else saves."""
    command = [sys.executable, *LAUNCHERS[name], str(ROOT / "train/train_demo.py"), *arguments(tmp_path, **ENDLESS)]
    with Path(tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
        )
        while not list(tmp_path.glob("tensorboard/*")) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        trainings = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(getattr(signal, number))
        process.wait(60)
    _, alive = psutil.wait_procs(trainings, timeout=30)
    for each in alive:
        each.kill()
    assert alive == []
    log = (tmp_path / "log").read_text()
    saved = Checkpoints(tmp_path / "checkpoints").latest()
    if number == "SIGINT" and saved is None:
        assert "error: interrupted. The same command continues" in log
    else:
        assert saved is not None and f"stopped after step {step_of(saved)}, which is saved" in log
    assert not list(tmp_path.glob(".*.lock*"))
