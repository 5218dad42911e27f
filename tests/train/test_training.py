import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from demo_diffusion import DEMOPipeline, DEMOTransformer2DModel, FlowMatchDopri5Scheduler, FlowMatchSDEScheduler
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.eval.compare_runs import main as compare_runs
from demo_diffusion.eval.metrics.nearest_neighbor import nearest_neighbor_report
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.records.figures import labelled_grid
from demo_diffusion.train.cache_latents import main as cache_latents
from demo_diffusion.train.diffusion.config import parse_config
from tests.support.images import image_folder
from tests.support.pipelines import tiny_taesd, tiny_vae
from tests.support.runs import ROOT, SMALL, arguments, state_of, train


def test_a_run_leaves_everything_that_is_promised(tmp_path):
    run = train(tmp_path / "run")
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "run.json", "loss.csv", "loss.png", "samples.png", "pipeline", "checkpoints", "tensorboard",
    }  # fmt: skip
    assert [path.name for path in (run / "samples").iterdir()] == ["step-000000004.png"]
    assert len((run / "loss.csv").read_text().splitlines()) == 1 + 4
    (made_by,) = json.loads((run / "run.json").read_text())
    assert made_by["packages"]["torch"] == torch.__version__.split("+")[0]
    assert made_by["command"] and "git_commit" in made_by
    assert (made_by["first_step"], made_by["num_processes"], made_by["device"]) == (0, 1, "cpu")
    assert parse_config(["--config", str(run / "config.yaml")]) == parse_config(arguments(run))
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    assert pipeline.config.objective == "flow" and pipeline.labels["7"] == 7
    assert pipeline("7", num_inference_steps=2).images[0].size == (8, 8)


IMAGENET = ROOT / "configs/diffusion/imagenet256"
ON_DIGITS = {"dataset": "digits", "resolution": 8, "patch_size": 1, "vae": "none", "mixed_precision": "no"}


@pytest.mark.parametrize(
    "options",
    [
        {"config": ROOT / "configs/diffusion/digits/dit.yaml"},
        {
            "config": ROOT / "configs/diffusion/digits/dit.yaml",
            "prediction_type": "v_prediction",
            "zero_terminal_snr": True,
        },
        {"config": ROOT / "configs/diffusion/digits/dit.yaml", "min_snr_gamma": 5, "sampler": "ddim", "qk_norm": True},
        {"config": ROOT / "configs/diffusion/digits/sit.yaml", "sampler": "dopri5", "rotary_positions": True},
        {"window_position": "embedding", "timestep_sampling": "logit_normal", "sampler": "heun"},
        {"batch_norm": False, "sampler": "dpm_solver"},
        {"config": ROOT / "configs/diffusion/digits/dit.yaml", "sampler": "dpm_solver"},
        {"config": IMAGENET / "demo_s_2.yaml", **ON_DIGITS},
        {"config": IMAGENET / "dit_s_2.yaml", **ON_DIGITS},
        {"config": IMAGENET / "sit_s_2.yaml", "out_channels": 2, "num_inference_steps": 20, **ON_DIGITS},
        {"config": IMAGENET / "demo_s_2_flow.yaml", "compile": False, "direction_weight": 0, **ON_DIGITS},
    ],
    ids=lambda options: "-".join(Path(str(value)).stem for value in options.values())[:60],
)
def test_every_family_and_option_trains_and_samples(tmp_path, options):
    schedule = {} if "config" not in options or "digits" in options["config"].stem else {"lr_schedule": "constant"}
    run = train(tmp_path / "run", num_steps=2, guidance_scale=2, **schedule, **options)
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    images = pipeline([1, 2], num_inference_steps=4, output_type="latent").images
    assert images.isfinite().all() and images.shape == (2, 1, 8, 8)
    assert type(pipeline.scheduler) is SAMPLERS_USED[pipeline_sampler(options)]


def test_todays_imagenet_setting_trains_on_colour_images(tmp_path):
    images = image_folder(tmp_path / "images")
    options = {**ON_DIGITS, "dataset": images, "compile": False, "lr_schedule": "constant", "num_steps": 2}
    run = train(tmp_path / "run", config=IMAGENET / "demo_s_2_flow.yaml", **options)
    assert DEMOPipeline.from_pretrained(run / "pipeline").transformer.config.window_position == "bias"
    with pytest.raises(SystemExit, match="direction_weight needs more than one channel"):
        train(tmp_path / "grey", direction_weight=1)


SAMPLERS_USED = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
    "dopri5": FlowMatchDopri5Scheduler,
    "dpm_solver": DPMSolverMultistepScheduler,
    "sde": FlowMatchSDEScheduler,
}


def pipeline_sampler(options: dict) -> str:
    config = parse_config(["--config", str(options.get("config", SMALL["config"]))])
    default = "ddpm" if config.objective.objective == "ddpm" else "euler"
    return options.get("sampler") or config.run.sampler or default


def test_runs_are_compared(tmp_path, capsys):
    runs = [
        train(tmp_path / "demo", knn_samples=10),
        train(tmp_path / "dit", config=ROOT / "configs/diffusion/digits/dit.yaml"),
    ]
    capsys.readouterr()
    compare_runs([*map(str, runs), "--out", str(tmp_path / "losses.png")])
    header, _, demo, dit = capsys.readouterr().out.splitlines()
    assert header.startswith("| run | network | objective | parameters | steps | last loss | accuracy at scale 1 |")
    assert "demo | DEMO 1 × 16 | flow |" in demo and "%" in demo
    assert "dit | DiT 1 × 16 | ddpm |" in dit and dit.endswith("|  |  |")
    assert Image.open(tmp_path / "losses.png").size[0] > 100
    with pytest.raises(SystemExit, match="file in a folder there is"):
        compare_runs([str(runs[0]), "--out", str(tmp_path / "nowhere/losses.png")])
    with pytest.raises(SystemExit, match="nowhere is not the folder of a finished run"):
        compare_runs([str(runs[0]), str(tmp_path / "nowhere"), "--out", str(tmp_path / "more.png")])
    assert not (tmp_path / "more.png").exists()


def test_samples_are_scored_in_training(tmp_path):
    reference = tmp_path / "digits.npz"
    data = ["--dataset", str(image_folder(tmp_path / "images")), "--resolution", "8"]
    make_reference([*data, "--extractor", "efficientnet_lite0", "--out", str(reference)])
    options = {"eval_every": 4, "eval_samples": 6, "eval_reference": reference}
    run = train(tmp_path / "run", **options)
    steps = ["step-000000004", "step-000000008"]
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == steps
    results = json.loads((run / "evaluation" / steps[0] / "results.json").read_text())
    assert results["fingerprint"]["step"] == 4 and results["num_samples"] == 6
    assert {path.name for path in (run / "evaluation" / steps[0]).iterdir()} == {
        "fingerprint.json", "results.json", "contact_sheet.png",
    }  # fmt: skip
    events = EventAccumulator(str(next((run / "tensorboard").rglob("events*")).parent)).Reload()
    logged = events.Scalars("eval/fd_efficientnet_lite0")
    assert [event.step for event in logged] == [4, 8]
    assert logged[0].value == pytest.approx(results["metrics"]["fd_efficientnet_lite0"], rel=1e-6)
    with pytest.raises(SystemExit, match="There is no file .*nowhere.npz"):
        train(tmp_path / "other", **{**options, "eval_reference": tmp_path / "nowhere.npz"})
    assert not (tmp_path / "other").exists()
    # Scoring changes nothing of the training.
    plain = train(tmp_path / "plain")
    assert all(torch.equal(value, state_of(plain)[name]) for name, value in state_of(run).items())
    # A score that was interrupted, here the last one by another size, is made when the run is started again.
    shutil.rmtree(run / "evaluation" / steps[1])
    train(run, **{**options, "eval_samples": 7})
    assert json.loads((run / "evaluation" / steps[1] / "results.json").read_text())["num_samples"] == 7


def test_a_run_of_an_older_version_continues(tmp_path):
    run = train(tmp_path / "run", lr_schedule="constant")
    text = (run / "config.yaml").read_text()
    newer = ("direction_weight", "qk_norm", "sampler")
    (run / "config.yaml").write_text("".join(x for x in text.splitlines(True) if not x.strip().startswith(newer)))
    assert "direction_weight" in text and "direction_weight" not in (run / "config.yaml").read_text()
    with pytest.raises(SystemExit, match=r"direction_weight \(was 0.0, now 1.0\)"):
        train(run, num_steps=9, lr_schedule="constant", direction_weight=1)
    train(run, num_steps=9, lr_schedule="constant")


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
    for options, message in (
        ({"num_steps": 6}, r"num_steps \(8 done, now 6\)"),
        ({"num_steps": 20}, r"num_steps \(was 8, now 20\)"),  # the cosine schedule depends on it
    ):
        with pytest.raises(SystemExit, match=message):
            train(run, **options)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SystemExit, match="finished run without checkpoints"):
        train(run)


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


@pytest.mark.parametrize("create_vae", [tiny_vae, tiny_taesd])
def test_images_through_an_autoencoder(tmp_path, create_vae):
    create_vae().save_pretrained(tmp_path / "vae")
    data = {"dataset": image_folder(tmp_path / "images"), "resolution": 16, "random_flip": True}
    network = {"vae": tmp_path / "vae", "objective": "ddpm", "timestep_scale": 1, "window_size": 2, "patch_size": 2}
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
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "gradient_accumulation_steps": 2}, "batch_size is 9.*1 · 2 = 2"),
        ({"mixed_precision": "fp16"}, "fp16.*needs a GPU"),
        ({"vae": "/nothing/here"}, "autoencoder /nothing/here cannot be read"),
        ({"vae": "VAE"}, "takes 3 channels; the images have 1"),
        ({"vae": "VAE", "dataset": "IMAGES", "resolution": 33}, "resolution is 33.*multiple of 2"),
        ({"dataset": "IMAGES", "resolution": 33, "patch_size": 2}, "sample_size is 33"),
        ({"objective": "ddpm", "timestep_scale": 1, "num_inference_steps": 2000}, "num_inference_steps.*1000"),
        ({"sampler": "sde", "num_inference_steps": 2}, "FlowMatchSDEScheduler gives wrong samples with 2 steps"),
        ({"vae": "TRANSFORMER"}, "TRANSFORMER.*(cannot be read|must be an AutoencoderKL)"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is allowed there")
def test_mistakes_are_named_before_anything_is_written(tmp_path, options, message):
    tiny_vae().save_pretrained(tmp_path / "VAE")
    DEMOTransformer2DModel(num_layers=1, sample_size=8, window_size=2).save_pretrained(tmp_path / "TRANSFORMER")
    image_folder(tmp_path / "IMAGES")
    places = ("VAE", "TRANSFORMER", "IMAGES")
    options = {name: tmp_path / value if value in places else value for name, value in options.items()}
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "run", **options)
    assert re.search(message, str(stop.value))
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "run")
    assert "matplotlib, tensorboard, sklearn: pip install 'demo-diffusion[train]'" in str(stop.value)


def test_grid_is_labelled_apart_and_enlarged():
    rows = [[Image.new("L", (8, 8), 90 * r)] * 3 for r in range(2)]
    grid = np.array(labelled_grid(rows, ["tench", "a name that is much too long for its place"]))
    left = grid.shape[1] - 3 * 68
    assert grid.shape[0] == 4 + 2 * 68 and 100 < left < 180
    assert (grid[4:68, left : left + 64] == 0).all() and (grid[72:136, left : left + 64] == 90).all()
    assert (grid[:, left + 64 : left + 68] == 255).all() and (grid[:, left - 8 : left] == 255).all()
    assert (grid[4:68, :left] < 128).any() and (grid[72:136, :left] < 128).any()


def test_cached_latents_train_as_images_through_the_autoencoder(tmp_path):
    """The same batches, flips and draws; what remains is the rounding of the stored moments."""
    tiny_vae().save_pretrained(tmp_path / "vae")
    images = image_folder(tmp_path / "images")
    cache = {"dataset": images, "vae": tmp_path / "vae", "out": tmp_path / "latents", "num_workers": 0}
    cache_latents([f"--{name}={value}" for name, value in {**cache, "resolution": 16}.items()])
    data = {"resolution": 16, "random_flip": True, "window_size": 2, "num_steps": 4}
    on_the_fly = train(tmp_path / "images_run", dataset=images, vae=tmp_path / "vae", **data)
    cached = train(tmp_path / "latents_run", latents=tmp_path / "latents", **data)
    losses = [np.genfromtxt(run / "loss.csv", delimiter=",", names=True)["loss"] for run in (on_the_fly, cached)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)
    assert not np.array_equal(losses[0], losses[1])
    other_seed = train(tmp_path / "other_run", latents=tmp_path / "latents", seed=1, **data)
    other = np.genfromtxt(other_seed / "loss.csv", delimiter=",", names=True)["loss"]
    assert abs(other / losses[0] - 1).min() > 0.01

    normalized = train(tmp_path / "normalized", latents=tmp_path / "latents", latent_normalization="channels", **data)
    pipeline = DEMOPipeline.from_pretrained(normalized / "pipeline")
    assert len(pipeline.config.latents_mean) == len(pipeline.config.latents_std) == 4
    assert pipeline("dog", num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": "NOWHERE"}, "NOWHERE does not exist; train/cache_latents.py"),
        ({"latents": "LATENTS"}, "resolution is 8; the latents .* 16 pixels"),
        ({"latents": "LATENTS", "resolution": 16, "vae": "OTHER"}, "made by another autoencoder"),
        ({"latents": "LATENTS", "resolution": 16, "patch_size": 3}, "sample_size is 8"),
        ({"latents": "LATENTS", "knn_samples": 5}, "knn_samples compares samples with the images"),
        ({"latent_normalization": "channels"}, "statistics of a cache; give --latents"),
    ],
)
def test_mistakes_with_latents_are_named(tmp_path, capsys, options, message):
    tiny_vae().save_pretrained(tmp_path / "VAE")
    tiny_vae().save_pretrained(tmp_path / "OTHER")
    cache = {"dataset": image_folder(tmp_path / "IMAGES"), "vae": tmp_path / "VAE", "out": tmp_path / "LATENTS"}
    cache_latents([f"--{name}={value}" for name, value in {**cache, "resolution": 16, "num_workers": 0}.items()])
    places = ("NOWHERE", "LATENTS", "OTHER")
    options = {name: tmp_path / value if value in places else value for name, value in options.items()}
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "run", **options)
    assert re.search(message, str(stop.value) + capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("failing", ["write_model_card", "DEMOPipeline.save_pretrained", "save_loss_curves"])
def test_a_pipeline_is_there_only_with_its_card_and_pictures(tmp_path, monkeypatch, failing, earlier):
    run = train(tmp_path / "run", checkpoint_every=8) if earlier else tmp_path / "run"
    before = {path: path.read_bytes() for path in run.glob("pipeline/**/*") if path.is_file()}

    def fail(*arguments):
        if len(arguments) == 2 and isinstance(arguments[1], Path):
            arguments[1].mkdir()
        raise OSError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(f"demo_diffusion.train.diffusion.trainer.{failing}", fail)
        with pytest.raises(SystemExit, match="^error: .*The disk is full"):
            train(run, checkpoint_every=8)
    assert {path: path.read_bytes() for path in run.glob("pipeline/**/*") if path.is_file()} == before
    assert (run / "pipeline").exists() == earlier
    train(run, checkpoint_every=8)
    assert {path.name for path in (run / "pipeline").iterdir()} >= {"README.md", "samples.png", "loss.png"}
