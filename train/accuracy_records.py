"""The accuracies that a run measures on its way: accuracy.csv, and a picture of one or several runs."""

import csv
import io
from pathlib import Path

from demo_diffusion.eval.accuracy import Accuracy
from demo_diffusion.train.run_folder import replace_text

COLUMNS = ("step", "top1", "top5")


class AccuracyRecords:
    """The rows of a run's accuracy.csv. Nothing is written before a measurement is added."""

    def __init__(self, folder: Path):
        self.file = folder / "accuracy.csv"

    def read(self) -> list[dict[str, float]]:
        if not self.file.is_file():
            return []
        with self.file.open() as file:
            return [{**{k: float(v) for k, v in row.items()}, "step": int(row["step"])} for row in csv.DictReader(file)]

    def add(self, step: int, accuracy: Accuracy) -> None:
        """Adds a row; rows of this step and later ones, from before the run was resumed, go."""
        rows = [row for row in self.read() if row["step"] < step]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, {"step": step, "top1": accuracy.top1, "top5": accuracy.top5}])
        replace_text(self.file, text.getvalue())


def save_accuracy_curves(path: Path, runs: dict[str, list[dict[str, float]]]) -> None:
    """Plots "top1" over "step" of each run, named in a legend with its last value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in runs.items():
        label = f"{name}: {rows[-1]['top1']:.2%}"
        axes.plot([row["step"] for row in rows], [row["top1"] for row in rows], marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="top-1 accuracy of the moving average")
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
