"""Every command that writes: two at once in one place, and a disk that is full.

Commands run in copies of this process, so two begin at the same moment and each takes about a second.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from demo_diffusion import DEMOPipeline
from demo_diffusion.conversion.__main__ import main as convert
from demo_diffusion.data.latents import LatentTable
from demo_diffusion.eval.classify import main as classify
from demo_diffusion.eval.compare_runs import main as compare_runs
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.models.classifiers import image_processor
from demo_diffusion.objectives import DDPMObjective
from demo_diffusion.records import folder_lock
from demo_diffusion.records.folder_lock import hold_folder, hold_target
from demo_diffusion.train.cache_latents import main as cache_latents
from demo_diffusion.train.export_pipeline import main as export
from demo_diffusion.train.train_demo import main as train_demo
from demo_diffusion.train.train_emov2 import main as train_emov2
from tests.support.classifiers import tiny_emov2
from tests.support.evaluation import LITE
from tests.support.images import image_folder
from tests.support.networks import tiny_dit
from tests.support.pipelines import tiny_vae
from tests.support.processes import Child
from tests.support.runs import ROOT, arguments, train

pytestmark = pytest.mark.forks


class Command(NamedTuple):
    """A command, told where everything is, with the options that make its result (out, variant 0 or 1)."""

    main: Callable[[list[str]], object]
    arguments: Callable[[Path, Path, int], list[str]]
    check: Callable[[Path, int], object]  # raises if the result of a variant is not whole
    hold: Callable | None = hold_folder  # None: one file, which the last one replaces


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


def check_run(out: Path, variant: int, result: str, weights: str) -> None:
    assert f"seed: {variant}\n" in (out / "config.yaml").read_text()
    assert len(json.loads((out / "run.json").read_text())) == 1
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    written, average = load_file(out / result / weights), load_file(next(checkpoint.glob("ema_*.safetensors")))
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
    ),
    "reference": Command(
        make_reference,
        lambda ground, out, variant: [
            *options(images=ground / "images/train/cat", resolution=16, out=out / "reference.npz"), *LITE,
        ],
        lambda out, variant: (out / "reference.npz").stat(),
        None,
    ),
    "classify": Command(
        classify,
        lambda ground, out, variant: options(
            model=ground / "classifier", dataset=ground / "images", split="train", out=out / "a.json", num_workers=0
        ),
        lambda out, variant: json.loads((out / "a.json").read_text()),
        None,
    ),
    "compare_runs": Command(
        compare_runs,
        lambda ground, out, variant: [str(ground / "run"), *options(out=out / "losses.png")],
        lambda out, variant: (out / "losses.png").stat(),
        None,
    ),
}  # fmt: skip
HOLDING = [name for name, command in COMMANDS.items() if command.hold]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(folder_lock, "GRACE_SECONDS", 0)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """What the commands read."""
    ground = tmp_path_factory.mktemp("ground")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    image_folder(ground / "images/train", images_per_class=6)
    tiny_vae().save_pretrained(ground / "vae")
    train(ground / "run", num_steps=4)
    DEMOPipeline(tiny_dit(), DDPMObjective().scheduler()).save_pretrained(ground / "dit")
    convert([str(ground / "dit"), str(ground / "dit.pt")])
    tiny_emov2(num_labels=2, id2label={0: "cat", 1: "dog"}).save_pretrained(ground / "classifier")
    image_processor(32).save_pretrained(ground / "classifier")
    make_reference([*options(images=ground / "images/train/cat", resolution=8, out=ground / "reference.npz"), *LITE])
    torch.set_num_threads(threads)
    return ground


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def error_line(output: str) -> str:
    """The one line that a command ends with."""
    assert "Traceback" not in output, output
    lines = output.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], output
    return lines[-1]


@pytest.mark.parametrize("name", HOLDING)
def test_a_command_is_refused_while_another_writes_there(tmp_path, ground, name):
    command, out = COMMANDS[name], tmp_path / "out"
    if name == "conversion to official":
        out.mkdir()
    with command.hold(out):
        before = files_of(tmp_path)
        with pytest.raises(SystemExit, match=rf"^error: Another command \(process {os.getpid()} on .*\) is writing "):
            command.main(command.arguments(ground, out, 0))
        assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", HOLDING)
def test_of_two_commands_at_once_one_is_refused_and_the_other_whole(tmp_path, ground, name):
    command, out = COMMANDS[name], tmp_path / "out"
    if name == "conversion to official":
        out.mkdir()
    runs = [command.arguments(ground, out, variant) for variant in (0, 1)]
    children = [Child(lambda run=run: command.main(run)) for run in runs]
    ends = [child.wait() for child in children]
    assert sorted(status for status, _ in ends) == [0, 1], ends
    winner = [status for status, _ in ends].index(0)
    line = error_line(ends[1 - winner][1])
    assert f"process {children[winner].pid} on" in line or "of other settings" in line or "exists already" in line
    command.check(out, winner)
    assert [path for path in tmp_path.rglob("*") if ".lock" in path.name or ".partial" in path.name] == []


@pytest.mark.parametrize(
    "limit", [0, 30_000, *(pytest.param(x, marks=pytest.mark.proof) for x in (300, 3_000, 100_000))]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_in_one_line_and_the_same_command_then_succeeds(tmp_path, ground, name, limit):
    """The limit is on the size of each file, so commands come to different stages."""
    command, out = COMMANDS[name], tmp_path / "out"
    if command.hold is None or name == "conversion to official":
        out.mkdir()
    run = command.arguments(ground, out, 0)
    status, output = Child(lambda: command.main(run), file_limit=limit).wait()
    if status != 0:
        assert status == 1
        error_line(output)
        assert [path for path in tmp_path.rglob("*") if ".partial" in path.name] == []
        status, output = Child(lambda: command.main(run)).wait()
        assert status == 0, output
    command.check(out, 0)
