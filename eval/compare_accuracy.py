"""Lays trainings of classifiers side by side: `python eval/compare_accuracy.py runs/a runs/b --out accuracy.png`.

Prints a table of each run's network, steps and accuracy, and plots the accuracies on the way.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from demo_diffusion.records.figures import PLOT_FORMATS, save_accuracy_curves
from demo_diffusion.records.files import check_output_file
from demo_diffusion.records.run_records import read_accuracies
from demo_diffusion.records.tables import markdown_table


def summary(run: Path) -> dict[str, str]:
    """One row of the table.

    Raises:
        ValueError: if the run is not finished.
    """
    if not (run / "results.json").is_file() or not read_accuracies(run):
        raise ValueError(f"{run} is not the folder of a classifier's finished run; it lacks results.json or its rows.")
    results = json.loads((run / "results.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    return {
        "run": str(run),
        "network": config["model"]["model"],
        "parameters": f"{results['parameters']:,}",
        "steps": f"{results['step']:,}",
        "top-1": f"{results['top1']:.2%}",
        "top-5": f"{results['top5']:.2%}",
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True, help="the plot to write, .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    try:
        check_output_file(options.out, PLOT_FORMATS)
        rows = [summary(run) for run in options.runs]
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(markdown_table(rows))
    names = [f"{run.name} ({row['network']})" for run, row in zip(options.runs, rows, strict=True)]
    measured = [read_accuracies(run) for run in options.runs]
    save_accuracy_curves(options.out, dict(zip(names, measured, strict=True)))


if __name__ == "__main__":
    main()
