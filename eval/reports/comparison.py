"""Runs side by side: what finished runs are, and how the scores of trainings compare."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from demo_diffusion.eval.metrics.scores import finite_or_none
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.records.run_records import LARGEST, read_losses, read_scores

from .read_results import read_score_file

# Of the fingerprints of scores that are compared.
ALIKE = (
    "num_samples", "num_inference_steps", "guidance_scale", "guidance_interval", "guidance_channels", "labels", "dtype",
    "reference_sha256",
)  # fmt: skip
LOSS_SHARE = 10


def is_classifier(run: Path) -> bool:
    """Whether a run is a classifier's and finished."""
    return (run / "results.json").is_file() and bool(read_scores(run, "accuracy"))


def is_finished(run: Path) -> bool:
    return is_classifier(run) or ((run / "pipeline").is_dir() and (run / "config.yaml").is_file())


def summary(run: Path) -> dict[str, str]:
    """A table's row of a finished run.

    Raises:
        ValueError: if the run is not finished.
    """
    return classifier_summary(run) if is_classifier(run) else diffusion_summary(run)


def classifier_summary(run: Path) -> dict[str, str]:
    """The row of a classifier; raises ValueError if the run is not a finished one of a classifier."""
    if not is_classifier(run):
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


def diffusion_summary(run: Path) -> dict[str, str]:
    """The row of a diffusion network: blocks × width, last loss, nearest-neighbour accuracies if there are some.

    Raises:
        ValueError: if the run is not finished.
    """
    if not is_finished(run):
        raise ValueError(f"{run} is not the folder of a finished run; it lacks pipeline/ or config.yaml.")
    config = yaml.safe_load((run / "config.yaml").read_text())
    transformer = DEMOPipeline.from_pretrained(run / "pipeline").transformer
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
    number = results.parent.name.removeprefix("step-")
    if not (number.isascii() and number.isdigit() and int(number) <= LARGEST):
        raise ValueError(f"{results.parent} is not the folder of a score; those are named RUN/evaluation/step-N.")
    step, (scores, fingerprint) = int(number), read_score_file(results)
    if missing := [name for name in metrics if finite_or_none(scores.get(name)) is None]:
        measured = ", ".join(name for name, value in scores.items() if finite_or_none(value) is not None)
        raise ValueError(f"{results} has no {', '.join(missing)}; it has {measured}.")
    return step, scores, fingerprint


def _check_alike(fields: tuple[str, ...], name: str, one: dict, other_name: str, other: dict) -> None:
    differing = [f"{key} ({one.get(key)}, {other.get(key)})" for key in fields if one.get(key) != other.get(key)]
    if differing:
        raise ValueError(f"The scores of {name} and {other_name} differ in {', '.join(differing)}.")


def compare_scores(runs: list[ScoredRun]) -> list[dict[str, str]]:
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


def score_panels(runs: list[ScoredRun], metric: str) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Curves of a metric over steps and over training time, as `save_score_curves` takes them."""
    minutes = {run.name: (run.scored_steps * run.seconds_per_step / 60, run.scores[metric]) for run in runs}
    steps = {run.name: (run.scored_steps, run.scores[metric]) for run in runs}
    return {"step": steps, "minutes of training steps": minutes}
