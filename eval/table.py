"""Prints the paper's table XIV with the rows of evaluations beside it: `python eval/table.py RUN…`.

Metrics by another extractor than Inception stand in their own columns, under their own names.
"""

import argparse
import json
import sys
from pathlib import Path

from demo_diffusion.eval.compare_runs import markdown_table
from demo_diffusion.eval.published import PROTOCOL, TABLE_XIV

ROWS = ("model", "parameters (M)", "GMACs")


def published_rows() -> list[dict[str, str]]:
    return [
        {
            "model": row.model,
            "parameters (M)": f"{row.parameters_m:.1f}",
            "GMACs": f"{row.gmacs:.1f}",
            "fid": f"{row.fid:.1f}",
            "settings that differ": "published",
        }
        for row in TABLE_XIV
    ]


def our_row(run: Path) -> dict[str, str]:
    """Raises a ValueError if the folder holds no finished evaluation."""
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"{run} holds no results.json; it is not the folder of a finished evaluation.")
    try:
        results = json.loads(path.read_text())
        metrics, fingerprint = results["metrics"], results["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what eval/evaluate.py writes: {error!r}") from error
    size = {}
    if "parameters" in fingerprint:
        size = {"parameters (M)": f"{fingerprint['parameters'] / 1e6:.1f}", "GMACs": f"{fingerprint['gmacs']:.1f}"}
    differing = [
        f"{name} {fingerprint[name]}" for name, value in PROTOCOL.items() if fingerprint.get(name, value) != value
    ]
    return {
        "model": str(run),
        **size,
        **{name: "unavailable" if value is None else f"{value:.4g}" for name, value in metrics.items()},
        "settings that differ": ", ".join(differing) or "none",
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished evaluations")
    options = parser.parse_args(arguments)
    try:
        ours = [our_row(run) for run in options.runs]
    except ValueError as error:
        sys.exit(f"error: {error}")
    rows = [*published_rows(), *ours]
    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in (*ROWS, "settings that differ")))
    print(markdown_table(rows, [*ROWS, *metrics, "settings that differ"]))


if __name__ == "__main__":
    main()
