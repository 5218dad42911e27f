"""Every command that writes, with options that end well within a second or two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from demo_diffusion import DEMOPipeline
from demo_diffusion.conversion.__main__ import main as convert
from demo_diffusion.data.latents import LatentTable
from demo_diffusion.eval.classify import main as classify
from demo_diffusion.eval.compare_runs import main as compare_runs
from demo_diffusion.eval.detect import main as detect
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.eval.segment import main as segment
from demo_diffusion.models.classifiers import image_processor
from demo_diffusion.objectives import DDPMObjective
from demo_diffusion.records.folder_lock import hold_folder, hold_target
from demo_diffusion.train.cache_latents import main as cache_latents
from demo_diffusion.train.engine.checkpoints import average_file
from demo_diffusion.train.export_pipeline import main as export
from demo_diffusion.train.train_demo import main as train_demo
from demo_diffusion.train.train_detection import main as train_detection
from demo_diffusion.train.train_emov2 import main as train_emov2
from demo_diffusion.train.train_segmentation import main as train_segmentation
from tests.support.classifiers import tiny_emov2
from tests.support.detectors import TINY, small_detector
from tests.support.evaluation import LITE
from tests.support.images import image_folder
from tests.support.networks import tiny_dit
from tests.support.pipelines import tiny_vae
from tests.support.runs import ROOT, arguments, train
from tests.support.segmenters import small_segmenter


class Command(NamedTuple):
    """A command, told where everything is, with the options that make its result (out, variant 0 or 1)."""

    main: Callable[[list[str]], object]
    arguments: Callable[[Path, Path, int], list[str]]
    check: Callable[[Path, int], object]  # raises if the result of a variant is not whole
    hold: Callable = hold_folder  # what it holds, of out
    makes_folder: bool = True  # whether out need not exist
    replaces: bool = False  # whether it overwrites an earlier result


def options(**values: object) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def emov2_arguments(ground: Path, out: Path, variant: int) -> list[str]:
    return [
        *options(config=ROOT / "configs/classification/cifar10/emov2.yaml", dataset=ground / "images", resolution=32),
        *options(val_dataset=ground / "images", val_split="train", output_dir=out, seed=variant, num_steps=2),
        *options(epochs="none", warmup_epochs=0, batch_size=4, eval_every=0, checkpoint_every=1, num_workers=0),
        *["--hidden_sizes", "8", "8", "16", "16", "--depths", "1", "1", "1", "1"],
        *["--attention_head_dims", "8", "8", "8", "8", "--window_size=2"],
    ]


SCENES = [  # a network that learns digit scenes
    *options(model="EMOv2-1M", window_size=3, num_scenes=4, num_val_scenes=2, num_steps=2, batch_size=2, num_workers=0),
    *options(checkpoint_every=1, keep_checkpoints=1, log_every=1),
    *["--hidden_sizes", "8", "8", "16", "16", "--depths", "1", "1", "1", "1"],
    *["--attention_head_dims", "8", "8", "8", "8"],
]
DETECTION = [*SCENES, *options(detector="SSDLite", image_size=96)]
SEGMENTATION = [*SCENES, *options(head="segformer", head_channels=8, side=96, crop_size=64)]


def check_run(out: Path, variant: int, result: str, weights: str) -> None:
    assert f"seed: {variant}\n" in (out / "config.yaml").read_text()
    assert len(json.loads((out / "run.json").read_text())) == 1
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    decay = yaml.safe_load((out / "config.yaml").read_text())["optimization"]["ema_decay"]
    written, average = load_file(out / result / weights), load_file(checkpoint / average_file(decay))
    assert any(torch.equal(written[name], average[name]) for name in written if written[name].is_floating_point())
    assert all(torch.equal(value, average[name]) for name, value in written.items())
    assert (out / result / "README.md").is_file()


def check_evaluation(out: Path, variant: int) -> None:
    results, fingerprint = (json.loads((out / f"{name}.json").read_text()) for name in ("results", "fingerprint"))
    assert results["fingerprint"] == fingerprint and fingerprint["seed"] == variant
    assert len(list(out.glob("shards/*.safetensors"))) == 4 and (out / "contact_sheet.png").is_file()


COMMANDS = {
    "train_demo": Command(
        train_demo,
        lambda ground, out, variant: arguments(out, seed=variant, num_steps=4, keep_checkpoints=1),
        lambda out, variant: check_run(out, variant, "pipeline", "transformer/diffusion_pytorch_model.safetensors"),
    ),
    "train_emov2": Command(
        train_emov2,
        lambda ground, out, variant: [*emov2_arguments(ground, out, variant), "--keep_checkpoints=1"],
        lambda out, variant: check_run(out, variant, "model", "model.safetensors"),
    ),
    "train_detection": Command(
        train_detection,
        lambda ground, out, variant: [*DETECTION, *options(output_dir=out, seed=variant)],
        lambda out, variant: check_run(out, variant, "model", "model.safetensors"),
    ),
    "train_segmentation": Command(
        train_segmentation,
        lambda ground, out, variant: [*SEGMENTATION, *options(output_dir=out, seed=variant)],
        lambda out, variant: check_run(out, variant, "model", "model.safetensors"),
    ),
    "cache_latents": Command(
        cache_latents,
        lambda ground, out, variant: options(
            dataset=ground / "images", vae=ground / "vae", out=out, resolution=16, shard_size=2 + variant, num_workers=0
        ),
        lambda out, variant: LatentTable(out),
    ),
    "evaluate": Command(
        evaluate,
        lambda ground, out, variant: [
            *options(pipeline=ground / "run/pipeline", reference=ground / "reference.npz", out=out, seed=variant),
            *options(num_samples=8, num_inference_steps=2, shard_size=2, export="true"), *LITE,
        ],
        check_evaluation,
    ),
    "export_pipeline": Command(
        export,
        lambda ground, out, variant: [str(ground / "run"), *options(out=out)],
        lambda out, variant: (DEMOPipeline.from_pretrained(out), (out / "README.md").read_text()),
        hold_target,
    ),
    "conversion": Command(
        convert,
        lambda ground, out, variant: [
            str(ground / "dit.pt"), str(out), "--family=dit", "--vae=none", "--num_attention_heads=2",
        ],
        lambda out, variant: DEMOPipeline.from_pretrained(out),
        hold_target,
    ),
    "conversion to official": Command(
        convert,
        lambda ground, out, variant: [str(ground / "dit"), str(out / "weights.pt")],
        lambda out, variant: torch.load(out / "weights.pt", weights_only=True),
        lambda out: hold_target(out / "weights.pt"),
        makes_folder=False,
    ),
    "reference": Command(
        make_reference,
        lambda ground, out, variant: [
            *options(images=ground / "images/train/cat", resolution=16, out=out / "reference.npz"), *LITE,
        ],
        lambda out, variant: (out / "reference.npz").stat(),
        lambda out: hold_target(out / "reference.npz"),
        makes_folder=False,
        replaces=True,
    ),
    "classify": Command(
        classify,
        lambda ground, out, variant: options(
            model=ground / "classifier", dataset=ground / "images", split="train", out=out / "a.json", num_workers=0
        ),
        lambda out, variant: json.loads((out / "a.json").read_text()),
        lambda out: hold_target(out / "a.json"),
        makes_folder=False,
        replaces=True,
    ),
    "detect": Command(
        detect,
        lambda ground, out, variant: options(
            model=ground / "detector", dataset="digit_scenes", num_scenes=2, out=out / "a.json", drawing=out / "a.png"
        ),
        lambda out, variant: (json.loads((out / "a.json").read_text()), Image.open(out / "a.png").load()),
        lambda out: hold_target(out / "a.json"),
        makes_folder=False,
        replaces=True,
    ),
    "segment": Command(
        segment,
        lambda ground, out, variant: options(
            model=ground / "segmenter", dataset="digit_scenes", num_scenes=2, out=out / "a.json", drawing=out / "a.png"
        ),
        lambda out, variant: (json.loads((out / "a.json").read_text()), Image.open(out / "a.png").load()),
        lambda out: hold_target(out / "a.json"),
        makes_folder=False,
        replaces=True,
    ),
    "compare_runs": Command(
        compare_runs,
        lambda ground, out, variant: [str(ground / "run"), *options(out=out / "losses.png")],
        lambda out, variant: (out / "losses.png").stat(),
        lambda out: hold_target(out / "losses.png"),
        makes_folder=False,
        replaces=True,
    ),
}  # fmt: skip


def make_ground(ground: Path) -> Path:
    """What the commands read."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    image_folder(ground / "images/train", images_per_class=6)
    tiny_vae().save_pretrained(ground / "vae")
    train(ground / "run", num_steps=4)
    DEMOPipeline(tiny_dit(), DDPMObjective().scheduler()).save_pretrained(ground / "dit")
    convert([str(ground / "dit"), str(ground / "dit.pt")])
    tiny_emov2(num_labels=2, id2label={0: "cat", 1: "dog"}).save_pretrained(ground / "classifier")
    image_processor(32).save_pretrained(ground / "classifier")
    digits = {number + 1: str(number) for number in range(10)}
    small_detector("SSDLite", num_classes=10, id2label=digits, **TINY).save_pretrained(ground / "detector")
    small_segmenter("segformer", id2label={0: "background", **digits}, **TINY).save_pretrained(ground / "segmenter")
    make_reference([*options(images=ground / "images/train/cat", resolution=8, out=ground / "reference.npz"), *LITE])
    torch.set_num_threads(threads)
    return ground
