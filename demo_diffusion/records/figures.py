"""Curves and labelled grids of images."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .files import write_whole
from .run_records import Row

PLOT_FORMATS = (".png", ".pdf", ".svg")
PANEL_HEIGHT = 4  # inches
Curve = tuple[Iterable[float], Iterable[float]]  # x, y


def save_loss_curves(path: Path, runs: Mapping[str, list[Row]]) -> None:
    """Plots "loss" over "step" of each run, named in a legend."""
    from matplotlib import ticker

    with _saved_figure(path, width=7) as figure:
        axes = figure.subplots()
        _draw(axes, {name: _columns(rows, "loss") for name, rows in runs.items()}, "step", "training loss")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.yaxis.set_minor_formatter(ticker.ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend()


def save_accuracy_curves(path: Path, runs: Mapping[str, list[Row]]) -> None:
    """Plots "top1" over "step" of each run, named in a legend with its last value."""
    from matplotlib import ticker

    curves = {f"{name}: {rows[-1]['top1']:.2%}": _columns(rows, "top1") for name, rows in runs.items()}
    with _saved_figure(path, width=7) as figure:
        axes = figure.subplots()
        _draw(axes, curves, "step", "top-1 accuracy of the moving average", marker="o", markersize=3)
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1))
        axes.legend(loc="lower right")


def save_score_curves(path: Path, panels: Mapping[str, Mapping[str, Curve]], metric: str) -> None:
    """Plots a metric of each run over several measures, side by side: {name of x: {name of run: curve}}."""
    with _saved_figure(path, width=5 * len(panels)) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (x_label, curves) in zip(all_axes, panels.items(), strict=True):
            _draw(axes, curves, x_label, metric if axes is all_axes[0] else "", marker="o")
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


@contextmanager
def _saved_figure(path: Path, width: float) -> Iterator:
    """A matplotlib figure, `width` inches wide, that is written when the block ends. It needs no screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, PANEL_HEIGHT), layout="constrained")
    yield figure
    write_whole(path, lambda partial: figure.savefig(partial, dpi=120))


def _draw(axes, curves: Mapping[str, Curve], x_label: str, y_label: str, **style) -> None:
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, **style)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)


def _columns(rows: list[Row], column: str) -> Curve:
    return [row["step"] for row in rows], [row[column] for row in rows]


MIN_CELL = 64  # pixels; smaller images are enlarged by a whole factor
GAP = 4
MAX_LABEL_WIDTH = 160
INK, PAPER = (20, 20, 20), (255, 255, 255)


def labelled_grid(rows: list[list[Image.Image]], labels: list[str]) -> Image.Image:
    """One row a class, its name on the left, cells apart, small images enlarged without smoothing.

    Args:
        rows: images of one size; all rows equally long.
        labels: a name for each row.
    """
    width, height = rows[0][0].size
    factor = max(1, -(-MIN_CELL // min(width, height)))
    cell_width, cell_height = width * factor, height * factor
    font = ImageFont.load_default(size=18)
    labels = [_fit(label, font) for label in labels]
    left = round(max(map(font.getlength, labels))) + 4 * GAP
    size = (left + len(rows[0]) * (cell_width + GAP), GAP + len(rows) * (cell_height + GAP))
    grid = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(grid)
    for r, (images, label) in enumerate(zip(rows, labels, strict=True)):
        top = GAP + r * (cell_height + GAP)
        draw.text((left - 2 * GAP, top + cell_height // 2), label, fill=INK, font=font, anchor="rm")
        for c, image in enumerate(images):
            enlarged = image.convert("RGB").resize((cell_width, cell_height), Image.Resampling.NEAREST)
            grid.paste(enlarged, (left + c * (cell_width + GAP), top))
    return grid


def _fit(label: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(label) <= MAX_LABEL_WIDTH:
        return label
    while font.getlength(label + "…") > MAX_LABEL_WIDTH:
        label = label[:-1]
    return label + "…"
