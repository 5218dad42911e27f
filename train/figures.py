"""The pictures that a run leaves: a labelled grid of samples and the loss curve."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 64  # pixels; smaller images are enlarged by a whole factor
GAP = 4
LABEL_WIDTH = 160
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
    grid = Image.new(
        "RGB",
        (LABEL_WIDTH + len(rows[0]) * (cell_width + GAP) + GAP, len(rows) * (cell_height + GAP) + GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=18)
    for r, (images, label) in enumerate(zip(rows, labels, strict=True)):
        top = GAP + r * (cell_height + GAP)
        draw.text((LABEL_WIDTH - 2 * GAP, top + cell_height // 2), _fit(label, font), fill=INK, font=font, anchor="rm")
        for c, image in enumerate(images):
            enlarged = image.convert("RGB").resize((cell_width, cell_height), Image.Resampling.NEAREST)
            grid.paste(enlarged, (LABEL_WIDTH + c * (cell_width + GAP), top))
    return grid


def _fit(label: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(label) <= LABEL_WIDTH - 2 * GAP:
        return label
    while font.getlength(label + "…") > LABEL_WIDTH - 2 * GAP:
        label = label[:-1]
    return label + "…"


def save_loss_curve(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """Plots "loss" over "step"."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows])
    axes.set(xlabel="step", ylabel="training loss", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
