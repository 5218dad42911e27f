"""Lays the scores of trainings side by side: `python eval/compare_scores.py runs/a runs/b --out fd.png`.

Scores are those in RUN/evaluation/step-*/results.json, which `eval_every` of a training config leaves there, or
`eval/evaluate.py --out RUN/evaluation/step-000010000` on a pipeline of that step. The table compares the runs at the
last step at which all were scored, and at the time that the fastest took to its last score, between scores linearly.
Time is steps at the run's median speed, so that compiling, and what else the machine did, count less; or at the speeds
that are given, of runs that shared a machine. The plot shows the first metric over both. Scores that were not drawn
alike are refused. Losses of different objectives do not compare.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from demo_diffusion.records.figures import PLOT_FORMATS
from demo_diffusion.records.files import check_output_file
from demo_diffusion.records.run_records import read_losses
from demo_diffusion.records.tables import markdown_table

# Of the fingerprints of scores that are compared.
ALIKE = (
    "num_samples", "num_inference_steps", "guidance_scale", "guidance_interval", "guidance_channels", "labels", "dtype",
    "reference_sha256",
)  # fmt: skip
LOSS_SHARE = 10


@dataclass
class ScoredRun:
    """What a run logged and scored.

    Attributes:
        steps, losses: of each logged row.
        seconds_per_step: by the median of the logged speeds, or the one given.
        fingerprint: of the first score; in ALIKE those of the others are the same.
        scored_steps: ascending.
        scores: metric -> value at each of `scored_steps`.
    """

    name: str
    steps: np.ndarray
    losses: np.ndarray
    seconds_per_step: float
    fingerprint: dict
    scored_steps: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def read(cls, run: Path, metrics: list[str], images_per_second: float | None = None) -> "ScoredRun":
        """Raises a ValueError if the run has no losses or not each score."""
        rows, config_file = read_losses(run), run / "config.yaml"
        if not rows or not config_file.is_file():
            raise ValueError(
                f"{run} lacks loss.csv or config.yaml; it is not the folder of a training, or has no checkpoint yet."
            )
        steps, losses, speeds = (np.array([row[n] for row in rows]) for n in ("step", "loss", "images_per_second"))
        batch_size = yaml.safe_load(config_file.read_text())["optimization"]["batch_size"]
        files = sorted(run.glob("evaluation/step-*/results.json"))
        if not files:
            raise ValueError(f"{run} has no scores in evaluation/step-*/results.json.")
        found = sorted((_read_score(file, metrics) for file in files), key=lambda score: score[0])
        scored_steps, scores, fingerprints = zip(*found, strict=True)
        for step, fingerprint in zip(scored_steps, fingerprints, strict=True):
            _check_alike((*ALIKE, "sampler"), f"{run}'s first step", fingerprints[0], f"step {step}", fingerprint)
        values = {name: np.array([score[name] for score in scores]) for name in metrics}
        seconds_per_step = batch_size / (images_per_second or float(np.median(speeds)))
        return cls(str(run), steps, losses, seconds_per_step, fingerprints[0], np.array(scored_steps), values)

    def loss_until(self, step: float) -> float:
        """The mean over the tenth of the steps before `step`; not a number if they were not logged."""
        if step > self.steps[-1] + 0.5:
            return math.nan
        rows = np.flatnonzero(self.steps <= step + 0.5)
        in_window = rows[self.steps[rows] > step * (1 - 1 / LOSS_SHARE)]
        rows = in_window if len(in_window) else rows[-1:]
        return float(self.losses[rows].mean()) if len(rows) else math.nan

    def at(self, step: float) -> dict[str, float]:
        """Loss and scores, between two scores linearly; not a number before the first score."""
        scores = {n: float(np.interp(step, self.scored_steps, v, left=math.nan)) for n, v in self.scores.items()}
        return {"loss": self.loss_until(step), **scores}


def _read_score(results: Path, metrics: list[str]) -> tuple[int, dict[str, float], dict]:
    """Step, metrics and fingerprint of a score."""
    try:
        step, content = int(results.parent.name.removeprefix("step-")), json.loads(results.read_text())
        scores, fingerprint = dict(content["metrics"]), dict(content["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{results} is not what eval/evaluate.py writes to RUN/evaluation/step-N: {error!r}"
        ) from error
    if missing := [name for name in metrics if scores.get(name) is None]:
        measured = ", ".join(name for name, value in scores.items() if value is not None)
        raise ValueError(f"{results} has no {', '.join(missing)}; it has {measured}.")
    return step, scores, fingerprint


def _check_alike(fields: tuple[str, ...], name: str, one: dict, other_name: str, other: dict) -> None:
    differing = [f"{key} ({one.get(key)}, {other.get(key)})" for key in fields if one.get(key) != other.get(key)]
    if differing:
        raise ValueError(f"The scores of {name} and {other_name} differ in {', '.join(differing)}.")


def comparison(runs: list[ScoredRun]) -> list[dict[str, str]]:
    """Two rows a run: at equal steps and at equal time.

    Raises:
        ValueError: if no step was scored in all runs, or their scores are not of the same kind.
    """
    for run in runs:
        _check_alike(ALIKE, runs[0].name, runs[0].fingerprint, run.name, run.fingerprint)
    common = set.intersection(*(set(run.scored_steps.tolist()) for run in runs))
    if not common:
        raise ValueError("There is no step at which all runs were scored.")
    step, seconds = max(common), min(run.scored_steps[-1] * run.seconds_per_step for run in runs)
    rows = [_row(run, f"{step:,} steps", step) for run in runs]
    return rows + [_row(run, f"{seconds:,.0f} s", seconds / run.seconds_per_step) for run in runs]


def _row(run: ScoredRun, where: str, step: float) -> dict[str, str]:
    seconds = f"{step * run.seconds_per_step:,.0f}"
    values = {name: "–" if math.isnan(value) else f"{value:.4g}" for name, value in run.at(step).items()}
    return {"run": run.name, "at": where, "steps": f"{step:,.0f}", "seconds": seconds, **values}


def save_score_curves(path: Path, runs: list[ScoredRun], metric: str) -> None:
    """Plots a metric over steps and over training time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for run in runs:
        for axes, x in zip(panels, (run.scored_steps, run.scored_steps * run.seconds_per_step / 60), strict=True):
            axes.plot(x, run.scores[metric], marker="o", label=run.name)
    for axes, label in zip(panels, ("step", "minutes of training steps"), strict=True):
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel=metric)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs with scores")
    parser.add_argument("--metrics", nargs="+", default=["fid"], help="default: fid; the first is plotted")
    speeds = "training speed of each run, measured otherwise; default: medians of loss.csv"
    parser.add_argument("--images_per_second", nargs="+", type=float, help=speeds)
    parser.add_argument("--out", type=Path, required=True, help="the plot to write, .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    try:
        check_output_file(options.out, PLOT_FORMATS)
        speeds = options.images_per_second or [None] * len(options.runs)
        if len(speeds) != len(options.runs) or not all(speed is None or speed > 0 for speed in speeds):
            raise ValueError(f"--images_per_second has {speeds}; it must have a positive number for each run.")
        runs = [ScoredRun.read(run, options.metrics, speed) for run, speed in zip(options.runs, speeds, strict=True)]
        rows = comparison(runs)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(markdown_table(rows))
    save_score_curves(options.out, runs, options.metrics[0])


if __name__ == "__main__":
    main()
