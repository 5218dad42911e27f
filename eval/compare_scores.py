"""Lays the scores of trainings side by side: `python eval/compare_scores.py runs/a runs/b --out fd.png`.

Scores are those in RUN/evaluation/step-*/results.json, which `eval_every` of a training config leaves there, or
`eval/evaluate.py --out RUN/evaluation/step-000010000` on a pipeline of that step. The table compares the runs at the
last step at which all were scored, and at the time that the fastest took to its last score, between scores linearly.
Time is steps at the run's median speed, so that compiling, and what else the machine did, count less. The plot shows
the first metric over both. Scores that differ in samples, sampler's steps, guidance or reference are refused.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from demo_diffusion.eval.compare_runs import PLOT_FORMATS, markdown_table
from demo_diffusion.train.run_folder import RunFolder

ALIKE = ("num_samples", "num_inference_steps", "guidance_scale", "reference_sha256")  # in scores that are compared
LOSS_SHARE = 10  # a run's loss at a time is the mean over the tenth of the steps before


@dataclass
class ScoredRun:
    """What a run logged and scored.

    Attributes:
        steps, losses: of each logged row.
        seconds_per_step: by the median of the logged speeds.
        settings: what all scores have alike.
        scored_steps: ascending.
        scores: metric -> value at each of `scored_steps`.
    """

    name: str
    steps: np.ndarray
    losses: np.ndarray
    seconds_per_step: float
    settings: dict
    scored_steps: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def read(cls, run: Path, metrics: list[str]) -> "ScoredRun":
        """Raises a ValueError if the run has no losses or not each score."""
        folder = RunFolder(run)
        rows = folder.read_losses(math.inf)
        if not rows or not folder.config_file.is_file():
            raise ValueError(f"{run} is not the folder of a training; it lacks loss.csv or config.yaml.")
        steps, losses, speeds = (np.array([row[n] for row in rows]) for n in ("step", "loss", "images_per_second"))
        batch_size = yaml.safe_load(folder.config_file.read_text())["optimization"]["batch_size"]
        files = sorted(run.glob("evaluation/step-*/results.json"))
        if not files:
            raise ValueError(f"{run} has no scores in evaluation/step-*/results.json.")
        settings = _settings_of(files[0])
        for file in files:
            _check_alike(files[0], settings, file, _settings_of(file))
        scored = {_step_of(file): _metrics_of(file, metrics) for file in files}
        scored_steps = np.array(sorted(scored))
        if scored_steps[-1] > steps[-1]:
            raise ValueError(f"{run} has a score of step {scored_steps[-1]}, but losses up to step {steps[-1]} only.")
        scores = {name: np.array([scored[step][name] for step in scored_steps]) for name in metrics}
        return cls(str(run), steps, losses, batch_size / float(np.median(speeds)), settings, scored_steps, scores)

    def loss_until(self, step: float) -> float:
        window = (self.steps <= step) & (self.steps > step * (1 - 1 / LOSS_SHARE))
        return float(self.losses[window].mean())

    def at(self, step: float) -> dict[str, float]:
        """Loss and scores, between two scores linearly."""
        scores = {name: float(np.interp(step, self.scored_steps, values)) for name, values in self.scores.items()}
        return {"loss": self.loss_until(step), **scores}


def _step_of(results: Path) -> int:
    return int(results.parent.name.removeprefix("step-"))


def _settings_of(results: Path) -> dict:
    fingerprint = json.loads(results.read_text())["fingerprint"]
    return {name: fingerprint.get(name) for name in ALIKE}


def _check_alike(name: Path | str, settings: dict, other_name: Path | str, other: dict) -> None:
    if differing := [f"{key} ({settings[key]}, {other[key]})" for key in ALIKE if settings[key] != other[key]]:
        raise ValueError(f"The scores of {name} and {other_name} differ in {', '.join(differing)}.")


def _metrics_of(results: Path, names: list[str]) -> dict[str, float]:
    metrics = json.loads(results.read_text())["metrics"]
    if missing := [name for name in names if metrics.get(name) is None]:
        raise ValueError(f"{results} has no {', '.join(missing)}; it has {', '.join(metrics)}.")
    return metrics


def comparison(runs: list[ScoredRun]) -> list[dict[str, str]]:
    """Two rows a run: at equal steps and at equal time.

    Raises:
        ValueError: if no step was scored in all runs, or their scores are not of the same kind.
    """
    for run in runs:
        _check_alike(runs[0].name, runs[0].settings, run.name, run.settings)
    common = set.intersection(*(set(run.scored_steps.tolist()) for run in runs))
    if not common:
        raise ValueError("There is no step at which all runs were scored.")
    step, seconds = max(common), min(run.scored_steps[-1] * run.seconds_per_step for run in runs)
    rows = [_row(run, f"{step:,} steps", step) for run in runs]
    return rows + [_row(run, f"{seconds:,.0f} s", seconds / run.seconds_per_step) for run in runs]


def _row(run: ScoredRun, where: str, step: float) -> dict[str, str]:
    seconds = f"{step * run.seconds_per_step:,.0f}"
    values = {name: f"{value:.4g}" for name, value in run.at(step).items()}
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
    panels[1].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs with scores")
    parser.add_argument("--metrics", nargs="+", default=["fid"], help="default: fid; the first is plotted")
    parser.add_argument("--out", type=Path, required=True, help="the plot to write, .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix not in PLOT_FORMATS or not options.out.absolute().parent.is_dir():
            raise ValueError(
                f"--out is {options.out}; it must be a {', '.join(PLOT_FORMATS)} file in a folder there is."
            )
        runs = [ScoredRun.read(path, options.metrics) for path in options.runs]
        rows = comparison(runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(markdown_table(rows))
    save_score_curves(options.out, runs, options.metrics[0])


if __name__ == "__main__":
    main()
