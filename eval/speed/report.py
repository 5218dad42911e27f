"""The tables and the JSON file of `eval/benchmark.py`."""

import platform
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState

from demo_diffusion import __version__, kernels
from demo_diffusion.records.files import write_json
from demo_diffusion.records.provenance import provenance
from demo_diffusion.records.tables import markdown_table

from .roofline import Rates
from .timing import Clock
from .workloads import CANDIDATES

OPERATOR_NAME_LENGTH = 60


class Report:
    """The results so far, written anew after each case: an interrupted run leaves what it measured.

    Args:
        path: of the JSON file; None: nothing is written.
        settings: what the command line asked for.
        rates: of the machine, by precision.
    """

    def __init__(self, path: Path | None, settings: dict, device: torch.device, rates: dict[str, Rates]):
        self.path = path
        self.content = {
            "settings": settings,
            **provenance(PartialState()),
            "version": __version__,
            "machine": {
                "processor": processor_name(device),
                "threads": torch.get_num_threads(),
                "clock": Clock(device).name,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "rates": {precision: asdict(rate) for precision, rate in rates.items()},
            },
            "kernels_enabled": kernels.is_enabled(),
            "rows": [],
        }

    def add(self, rows: list[dict]) -> None:
        self.content["rows"] += rows
        if self.path is not None:
            write_json(self.path, self.content)

    def machine(self) -> str:
        """One line for people."""
        machine = self.content["machine"]
        rates = [
            f"{name} products {rate['flops'] / 1e9:,.0f} GFLOP/s (eager's {rate['eager_flops'] / 1e9:,.0f}), copies "
            f"{rate['bytes'] / 1e9:,.0f} GB/s"
            for name, rate in machine["rates"].items()
        ]
        return "; ".join([machine["processor"], f"{machine['threads']} thread(s)", machine["clock"], *rates])


def write_classifiers(path: Path, settings: dict, results: dict) -> None:
    """The results of `compare_classifiers`, with what made them."""
    import timm

    versions = {"torch": torch.__version__, "timm": timm.__version__, "demo_diffusion": __version__}
    facts = {"settings": settings, "versions": versions, "processor": processor_name(torch.device("cpu"))}
    write_json(path, {**facts, **results})


def processor_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def title(row: dict) -> str:
    """What all rows of a table have in common."""
    blocks = f"{row['num_blocks']} block" + "s" * (row["num_blocks"] > 1)
    parts = [row["part"], f"{row['size']}/2", blocks, row["mode"], row["precision"]]
    parts += [f"{field} {number}" for field, number in row["overrides"].items()]
    parts.append("compiled" if row["compiled"] else "eager")
    if row["part"] == "sampling":
        parts.append(f"{row['steps']} steps")
    return ", ".join([*parts, f"batch {row['batch_size']}"])


def speed_table(rows: list[dict]) -> str:
    """The candidates of one case."""
    return markdown_table([_speed_line(row) for row in rows])


def _speed_line(row: dict) -> dict[str, str]:
    ratio = row["ratio"]
    line = {
        "network": CANDIDATES[row["candidate"]].label,
        "ms": _milliseconds(row["median_seconds"]),
        "time / DiT": f"{ratio['median']:.3f}",
        "quartiles": f"{ratio['lower_quartile']:.3f}–{ratio['upper_quartile']:.3f}",
        "peak MB": f"{row['peak_bytes'] / 1e6:.1f}",
        "arithmetic ms": _milliseconds(row["arithmetic_seconds"]),
        "memory ms": _milliseconds(row["memory_seconds"]),
        "bound / time": f"{row['bound_share']:.0%}",
    }
    if "images_per_second" in row:
        line["images/s"] = f"{row['images_per_second']:.3g}"
    if "pipeline_overhead" in row:
        line["pipeline's overhead"] = f"{row['pipeline_overhead']:.1%}"
    return line


def operator_table(rows: list[dict], top: int) -> str:
    """The slowest operators of the candidates of one case, side by side."""
    return markdown_table([_operator_line(rows, rank) for rank in range(top)])


def _operator_line(rows: list[dict], rank: int) -> dict[str, str]:
    line = {}
    for row in rows:
        label = CANDIDATES[row["candidate"]].label
        operators = row["operators"][rank : rank + 1]
        line[label] = "".join(o["operator"][:OPERATOR_NAME_LENGTH] for o in operators)
        line[f"{label}, ms"] = "".join(_milliseconds(o["seconds"]) for o in operators)
        line[f"{label}, share"] = "".join(f"{o['share']:.1%}" for o in operators)
    return line


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
