"""Damaged files of a training: it goes on to what it would have been, bit for bit, or is refused."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from demo_diffusion.train.train_demo import main
from tests.support.damage import DAMAGES, flipped_bit
from tests.support.runs import arguments, state_of, train

from .judging import judge_command
from .runner import Case, Wrong

KIND = "damaged run files"
FIRST_PART, STEPS = 6, 8
CONSTANT = {"lr_schedule": "constant"}  # else the rate depends on the number of steps
NEWEST, OLDER = "checkpoints/step-000000006", "checkpoints/step-000000003"
RECORDS = ("config.yaml", "run.json", "data.json", "loss.csv")
PARTS = (
    "checkpoint.json", "model.safetensors", "ema_0.99.safetensors", "optimizer.bin", "scheduler.bin",
    "random_states_0.pkl",
)  # fmt: skip
RESULTS = (
    "pipeline/model_index.json", "pipeline/README.md", "pipeline/transformer/config.json",
    "pipeline/transformer/diffusion_pytorch_model.safetensors", "samples.png", "loss.png",
)  # fmt: skip
FLIPS = 6  # of each file
JSON_VALUES = (
    '"text"',
    "-1",
    "1.5",
    "1e400",
    "NaN",
    "10" + "0" * 400,
    "true",
    "null",
    "[]",
    "{}",
    "[null]",
    '{"a": 1}',
)


def prepare(root: Path) -> None:
    """A run of six steps, the same gone on to eight, and another of other settings and data."""
    train(root / "begun", num_steps=FIRST_PART, **CONSTANT)
    shutil.copytree(root / "begun", root / "whole")
    train(root / "whole", num_steps=STEPS, **CONSTANT)
    train(root / "other", num_steps=FIRST_PART, seed=1, **CONSTANT)


def cases(root: Path) -> Iterator[Case]:
    files = [*RECORDS, *(f"{NEWEST}/{part}" for part in PARTS), *RESULTS]
    for file in files:
        for name, damage in DAMAGES.items():
            if not (name == "other encoding" and is_binary(root / "begun" / file)):
                yield _case(root, f"{file}: {name}", [(file, damage)])
        for bit in _bits(root / "begun" / file):
            yield _case(root, f"{file}: bit {bit} flipped", [(file, _flip(bit))])
        yield _case(root, f"{file}: of another run", [(file, _copy_of(root / "other" / file))])
    for part in PARTS:
        for name in ("zeros", "truncated", "missing", "empty"):
            both = [(f"{folder}/{part}", DAMAGES[name]) for folder in (NEWEST, OLDER)]
            yield _case(root, f"{part} of both checkpoints: {name}", both)
    for file in ("run.json", "data.json", f"{NEWEST}/checkpoint.json"):
        for place in places_in(json.loads((root / "begun" / file).read_text())):
            for value in JSON_VALUES[:: 1 if len(place) == 1 else 4]:
                yield _case(
                    root, f"{file}: {'.'.join(map(str, place))} is {value[:8]}", [(file, set_value(place, value))]
                )
    for folder in ("checkpoints", NEWEST, OLDER, "pipeline", "samples", "tensorboard"):
        yield _case(root, f"{folder}: removed", [(folder, shutil.rmtree)])
        yield _case(root, f"{folder}: a file", [(folder, _become_file)])
        yield _case(root, f"{folder}: a link to nothing", [(folder, _become_link)])


def _case(root: Path, name: str, damages: list[tuple[str, Callable[[Path], object]]]) -> Case:
    def run(folder: Path) -> str:
        copy = shutil.copytree(root / "begun", folder / "run")
        for file, damage in damages:
            damage(copy / file)
        logs = not any(file == "loss.csv" for file, _ in damages)
        return judge_command(
            main, arguments(copy, num_steps=STEPS, **CONSTANT), lambda: check_same(copy, root / "whole", logs)
        )

    return Case(KIND, name, run)


def check_same(run: Path, whole: Path, with_losses: bool = True) -> None:
    """Raises Wrong unless a run ended as the one that nothing damaged."""
    expected = state_of(whole)
    for name, value in state_of(run).items():
        if not torch.equal(value, expected[name]):
            raise Wrong(f"{name} of the last checkpoint differs from the run that was not damaged")
    file = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(run / file), load_file(whole / file)
    if ours.keys() != theirs.keys() or any(not torch.equal(ours[name], theirs[name]) for name in theirs):
        raise Wrong("the pipeline's weights differ")
    rows, expected_rows = _losses(run), _losses(whole)
    begun_anew = (run / "loss.csv.damaged").is_symlink() or (run / "loss.csv.damaged").exists() or not with_losses
    if rows != expected_rows and not (begun_anew and rows == expected_rows[-len(rows) :]):
        raise Wrong(f"the losses are {rows}, not {expected_rows}")


def _losses(run: Path) -> list[str]:
    """Steps and losses, without the speeds."""
    header, *rows = (line.split(",") for line in (run / "loss.csv").read_text().splitlines())
    return [f"{row[header.index('step')]} {row[header.index('loss')]}" for row in rows]


def is_binary(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin", ".pkl", ".png")


def _bits(path: Path) -> list[int]:
    return [random.Random(f"{path.name} {i}").randrange(8 * path.stat().st_size) for i in range(FLIPS)]


def _flip(bit: int) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        # entering alone flips it, and nothing flips it back
        flipped_bit(path, bit).__enter__()

    return damage


def _copy_of(file: Path) -> Callable[[Path], object]:
    return lambda path: shutil.copy(file, path)


def places_in(content: object, depth: int = 3) -> Iterator[tuple]:
    """Where a JSON file has values: keys and indexes to them."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in places_in(value, depth - 1) if len(rest) < depth)


def set_value(place: tuple, value: str) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        content = inner = json.loads(path.read_text())
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = "\0"
        path.write_text(json.dumps(content).replace('"\\u0000"', value))

    return damage


def _become_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


def _become_link(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nothing")
