"""The CPU throughput of EMOv2 beside timm's classifiers, in turns in one process."""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import torch
import torch._inductor.config
from torch import nn

from demo_diffusion import create_emov2, list_emov2

from .timing import Clock, ratio_to, time_in_turns

CPU = torch.device("cpu")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
INPUT_ROUNDS = 4  # by which the faster memory format is chosen
Model = Callable[[torch.Tensor], object]


def check_names(models: list[str], against: list[str]) -> None:
    """Raises ValueError if the two lists do not make pairs, or one of them is neither EMOv2's nor timm's."""
    require_packages(["timm"], "train", "The comparison with timm's classifiers")
    import timm

    if len(models) != len(against):
        raise ValueError("--models and --against are compared in pairs; give as many of one as of the other.")
    if unknown := {*models, *against} - {*list_emov2(), *timm.list_models()}:
        raise ValueError(f"{', '.join(sorted(unknown))}: neither of {', '.join(list_emov2())} nor a timm model.")


def create_classifier(name: str, images: torch.Tensor) -> nn.Module:
    """An EMOv2 preset, folded, or a timm model, with random weights: speed does not depend on them.

    Raises:
        ValueError: if it does not take images of this size.
    """
    import timm

    if name in list_emov2():
        model = create_emov2(name, num_labels=1000).eval()
        model.fuse()
    else:
        model = timm.create_model(name, pretrained=False).eval()
    try:
        model(images[:1])
    except Exception as error:  # models of a fixed size raise almost anything
        size = " × ".join(map(str, images.shape[-2:]))
        raise ValueError(f"{name} does not take images of {size} pixels: {error}") from error
    return model


def _compile(model: nn.Module, images: torch.Tensor) -> Model:
    """The model compiled with its weights as constants, which inductor packs for oneDNN."""
    torch._inductor.config.freezing = True
    return torch.compile(model, dynamic=False)


def _export_to_onnxruntime(model: nn.Module, images: torch.Tensor) -> Model:
    """The model exported for the shape of `images`, run by onnxruntime on as many threads as PyTorch has."""
    require_packages(["onnxruntime", "onnxscript"], "test", "--mode onnxruntime")
    import onnxruntime

    program = torch.export.export(model, (images,))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(program, (), path, input_names=["images"], verbose=False)
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x.numpy()})


MODES: dict[str, Callable[[nn.Module, torch.Tensor], Model]] = {
    "eager": lambda model, images: model,
    "compiled": _compile,
    "onnxruntime": _export_to_onnxruntime,
}


@torch.no_grad()
def measure_classifiers(names: list[str], batch_size: int, image_size: int, rounds: int, mode: str) -> dict[str, dict]:
    """By model: the memory format, the seconds of each round and the median images a second.

    Raises:
        ValueError: if a model does not take images of this size.
    """
    images, clock = torch.randn(batch_size, 3, image_size, image_size), Clock(CPU)
    models = {name: MODES[mode](create_classifier(name, images), images) for name in dict.fromkeys(names)}
    inputs = {name: _faster_input(model, images, clock) for name, model in models.items()}
    calls = {name: _call(model, inputs[name][1]) for name, model in models.items()}
    seconds = time_in_turns(calls, clock, rounds)
    return {
        name: {
            "memory_format": inputs[name][0],
            "images_per_second": batch_size / statistics.median(seconds[name]),
            "seconds": seconds[name],
        }
        for name in models
    }


def ratio(results: dict[str, dict], name: str, other: str) -> float:
    """How many times as fast `name` is, as the median over the rounds."""
    return ratio_to(reference=results[name]["seconds"], seconds=results[other]["seconds"])["median"]


def _faster_input(model: Model, images: torch.Tensor, clock: Clock) -> tuple[str, torch.Tensor]:
    """The memory format in which the model is the faster, and the images in it."""
    inputs = {name: images.contiguous(memory_format=layout) for name, layout in MEMORY_FORMATS.items()}
    seconds = time_in_turns({name: _call(model, x) for name, x in inputs.items()}, clock, INPUT_ROUNDS)
    fastest = min(seconds, key=lambda name: statistics.median(seconds[name]))
    return fastest, inputs[fastest]


def _call(model: Model, images: torch.Tensor) -> Callable[[], object]:
    return lambda: model(images)


def compare_classifiers(
    models: list[str], against: list[str], batch_size: int, image_size: int, rounds: int, mode: str
) -> tuple[list[dict[str, str]], dict]:
    """A table's row for each pair, and the content of the report; raises as `measure_classifiers`."""
    results, ratios, rows = measure_classifiers([*models, *against], batch_size, image_size, rounds, mode), {}, []
    for name, other in zip(models, against, strict=True):
        ratios[f"{name} / {other}"] = times = ratio(results, name, other)
        speeds = [f"{results[each]['images_per_second']:.1f}" for each in (name, other)]
        row = {"model": name, "images/s": speeds[0], "against": other, "images/s of it": speeds[1]}
        rows.append({**row, "ratio": f"{times:.2f}"})
    return rows, {"ratios": ratios, "models": results}
