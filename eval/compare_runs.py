"""Lays runs side by side: `python eval/compare_runs.py runs/a runs/b --out losses.png`.

Prints a table of each run's network (blocks × width), objective, last loss and nearest-neighbour accuracies, and plots
the losses. Losses of different objectives are not comparable.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from demo_diffusion import DEMOPipeline
from demo_diffusion.records.figures import PLOT_FORMATS, save_loss_curves
from demo_diffusion.records.files import check_output_file
from demo_diffusion.records.run_records import read_losses
from demo_diffusion.records.tables import markdown_table


def summary(run: Path) -> dict[str, str]:
    """One row of the table.

    Raises:
        ValueError: if the run is not finished.
    """
    pipeline, config_file = run / "pipeline", run / "config.yaml"
    if not pipeline.is_dir() or not config_file.is_file():
        raise ValueError(f"{run} is not the folder of a finished run; it lacks pipeline/ or config.yaml.")
    config = yaml.safe_load(config_file.read_text())
    transformer = DEMOPipeline.from_pretrained(pipeline).transformer
    family, network = config["model"]["transformer"].split("-")[0], transformer.config
    losses = read_losses(run)
    if not losses:
        raise ValueError(f"{run} has no losses in loss.csv.")
    row = {
        "run": str(run),
        "network": f"{family} {network.num_layers} × {network.num_attention_heads * network.attention_head_dim}",
        "objective": config["objective"]["objective"],
        "parameters": f"{sum(p.numel() for p in transformer.parameters()):,}",
        "steps": f"{losses[-1]['step']:,}",
        "last loss": f"{losses[-1]['loss']:.4f}",
    }
    report = run / "nearest_neighbor.json"
    accuracies = json.loads(report.read_text())["accuracy"] if report.is_file() else {}
    return row | {f"accuracy at scale {float(scale):g}": f"{value:.1%}" for scale, value in accuracies.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True, help="the plot to write, .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    runs = options.runs
    try:
        check_output_file(options.out, PLOT_FORMATS)
        rows = [summary(run) for run in runs]
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(markdown_table(rows))
    names = [f"{run} ({row['network']}, {row['objective']})" for run, row in zip(runs, rows, strict=True)]
    save_loss_curves(options.out, {name: read_losses(run) for name, run in zip(names, runs, strict=True)})


if __name__ == "__main__":
    main()
