"""Reads what `eval/evaluate.py` wrote, for tables and comparisons."""

import json
from pathlib import Path

from demo_diffusion.checks import check_number, shown
from demo_diffusion.records.reading import read_parsed


def read_score_file(path: Path) -> tuple[dict, dict]:
    """Metrics and fingerprint of a results.json; raises ValueError if it is something else."""
    return read_parsed(path, _checked, "It is not what eval/evaluate.py writes; evaluate again.")


def _checked(text: str) -> tuple[dict, dict]:
    results = json.loads(text)
    metrics, fingerprint = dict(results["metrics"]), dict(results["fingerprint"])
    for name, value in metrics.items():
        if value is not None and not isinstance(value, float):  # older files have NaN and Infinity
            check_number(name, value)
    for name in ("parameters", "gmacs") if "parameters" in fingerprint else ():
        check_number(name, fingerprint[name], least=0)
    for name in ("sampler", "reference"):
        if not isinstance(value := fingerprint.get(name, ""), str):
            raise ValueError(f"{name} is {shown(value)}; it must be a text")
    return metrics, fingerprint
