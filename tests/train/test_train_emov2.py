import csv
import importlib.util
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from demo_diffusion import create_emov2
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.data.raw_images import RawImages
from demo_diffusion.eval.classify import main as classify
from demo_diffusion.eval.compare_runs import main as compare_runs
from demo_diffusion.models.classifiers import expected_input, image_processor
from demo_diffusion.models.emov2.presets import emov2_config
from demo_diffusion.train.classification.config import AugmentationConfig, ClassificationDataConfig, parse_config
from demo_diffusion.train.classification.data import AugmentedImages, random_state_of
from demo_diffusion.train.classification.distillation import Teacher, soft_distillation_loss
from demo_diffusion.train.classification.trainer import ClassificationTrainer
from demo_diffusion.train.train_emov2 import main

CONFIGS = Path(__file__).parents[2] / "configs/classification"
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml"))
TINY = {
    "model": "EMOv2-1M",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 2, 1],
    "attention_head_dims": [8, 8, 8, 8],
    "window_size": 2,
    "resolution": 32,
    "num_steps": 6,
    "batch_size": 4,
    "learning_rate": 2e-3,
    "ema_decay": 0.5,
    "log_every": 1,
    "eval_every": 2,
    "checkpoint_every": 3,
}
EVERYTHING_RANDOM = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path_rate": 0.5,
    "multi_scale": [24, 32, 40],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("pictures"))


def picture_folder(path: Path, classes=("bright", "dark"), images_per_class=6) -> Path:
    """Noise whose brightness tells its class, in a split to train and one to measure on."""
    noise = np.random.default_rng(0)
    for split in ("train", "validation"):
        for number, name in enumerate(classes):
            (path / split / name).mkdir(parents=True)
            for i in range(images_per_class):
                low = 20 + 120 * (number % 2)
                pixels = noise.integers(low, low + 80, (30 + i, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{i}.png")
    return path


def arguments(dataset, output_dir, **options) -> list[str]:
    words = []
    for name, value in {**TINY, "dataset": dataset, "output_dir": output_dir, **options}.items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def train(dataset, output_dir, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(dataset, output_dir, **options))
    return Path(output_dir)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Weights and moving averages of the newest checkpoint."""
    checkpoint = max((run / "checkpoints").iterdir())
    files = [checkpoint / "model.safetensors", *sorted(checkpoint.glob("ema_*.safetensors"))]
    return {f"{file.stem}.{name}": value for file in files for name, value in load_file(file).items()}


def trainer_of(dataset, output_dir, **options) -> ClassificationTrainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    return ClassificationTrainer(parse_config(arguments(dataset, output_dir, **options)))


@pytest.fixture(scope="module")
def finished_run(folder, tmp_path_factory) -> Path:
    return train(folder, tmp_path_factory.mktemp("run") / "run", epochs=2, num_steps="none", warmup_epochs=0.5,
                 lr_schedule="cosine")  # fmt: skip


def test_a_run_leaves_everything_that_is_promised(finished_run, folder):
    run = finished_run
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "run.json", "loss.csv", "loss.png", "accuracy.csv", "accuracy.png", "results.json", "model",
        "checkpoints", "tensorboard",
    }  # fmt: skip
    with (run / "accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]  # two epochs of 12 pictures, 4 a step
    results = json.loads((run / "results.json").read_text())
    assert (results["step"], results["num_images"]) == (6, 12)
    assert results["top1"] == float(rows[-1]["top1"]) and results["top5"] == 1
    config = parse_config(["--config", str(run / "config.yaml")])
    assert (config.optimization.num_steps, config.optimization.warmup_steps) == (6, 2)
    assert "top-1" in (run / "model/README.md").read_text()


def test_the_model_folder_is_the_moving_average_and_loads_with_its_processor(finished_run, folder):
    model, loading = AutoModelForImageClassification.from_pretrained(finished_run / "model", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.id2label == {0: "bright", 1: "dark"} and model.config.label2id["dark"] == 1
    assert model.config.image_size == 32
    checkpoint = max((finished_run / "checkpoints").iterdir())
    average = load_file(checkpoint / "ema_0.5.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=0)
    running = [value for name, value in model.state_dict().items() if name.endswith("running_mean")]
    assert all(value.abs().max() > 0 for value in running)
    processor = AutoImageProcessor.from_pretrained(finished_run / "model")
    picture = Image.open(folder / "train/dark/0.png")
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    red = (np.array(picture)[..., 0].mean() / 255 - 0.485) / 0.229
    assert pixels[0, 0].mean().item() == pytest.approx(red, abs=0.15)


def test_the_folder_is_as_accurate_as_the_run_says(finished_run, folder, tmp_path):
    classify([f"--model={finished_run / 'model'}", f"--dataset={folder}", f"--out={tmp_path / 'again.json'}"])
    again, results = (json.loads(path.read_text()) for path in (tmp_path / "again.json", finished_run / "results.json"))
    assert {name: again[name] for name in ("num_images", "top1", "top5")} == {
        name: results[name] for name in ("num_images", "top1", "top5")
    }


def test_runs_are_laid_side_by_side(finished_run, tmp_path, capsys):
    compare_runs([str(finished_run), str(finished_run), "--plot", "accuracy", "--out", str(tmp_path / "accuracy.png")])
    results = json.loads((finished_run / "results.json").read_text())
    table = capsys.readouterr().out
    assert table.count(f"| EMOv2-1M | {results['parameters']:,} | 6 | {results['top1']:.2%} | 100.00% |") == 2
    assert Image.open(tmp_path / "accuracy.png").size == (840, 480)
    compare_runs([str(finished_run), "--out", str(tmp_path / "losses.png")])
    assert capsys.readouterr().out.splitlines()[-1] in table and (tmp_path / "losses.png").is_file()
    scored = Path(shutil.copytree(finished_run, tmp_path / "scored"))
    (scored / "evaluation/step-6").mkdir(parents=True)
    (scored / "evaluation/step-6/results.json").write_text('{"metrics": {"fid": 3.5}, "fingerprint": {}}')
    compare_runs([str(scored), "--plot", "fid", "--out", str(tmp_path / "fid.png")])
    assert re.search(r"\| EMOv2-1M \|.*\n\n\| run \| at \|.*\| 3.5 \|\n", capsys.readouterr().out, re.DOTALL)
    with pytest.raises(SystemExit, match="not the folder of a classifier's finished run"):
        compare_runs([str(tmp_path), "--plot", "accuracy", "--out", str(tmp_path / "accuracy.png")])
    with pytest.raises(SystemExit, match=r"must be a .png, .pdf, .svg file"):
        compare_runs([str(finished_run), "--plot", "accuracy", "--out", str(tmp_path / "accuracy.txt")])


def test_a_run_continues_exactly_and_workers_change_nothing(folder, tmp_path, monkeypatch):
    whole = train(folder, tmp_path / "whole", **EVERYTHING_RANDOM)
    save, saved = ClassificationTrainer._save, []

    def save_and_fall(self):
        save(self)
        saved.append(self.progress.step)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationTrainer, "_save", save_and_fall)
    with pytest.raises(SystemExit, match="130"):
        train(folder, tmp_path / "parts", **EVERYTHING_RANDOM)
    parts = train(folder, tmp_path / "parts", num_workers=1, **EVERYTHING_RANDOM)
    assert saved[0] == 3
    expected, found = state_of(whole), state_of(parts)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert (whole / "accuracy.csv").read_text() == (parts / "accuracy.csv").read_text()


def test_sigterm_in_the_last_step_comes_too_late_to_stop_the_run(folder, tmp_path, monkeypatch):
    loss = ClassificationTrainer.loss

    def signalled(self, batch, draws):
        if self.progress.step == self.num_steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch, draws)

    monkeypatch.setattr(ClassificationTrainer, "loss", signalled)
    run = train(folder, tmp_path / "run", num_steps=3)
    assert json.loads((run / "results.json").read_text())["step"] == 3


def test_a_finished_run_is_not_measured_again(folder, tmp_path, monkeypatch):
    run = train(folder, tmp_path / "run", num_steps=2)
    monkeypatch.setattr(ClassificationTrainer, "measure", lambda self: pytest.fail("measured again"))
    before = (run / "accuracy.csv").read_text()
    train(folder, tmp_path / "run", num_steps=2)
    assert (run / "accuracy.csv").read_text() == before


@pytest.mark.parametrize("preset", ["EMOv2-1M", "EMOv1-1M"])
def test_both_families_learn(folder, tmp_path, preset):
    options = {"layer_scale_init_value": 1.0} if preset == "EMOv2-1M" else {}
    run = train(folder, tmp_path / "run", model=preset, num_steps=40, learning_rate=5e-3, eval_every=0,
                checkpoint_every=50, min_crop_area=0.5, **options)  # fmt: skip
    assert json.loads((run / "results.json").read_text())["top1"] > 0.9


def test_what_happens_to_a_picture_depends_on_seed_epoch_and_index_alone(folder):
    data = ClassificationDataConfig(dataset=str(folder), resolution=32)
    augmentation = AugmentationConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
    pictures = RawImages(load_images(data, own_size=True))
    samples = AugmentedImages(pictures, data, augmentation, seed=3)
    first, label = samples[(0, 0)]
    assert first.shape == (3, 32, 32) and label == 0
    with random_state_of(5):
        expected = draws()
    with random_state_of(5):
        again, other = samples[(0, 0)][0], samples[(0, 1)][0]
        assert draws() == expected
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, AugmentedImages(pictures, data, augmentation, seed=4)[(0, 0)][0])


def draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_random_state_seeds_all_three_generators():
    def draws_of(*key):
        with random_state_of(*key):
            return draws()

    assert draws_of(1, 2, 3) == draws_of(1, 2, 3)
    assert all(a != b for a, b in zip(draws_of(1, 2, 3), draws_of(1, 3, 2), strict=True))


def test_digits_are_pictures_too():
    picture, label = RawImages(load_images(DataConfig(), own_size=True))[1]
    assert (picture.size, picture.mode, label) == ((8, 8), "RGB", 1)


def test_weight_decay_is_for_matrices_alone(folder, tmp_path):
    trainer = trainer_of(folder, tmp_path / "run", weight_decay=0.05)
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.plain_network.named_parameters():
        assert decays[id(parameter)] == (0.05 if parameter.ndim > 1 else 0), name


def test_the_loss_is_cross_entropy_with_smoothing_and_the_teachers_term(folder, tmp_path):
    teacher = teacher_folder(tmp_path / "teacher")
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    plain = trainer_of(folder, tmp_path / "plain")
    plain.network.eval()
    logits = plain.network(images).logits
    likelihood = logits.log_softmax(-1)
    expected = -(0.9 * likelihood[range(4), labels] + 0.1 * likelihood.mean(-1)).mean()
    torch.testing.assert_close(plain.loss([images, labels], {}), expected)
    taught = trainer_of(folder, tmp_path / "taught", teacher=teacher, distillation_temperature=2)
    taught.network.eval()
    target = (taught.teacher(images) / 2).softmax(-1)
    divergence = (target * (target.log() - (logits / 2).log_softmax(-1))).sum() * 4 / logits.numel()
    torch.testing.assert_close(taught.loss([images, labels], {}), expected + 5 * divergence)


def test_mixed_targets_are_used_as_they_are(folder, tmp_path):
    trainer = trainer_of(folder, tmp_path / "run", mixup=0.8, cutmix=1.0)
    assert (trainer.mixup.mixup_alpha, trainer.mixup.cutmix_alpha, trainer.mixup.label_smoothing) == (0.8, 1.0, 0.1)
    trainer.network.eval()
    images, targets = torch.randn(4, 3, 32, 32), torch.rand(4, 2)
    trainer.mixup = lambda images, labels: (images.flip(0), targets)
    likelihood = trainer.network(images.flip(0)).logits.log_softmax(-1)
    loss = trainer.loss([images, torch.tensor([0, 1, 1, 0])], {})
    torch.testing.assert_close(loss, -(targets * likelihood).sum(-1).mean())


def test_each_step_draws_one_side(folder, tmp_path):
    trainer, seen = trainer_of(folder, tmp_path / "run", multi_scale=[24, 40]), set()
    assert trainer.samples[(0, 0)][0].shape == (3, 40, 40)
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.add(inputs[0].shape[-1]))
    for seed in range(8):
        draws = trainer.draw(torch.Generator().manual_seed(seed))
        assert draws["side"].shape == (4,) and len(draws["side"].unique()) == 1
        again = trainer.draw(torch.Generator().manual_seed(seed))
        assert torch.equal(again["side"], draws["side"])
        trainer.loss([torch.randn(4, 3, 40, 40), torch.tensor([0, 1, 0, 1])], draws)
    assert seen == {24, 40}


def teacher_folder(path: Path, num_labels=2, mean=0.3, std=0.6) -> Path:
    """A teacher that sees 24 pixels in its own normalisation."""
    sizes = {name: TINY[name] for name in ("hidden_sizes", "depths", "attention_head_dims")}
    model = create_emov2("EMOv2-1M", num_labels=num_labels, layer_scale_init_value=1.0, **sizes)
    nn.init.normal_(model.classifier.weight, std=3)
    model.save_pretrained(path)
    image_processor(24, image_mean=[mean] * 3, image_std=[std] * 3).save_pretrained(path)
    return path


def test_a_teacher_sees_its_own_size_and_normalisation(tmp_path):
    folder = teacher_folder(tmp_path / "teacher")
    pixels = torch.rand(2, 3, 24, 24)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    teacher = Teacher(str(folder), {0: "dark", 1: "bright"}, mean.tolist(), std.tolist())
    expected = teacher.model((pixels - 0.3) / 0.6).logits
    student_images = (pixels - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(teacher(student_images), expected, rtol=1e-4, atol=1e-4)
    assert teacher(torch.randn(2, 3, 32, 32)).shape == (2, 2)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_input_of_other_processors():
    from transformers import ConvNextImageProcessor, MobileViTImageProcessor, ViTImageProcessor

    assert expected_input(ViTImageProcessor()) == ((224, 224), [0.5] * 3, [0.5] * 3)
    assert expected_input(ConvNextImageProcessor(size={"shortest_edge": 384}))[0] == (384, 384)
    assert expected_input(ViTImageProcessor(do_normalize=False))[1:] == ([0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="RGB"):
        expected_input(MobileViTImageProcessor())


def test_soft_distillation_is_zero_for_equal_networks():
    logits = torch.randn(3, 5)
    assert soft_distillation_loss(logits, logits + 1, 2.0).abs() < 1e-6  # a shift of the logits changes no probability
    assert soft_distillation_loss(logits, -logits, 2.0) > 0


def test_overrides_of_the_preset(folder, tmp_path):
    modes = ["none", "none", "remote", "remote"]
    config = parse_config(arguments(folder, tmp_path / "run", attention_modes=modes, window_size=4))
    assert config.model.overrides() == {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 2, 1],
        "attention_head_dims": [8, 8, 8, 8],
        "attention_modes": modes,
        "window_size": 4,
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_read(name):
    config = parse_config(["--config", str(CONFIGS / name)])
    network = emov2_config(config.model.model, **config.model.overrides())
    folder, name = Path(name).parent.name, Path(name).stem
    if folder == "cifar10":
        assert config.run.output_dir.endswith(f"cifar10_{name}")
        return
    assert config.run.output_dir.endswith(name.removeprefix("emov2_"))
    family, size, resolution, *_ = name.split("_")
    optimization, batch = config.optimization, config.optimization.batch_size
    assert config.model.model.lower() == f"{family}-{size}"
    assert optimization.learning_rate == pytest.approx(1.5e-3 * batch / 512)
    assert optimization.epochs == (1000 if "long" in name else 300)
    assert config.data.resolution == int(resolution)
    assert network.window_size == (7 if config.data.resolution == 224 else 8)
    assert (config.objective.teacher is not None) == ("distilled" in name)
    assert config.optimization.in_steps(1_281_167).num_steps == round(optimization.epochs * 1_281_167 / batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2}, "epochs is 2.0 and num_steps is 6; give exactly one"),
        ({"num_steps": "none"}, "give exactly one"),
        ({"num_steps": "none", "epochs": 1, "warmup_epochs": 2, "lr_schedule": "cosine"}, "more than the 1.0 epochs"),
        ({"warmup_epochs": 1}, "has no warm-up"),
        ({"warmup_epochs": 1, "warmup_steps": 1, "lr_schedule": "cosine"}, "give one of them"),
        ({"model": "EMOv3-5M"}, "EMOv3-5M.*known are"),
        ({"attention_head_dims": [3, 3, 3, 3]}, "must divide the width"),
        ({"crop_pct": 1.5}, r"crop_pct is 1.5; it must be in \(0, 1\]"),
        ({"flip_probability": 2}, r"must be in \[0, 1\]"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "must be positive"),
        ({"multi_scale": [0, 32]}, "positive sides"),
        ({"label_smoothing": 1}, r"label_smoothing is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        parse_config(arguments(folder, tmp_path / "run", **options))
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_split": "test"}, "split 'test'.*cannot be read"),
        ({"val_dataset": "missing.parquet"}, "missing.parquet"),
        ({"mixup": 0.8, "batch_size": 3}, "even number of images.*batch_size 3 over 1 parts gives 3"),
        ({"auto_augment": "surprise-me"}, "timm does not know auto_augment 'surprise-me'"),
        ({"teacher": CONFIGS}, "classifier .*configs/classification cannot be loaded: .*Give a folder that"),
    ],
)
def test_mistakes_are_found_before_training(folder, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        train(folder, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_other_classes_are_refused(folder, tmp_path):
    other = picture_folder(tmp_path / "other", classes=("bright", "dim", "dark"), images_per_class=1)
    with pytest.raises(SystemExit, match=r"validation images.*3 classes.*training images 2"):
        train(folder, tmp_path / "run", val_dataset=other)
    teacher = teacher_folder(tmp_path / "teacher", num_labels=3)
    with pytest.raises(SystemExit, match=r"teacher .* has 3 classes, the data 2"):
        train(folder, tmp_path / "run", teacher=teacher)


def test_a_teacher_with_its_classes_in_another_order_is_refused(folder, tmp_path):
    teacher = teacher_folder(tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    for names in (["dark", "other"], ["dark", "bright"]):
        config["id2label"] = dict(enumerate(names))
        (teacher / "config.json").write_text(json.dumps(config))
        with pytest.raises(SystemExit, match=r"has the class '(dark|bright)' at \d, the data at \d"):
            train(folder, tmp_path / "run", teacher=teacher)


def test_one_image_in_a_pass_is_refused(folder, tmp_path):
    with pytest.raises(SystemExit, match="BatchNorm needs at least two images"):
        train(folder, tmp_path / "run", batch_size=1)


def test_measuring_on_training_images_is_said(folder, tmp_path):
    for dataset, split in ((folder, "train"), ("digits", "validation")):
        with pytest.warns(UserWarning, match="measured on the training images"):
            trainer_of(dataset, tmp_path / "run", val_split=split)


def test_a_missing_package_is_named(folder, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(SystemExit, match=r"Training needs timm: pip install 'demo-diffusion\[train\]'"):
        train(folder, tmp_path / "run")


def test_gradient_checkpointing_changes_no_weight(folder, tmp_path):
    options = {"num_steps": 1, "drop_path_rate": 0, "checkpoint_every": 1}
    plain = state_of(train(folder, tmp_path / "plain", **options))
    spared = state_of(train(folder, tmp_path / "spared", gradient_checkpointing=True, **options))
    for name, value in plain.items():
        torch.testing.assert_close(spared[name], value, rtol=1e-4, atol=1e-6)
