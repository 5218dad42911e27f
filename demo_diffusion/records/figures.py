"""Curves and labelled grids of images."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


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


def save_loss_curves(path: Path, runs: dict[str, list[dict[str, float]]]) -> None:
    """Plots "loss" over "step" of each run, named in a legend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in runs.items():
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=name)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.yaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.yaxis.set_minor_formatter(ticker.ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


PLOT_FORMATS = (".png", ".pdf", ".svg")
