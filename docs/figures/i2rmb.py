"""Draws the i2RMB block of D-EMO and its two kinds of windows: `python docs/figures/i2rmb.py`.

Writes docs/images/i2rmb.png. The windows in the picture are made by the code that the network uses.
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from demo_diffusion.models.spanning_attention import partition_windows

TARGET = Path(__file__).parents[1] / "images/i2rmb.png"
GRID, WINDOW = 8, 4  # tokens along a side, in the picture of the windows
NARROW, WIDE, CONDITION = "#d6e6f7", "#fde3c2", "#dff0d8"  # values D and 4D wide; from the conditioning
WINDOW_COLORS = ("#4c78a8", "#f2a154", "#6aae6a", "#b48ead")
LINE = "#444444"
LEFT, CENTER, RIGHT = 3.1, 4.65, 6.2  # columns of the flow
SKIP, RESIDUAL, CONDITIONING = 8.05, 9.05, 0.95  # lines beside the flow
EDGE = 0.17  # radius of a node


def box(axes: Axes, x: float, y: float, text: str, width: float, color: str) -> None:
    corner, height = (x - width / 2, y - 0.27), 0.54
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", facecolor=color, edgecolor=LINE, zorder=2)
    )
    axes.text(x, y - 0.01, text, ha="center", va="center", fontsize=10.5, zorder=3)


def node(axes: Axes, x: float, y: float, sign: str) -> None:
    circle = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": LINE}
    axes.text(x, y, sign, ha="center", va="center", fontsize=12, bbox=circle, zorder=3)


def path(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through the points that ends in an arrow."""
    axes.plot(*zip(*points[:-1], strict=True), color=LINE, linewidth=1.2, zorder=1, solid_joinstyle="miter")
    arrow = {"arrowstyle": "-|>", "color": LINE, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=arrow, zorder=1)


def note(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, fontsize=10, color=LINE, va="center", style="italic")


def frame(axes: Axes, left: float, bottom: float, right: float, top: float, text: str, color: str) -> None:
    corner, size = (left, bottom), (right - left, top - bottom)
    axes.add_patch(Rectangle(corner, *size, facecolor=color, edgecolor="#999999", linestyle="--", zorder=-2))
    axes.text(left + 0.12, top - 0.25, text, fontsize=11, weight="bold", color="#666666", va="center")


def draw_block(axes: Axes) -> None:
    """The flow of a block from top to bottom."""
    frame(axes, 0.0, 0.2, 9.5, 13.6, "DEMOBlock", "#fafafa")
    frame(axes, 1.6, 2.55, 8.5, 10.95, "MobileMixer", "#f0f0f0")

    # The normed tokens, scaled and shifted by the conditioning.
    box(axes, CENTER, 14.2, "tokens x  (B, H, W, D)", 2.7, NARROW)
    path(axes, (CENTER, 13.9), (CENTER, 12.97))
    note(axes, CENTER + 0.12, 13.3, "D")
    box(axes, CENTER, 12.7, "LayerNorm", 2.4, NARROW)
    path(axes, (CENTER, 12.4), (CENTER, 11.82))
    box(axes, CENTER, 11.55, "× (1 + scale) + shift", 2.4, NARROW)
    box(axes, CONDITIONING, 12.7, "conditioning", 1.5, CONDITION)
    path(axes, (CONDITIONING, 12.4), (CONDITIONING, 11.55), (CENTER - 1.22, 11.55))
    note(axes, CONDITIONING + 0.12, 11.8, "scale, shift")

    # Queries and keys; values four times as wide; attention in two kinds of windows, and the sum.
    for x, text, width, color in ((LEFT, "qk:  D → 2D", 2.0, NARROW), (RIGHT, "v:  D → 4D,  GELU", 2.9, WIDE)):
        path(axes, (CENTER, 11.25), (CENTER, 10.4), (x, 10.4), (x, 10.02))
        box(axes, x, 9.75, text, width, color)
    note(axes, LEFT - 0.95, 9.2, "q, k")
    note(axes, RIGHT + 0.42, 9.2, "4D")
    box(axes, LEFT, 8.15, "neighborhood attention", 2.7, WIDE)
    box(axes, RIGHT, 8.15, "remote attention", 2.7, WIDE)
    path(axes, (LEFT - 0.3, 9.45), (LEFT - 0.3, 8.44))
    path(axes, (LEFT + 0.3, 9.45), (LEFT + 0.3, 9.2), (RIGHT - 0.3, 8.7), (RIGHT - 0.3, 8.44))
    path(axes, (RIGHT + 0.3, 9.45), (RIGHT + 0.3, 8.44))
    path(axes, (RIGHT - 0.3, 9.45), (RIGHT - 0.3, 9.2), (LEFT + 0.3, 8.7), (LEFT + 0.3, 8.44))
    node(axes, CENTER, 7.25, "+")
    path(axes, (LEFT, 7.85), (LEFT, 7.25), (CENTER - EDGE, 7.25))
    path(axes, (RIGHT, 7.85), (RIGHT, 7.25), (CENTER + EDGE, 7.25))

    # Depthwise convolution beside the skip, and back to the width of the block.
    path(axes, (CENTER, 7.25 - EDGE), (CENTER, 6.42))
    note(axes, CENTER + 0.12, 6.8, "z,  4D")
    box(axes, CENTER, 6.15, "depthwise convolution 5 × 5", 3.4, WIDE)
    path(axes, (CENTER, 5.85), (CENTER, 5.57))
    box(axes, CENTER, 5.3, "BatchNorm,  SiLU", 3.4, WIDE)
    path(axes, (CENTER, 5.0), (CENTER, 4.35 + EDGE))
    node(axes, CENTER, 4.35, "+")
    path(axes, (CENTER, 6.6), (SKIP, 6.6), (SKIP, 4.35), (CENTER + EDGE, 4.35))
    path(axes, (CENTER, 4.35 - EDGE), (CENTER, 3.57))
    box(axes, CENTER, 3.3, "proj:  4D → D", 2.4, NARROW)

    # The gate, and the residual.
    path(axes, (CENTER, 3.0), (CENTER, 1.9 + EDGE))
    node(axes, CENTER, 1.9, "×")
    path(axes, (CONDITIONING, 11.55), (CONDITIONING, 1.9), (CENTER - EDGE, 1.9))
    note(axes, CONDITIONING + 0.12, 2.15, "gate")
    path(axes, (CENTER, 1.9 - EDGE), (CENTER, 0.85 + EDGE))
    node(axes, CENTER, 0.85, "+")
    path(axes, (CENTER, 13.75), (RESIDUAL, 13.75), (RESIDUAL, 0.85), (CENTER + EDGE, 0.85))
    path(axes, (CENTER, 0.85 - EDGE), (CENTER, -0.25))
    note(axes, CENTER + 0.12, -0.1, "D")


def windows_of_tokens(kind: str) -> torch.Tensor:
    """Number of the window that each token of the grid belongs to, (GRID, GRID)."""
    numbers = torch.arange(GRID**2, dtype=torch.float).view(1, GRID, GRID, 1)
    windows = partition_windows(numbers, WINDOW, kind, num_heads=1).flatten(1).long()
    of_token = torch.empty(GRID**2, dtype=torch.long)
    for number, tokens in enumerate(windows):
        of_token[tokens] = number
    return of_token.view(GRID, GRID)


def draw_windows(axes: Axes, kind: str, text: str) -> None:
    """The grid of tokens, those of one window dark."""
    windows = windows_of_tokens(kind)
    for row in range(GRID):
        for column in range(GRID):
            number = int(windows[row, column])
            alpha = 1.0 if number == 0 else 0.4
            color = matplotlib.colors.to_rgba(WINDOW_COLORS[number], alpha)
            axes.add_patch(Rectangle((column, GRID - 1 - row), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
    axes.set(xlim=(0, GRID), ylim=(0, GRID), aspect="equal", title=kind)
    axes.title.set_fontsize(12)
    axes.text(GRID / 2, -0.4, text, fontsize=10.5, ha="center", va="top")
    axes.axis("off")


def main() -> None:
    figure = plt.figure(figsize=(10.4, 9.2), dpi=110)
    block = figure.add_axes((0.01, 0.01, 0.66, 0.98))
    draw_block(block)
    block.set(xlim=(-0.1, 9.6), ylim=(-0.35, 14.6))
    block.axis("off")
    draw_windows(figure.add_axes((0.71, 0.62, 0.25, 0.28)), "neighborhood", "4 × 4 tokens side by side")
    draw_windows(
        figure.add_axes((0.71, 0.23, 0.25, 0.28)),
        "remote",
        "every second row and column:\n4 × 4 tokens of the whole image",
    )
    legend = figure.add_axes((0.71, 0.05, 0.25, 0.09))
    for y, color, text in ((0.75, NARROW, "D channels a token"), (0.25, WIDE, "4D channels a token")):
        legend.add_patch(Rectangle((0.1, y - 0.13), 0.12, 0.26, facecolor=color, edgecolor=LINE))
        legend.text(0.27, y, text, fontsize=10.5, va="center")
    legend.axis("off")
    figure.savefig(TARGET)


if __name__ == "__main__":
    main()
