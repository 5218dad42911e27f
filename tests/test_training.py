import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from demo_diffusion import DEMOPipeline, DEMOTransformer2DModel
from demo_diffusion.eval.nearest_neighbor import nearest_neighbor_report
from demo_diffusion.train.configuration import DataConfig, parse_config
from demo_diffusion.train.figures import labelled_grid
from demo_diffusion.train.image_data import load_images
from demo_diffusion.train.train_demo import Trainer, main

from .test_image_data import image_folder
from .test_pipeline import tiny_vae

ROOT = Path(__file__).parents[1]
SMALL = {
    "config": ROOT / "configs/digits.yaml",
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_steps": 8,
    "batch_size": 8,
    "warmup_steps": 0,
    "log_every": 2,
    "checkpoint_every": 3,
    "sample_every": 4,
    "num_inference_steps": 2,
    "grid_columns": 2,
    "knn_samples": 0,
}


@pytest.fixture(autouse=True)
def new_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


def arguments(output_dir, **options) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SMALL, "output_dir": output_dir, **options}.items()]


def train(output_dir, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(output_dir, **options))
    return Path(output_dir)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = (run / "checkpoints").iterdir()
    return load_file(checkpoint / "model.safetensors") | {
        f"ema.{name}": value for name, value in load_file(checkpoint / "ema.safetensors").items()
    }


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    run = train(tmp_path / "run")
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "run.json", "loss.csv", "loss.png", "samples.png", "pipeline", "checkpoints", "tensorboard",
    }  # fmt: skip
    assert [path.name for path in (run / "samples").iterdir()] == ["step-000000004.png"]
    assert len((run / "loss.csv").read_text().splitlines()) == 1 + 4
    made_by = json.loads((run / "run.json").read_text())
    assert made_by["packages"]["torch"] == torch.__version__.split("+")[0]
    assert made_by["command"] and "git_commit" in made_by
    assert parse_config(["--config", str(run / "config.yaml")]) == parse_config(arguments(run))
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    assert pipeline.config.objective == "flow" and pipeline.labels["7"] == 7
    assert pipeline("7", num_inference_steps=2).images[0].size == (8, 8)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "objective": "ddpm"}])
def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path, monkeypatch, options):
    expected = train(tmp_path / "whole", **options)
    train_step = Trainer.train_step

    def interrupted(self, batch_iterator, step):
        if step == 5:
            raise KeyboardInterrupt
        return train_step(self, batch_iterator, step)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", **options)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert not (tmp_path / "parts/pipeline").exists()
    resumed = train(tmp_path / "parts", **options)

    for name, value in state_of(expected).items():
        assert torch.equal(value, state_of(resumed)[name]), name
    losses = [np.genfromtxt(run / "loss.csv", delimiter=",", names=True) for run in (expected, resumed)]
    assert np.array_equal(losses[0]["step"], [2, 4, 6, 8])
    assert np.array_equal(losses[0]["loss"][[0, 3]], losses[1]["loss"][[0, -1]])


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    run = train(tmp_path / "run")
    before = state_of(run)
    train(run)
    assert "has all of its 8 steps" in capsys.readouterr().out
    assert all(torch.equal(value, state_of(run)[name]) for name, value in before.items())


def test_other_settings_do_not_continue_a_run(tmp_path):
    run = train(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        train(run, num_layers=2, learning_rate=1.0)
    assert "num_layers (was 1, now 2), learning_rate (was 0.002, now 1.0)" in str(stop.value)
    assert "--output_dir" in str(stop.value)


def test_a_checkpoint_cut_off_is_not_resumed(tmp_path):
    run = train(tmp_path / "run")
    shutil.copytree(run / "checkpoints/step-000000008", run / "checkpoints/step-000000009.partial")
    trainer = Trainer(parse_config(arguments(run)))
    assert trainer.folder.latest_checkpoint().name == "step-000000008"


def test_moving_average_carries_batchnorm_statistics(tmp_path):
    trainer = Trainer(parse_config(arguments(tmp_path, ema_decay=0.5, num_steps=3)))
    decayed = {name: b.clone() for name, b in trainer.transformer.named_buffers()}
    batch_iterator = iter(trainer._batches(0))
    for step in range(3):
        trainer.train_step(batch_iterator, step)
        for name, b in trainer.transformer.named_buffers():
            if b.is_floating_point():
                decayed[name] = 0.5 * decayed[name] + 0.5 * b
    statistics = {n: b for n, b in trainer.ema.module.named_buffers() if b.is_floating_point()}
    assert len(statistics) == 2
    for name, b in statistics.items():
        torch.testing.assert_close(b, decayed[name])
        assert not torch.equal(b, torch.zeros_like(b))


def test_samples_need_the_moving_average_of_the_statistics(tmp_path):
    """A short run whose samples are mostly recognised; with BatchNorm's statistics left at 0 and 1 they are not."""
    network = {"patch_size": 2, "num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 24}
    recipe = {"num_steps": 300, "batch_size": 64, "learning_rate": 4e-3, "ema_decay": 0.97, "sample_every": 0}
    run = train(tmp_path, **network, **recipe, log_every=50, checkpoint_every=300)
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    digits = load_images(DataConfig(resolution=8)).dataset

    def accuracy() -> float:
        return nearest_neighbor_report(pipeline, digits, 200, [2.0], num_inference_steps=10).accuracy[2.0]

    assert accuracy() > 0.85
    for module in pipeline.transformer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    assert accuracy() < 0.5


@pytest.mark.parametrize("vae_class", ["AutoencoderKL"])
def test_images_through_an_autoencoder(tmp_path, vae_class):
    tiny_vae().save_pretrained(tmp_path / "vae")
    data = {"dataset": image_folder(tmp_path / "images"), "resolution": 16, "random_flip": True}
    network = {"vae": tmp_path / "vae", "objective": "ddpm", "window_size": 2, "patch_size": 2}
    run = train(tmp_path / "run", **data, **network, mixed_precision="bf16", gradient_checkpointing=True)
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    assert (pipeline.transformer.config.in_channels, pipeline.transformer.config.out_channels) == (4, 8)
    assert pipeline.transformer.config.sample_size == 8 and pipeline.transformer.dtype == torch.float32
    assert pipeline("dog", num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_train_the_same(tmp_path):
    eager, compiled = (state_of(train(tmp_path / str(on), compile=on, num_steps=4)) for on in (False, True))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_two_processes(tmp_path):
    """Two processes share the batches of one: same data, gradients averaged, one set of results."""
    options = {"attention_mode": "none", "num_steps": 4, "checkpoint_every": 4, "sample_every": 2}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29541"]
    script = [str(ROOT / "train/train_demo.py"), *arguments(tmp_path / "two", **options)]
    done = subprocess.run([*command, *script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two/samples/step-000000002.png").is_file()
    assert DEMOPipeline.from_pretrained(tmp_path / "two/pipeline")("3", num_inference_steps=1).images
    again = subprocess.run([*command, *script], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "has all of its 4 steps" in again.stdout


def test_an_infinite_loss_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="(nan|inf) by step 2.*learning_rate"):
        train(tmp_path, learning_rate=1e30)


def test_an_unusable_autoencoder_is_named(tmp_path):
    DEMOTransformer2DModel(num_layers=1, sample_size=8, window_size=2).save_pretrained(tmp_path / "vae")
    with pytest.raises((SystemExit, ValueError, AttributeError)):
        train(tmp_path / "run", vae=tmp_path / "vae")


def test_grid_is_labelled_apart_and_enlarged():
    rows = [[Image.new("L", (8, 8), 90 * r)] * 3 for r in range(2)]
    grid = np.array(labelled_grid(rows, ["tench", "a name that is much too long for its place"]))
    assert grid.shape == (4 + 2 * 68, 160 + 3 * 68 + 4, 3)
    assert (grid[:, 160 + 64 : 160 + 68] == 255).all() and (grid[4:68, 160:224] == 0).all()
    assert (grid[4:68, :156] < 128).any() and (grid[72:136, :156] < 128).any()
    assert (grid[:, 156:160] == 255).all()
