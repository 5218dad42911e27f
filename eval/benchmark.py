"""Compares the speed of D-EMO with that of DiT (and SiT, the same network) of the same size, in turns in one process.

python eval/benchmark.py block --sizes S XL --compile both --out block.json   one block: inference and training step
python eval/benchmark.py model --sizes S                                      the whole network: the same
python eval/benchmark.py sampling --sizes S XL --steps 50                     the pipeline with guidance: images/s
python eval/benchmark.py training --sizes S XL --precision bf16               steps with loss and optimizer: images/s
python eval/benchmark.py profile --sizes S --modes inference                  where a block's time goes, by operator
python eval/benchmark.py classifiers --models EMOv2-1M --against edgenext_xx_small   classifiers on a CPU: images/s

Each round calls every network once. A table has the median time and the median over the rounds of its ratio to DiT's,
beside the time that the arithmetic alone would take on this machine. Of classifiers the i-th of --models is compared
with the i-th of --against, EMOv2 with its BatchNorms folded, each in the memory format of the input that is the faster
for it. docs/reference/benchmark_columns.md explains each column.
"""

import argparse
import itertools
import platform
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

import torch

from demo_diffusion import create_transformer
from demo_diffusion.eval.speed.classifiers import MODES as CLASSIFIER_MODES
from demo_diffusion.eval.speed.classifiers import check_names, compare_classifiers
from demo_diffusion.eval.speed.measurements import COMPILED, compare_networks
from demo_diffusion.eval.speed.report import write_classifiers
from demo_diffusion.eval.speed.workloads import CANDIDATES, DTYPES, REFERENCE
from demo_diffusion.records.files import check_output_file
from demo_diffusion.records.folder_lock import hold_target
from demo_diffusion.records.tables import markdown_table

COMMANDS = {
    "block": "one block: inference and training step",
    "model": "the whole network: inference and training step, without loss and optimizer",
    "sampling": "the pipeline with guidance, from noise to latents",
    "training": "training steps with loss and optimizer, on latents at hand",
    "profile": "the operators of one block",
    "classifiers": "EMOv2 beside timm's classifiers on a CPU",
}
SIZES = ("S", "B", "L", "XL")
MODES = ("inference", "training")
BATCH_SIZE = {"cpu": 8, "cuda": 64}
STEPS = {"cpu": 5, "cuda": 50}
NUMBERS = ("batch_size", "image_size", "threads", "depth", "steps", "top", "rounds")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
        command.add_argument("--out", type=Path, help="JSON file for the results")
        _add_classifier_options(command) if name == "classifiers" else _add_options(command, name)
    options = parser.parse_args(arguments)
    try:
        _check_numbers(options)
        if options.command == "classifiers":
            check_names(options.models, options.against)
        else:
            _check_networks(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _add_classifier_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--models", nargs="+", default=["EMOv2-1M", "EMOv2-2M", "EMOv2-5M"], help="EMOv2's presets, or timm's")
    add("--against", nargs="+", default=["edgenext_xx_small", "edgenext_x_small", "edgenext_small"], help="as many")
    add("--batch_size", type=int, default=1)
    add("--image_size", type=int, default=224, help="side in pixels (default: 224)")
    add("--rounds", type=int, default=50, help="calls of each model that count (default: 50)")
    add("--mode", choices=CLASSIFIER_MODES, default="eager", help="what runs every model (default: eager)")


def _add_options(command: argparse.ArgumentParser, name: str) -> None:
    add = command.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=["S"], help="default: S")
    candidates = [REFERENCE, "demo"] if name == "profile" else list(CANDIDATES)
    add("--candidates", nargs="+", choices=CANDIDATES, default=candidates, help=f"{REFERENCE} is always among them")
    weights = "bf16: weights, in training autocast; default: fp32"
    add("--precision", nargs="+", choices=DTYPES, default=["fp32"], help=weights)
    fields = "config fields of all networks, such as num_attention_heads=4 attention_head_dim=32"
    add("--override", nargs="+", type=_field, default=[], metavar="FIELD=NUMBER", help=fields)
    add("--compile", choices=COMPILED, default="none", help="each block by torch.compile (default: none)")
    add("--batch_size", type=int, help=f"default: {BATCH_SIZE['cpu']} on a CPU, {BATCH_SIZE['cuda']} on a GPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    add("--tune_malloc", action="store_true", help="have glibc keep freed memory instead of giving it back")
    if name in ("sampling", "training"):
        command.set_defaults(modes=["inference" if name == "sampling" else "training"])
    else:
        add("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: both")
    if name in ("block", "profile"):
        command.set_defaults(depth=None)
    else:
        add("--depth", type=int, help="blocks of the network (default: those of the size)")
    if name == "sampling":
        add("--steps", type=int, help=f"default: {STEPS['cpu']} on a CPU, {STEPS['cuda']} on a GPU")
    else:
        command.set_defaults(steps=1)
    if name == "profile":
        add("--top", type=int, default=15, help="operators to print (default: 15)")
    else:
        add("--rounds", type=int, default=20, help="calls of each network that count (default: 20)")


def _field(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=NUMBER, such as patch_size=4")
    return name, int(number)


def _check_numbers(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name, None) for name in NUMBERS}
    if too_small := [f"--{name}" for name, value in given.items() if value is not None and value < 1]:
        raise ValueError(f"{', '.join(too_small)} must be at least 1.")
    if options.out is not None:
        check_output_file(options.out)


def _check_networks(options: argparse.Namespace) -> None:
    """Fills in what depends on the machine; raises ValueError if something cannot be done."""
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.batch_size = options.batch_size or BATCH_SIZE[options.device]
    options.steps = options.steps or STEPS[options.device]
    options.candidates = list(dict.fromkeys([REFERENCE, *options.candidates]))
    if "num_layers" in dict(options.override):
        raise ValueError("--override has num_layers; --depth is the number of blocks, and block and profile have one.")
    try:
        with torch.device("meta"):
            for candidate, size in itertools.product(options.candidates, options.sizes):
                create_transformer(f"{CANDIDATES[candidate].family}-{size}/2", num_layers=1, **dict(options.override))
    except ValueError as error:
        raise ValueError(f"--override: {error}") from error
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch finds no GPU.")
    if options.device == "cuda" and "bf16" in options.precision and not torch.cuda.is_bf16_supported():
        raise ValueError(f"--precision has bf16, which {torch.cuda.get_device_name()} does not support.")
    if options.tune_malloc and platform.libc_ver()[0] != "glibc":
        raise ValueError("--tune_malloc needs glibc.")


def _compare_classifiers(options: argparse.Namespace) -> None:
    settings = {name: value for name, value in vars(options).items() if name not in ("command", "out")}
    rows, results = compare_classifiers(**{name: value for name, value in settings.items() if name != "threads"})
    print(markdown_table(rows))
    if options.out is not None:
        write_classifiers(options.out, settings, results)


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    with hold_target(options.out):
        _compare_classifiers(options) if options.command == "classifiers" else compare_networks(options)


if __name__ == "__main__":
    main()
