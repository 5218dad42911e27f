"""Training segmenters: what a run leaves, resuming, two processes, configs, options."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from demo_diffusion.eval.metrics.segmentation import predict_classes, prepare
from demo_diffusion.eval.segment import main as segment
from demo_diffusion.records.run_records import read_losses
from demo_diffusion.train.segmentation.config import UNETS, parse_config
from demo_diffusion.train.segmentation.data import AugmentedPixels
from demo_diffusion.train.segmentation.trainer import SegmentationTrainer
from demo_diffusion.train.train_segmentation import main
from tests.support.hub import use_fake_hub
from tests.support.project import ROOT
from tests.support.runs import state_of, words_of
from tests.support.segmenters import HEADS, small_unet

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
    return words_of({**TINY, "output_dir": output_dir, **options})


def train(output_dir, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(output_dir, **options))
    return Path(output_dir)


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
    assert json.loads(out.read_text())["iou"] == results["iou"]
    Image.new("RGB", (75, 50)).save(tmp_path / "photo.png")
    segment(["--model", str(whole / "model"), "--picture", str(tmp_path / "photo.png"), "--drawing", str(drawing)])
    assert Image.open(drawing).size == (75, 50) and "%" in capsys.readouterr().out


def test_two_processes_measure_what_one_does(tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = arguments(run, num_steps=2, batch_size=4)
    done = subprocess.run([*command, "train/train_segmentation.py", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    words = ["--model", str(run / "model"), "--dataset", "digit_scenes", "--num_scenes", "3", "--out", str(alone)]
    segment(words)
    one, two = (json.loads(file.read_text()) for file in (alone, run / "results.json"))
    assert all(one[name] == two[name] for name in ("num_images", "miou", "aacc", "macc", "mdice", "iou"))


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    """Four pictures of mixed size, and masks of three classes: grey, with a palette, of 16 bits; some is ignored."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, (width, height) in enumerate([(70, 50), (64, 90), (33, 41), (120, 64)]):
        random = np.random.default_rng(number)
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / f"images/{number}.png")
        classes = random.integers(0, 3, (height, width), np.uint16 if number == 2 else np.uint8)
        classes[:4] = 255
        mask = Image.fromarray(classes)
        if number == 1:
            mask.putpalette(bytes(range(256)) * 3)
        mask.save(tmp_path / f"masks/{number}.png")
    return {"dataset": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}


FEW_STEPS = {"num_steps": 1, "checkpoint_every": 10, "num_classes": 3}


@pytest.mark.parametrize("options", [{"head": "fpn"}, {**UNET, "mixed_precision": "bf16"}], ids=["fpn", "uemo-bf16"])
def test_folders_train_and_the_model_is_uploaded(options, folders, tmp_path, monkeypatch):
    fake_hub = use_fake_hub(monkeypatch)
    run = train(tmp_path / "run", **{**options, **folders, **FEW_STEPS}, push_to_hub="someone/pixels")
    ((repo_id, files),) = fake_hub.uploads
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "overlays.png"}
    assert repo_id == "someone/pixels" and files == expected
    card = (run / "model/README.md").read_text()
    assert ModelCard(card).data.pipeline_tag == "image-segmentation" and 'from_pretrained("someone/pixels")' in card
    assert all(row["loss"] > 0 for row in read_losses(run))
    # What the card says, on one of the pictures: the same classes as in the measurement.
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(run / "model").eval()
    processor = AutoImageProcessor.from_pretrained(run / "model")
    image = Image.open(Path(folders["dataset"]) / "0.png")
    with torch.no_grad():
        found = segmenter(**processor(image, return_tensors="pt"))
    (classes,) = processor.post_process_semantic_segmentation(found, [image.size[::-1]])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    assert torch.equal(classes, predict_classes(segmenter, pixels)[0])


def test_damaged_data_end_a_training_in_one_line(folders, tmp_path, capsys):
    Image.new("L", (9, 9)).save(Path(folders["masks"]) / "3.png")
    for workers in (0, 1):
        with pytest.raises(SystemExit, match=r"3.png has 9 × 9 pixels and .*3.png has 120 × 64") as error:
            train(tmp_path / f"run{workers}", **folders, **FEW_STEPS, batch_size=4, num_workers=workers)
        assert "\n" not in str(error.value)


def test_an_augmentation_depends_on_its_key_and_moves_the_mask_with_the_image(folders, tmp_path):
    """The picture is its own mask: what is true of every pixel before is true of every pixel after."""
    options = {"flip_probability": 0.5, "photometric": False, "crop_size": 48, "min_scale": 1.0, "max_scale": 1.0}
    config = parse_config(arguments(tmp_path / "run", **options)).augmentation
    classes = torch.arange(50 * 70).reshape(50, 70) % 251
    samples = AugmentedPixels([(classes.to(torch.uint8).expand(3, -1, -1), classes)], config, seed=3)
    grey, seen = prepare(torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256))[0, :, 0], set()
    for epoch in range(12):
        pixels, labels = samples[0, epoch]
        assert pixels.shape == (3, 48, 48) and torch.equal(pixels, samples[0, epoch][0])
        assert torch.equal(pixels, grey[:, labels])
        seen.add(tuple(labels[0].tolist()))
    assert len(seen) > 6


def test_crops_reach_beyond_small_images_and_few_are_of_one_class(tmp_path):
    config = parse_config(
        arguments(tmp_path / "run", most_of_a_class=0.75, crop_size=64, photometric=False)
    ).augmentation
    classes = torch.zeros(40, 300, dtype=torch.long)
    classes[:, 250:] = 1
    samples = AugmentedPixels([(torch.zeros(3, 40, 300, dtype=torch.uint8), classes)], config, seed=0)
    labels = torch.stack([samples[0, epoch][1] for epoch in range(20)])
    assert labels.shape[1:] == (64, 64) and set(labels.unique().tolist()) == {0, 1, 255}
    assert sum({0, 1} <= set(each.unique().tolist()) for each in labels) > 12


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid(path):
    config = parse_config([f"--config={path}"])
    assert config.run.output_dir.removeprefix("runs/hrf_").removeprefix("runs/") == path.stem


def test_every_row_of_the_tables_has_a_config():
    rows = [parse_config([f"--config={path}"]).model for path in CONFIGS if "digits" not in path.name]
    heads = {(model.head, model.model) for model in rows if model.head not in UNETS}
    sizes = ("1M", "2M", "5M", "20M")
    expected = {(head, f"EMOv2-{size}") for head in HEADS for size in sizes}
    expected |= {(head, f"EMOv1-{size}") for head in ("deeplabv3", "pspnet") for size in sizes[:3]}
    assert heads == expected and {model.head for model in rows} == {*HEADS, *UNETS}


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
        ({"head": "uemo", "unet_head_dim": 48}, "attention_head_dim is 48; it must divide"),
        ({"head": "unet", "backbone_weights": "x"}, "backbone_weights is for heads on EMOv2"),
        ({"model": "EMOv9"}, "Unknown backbone 'EMOv9'"),
        ({"window_size": 0}, "window_size is 0"),
        ({"min_scale": 2.0}, "min_scale is 2.0; it must be at most max_scale"),
        ({"eval_window": 32, "eval_stride": 40}, "stride is 40; it must be from 1 to the window of 32"),
        ({"eval_stride": 40}, "stride is 40; it is for a sliding window"),
        ({"epochs": 2}, "exactly one"),
        ({"side": 40}, "at least 80"),
        ({"batch_size": 1}, "BatchNorm needs at least two images"),
        ({"dataset": "nowhere"}, "nowhere needs --masks"),
        ({"dataset": "nowhere", "masks": "nor/there"}, "nowhere is no folder"),
        ({"masks": "masks"}, "digit_scenes has its own"),
        ({"backbone_weights": "there/is/nothing"}, "The classifier there/is/nothing cannot be loaded"),
    ],
)
def test_wrong_options_end_in_one_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train(tmp_path / "run", **options)
    text = capsys.readouterr().err if isinstance(error.value.code, int) else error.value.code
    assert message in text and text.startswith("error: ") and "\n" not in text.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "exactly one of --dataset and --picture"),
        (["--dataset", "a", "--picture", "b"], "exactly one of --dataset and --picture"),
        (["--picture", "none.png"], "none.png"),
        (["--picture", "text.png", "--model", "there/is/nothing"], "The segmenter there/is/nothing cannot be loaded"),
        (["--picture", "text.png"], "text.png cannot be read as an image"),
        (["--picture", "text.png", "--drawing", "found.gif"], "must be a .png, .jpg, .jpeg file"),
        (["--dataset", "digit_scenes"], "has 5 classes, the data 11"),
        (["--dataset", "images"], "images needs --masks"),
        (
            ["--picture", "text.png", "--window", "8", "--stride", "9"],
            "stride is 9; it must be from 1 to the window of 8",
        ),
    ],
)
def test_wrong_options_of_segment_end_in_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_unet().save_pretrained("model")
    Path("text.png").write_text("no picture")
    with pytest.raises(SystemExit, match=message) as error:
        segment(["--model", "model", *options])
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value)
