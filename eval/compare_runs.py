"""Lays runs side by side: `python eval/compare_runs.py runs/a runs/b --plot loss|accuracy|METRIC --out FILE`.

Prints a table of the runs if all are finished: each one's network, and its last loss and nearest-neighbour accuracies,
or a classifier's accuracy. Losses of different objectives are not comparable; metrics are.

Where a METRIC (such as fid) is plotted or --metrics are given, it prints a table of the scores too, those in
RUN/evaluation/step-*/results.json, which `eval_every` of a training config leaves there, or `eval/evaluate.py --out
RUN/evaluation/step-000010000` on a pipeline of that step. It compares the runs at the last step at which all were
scored, and at the time that the fastest took to its last score, between scores linearly. Time is steps at the run's
median speed, so that compiling, and what else the machine did, count less; or at the speeds that are given, of runs
that shared a machine. The plot shows the metric over both. Scores that were not drawn alike are refused.
"""

import argparse
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

from demo_diffusion.eval.reports.comparison import (
    ScoredRun,
    classifier_summary,
    compare_scores,
    is_finished,
    score_panels,
    summary,
)
from demo_diffusion.records.figures import PLOT_FORMATS, save_accuracy_curves, save_loss_curves, save_score_curves
from demo_diffusion.records.files import check_output_file
from demo_diffusion.records.folder_lock import hold_target
from demo_diffusion.records.run_records import read_losses, read_scores
from demo_diffusion.records.tables import markdown_table

SUMMARIES = {"loss": summary, "accuracy": classifier_summary}  # of the plots that need finished runs


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument(
        "--plot", default="loss", help="loss, accuracy (of classifiers) or a metric of scores; default: loss"
    )
    parser.add_argument("--out", type=Path, required=True, help="the plot to write, .png, .pdf or .svg")
    parser.add_argument("--metrics", nargs="+", default=[], help="metrics of the table, beside the one that is plotted")
    speeds = "training speed of each run, measured otherwise; default: medians of loss.csv"
    parser.add_argument("--images_per_second", nargs="+", type=float, help=speeds)
    return parser.parse_args(arguments)


def read_scored_runs(options: argparse.Namespace, metrics: list[str]) -> list[ScoredRun]:
    """Raises ValueError if a run has not each score, or there is not one speed for each run."""
    speeds = options.images_per_second or [None] * len(options.runs)
    if len(speeds) != len(options.runs) or not all(speed is None or speed > 0 for speed in speeds):
        raise ValueError(f"--images_per_second has {speeds}; it must have a positive number for each run.")
    return [ScoredRun.read(run, metrics, speed) for run, speed in zip(options.runs, speeds, strict=True)]


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    runs, metric = options.runs, None if options.plot in SUMMARIES else options.plot
    check_output_file(options.out, PLOT_FORMATS)
    metrics = list(dict.fromkeys([*([metric] if metric else []), *options.metrics]))
    if options.images_per_second and not metrics:
        raise ValueError("--images_per_second is for scores; plot a metric, or give --metrics.")
    rows = []
    if metric is None or all(map(is_finished, runs)):
        rows = [SUMMARIES.get(options.plot, summary)(run) for run in runs]
    scored = read_scored_runs(options, metrics) if metrics else []
    tables = [rows, compare_scores(scored) if scored else []]
    print("\n\n".join(markdown_table(table) for table in tables if table))
    with hold_target(options.out):
        if metric is not None:
            save_score_curves(options.out, score_panels(scored, metric), metric)
        elif options.plot == "accuracy":
            names = [f"{run.name} ({row['network']})" for run, row in zip(runs, rows, strict=True)]
            accuracies = [read_scores(run, "accuracy") for run in runs]
            save_accuracy_curves(options.out, dict(zip(names, accuracies, strict=True)))
        else:
            kinds = [", ".join(row[name] for name in ("network", "objective") if name in row) for row in rows]
            names = [f"{run} ({kind})" for run, kind in zip(runs, kinds, strict=True)]
            save_loss_curves(options.out, dict(zip(names, map(read_losses, runs), strict=True)))


if __name__ == "__main__":
    main()
