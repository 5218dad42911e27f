"""Lays runs side by side: `python eval/compare_runs.py runs/a runs/b --out losses.png`.

Prints a table of each run's network (blocks × width), objective, last loss and nearest-neighbour accuracies, and plots
the losses. Losses of different objectives are not comparable.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import yaml

from demo_diffusion import DEMOPipeline
from demo_diffusion.train.figures import save_loss_curves
from demo_diffusion.train.run_folder import RunFolder

PLOT_FORMATS = (".png", ".pdf", ".svg")


def summary(run: RunFolder) -> dict[str, str]:
    """One row of the table.

    Raises:
        ValueError: if the run is not finished.
    """
    pipeline = run.path / "pipeline"
    if not pipeline.is_dir() or not run.config_file.is_file():
        raise ValueError(f"{run.path} is not the folder of a finished run; it lacks pipeline/ or config.yaml.")
    config = yaml.safe_load(run.config_file.read_text())
    transformer = DEMOPipeline.from_pretrained(pipeline).transformer
    family, network = config["model"]["transformer"].split("-")[0], transformer.config
    losses = run.read_losses(until_step=math.inf)
    if not losses:
        raise ValueError(f"{run.path} has no losses in loss.csv.")
    row = {
        "run": str(run.path),
        "network": f"{family} {network.num_layers} × {network.num_attention_heads * network.attention_head_dim}",
        "objective": config["objective"]["objective"],
        "parameters": f"{sum(p.numel() for p in transformer.parameters()):,}",
        "steps": f"{losses[-1]['step']:,}",
        "last loss": f"{losses[-1]['loss']:.4f}",
    }
    report = run.path / "nearest_neighbor.json"
    accuracies = json.loads(report.read_text())["accuracy"] if report.is_file() else {}
    return row | {f"accuracy at scale {float(scale):g}": f"{value:.1%}" for scale, value in accuracies.items()}


def markdown_table(rows: list[dict[str, str]], columns: list[str] | None = None) -> str:
    """Rows under the given columns, or all of theirs in the order of their appearance."""
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_plot_file(path: Path) -> None:
    """Raises a ValueError if a plot cannot be written there."""
    if path.suffix not in PLOT_FORMATS or not path.absolute().parent.is_dir():
        raise ValueError(f"--out is {path}; it must be a {', '.join(PLOT_FORMATS)} file in a folder there is.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True, help="the plot to write, .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    runs = [RunFolder(path) for path in options.runs]
    try:
        check_plot_file(options.out)
        rows = [summary(run) for run in runs]
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(markdown_table(rows))
    names = [f"{run.path} ({row['network']}, {row['objective']})" for run, row in zip(runs, rows, strict=True)]
    save_loss_curves(options.out, {name: run.read_losses(math.inf) for name, run in zip(names, runs, strict=True)})


if __name__ == "__main__":
    main()
