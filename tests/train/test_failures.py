"""An error of a library in the middle of a training ends in one line that says what to do, and loses no step."""

import pytest

from demo_diffusion.train.diffusion.trainer import DiffusionTrainer
from demo_diffusion.train.engine.checkpoints import Checkpoints
from demo_diffusion.train.engine.failures import what_failed
from demo_diffusion.train.engine.moving_averages import MovingAverages
from demo_diffusion.train.engine.trainer import Trainer
from tests.support.runs import first_steps_of, state_of, train

ERRORS = {
    "ValueError": ValueError("sizes do not fit"),
    "RuntimeError": RuntimeError("CUDA error: launch failed"),
    "out of memory": RuntimeError("DefaultCPUAllocator: out of memory: you tried to allocate 1 byte"),
    "no text": RuntimeError(),
}
PLACES = {
    "loss": (DiffusionTrainer, "loss", 5),
    "after the forward pass": (Trainer, "_agree", 5),
    "grid": (DiffusionTrainer, "_save_grid", 4),
    "log": (Trainer, "_log", 4),
    "final report": (DiffusionTrainer, "plot_losses", 8),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "run")


def fail_at(monkeypatch, place: str, error: Exception) -> int:
    owner, name, step = PLACES[place]
    method = getattr(owner, name)

    def failing(self, *arguments, **options):
        if self.progress.step == step:
            if name == "loss":
                method(self, *arguments, **options)  # BatchNorm's statistics have moved by then
            raise error
        return method(self, *arguments, **options)

    monkeypatch.setattr(owner, name, failing)
    return step


@pytest.mark.parametrize(
    ("place", "error"), [*((place, "ValueError") for place in PLACES), *(("loss", e) for e in ERRORS)]
)
def test_it_is_one_line_and_the_run_goes_on_where_it_failed(tmp_path, monkeypatch, whole, place, error):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        step = fail_at(patch, place, ERRORS[error])
        train(tmp_path / "run")
    message = stop.value.code
    assert message.startswith(f"error: {str(ERRORS[error]) or error.replace('no text', 'RuntimeError')}. ")
    assert f"The same command goes on from step {step}, which is saved." in message and "\n" not in message
    assert "Traceback" in (tmp_path / "run/traceback.txt").read_text()
    assert Checkpoints(tmp_path / "run/checkpoints").latest().name == f"step-{step:09d}"
    actual, expected = state_of(train(tmp_path / "run")), state_of(whole)
    assert first_steps_of(tmp_path / "run") == [0, step]
    assert all((actual[name] == value).all() for name, value in expected.items())


def test_half_a_step_is_not_saved(tmp_path, monkeypatch):
    def fail(self, network):
        raise RuntimeError("no memory")

    monkeypatch.setattr(MovingAverages, "update", fail)
    with pytest.raises(SystemExit, match="no memory. .* goes on from the start: nothing is saved yet"):
        train(tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_one_value_for_batchnorm_is_explained(tmp_path):
    options = {"batch_size": 1, "patch_size": 8}
    with pytest.raises(SystemExit, match="^error: Expected more than 1 value.*BatchNorm needs .*: raise batch_size"):
        train(tmp_path / "run", **options)


def test_the_traceback_of_a_worker_is_left_out():
    text = (
        'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    )
    assert what_failed(ValueError(f"{text}ValueError: The shard a is damaged.")).startswith("The shard a is damaged. ")
