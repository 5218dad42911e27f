"""Hostile weights, pipelines, classifiers and references: refused, or used with the right result."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from demo_diffusion import DEMOPipeline
from demo_diffusion.conversion.__main__ import main as convert
from demo_diffusion.eval.classify import main as classify
from demo_diffusion.eval.evaluate import main as evaluate
from tests.support.commands import COMMANDS, make_ground
from tests.support.damage import DAMAGES

from .judging import judge_command
from .run_files import JSON_VALUES, is_binary, places_in, set_value
from .runner import MARKER, Case, Wrong

KIND = "checkpoints and pipelines"
OF_A_PIPELINE = (
    "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
)  # fmt: skip
OF_A_CLASSIFIER = ("config.json", "preprocessor_config.json", "model.safetensors")
SAMPLE = {"num_inference_steps": 2, "output_type": "latent"}


class Payload:
    """Writes a marker where it is unpickled."""

    def __reduce__(self):
        return open, (MARKER, "w")


def prepare(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    make_ground(root)
    results = root / "classified"
    results.mkdir()
    classify(COMMANDS["classify"].arguments(root, results, 0))
    torch.save(_sample(root / "run/pipeline"), root / "sample.pt")


def _sample(folder: Path) -> torch.Tensor:
    pipeline = DEMOPipeline.from_pretrained(folder)
    return pipeline([1, 2], generator=torch.Generator().manual_seed(0), **SAMPLE).images


def cases(root: Path) -> Iterator[Case]:
    for file in OF_A_PIPELINE:
        for name, damage in damages_of(root / "run/pipeline" / file):
            yield _case(f"pipeline, {file}: {name}", root, "run/pipeline", file, damage, _judge_pipeline)
    for file in OF_A_CLASSIFIER:
        for name, damage in damages_of(root / "classifier" / file):
            yield _case(f"classifier, {file}: {name}", root, "classifier", file, damage, _judge_classifier)
    for name, damage in {**DAMAGES, **PICKLES, **of_state()}.items():
        if name != "other encoding":
            yield _case(f"conversion, dit.pt: {name}", root, "dit.pt", "", damage, _judge_conversion)
    for name, damage in {**DAMAGES, **PICKLES, **ARRAYS}.items():
        if name != "other encoding":
            yield _case(f"evaluate, reference.npz: {name}", root, "reference.npz", "", damage, _judge_evaluation)


def damages_of(file: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    for name, damage in DAMAGES.items():
        if not (name == "other encoding" and is_binary(file)):
            yield name, damage
    if file.suffix == ".safetensors":
        yield from {**TENSORS, **PICKLES}.items()
    else:
        for number, place in enumerate(places_in(json.loads(file.read_text()), depth=2)):
            value = JSON_VALUES[number % len(JSON_VALUES)]
            yield f"{'.'.join(map(str, place))} is {value[:8]}", set_value(place, value)
            yield (
                f"{'.'.join(map(str, place))} is {JSON_VALUES[(number + 5) % 12][:8]}",
                set_value(place, JSON_VALUES[(number + 5) % 12]),
            )


def _case(name: str, root: Path, source: str, file: str, damage: Callable, judge: Callable) -> Case:
    def run(folder: Path) -> str:
        copy = folder / Path(source).name
        (shutil.copytree if (root / source).is_dir() else shutil.copy)(root / source, copy)
        damage(copy / file if file else copy)
        return judge(root, copy, folder)

    return Case(KIND, name, run)


def _judge_pipeline(root: Path, copy: Path, folder: Path) -> str:
    """By a command, whose one line counts: it exports samples, which are compared with those of the whole pipeline."""
    arguments = COMMANDS["evaluate"].arguments(root, folder / "out", 0)
    words = [f"--pipeline={copy}" if word.startswith("--pipeline=") else word for word in arguments]

    def check() -> None:
        if not torch.equal(_sample(copy), torch.load(root / "sample.pt")):
            raise Wrong("it gives other samples than the whole pipeline")

    return judge_command(evaluate, words, check)


def _judge_classifier(root: Path, copy: Path, folder: Path) -> str:
    (folder / "out").mkdir()
    arguments = COMMANDS["classify"].arguments(root, folder / "out", 0)
    words = [f"--model={copy}" if word.startswith("--model=") else word for word in arguments]

    def check() -> None:
        ours, theirs = (json.loads((path / "a.json").read_text()) for path in (folder / "out", root / "classified"))
        if any(ours[name] != theirs[name] for name in ("top1", "num_images")):
            raise Wrong(f"top-1 is {ours['top1']}, not {theirs['top1']}")

    return judge_command(classify, words, check)


def _judge_conversion(root: Path, copy: Path, folder: Path) -> str:
    words = [str(copy), str(folder / "out"), "--family=dit", "--vae=none", "--num_attention_heads=2"]
    return judge_command(convert, words)


def _judge_evaluation(root: Path, copy: Path, folder: Path) -> str:
    arguments = COMMANDS["evaluate"].arguments(root, folder / "out", 0)
    words = [f"--reference={copy}" if word.startswith("--reference=") else word for word in arguments]
    return judge_command(evaluate, words)


def _edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = load_file(path)
        change(state)
        save_file(state, path, {"format": "pt"})

    return damage


def _middle(state: dict) -> str:
    names = [name for name, value in state.items() if value.ndim >= 2 and value.is_floating_point()]
    return names[len(names) // 2]


def _replace(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return _edit(lambda state: state.update({_middle(state): make(state[_middle(state)])}))


def _with_header(header: bytes, length: int | None = None) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)


TENSORS: dict[str, Callable[[Path], object]] = {
    "NaN": _replace(lambda x: x.clone().index_fill_(0, torch.tensor([0]), float("nan"))),
    "infinity": _replace(lambda x: x.clone().index_fill_(0, torch.tensor([0]), float("inf"))),
    "int64": _replace(lambda x: x.long()),
    "bool": _replace(lambda x: x > 0),
    "missing": _edit(lambda state: state.pop(_middle(state))),
    "unexpected": _edit(lambda state: state.update({"extra": torch.zeros(1)})),
    "misshapen": _replace(lambda x: x[:-1].clone()),
    "scalar": _replace(lambda x: torch.tensor(1.0)),
    "empty tensor": _replace(lambda x: x[:0].clone()),
    "no tensor": _edit(lambda state: state.clear()),
    "header of 2⁶³ bytes": _with_header(b"{}", 2**63),
    "header of 10⁹ bytes": _with_header(b"{}", 10**9),
    "header of no JSON": _with_header(b"\xff" * 64),
    "offsets outside": _with_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "offsets negative": _with_header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}}'),
    "huge shape": _with_header(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
}
PICKLES: dict[str, Callable[[Path], object]] = {
    "pickle with code": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "torch file with code": lambda path: torch.save({"a": Payload()}, path),
    "old torch file with code": lambda path: torch.save({"a": Payload()}, path, _use_new_zipfile_serialization=False),
    "array with code": lambda path: _save_npz(path, {"mean": np.array([Payload()], dtype=object)}),
}


def _save_npz(path: Path, arrays: dict) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _edit_npz(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        change(arrays)
        _save_npz(path, arrays)

    return damage


ARRAYS: dict[str, Callable[[Path], object]] = {
    "mean NaN": _edit_npz(lambda a: a.update(mean=a["mean"] * np.nan)),
    "covariance NaN": _edit_npz(lambda a: a.update(covariance=a["covariance"] * np.nan)),
    "covariance not symmetric": _edit_npz(lambda a: a.update(covariance=np.triu(a["covariance"]))),
    "covariance negative": _edit_npz(lambda a: a.update(covariance=-a["covariance"])),
    "no mean": _edit_npz(lambda a: a.pop("mean")),
    "no covariance": _edit_npz(lambda a: a.pop("covariance")),
    "mean of texts": _edit_npz(lambda a: a.update(mean=np.array(["a"] * len(a["mean"])))),
    "mean too short": _edit_npz(lambda a: a.update(mean=a["mean"][:-1])),
    "mean of two axes": _edit_npz(lambda a: a.update(mean=a["mean"][None])),
    "complex covariance": _edit_npz(lambda a: a.update(covariance=a["covariance"] * 1j)),
}


def of_state() -> dict[str, Callable[[Path], object]]:
    """Changes of an official checkpoint's state dict."""

    def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
        def damage(path: Path) -> None:
            state = torch.load(path, weights_only=True)
            changed = change(state)
            torch.save(state if changed is None else changed, path)

        return damage

    def put(make: Callable[[torch.Tensor], object]) -> Callable[[Path], None]:
        return edit(lambda state: state.update({_middle(state): make(state[_middle(state)])}))

    return {
        "a list": edit(lambda state: list(state)),
        "a tensor": edit(lambda state: torch.zeros(3)),
        "no tensors": edit(lambda state: {}),
        "numbers": edit(lambda state: dict.fromkeys(state, 1)),
        "one missing": edit(lambda state: state.__delitem__(_middle(state))),
        "one unexpected": edit(lambda state: state.update(extra=torch.zeros(1))),
        "NaN in one": put(lambda x: x * float("nan")),
        "one int32": put(lambda x: x.to(torch.int32)),
        "one misshapen": put(lambda x: x[:-1].clone()),
        "one a list": put(lambda x: x.tolist()),
        "one None": put(lambda x: None),
        "one on meta": put(lambda x: x.to("meta")),
        "keys that are numbers": edit(lambda state: dict(enumerate(state.values()))),
        "other prefix": edit(lambda state: {f"net.{name}": value for name, value in state.items()}),
    }
