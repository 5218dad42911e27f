"""Measures the CPU throughput of EMOv2 beside timm's classifiers, interleaved in one process.

python eval/throughput.py --models EMOv2-1M EMOv2-5M --against edgenext_xx_small edgenext_small --out throughput.json

The i-th model is compared with the i-th of --against. All run without gradients in eval mode, EMOv2 with its BatchNorms
folded, each in the memory format of the input that is the faster for it; --compile compiles all of them. A round times
every model once. The table has the median images a second, and of each pair the median over the rounds of their ratio.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from demo_diffusion import __version__, create_emov2, list_emov2

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make_model(name: str, compiled: bool) -> Callable[[torch.Tensor], object]:
    """An EMOv2 preset, folded, or a timm model, with random weights: speed does not depend on them."""
    if name in list_emov2():
        model = create_emov2(name, num_labels=1000).eval()
        model.fuse()
    else:
        model = timm.create_model(name, pretrained=False).eval()
    return torch.compile(model, dynamic=False) if compiled else model


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
def measure(names: list[str], batch_size: int, image_size: int, rounds: int, compiled: bool) -> dict[str, dict]:
    """By model: the memory format, the seconds of each round and the median images a second."""
    images = torch.randn(batch_size, 3, image_size, image_size)
    models = {name: make_model(name, compiled) for name in dict.fromkeys(names)}
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
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
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
    results = measure(names, options.batch_size, options.image_size, options.rounds, options.compile)
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
