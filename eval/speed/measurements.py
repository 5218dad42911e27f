"""The benchmark's measurements, a row for each network."""

import argparse
import itertools
import statistics
from collections.abc import Iterator

import torch

from .operator_profile import profile_operators
from .roofline import Rates
from .timing import Clock, peak_bytes, ratio_to, time_in_turns
from .workloads import CANDIDATES, REFERENCE, Case, Workload, make_workload

COMPILED = {"none": (False,), "compiled": (True,), "both": (False, True)}


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
