"""Prints the paper's table XIV with the rows of evaluations beside it: `python eval/table.py RUN…`.

Metrics by another extractor than Inception stand in their own columns, under their own names.
"""

import argparse
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

from demo_diffusion.eval.metrics.scores import finite_or_none
from demo_diffusion.eval.reports.published import PROTOCOL, TABLE_XIV
from demo_diffusion.eval.reports.read_results import read_score_file
from demo_diffusion.records.tables import markdown_table

FIRST, LAST = ("model", "parameters (M)", "GMACs"), ("sampler", "reference", "settings that differ")


def published_rows() -> list[dict[str, str]]:
    return [
        {
            "model": row.model,
            "parameters (M)": f"{row.parameters_m:.1f}",
            "GMACs": f"{row.gmacs:.1f}",
            "fid": f"{row.fid:.1f}",
            "reference": "ImageNet 256",
            "settings that differ": "published",
        }
        for row in TABLE_XIV
    ]


def our_row(run: Path) -> dict[str, str]:
    """Raises a ValueError if the folder holds no finished evaluation."""
    path = run / "results.json"
    if not path.is_file():
        raise ValueError(f"{run} holds no results.json; it is not the folder of a finished evaluation.")
    metrics, fingerprint = read_score_file(path)
    numbers = {n: "unavailable" if finite_or_none(value) is None else f"{value:.4g}" for n, value in metrics.items()}
    size = {}
    if "parameters" in fingerprint:
        size = {"parameters (M)": f"{fingerprint['parameters'] / 1e6:.1f}", "GMACs": f"{fingerprint['gmacs']:.1f}"}
    differing = [
        f"{name} {fingerprint.get(name, 'unknown')}"
        for name, value in PROTOCOL.items()
        if fingerprint.get(name, "unknown") != value
    ]
    return {
        "model": str(run),
        **size,
        **numbers,
        "sampler": fingerprint.get("sampler", "unknown"),
        "reference": fingerprint.get("reference", "unknown"),
        "settings that differ": ", ".join(differing) or "none",
    }


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished evaluations")
    options = parser.parse_args(arguments)
    ours = [our_row(run) for run in options.runs]
    rows = [*published_rows(), *ours]
    metrics = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in (*FIRST, *LAST)]
    print(markdown_table(rows, [*FIRST, *metrics, *LAST]))


if __name__ == "__main__":
    main()
