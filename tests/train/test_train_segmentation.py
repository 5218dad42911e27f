"""Training segmenters: what a run leaves, resuming, two processes, configs, options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

from demo_diffusion.eval.segment import main as segment
from demo_diffusion.records.run_records import read_losses
from demo_diffusion.train.engine.checkpoints import Checkpoints
from demo_diffusion.train.segmentation.config import parse_config
from demo_diffusion.train.segmentation.trainer import SegmentationTrainer
from demo_diffusion.train.train_segmentation import main
from tests.support.project import ROOT

CONFIGS = sorted((ROOT / "configs/segmentation").rglob("*.yaml"))
TINY = {
    "model": "EMOv2-1M",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 2, 1],
    "attention_head_dims": [8, 8, 8, 8],
    "head_channels": 8,
    "num_scenes": 10,
    "num_val_scenes": 3,
    "window_size": 3,
    "crop_size": 64,
    "min_scale": 0.5,
    "max_scale": 1.5,
    "photometric": True,
    "num_steps": 4,
    "batch_size": 2,
    "learning_rate": 2e-3,
    "ema_decay": 0.5,
    "log_every": 1,
    "checkpoint_every": 2,
}
UNET = {
    "head": "uemo",
    "unet_widths": [8, 16],
    "unet_head_dim": 8,
    "head_channels": 4,
    "dataset": "thin_strokes",
    "eval_window": 64,
}


def arguments(output_dir, **options) -> list[str]:
    words = []
    for name, value in {**TINY, "output_dir": output_dir, **options}.items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def train(output_dir, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(output_dir, **options))
    return Path(output_dir)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoints(run / "checkpoints").latest()
    files = [checkpoint / "model.safetensors", *sorted(checkpoint.glob("ema_*.safetensors"))]
    return {f"{file.stem}.{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("options", [{}, UNET], ids=["segformer", "uemo"])
def test_a_run_leaves_a_segmenter_and_goes_on_bit_by_bit(options, tmp_path, capsys):
    whole = train(tmp_path / "whole", **options)
    assert {path.name for path in whole.iterdir()} >= {
        "config.yaml", "run.json", "data.json", "loss.csv", "loss.png", "results.json", "overlays.png", "model",
    }  # fmt: skip
    results = json.loads((whole / "results.json").read_text())
    assert results["num_images"] == 3 and 0 <= results["miou"] <= results["mdice"] <= 1
    loaded = AutoModelForSemanticSegmentation.from_pretrained(whole / "model")
    assert len(loaded.config.id2label) == (2 if options else 11)
    # A run that is stopped and continued is the same.
    stopped = tmp_path / "stopped"
    for stop_at in (2, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = SegmentationTrainer(parse_config(arguments(stopped, **options)))
        trainer.run(type("Stop", (), {"is_set": stop_at == 2, "reason": "asked"})())
    first, second = state_of(whole), state_of(stopped)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [row["loss"] for row in read_losses(whole)] == [row["loss"] for row in read_losses(stopped)]
    # The command measures the same, and colours a picture.
    dataset, out, drawing = options.get("dataset", "digit_scenes"), tmp_path / "out.json", tmp_path / "drawing.png"
    words = ["--model", str(whole / "model"), "--dataset", dataset, "--num_scenes", "3", "--out", str(out)]
    segment([*words, "--drawing", str(drawing), *(["--window", "64"] if options else [])])
    assert json.loads(out.read_text())["miou"] == pytest.approx(results["miou"], abs=1e-3)
    Image.new("RGB", (75, 50)).save(tmp_path / "photo.png")
    segment(["--model", str(whole / "model"), "--picture", str(tmp_path / "photo.png"), "--drawing", str(drawing)])
    assert Image.open(drawing).size == (75, 50) and "%" in capsys.readouterr().out


def test_two_processes_train_and_measure(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29617"]
    words = arguments(tmp_path / "run", num_steps=2)
    done = subprocess.run([*command, "train/train_segmentation.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    alone = ["--model", str(tmp_path / "run/model"), "--dataset", "digit_scenes", "--num_scenes", "3"]
    segment([*alone, "--out", str(tmp_path / "alone.json")])
    assert json.loads((tmp_path / "alone.json").read_text())["iou"] == pytest.approx(results["iou"], abs=1e-3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_right(path):
    config = parse_config(["--config", str(path)])
    network = config.model.unet_options() if config.model.head in ("uemo", "unet") else config.model.segmenter_options()
    assert network and config.optimization.weight_decay in (0.05, 0.01)


def test_norms_of_the_backbone_alone_have_no_decay_and_the_head_has_its_rate(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = SegmentationTrainer(parse_config(arguments(tmp_path / "run", head="fpn", head_lr_factor=10.0)))
    groups = trainer.parameter_groups(trainer.plain_network)
    names = {id(p): name for name, p in trainer.plain_network.named_parameters()}
    of = [[names[id(p)] for p in group["params"]] for group in groups]
    assert sorted(name for group in of for name in group) == sorted(names.values())
    assert of[1] and all("norm" in name and name.startswith("backbone.") for name in of[1])
    assert groups[2]["lr"] == pytest.approx(2e-2) and not any("pyramid" in name for name in of[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "uemo", "unet_widths": [60], "unet_head_dim": 8}, "hidden_sizes is"),
        ({"head": "unet", "backbone_weights": "x"}, "backbone_weights is for heads on EMOv2"),
        ({"min_scale": 2.0}, "min_scale is 2.0; it must be at most max_scale"),
        ({"batch_size": 1}, "BatchNorm needs at least two images"),
        ({"dataset": "nowhere"}, "nowhere needs --masks"),
    ],
)
def test_wrong_options_are_named_in_one_line(options, message, tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(tmp_path / "run", **options))
    assert message in f"{stopped.value} {capsys.readouterr().err}"
