"""The engine: exact resume, checkpoints, signals, steps that are not finite, moving averages, several processes."""

import csv
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from demo_diffusion import DEMOPipeline
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.trainer import DiffusionTrainer
from demo_diffusion.train.engine.checkpoints import Checkpoints
from demo_diffusion.train.engine.stop_request import StopRequest
from demo_diffusion.train.engine.trainer import Trainer
from demo_diffusion.train.export_pipeline import main as export
from tests.support.runs import ROOT, arguments, first_steps_of, forget_hashes, state_of, train

DIT = {"config": ROOT / "configs/diffusion/digits/dit.yaml", "warmup_steps": 0}  # has no BatchNorm


def trainer_of(output_dir, **options) -> DiffusionTrainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    return DiffusionTrainer(parse_config(arguments(output_dir, **options)))


def assert_equal_states(actual, expected):
    actual, expected = state_of(actual), state_of(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def losses_of(run) -> list[tuple[str, ...]]:
    return [(row["step"], row["loss"], row["skipped_steps"]) for row in csv.DictReader((run / "loss.csv").open())]


def call_before_step(monkeypatch, step: int, action) -> None:
    accumulate_gradients = Trainer.accumulate_gradients

    def with_action(self, draws):
        if self.progress.step == step:
            action(self)
        return accumulate_gradients(self, draws)

    monkeypatch.setattr(Trainer, "accumulate_gradients", with_action)


def interrupt(trainer):
    raise KeyboardInterrupt


def run_steps(trainer, count: int, look) -> None:
    """Trains some steps and looks after each of them."""

    def look_and_end(step):
        if step:
            look(step)
        if step == count:
            raise KeyboardInterrupt

    trainer.look = look_and_end
    with pytest.raises(KeyboardInterrupt):
        trainer.run(StopRequest())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "objective": "ddpm", "timestep_scale": 1, "more_ema_decays": 0.5},
        {"batch_size": 450, "lr_schedule": "constant"},  # an epoch ends in the fourth step
    ],
)
def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path, monkeypatch, capsys, options):
    expected = train(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        call_before_step(patch, 5, interrupt)
        with pytest.raises(SystemExit, match="130"):
            train(tmp_path / "parts", **options)
    assert re.search(r"^error: interrupted\. The same .*step-000000003\.$", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "parts/pipeline").exists()
    resumed = train(tmp_path / "parts", **options)
    assert first_steps_of(resumed) == [0, 3]
    assert_equal_states(resumed, expected)
    assert losses_of(resumed) == losses_of(expected)
    assert [step for step, *_ in losses_of(expected)] == ["2", "4", "6", "8"]


def test_sigterm_saves_and_ends_the_run_and_it_continues(tmp_path, monkeypatch, capsys):
    expected = train(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        call_before_step(patch, 4, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train(tmp_path / "parts")  # returns, so the command exits with 0
    assert "SIGTERM: stopped after step 5" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert Checkpoints(stopped / "checkpoints").latest().name == "step-000000005"
    assert not (stopped / "pipeline").exists()
    assert_equal_states(train(stopped), expected)
    assert first_steps_of(stopped) == [0, 5]


def test_what_a_checkpoint_holds_is_what_goes_on(tmp_path):
    """A resumed run that started anew would end the same; one whose checkpoint was changed must not."""
    expected = train(tmp_path / "whole", lr_schedule="constant")
    changed = train(tmp_path / "changed", lr_schedule="constant", num_steps=3)
    file = Checkpoints(changed / "checkpoints").latest() / "model.safetensors"
    state = load_file(file)
    save_file({**state, "output.proj.bias": state["output.proj.bias"] + 1}, file, {"format": "pt"})
    forget_hashes(file.parent)
    train(changed, lr_schedule="constant")
    assert not torch.equal(state_of(changed)["model.output.proj.bias"], state_of(expected)["model.output.proj.bias"])


def test_sigterm_to_the_whole_process_group(tmp_path):
    """As a cluster sends it: the loader's workers get it too."""
    options = {"num_steps": 10_000, "checkpoint_every": 10_000, "sample_every": 0, "num_workers": 2, "log_every": 1}
    command = [sys.executable, str(ROOT / "train/train_demo.py"), *arguments(tmp_path, **options)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("tensorboard/*")) and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "SIGTERM: stopped after step" in output
    assert Checkpoints(tmp_path / "checkpoints").latest() is not None


def test_accumulation_equals_the_large_batch(tmp_path):
    """Noise, timesteps and dropped labels belong to the place in the batch; only BatchNorm sees the parts."""
    whole, parts = (
        state_of(train(tmp_path / f"dit{n}", **DIT, gradient_accumulation_steps=n, num_steps=4)) for n in (1, 4)
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=1e-4)
    whole, parts = (state_of(train(tmp_path / f"demo{n}", gradient_accumulation_steps=n)) for n in (1, 4))
    counts = [name for name in whole if name.startswith("model.") and name.endswith("num_batches_tracked")]
    assert [int(whole[name]) for name in counts] == [8] and [int(parts[name]) for name in counts] == [32]


def nan_losses(monkeypatch, steps: set[int]) -> None:
    loss = DiffusionTrainer.loss

    def broken(self, batch, draws):
        value = loss(self, batch, draws)
        return value * float("nan") if self.lr_scheduler.scheduler.last_epoch in steps else value

    monkeypatch.setattr(DiffusionTrainer, "loss", broken)


def test_a_step_that_is_not_finite_has_no_effect(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, log_every=5)
    nan_losses(monkeypatch, {2})
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}

    def look(step):
        state = trainer.network.state_dict()
        changed = [name for name, value in state.items() if not torch.equal(value, before[name])]
        assert bool(changed) == (step != 3), changed
        before.update({name: value.clone() for name, value in state.items()})

    run_steps(trainer, 4, look)
    progress = trainer.progress
    assert progress.step == 4
    assert progress.skipped_steps == 1 and progress.skipped_in_a_row == 0 and len(progress.recent_losses) == 3
    assert all(value.isfinite().all() for value in trainer.average_network().state_dict().values())


def test_skipped_steps_are_counted_and_the_run_stops_after_some_in_a_row(tmp_path, monkeypatch):
    nan_losses(monkeypatch, {1, 4, 5})
    run = train(tmp_path / "two_in_a_row", max_skipped_steps=3)
    rows = list(csv.DictReader((run / "loss.csv").open()))
    assert [(row["step"], row["skipped_steps"]) for row in rows] == [("2", "1"), ("4", "1"), ("8", "3")]
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "stops", max_skipped_steps=2)
    message = str(stop.value)
    assert "Step 6 is the last of 2 in a row" in message and "norm of the gradient is nan" in message
    assert "gradients that are not finite: patch_embed.weight" in message and "and" in message
    assert "weights that are not finite: none" in message and "The checkpoints are in" in message


def test_infinite_weights_stop_the_run_and_spare_the_checkpoint(tmp_path, monkeypatch):
    def break_weights(trainer):
        with torch.no_grad():
            next(trainer.network.parameters()).fill_(float("inf"))

    call_before_step(monkeypatch, 5, break_weights)
    with pytest.raises(SystemExit, match="weights are not finite at step 6.*The checkpoints are in"):
        train(tmp_path)
    assert all(value.isfinite().all() for value in state_of(tmp_path).values() if value.is_floating_point())


def test_damaged_and_cut_off_checkpoints_are_passed_over_and_copies_are_left_alone(tmp_path):
    options = {"lr_schedule": "constant", "keep_checkpoints": 3}
    expected = train(tmp_path / "run", **options, num_steps=9)
    run = shutil.copytree(expected, tmp_path / "damaged")
    folder = run / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:09d}" for step in (3, 6, 9)]
    shutil.copytree(folder / "step-000000006", folder / "step-000000009-v2")
    shutil.copytree(folder / "step-000000006", folder / "step-000000008.demo_diffusion-checkpoint.partial")
    (folder / ".DS_Store").touch()
    optimizer = folder / "step-000000009/optimizer.bin"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    with pytest.warns(UserWarning, match="step-000000009 is passed over: optimizer.bin has .* bytes instead of"):
        assert Checkpoints(folder).latest().name == "step-000000006"
    (folder / "step-000000006/ema_0.99.safetensors").unlink()
    with pytest.warns(UserWarning, match="step-000000006 is passed over: ema_0.99.safetensors is missing"):
        train(run, **options, num_steps=9)
    assert_equal_states(run, expected)
    assert first_steps_of(run)[-1] == 3
    names = [f"step-{step:09d}" for step in (3, 6, 9)]
    assert sorted(path.name for path in folder.iterdir()) == [".DS_Store", *names, "step-000000009-v2"]
    for name in names:
        (folder / name / "checkpoint.json").write_text("{")
    with pytest.raises(SystemExit, match="None of the checkpoints .* is whole"), pytest.warns(UserWarning):
        train(run, **options, num_steps=9)


def test_a_full_disk_stops_the_run_and_spares_the_last_checkpoint(tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # noqa: E731
    with monkeypatch.context() as patch:
        call_before_step(patch, 5, full)
        try:
            with pytest.raises(SystemExit, match="checkpoint of step 6 cannot be written.*disk full.*continues"):
                train(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000003"]
    assert [step for step, *_ in losses_of(train(tmp_path))] == ["2", "4", "6", "8"]


def test_a_missing_folder_stops_the_run(tmp_path, monkeypatch):
    call_before_step(monkeypatch, 4, lambda trainer: shutil.rmtree(tmp_path / "run/checkpoints"))
    with pytest.raises(SystemExit, match="checkpoints is gone, so step 6 cannot be saved"):
        train(tmp_path / "run")


def test_moving_averages_carry_batchnorm_statistics(tmp_path):
    trainer = trainer_of(tmp_path, ema_decay=0.5, more_ema_decays=0.25, num_steps=3)
    decays = (0.5, 0.25)
    expected = {decay: {n: v.clone() for n, v in trainer.network.state_dict().items()} for decay in decays}

    def look(step):
        for decay, average in expected.items():
            for name, value in trainer.network.state_dict().items():
                floating = value.is_floating_point()
                average[name] = decay * average[name] + (1 - decay) * value if floating else value.clone()

    run_steps(trainer, 3, look)
    for decay, average in expected.items():
        network = trainer.average_network(decay)
        assert not network.training
        torch.testing.assert_close(network.state_dict(), average)
        statistics = [name for name in average if "running" in name]
        assert len(statistics) == 2 and all(average[name].abs().sum() > 0 for name in statistics)


def test_scores_and_grid_are_on_the_card_of_their_moving_average_alone(tmp_path):
    run = train(tmp_path / "run", ema_decay=0.75, more_ema_decays=0.5, knn_samples=10)
    export([str(run), "--ema_decay", "0.5", "--out", str(tmp_path / "exported")])
    for folder, has_them in (
        (run / "pipeline", True),
        (run / "pipeline_ema_0.5", False),
        (tmp_path / "exported", False),
    ):
        card = (folder / "README.md").read_text()
        assert ("nearest-neighbour accuracy" in card) == ("samples.png" in card) == has_them
        assert (folder / "samples.png").exists() == has_them
        assert "training loss at the end" in card and (folder / "loss.png").is_file()


def test_every_moving_average_is_exported(tmp_path, capsys):
    run = train(tmp_path / "run", ema_decay=0.9999999, more_ema_decays=0.5)
    first, second = (DEMOPipeline.from_pretrained(run / name) for name in ("pipeline", "pipeline_ema_0.5"))
    saved = state_of(run)
    for decay, pipeline in (("0.9999999", first), ("0.5", second)):
        for name, value in pipeline.transformer.state_dict().items():
            assert torch.equal(value, saved[f"ema_{decay}.{name}"])
    cards = {name: (run / name / "README.md").read_text() for name in ("pipeline", "pipeline_ema_0.5")}
    assert "moving average of decay 0.9999999." in cards["pipeline"] and "decay 0.5" in cards["pipeline_ema_0.5"]
    export([str(run), "--ema_decay", "0.5", "--out", str(tmp_path / "exported")])
    assert (tmp_path / "exported/README.md").read_text() == cards["pipeline_ema_0.5"]
    assert "step 8, moving average 0.5" in capsys.readouterr().out
    exported = DEMOPipeline.from_pretrained(tmp_path / "exported").transformer.state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in second.transformer.state_dict().items())
    first_step = tmp_path / "first"
    export([str(run), "--step", "6", "--ema_decay", "0.5", "--out", str(first_step)])
    card = (first_step / "README.md").read_text()
    assert "for 6 steps of" in card and "samples.png" not in card and "nearest" not in card
    early = DEMOPipeline.from_pretrained(first_step).transformer.state_dict()
    assert not torch.equal(early["output.proj.weight"], second.transformer.state_dict()["output.proj.weight"])
    for options, message in (
        ([str(run), "--step", "5", "--out", str(tmp_path / "new")], "no checkpoint of step 5; it has 6, 8"),
        ([str(run), "--out", str(tmp_path / "exported")], "exists already"),
        ([str(tmp_path), "--out", str(tmp_path / "new")], "not the folder of a run with a checkpoint"),
        ([str(run), "--ema_decay", "0.7", "--out", str(tmp_path / "new")], r"decay 0.7; it has \[0.9999999, 0.5\]"),
    ):
        with pytest.raises(SystemExit, match=message):
            export(options)


def test_an_unfinished_run_is_exported(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        call_before_step(patch, 5, interrupt)
        with pytest.raises(SystemExit):
            train(tmp_path / "run")
    export([str(tmp_path / "run"), "--out", str(tmp_path / "exported")])
    assert "step 3, moving average 0.99" in capsys.readouterr().out
    assert DEMOPipeline.from_pretrained(tmp_path / "exported")("3", num_inference_steps=1).images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync_batch_norm": True}, "sync_batch_norm needs GPUs"),
        ({"more_ema_decays": 0.99}, r"decays .* are \[0.99, 0.99\]; they must be different"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"push_to_hub": "someone/something"}, "hub, which does not answer.*Log in"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="SyncBatchNorm runs there")
def test_settings_that_cannot_work_are_named(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "run", **options)
    assert re.search(message, str(stop.value) + capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def launch(*targets: list[str]) -> None:
    for target in targets:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


TWO = {
    "num_steps": 6,
    "checkpoint_every": 2,
    "keep_checkpoints": 9,
    "sample_every": 2,
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    launch([str(ROOT / "tests/workers/two_process_worker.py"), *arguments(run, **TWO)])
    return run


def resume_from_step_2(run, copy, script: str):
    shutil.copytree(run, copy)
    for step in (4, 6):
        shutil.rmtree(copy / f"checkpoints/step-{step:09d}")
    launch([str(ROOT / script), *arguments(copy, **TWO)])
    return copy


def averages_of(run) -> dict[str, torch.Tensor]:
    return load_file(Checkpoints(run / "checkpoints").latest() / "ema_0.99.safetensors")


def test_two_processes(tmp_path, run_of_two):
    """They see different data, keep equal weights and statistics, leave one set of results, and resume exactly."""
    assert (run_of_two / "samples/step-000000002.png").is_file()
    assert DEMOPipeline.from_pretrained(run_of_two / "pipeline")("3", num_inference_steps=1).images
    resumed = resume_from_step_2(run_of_two, tmp_path / "resumed", "train/train_demo.py")
    assert first_steps_of(resumed) == [0, 2]
    assert_equal_states(resumed, run_of_two)
    assert losses_of(resumed) == losses_of(run_of_two)


def test_two_processes_that_share_the_weights(tmp_path, run_of_two):
    """FSDP2 computes what DDP does, and resumes exactly from its sharded checkpoints."""
    sharded = tmp_path / "sharded"
    launch([str(ROOT / "tests/workers/sharded_worker.py"), *arguments(sharded, **TWO)])
    assert (sharded / "checkpoints/step-000000006/pytorch_model_fsdp_0/__1_0.distcp").is_file()
    torch.testing.assert_close(averages_of(sharded), averages_of(run_of_two), atol=1e-6, rtol=1e-5)
    resumed = resume_from_step_2(sharded, tmp_path / "resumed", "tests/workers/sharded_worker.py")
    assert first_steps_of(resumed) == [0, 2]
    assert all(torch.equal(value, averages_of(resumed)[name]) for name, value in averages_of(sharded).items())
    with pytest.raises(SystemExit, match="was saved by FSDP and cannot be continued whole.*export_pipeline"):
        train(sharded, **TWO)
    export([str(sharded), "--out", str(tmp_path / "exported")])
    network = DEMOPipeline.from_pretrained(tmp_path / "exported").transformer
    torch.testing.assert_close(network.state_dict(), averages_of(sharded), atol=0, rtol=0)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_processes_that_share_the_optimizer(tmp_path, precision):
    """DeepSpeed's ZeRO-2 computes what DDP does, with weights in float32, and resumes exactly."""
    options = {**TWO, "max_grad_norm": 1, "mixed_precision": precision}
    launch([str(ROOT / "train/train_demo.py"), *arguments(tmp_path / "ddp", **options)])
    launch([str(ROOT / "tests/workers/deepspeed_worker.py"), *arguments(tmp_path / "zero", **options)])
    expected, actual = averages_of(tmp_path / "ddp"), averages_of(tmp_path / "zero")
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    shutil.copytree(tmp_path / "zero", tmp_path / "resumed")
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"resumed/checkpoints/step-{step:09d}")
    launch([str(ROOT / "tests/workers/deepspeed_worker.py"), *arguments(tmp_path / "resumed", **options)])
    assert all(torch.equal(value, averages_of(tmp_path / "resumed")[name]) for name, value in actual.items())


def test_the_number_of_processes_may_change(tmp_path):
    """Without BatchNorm's batch statistics two processes compute what one does."""
    options = {**DIT, "lr_schedule": "constant", "batch_size": 8, "keep_checkpoints": 9}
    alone = train(tmp_path / "alone", **options)
    launch([str(ROOT / "train/train_demo.py"), *arguments(tmp_path / "both", **{**options, "num_steps": 3})])
    both = state_of(train(tmp_path / "both", **options))
    for name, value in state_of(alone).items():
        torch.testing.assert_close(both[name], value, atol=2e-5, rtol=1e-4)
