"""Measures the CPU throughput of EMOv2 beside timm's classifiers, interleaved in one process.

python eval/throughput.py --models EMOv2-1M EMOv2-5M --against edgenext_xx_small edgenext_small --out throughput.json

The i-th model is compared with the i-th of --against. All run without gradients in eval mode, EMOv2 with its BatchNorms
folded, each in the memory format of the input that is the faster for it, and all by the same --mode. A round times
every model once. The table has the median images a second, and of each pair the median over the rounds of their ratio.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch._inductor.config

from demo_diffusion import __version__, create_emov2, list_emov2

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make_model(name: str) -> torch.nn.Module:
    """An EMOv2 preset, folded, or a timm model, with random weights: speed does not depend on them."""
    if name not in list_emov2():
        return timm.create_model(name, pretrained=False).eval()
    model = create_emov2(name, num_labels=1000).eval()
    model.fuse()
    return model


def compile_model(model: torch.nn.Module, images: torch.Tensor) -> Callable[[torch.Tensor], object]:
    """The model compiled with its weights as constants, which inductor packs for oneDNN."""
    torch._inductor.config.freezing = True
    return torch.compile(model, dynamic=False)


def onnxruntime_model(model: torch.nn.Module, images: torch.Tensor) -> Callable[[torch.Tensor], object]:
    """The model exported for the shape of `images`, run by onnxruntime on as many threads as PyTorch has."""
    import onnxruntime

    program = torch.export.export(model, (images,))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(program, (), path, input_names=["images"], verbose=False)
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x.numpy()})


MODES = {"eager": lambda model, images: model, "compiled": compile_model, "onnxruntime": onnxruntime_model}


def seconds(model: Callable, images: torch.Tensor) -> float:
    """Time of one call: of this thread if it is the only one, which other programs disturb less; else wall time."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    model(images)
    return clock() - start


def choose_input(model: Callable, images: torch.Tensor, calls: int = 5) -> tuple[str, torch.Tensor]:
    """The memory format in which the model is the faster, and the images in it."""
    inputs = {name: images.contiguous(memory_format=layout) for name, layout in MEMORY_FORMATS.items()}
    times = {name: [seconds(model, x) for _ in range(calls)] for name, x in inputs.items()}
    fastest = min(times, key=lambda name: statistics.median(times[name][1:]))
    return fastest, inputs[fastest]


@torch.no_grad()
def measure(names: list[str], batch_size: int, image_size: int, rounds: int, mode: str) -> dict[str, dict]:
    """By model: the memory format, the seconds of each round and the median images a second."""
    images = torch.randn(batch_size, 3, image_size, image_size)
    models = {name: MODES[mode](make_model(name), images) for name in dict.fromkeys(names)}
    inputs = {name: choose_input(model, images) for name, model in models.items()}
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(seconds(model, inputs[name][1]))
    return {
        name: {
            "memory_format": inputs[name][0],
            "images_per_second": batch_size / statistics.median(times[name]),
            "seconds": times[name],
        }
        for name in models
    }


def ratio(results: dict[str, dict], name: str, other: str) -> float:
    """How many times as fast `name` is, as the median over the rounds."""
    pairs = zip(results[name]["seconds"], results[other]["seconds"], strict=True)
    return statistics.median(theirs / ours for ours, theirs in pairs)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["EMOv2-1M", "EMOv2-2M", "EMOv2-5M"])
    parser.add_argument("--against", nargs="+", default=["edgenext_xx_small", "edgenext_x_small", "edgenext_small"])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mode", choices=MODES, default="eager", help="what runs every model (default: eager)")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    if options.out is not None and not options.out.absolute().parent.is_dir():
        parser.error(f"--out is {options.out}, whose folder does not exist.")
    if len(options.models) != len(options.against):
        parser.error("--models and --against are compared in pairs; give as many of one as of the other.")
    known = {*list_emov2(), *timm.list_models()}
    if unknown := {*options.models, *options.against} - known:
        parser.error(f"{', '.join(sorted(unknown))}: neither of {', '.join(list_emov2())} nor a timm model.")
    if min(options.batch_size, options.image_size, options.rounds, options.threads) < 1:
        parser.error("--batch_size, --image_size, --rounds and --threads must be at least 1.")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    names = [*options.models, *options.against]
    results = measure(names, options.batch_size, options.image_size, options.rounds, options.mode)
    print(f"| model | images/s | against | images/s | ratio |\n|{'---|' * 5}")
    ratios = {}
    for name, other in zip(options.models, options.against, strict=True):
        ratios[f"{name} / {other}"] = ratio(results, name, other)
        speeds = [f"{results[x]['images_per_second']:.1f}" for x in (name, other)]
        print(f"| {name} | {speeds[0]} | {other} | {speeds[1]} | {ratios[f'{name} / {other}']:.2f} |")
    if options.out is not None:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        versions = {"torch": torch.__version__, "timm": timm.__version__, "demo_diffusion": __version__}
        report = {"settings": settings, "versions": versions, "processor": platform.processor() or platform.machine()}
        options.out.write_text(json.dumps({**report, "ratios": ratios, "models": results}, indent=1))


if __name__ == "__main__":
    main()
