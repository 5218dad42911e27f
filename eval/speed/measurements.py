"""The benchmark's measurements, a row for each network."""

import argparse
import gc
import itertools
import statistics
from collections.abc import Iterator

import torch

from demo_diffusion import kernels

from .operator_profile import profile_operators
from .report import Report, operator_table, speed_table, title
from .roofline import Rates, measure_rates
from .timing import Clock, peak_bytes, ratio_to, time_in_turns
from .workloads import CANDIDATES, DTYPES, REFERENCE, Case, Workload, make_workload

COMPILED = {"none": (False,), "compiled": (True,), "both": (False, True)}


def compare_networks(options: argparse.Namespace) -> None:
    """Measures every case that the options of eval/benchmark.py ask for; prints its table and writes the report."""
    if options.tune_malloc:
        kernels.keep_freed_memory()
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


def measure(case: Case, names: list[str], rounds: int, rates: Rates) -> list[dict]:
    """A row for each candidate, DiT's first."""
    workloads = {name: make_workload(CANDIDATES[name], case) for name in names}
    calls = {name: workload.run for name, workload in workloads.items()}
    alone = {(name, "alone"): w.network_alone for name, w in workloads.items() if w.network_alone is not None}
    seconds = time_in_turns({**calls, **alone}, Clock(case.device), rounds)
    rows = []
    for name, workload in workloads.items():
        row = {"candidate": name, **describe(case, workload)}
        row |= speed(workload, seconds[name], seconds[REFERENCE], rates)
        row["peak_bytes"] = workload.resident_bytes() + peak_bytes(workload.run, case.device)
        if case.part in ("sampling", "training"):
            row["images_per_second"] = case.batch_size / row["median_seconds"]
        if (name, "alone") in seconds:
            row["seconds_alone"] = seconds[name, "alone"]
            row["pipeline_overhead"] = ratio_to(seconds[name, "alone"], seconds[name])["median"] - 1
        rows.append(row)
    return rows


def speed(workload: Workload, seconds: list[float], reference: list[float], rates: Rates) -> dict:
    """A candidate's times beside the reference's, and beside what the machine could do."""
    median, work = statistics.median(seconds), workload.work
    return {
        "seconds": seconds,
        "median_seconds": median,
        "ratio": ratio_to(reference, seconds),
        "flops": work.flops,
        "bytes": work.bytes,
        "arithmetic_seconds": work.seconds_of_arithmetic(rates),
        "memory_seconds": work.seconds_of_memory(rates),
        "bound_share": work.bound(rates) / median,
    }


def profile_case(case: Case, names: list[str]) -> list[dict]:
    """A row for each candidate, with its operators."""
    rows = []
    for name in names:
        workload = make_workload(CANDIDATES[name], case)
        operators = profile_operators(workload.run, case.device)
        rows.append({"candidate": name, **describe(case, workload), "operators": operators})
    return rows


def describe(case: Case, workload: Workload) -> dict:
    fields = ("part", "size", "mode", "precision", "compiled", "batch_size", "steps", "overrides")
    return {**{name: getattr(case, name) for name in fields}, "num_blocks": workload.num_blocks}


def cases(options: argparse.Namespace) -> Iterator[Case]:
    part = "block" if options.command == "profile" else options.command
    settings = {
        "batch_size": options.batch_size,
        "device": torch.device(options.device),
        "depth": options.depth,
        "steps": options.steps,
        "overrides": dict(options.override),
    }
    for choice in itertools.product(options.sizes, options.modes, options.precision, COMPILED[options.compile]):
        yield Case(part, *choice, **settings)
