"""Compares the speed of D-EMO with that of DiT (and SiT, the same network) of the same size, in turns in one process.

python eval/benchmark.py block --sizes S XL --compile both --out block.json   one block: inference and training step
python eval/benchmark.py model --sizes S                                      the whole network: the same
python eval/benchmark.py sampling --sizes S XL --steps 50                     the pipeline with guidance: images/s
python eval/benchmark.py training --sizes S XL --precision bf16               steps with loss and optimizer: images/s
python eval/benchmark.py profile --sizes S --modes inference                  where a block's time goes, by operator

Each round calls every network once. A table has the median time and the median over the rounds of its ratio to DiT's,
beside the time that the arithmetic alone would take on this machine. docs/speed.md explains each column.
"""

import argparse
import gc
import itertools
import platform
from pathlib import Path

import torch

from demo_diffusion import create_transformer, kernels
from demo_diffusion.eval.speed.measurements import COMPILED, cases, measure, profile_case
from demo_diffusion.eval.speed.report import Report, operator_table, speed_table, title
from demo_diffusion.eval.speed.roofline import measure_rates
from demo_diffusion.eval.speed.timing import Clock
from demo_diffusion.eval.speed.workloads import CANDIDATES, DTYPES, REFERENCE
from demo_diffusion.records.files import check_output_file

COMMANDS = {
    "block": "one block: inference and training step",
    "model": "the whole network: inference and training step, without loss and optimizer",
    "sampling": "the pipeline with guidance, from noise to latents",
    "training": "training steps with loss and optimizer, on latents at hand",
    "profile": "the operators of one block",
}
SIZES = ("S", "B", "L", "XL")
MODES = ("inference", "training")
BATCH_SIZE = {"cpu": 8, "cuda": 64}
STEPS = {"cpu": 5, "cuda": 50}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        _add_options(commands.add_parser(name, help=text, description=text), name)
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.batch_size = BATCH_SIZE[options.device] if options.batch_size is None else options.batch_size
    options.steps = STEPS[options.device] if options.steps is None else options.steps
    options.candidates = list(dict.fromkeys([REFERENCE, *options.candidates]))
    if problem := _problem(options):
        parser.error(problem)
    return options


def _add_options(command: argparse.ArgumentParser, name: str) -> None:
    add = command.add_argument
    add("--sizes", nargs="+", choices=SIZES, default=["S"], help="default: S")
    candidates = [REFERENCE, "demo"] if name == "profile" else list(CANDIDATES)
    add("--candidates", nargs="+", choices=CANDIDATES, default=candidates, help=f"{REFERENCE} is always among them")
    add(
        "--precision",
        nargs="+",
        choices=DTYPES,
        default=["fp32"],
        help="bf16: weights, in training autocast; default: fp32",
    )
    add(
        "--override",
        nargs="+",
        type=_field,
        default=[],
        metavar="FIELD=NUMBER",
        help="config fields of all networks, such as num_attention_heads=4 attention_head_dim=32",
    )
    add("--compile", choices=COMPILED, default="none", help="each block by torch.compile (default: none)")
    add("--batch_size", type=int, help=f"default: {BATCH_SIZE['cpu']} on a CPU, {BATCH_SIZE['cuda']} on a GPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU where there is one")
    add("--threads", type=int, default=1, help="of the CPU (default: 1)")
    add("--tune_malloc", action="store_true", help="have glibc keep freed memory instead of giving it back")
    add("--out", type=Path, help="JSON file for the results")
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


def _problem(options: argparse.Namespace) -> str | None:
    """What cannot be done."""
    numbers = ("batch_size", "threads", "depth", "steps", "top", "rounds")
    given = {name: getattr(options, name, None) for name in numbers}
    if too_small := [f"--{name}" for name, value in given.items() if value is not None and value < 1]:
        return f"{', '.join(too_small)} must be at least 1."
    if "num_layers" in dict(options.override):
        return "--override has num_layers; --depth is the number of blocks, and block and profile have one."
    try:
        with torch.device("meta"):
            for candidate, size in itertools.product(options.candidates, options.sizes):
                create_transformer(f"{CANDIDATES[candidate].family}-{size}/2", num_layers=1, **dict(options.override))
    except ValueError as error:
        return f"--override: {error}"
    try:
        if options.out is not None:
            check_output_file(options.out)
    except ValueError as error:
        return str(error)
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device is cuda, but PyTorch finds no GPU."
    if options.device == "cuda" and "bf16" in options.precision and not torch.cuda.is_bf16_supported():
        return f"--precision has bf16, which {torch.cuda.get_device_name()} does not support."
    if options.tune_malloc and platform.libc_ver()[0] != "glibc":
        return "--tune_malloc needs glibc."
    return None


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if options.tune_malloc:
        kernels.keep_freed_memory()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rates = {name: measure_rates(device, DTYPES[name], Clock(device)) for name in dict.fromkeys(options.precision)}
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    report = Report(options.out, settings, device, rates)
    print(report.machine())
    for case in cases(options):
        torch.compiler.reset()  # gives up the last case's networks, and counts recompilations anew
        gc.collect()
        if options.command == "profile":
            rows = profile_case(case, options.candidates)
            text = operator_table(rows, options.top)
        else:
            rows = measure(case, options.candidates, options.rounds, rates[case.precision])
            text = speed_table(rows)
        print(f"\n{title(rows[0])}\n\n{text}", flush=True)
        report.add(rows)


if __name__ == "__main__":
    main()
