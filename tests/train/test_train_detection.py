"""Training detectors: what a run leaves, resuming, two processes, configs, options."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from demo_diffusion import create_emov2
from demo_diffusion.eval.detect import main as detect
from demo_diffusion.eval.metrics.detection import measure_precision
from demo_diffusion.models.detection import EMOv2Detector
from demo_diffusion.models.emov2.presets import PRESETS
from demo_diffusion.records.run_records import read_losses, read_scores
from demo_diffusion.train.detection.config import parse_config
from demo_diffusion.train.detection.data import AugmentedObjects
from demo_diffusion.train.detection.trainer import DetectionTrainer
from demo_diffusion.train.engine.checkpoints import Checkpoints
from demo_diffusion.train.engine.schedules import flat_cosine
from demo_diffusion.train.train_detection import main
from tests.support.coco import annotation, coco_content, coco_folder
from tests.support.hub import use_fake_hub
from tests.support.project import ROOT
from tests.support.runs import first_steps_of, state_of, words_of

CONFIGS = sorted((ROOT / "configs/detection").rglob("*.yaml"))
TINY = {
    "model": "EMOv2-1M",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 2, 1],
    "attention_head_dims": [8, 8, 8, 8],
    "window_size": 3,
    "image_size": 96,
    "num_scenes": 10,
    "num_val_scenes": 3,
    "min_side": 80,
    "max_side": 110,
    "photometric": True,
    "iou_crop": True,
    "zoom_out_probability": 0.5,
    "num_steps": 4,
    "batch_size": 2,
    "learning_rate": 2e-3,
    "lr_schedule": "flat_cosine",
    "warmup_steps": 1,
    "ema_decay": 0.5,
    "box_batch_size_per_image": 16,
    "log_every": 1,
    "checkpoint_every": 2,
}


def arguments(output_dir, **options) -> list[str]:
    return words_of({**TINY, "output_dir": output_dir, **options})


def train(output_dir, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(output_dir, **options))
    return Path(output_dir)


SLOW = [pytest.param(name, marks=pytest.mark.proof) for name in ("RetinaNet", "MaskRCNN")]


@pytest.mark.parametrize("detector", ["SSDLite", *SLOW])
def test_a_run_leaves_a_detector_and_goes_on_bit_by_bit(detector, tmp_path):
    whole = train(tmp_path / "whole", detector=detector)
    assert {path.name for path in whole.iterdir()} >= {
        "config.yaml", "run.json", "data.json", "loss.csv", "loss.png", "precision.csv", "results.json",
        "detections.png", "model", "checkpoints",
    }  # fmt: skip
    results = json.loads((whole / "results.json").read_text())
    assert results["num_images"] == 3 and (results["mask"] is not None) == (detector == "MaskRCNN")
    assert [row["step"] for row in read_scores(whole, "precision")] == [4]
    loaded = EMOv2Detector.from_pretrained(whole / "model").eval()
    assert list(loaded.config.id2label.values()) == [str(i) for i in range(10)]
    assert {path.name for path in (whole / "model").iterdir()} == {
        "README.md", "config.json", "detections.png", "model.safetensors"
    }  # fmt: skip
    # A run that is stopped and continued is the same.
    stopped = tmp_path / "stopped"
    for stop_at in (2, 4):
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = DetectionTrainer(parse_config(arguments(stopped, detector=detector)))
        trainer.run(type("Stop", (), {"is_set": stop_at == 2 and trainer.resume().step < 2, "reason": "asked"})())
        if stop_at == 2:
            assert Checkpoints(stopped / "checkpoints").latest().name == "step-000000001"
    assert first_steps_of(stopped) == [0, 1]
    first, second = state_of(whole), state_of(stopped)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert [row["loss"] for row in read_losses(whole)] == [row["loss"] for row in read_losses(stopped)]


@pytest.mark.parametrize("detector", ["RetinaNet", pytest.param("MaskRCNN", marks=pytest.mark.proof)])
def test_a_folder_with_a_coco_file_trains_and_is_measured(detector, tmp_path, capsys, monkeypatch):
    fake_hub = use_fake_hub(monkeypatch)
    images, file = coco_folder(tmp_path)
    classifier = tmp_path / "classifier"
    network = create_emov2(
        "EMOv2-1M", num_labels=2, **{k: TINY[k] for k in ("hidden_sizes", "depths", "attention_head_dims")}
    )
    for value in network.buffers():
        value += 1  # as if trained
    network.save_pretrained(classifier)
    data = {"dataset": images, "annotations": file, "val_annotations": file}
    options = {"detector": detector, "backbone_weights": classifier, "freeze_first_stage": True, "num_steps": 1}
    options |= {"warmup_steps": 0, "checkpoint_every": 10}
    run = train(tmp_path / "run", **data, **options, freeze_batch_norm=True, push_to_hub="someone/objects")
    assert fake_hub.uploads == [("someone/objects", {path.name for path in (run / "model").iterdir()})]
    card = ModelCard((run / "model/README.md").read_text())
    assert card.data.pipeline_tag == "object-detection" and 'from_pretrained("someone/objects")' in card.text
    start, trained = (load_file(path / "model.safetensors") for path in (classifier, run / "model"))
    frozen = [name for name in start if name.startswith(("emov2.stem.", "emov2.stages.0."))]
    moved = [name for name in start if name.startswith("emov2.stages.1.") and "running" not in name]
    body = {name: name.replace("emov2.", "detector.backbone.body.") for name in [*frozen, *moved]}
    assert frozen and all(torch.equal(start[name], trained[body[name]]) for name in frozen)
    assert not all(torch.equal(start[name], trained[body[name]]) for name in moved)
    capsys.readouterr()
    out = tmp_path / "results.json"
    detect(["--model", str(run / "model"), "--dataset", images, "--annotations", file, "--out", str(out),
            "--drawing", str(tmp_path / "drawing.png")])  # fmt: skip
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("4 images: box AP") and ("; mask AP" in line) == (detector == "MaskRCNN")
    results = json.loads(out.read_text())
    before = json.loads((run / "results.json").read_text())
    assert results["box"] == before["box"] and results["mask"] == before["mask"]
    assert Image.open(tmp_path / "drawing.png").width > 500


def rename_classes(model: Path, start: str) -> None:
    config = json.loads((model / "config.json").read_text())
    names = {number: f"{start} {number}" for number in config["id2label"]}
    config |= {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
    (model / "config.json").write_text(json.dumps(config))


def test_objects_of_a_picture_are_drawn(tmp_path, capsys):
    run = train(tmp_path / "run", num_steps=1)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (120, 90), "red").save(picture)
    drawing, out = tmp_path / "found.png", tmp_path / "found.json"
    detect(["--model", str(run / "model"), "--picture", str(picture), "--threshold", "0.05", "--drawing", str(drawing),
            "--out", str(out)])  # fmt: skip
    found = json.loads(out.read_text())["objects"]
    assert found and {*found[0]} == {"class", "score", "box"} and Image.open(drawing).size == (120, 90)
    assert any(pixel != (255, 0, 0) for _, pixel in Image.open(drawing).convert("RGB").getcolors(1 << 20))
    rename_classes(run / "model", "\x1b[2J\nerror: none")
    capsys.readouterr()
    detect(["--model", str(run / "model"), "--picture", str(picture), "--threshold", "0.05"])
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith(r"\x1b[2J\nerror: none") and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "exactly one of --dataset and --picture"),
        (["--dataset", "a", "--picture", "b"], "exactly one of --dataset and --picture"),
        (["--picture", "none.png"], "none.png"),
        (["--picture", "text.png", "--model", "there/is/nothing"], "The detector there/is/nothing cannot be loaded"),
        (["--picture", "text.png"], "text.png cannot be read as an image"),
        (["--picture", "text.png", "--drawing", "found.gif"], "must be a .png, .jpg, .jpeg file"),
        (["--dataset", "pictures", "--annotations", "objects.json"], r"has 10 classes and the data 3; class 0 is '0'"),
    ],
)
def test_wrong_options_of_detect_end_in_one_line(tmp_path_factory, monkeypatch, options, message, small_model):
    monkeypatch.chdir(small_model)
    with pytest.raises(SystemExit, match=message) as error:
        detect(["--model", "model", *options])
    assert str(error.value).startswith("error: ") and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    AcceleratorState._reset_state(reset_partial_state=True)
    DetectionTrainer(parse_config(arguments(folder / "run"))).create_network().save_pretrained(folder / "model")
    (folder / "text.png").write_text("no picture")
    coco_folder(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 0}, "window_size is 0"),
        ({"image_size": 20}, "image_size is 20"),
        ({"detector": "RetinaNet", "scaled_anchors": True}, "scaled_anchors is for SSDLite"),
        ({"model": "EMOv3"}, "Unknown backbone"),
        ({"lr_stairs": 2, "lr_schedule": "cosine"}, "lr_stairs is 2"),
        ({"epochs": 2}, "exactly one"),
        ({"freeze_first_stage": True}, "keep what a classifier has learned"),
        ({"min_side": 40}, "at least 80"),
        ({"dataset": "nowhere"}, "needs --annotations"),
        ({"backbone_weights": "there/is/nothing"}, "The classifier there/is/nothing cannot be loaded"),
        ({"batch_size": 1}, "at least two images"),
    ],
)
def test_wrong_options_end_in_one_line(tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as error:
        train(tmp_path / "run", **options)
    text = capsys.readouterr().err if isinstance(error.value.code, int) else error.value.code
    assert message in text and text.startswith("error: ") and "\n" not in text.strip()


def test_validation_must_have_the_same_classes(tmp_path):
    images, file = coco_folder(tmp_path / "a")
    content = coco_content()
    content["categories"] = [{"id": 13, "name": "cat"}]
    content["annotations"] = [annotation(1)]
    _, other = coco_folder(tmp_path / "b", content)
    with pytest.raises(SystemExit, match="has 1 categories, .* has 3; they must be the same"):
        train(tmp_path / "run", dataset=images, annotations=file, val_annotations=other)


def test_an_augmentation_depends_on_its_key_and_keeps_objects_in_the_image(tmp_path):
    trainer = DetectionTrainer(parse_config(arguments(tmp_path / "run", detector="MaskRCNN", flip_probability=0.5)))
    samples: AugmentedObjects = trainer.samples
    seen = set()
    for key in [(i, epoch) for i in range(5) for epoch in range(4)]:
        image, target = samples[key]
        again, _ = samples[key]
        height, width = image.shape[-2:]
        assert torch.equal(image, again) and image.dtype == torch.uint8
        seen.add((height, width))
        boxes, masks = target["boxes"], target["masks"]
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert masks.shape == (len(boxes), height, width) and len(target["labels"]) == len(boxes)
        for (left, top, right, bottom), mask in zip(boxes.int().tolist(), masks, strict=True):
            assert mask.sum() == mask[top : bottom + 1, left : right + 1].sum()
    assert len(seen) > 10


def test_norms_have_no_weight_decay(tmp_path):
    trainer = DetectionTrainer(parse_config(arguments(tmp_path / "run", weight_decay=0.05)))
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    named = dict(trainer.plain_network.named_parameters())
    trained = {name: decays[id(p)] for name, p in named.items() if p.requires_grad}
    assert len(trained) == len(decays)
    assert {name for name, decay in trained.items() if decay == 0} == {name for name in trained if "norm" in name}
    assert any("bias" in name and decay > 0 for name, decay in trained.items())


def test_the_schedule_is_the_papers():
    epoch = 100
    factors = [flat_cosine(e * epoch + epoch // 2, 12 * epoch, 50, 12) for e in range(12)]
    assert factors == pytest.approx([1] * 7 + [0.933, 0.75, 0.5, 0.25, 0.067], abs=1e-3)
    assert [flat_cosine(step, 12 * epoch, 50, 12) for step in (0, 25, 50)] == [0, 0.5, 1]
    smooth = [flat_cosine(step, 1200, 0, 1200) for step in range(1200)]
    assert smooth[:601] == [1] * 601 and all(a > b for a, b in pairwise(smooth[600:]))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid(path):
    config = parse_config([f"--config={path}"])
    assert config.model.model in PRESETS and config.run.output_dir == f"runs/{path.stem}"


def test_every_row_of_the_tables_has_a_config():
    rows = {
        (c.model.detector, c.model.model, c.model.image_size) for c in map(parse, CONFIGS) if "digits" not in str(c)
    }
    v2, v1 = ([n for n in PRESETS if n.startswith(kind) and "50M" not in n] for kind in ("EMOv2", "EMOv1"))
    expected = {("SSDLite", name, 320) for name in [*v2, *v1]} | {("SSDLite", name, 512) for name in v2}
    expected |= {("RetinaNet", name, 800) for name in [*v2, *v1]}
    expected |= {("MaskRCNN", name, 800) for name in [*v2, "EMOv1-5M"]}
    assert rows == expected


def parse(path: Path):
    return parse_config([f"--config={path}"])


def test_two_processes_measure_what_one_does(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = arguments(run, num_steps=2, batch_size=4)
    done = subprocess.run([*command, str(ROOT / "train/train_detection.py"), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((run / "results.json").read_text())
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = DetectionTrainer(parse_config(arguments(tmp_path / "other", num_steps=2)))
    detector = EMOv2Detector.from_pretrained(run / "model").eval()
    measured = measure_precision(detector, trainer.val_objects.dataset, trainer.accelerator, batch_size=8)
    assert (measured.box, measured.mask) == (results["box"], results["mask"])
