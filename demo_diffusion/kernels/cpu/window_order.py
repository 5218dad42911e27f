"""An order of tokens in which the windows of both kinds are views.

With r × c windows of s × s tokens, row y = s · i + r · m + p, where i < r numbers the neighborhood window, p = y mod r
the remote window and m < s / r the rest; columns likewise. Ordered by (p, m, i), rows and columns together, the tokens
of a remote window are s² neighbours, and those of a neighborhood window lie r · c apart.
"""

import torch


def has_window_order(height: int, width: int, window_size: int) -> bool:
    """Whether a grid of whole windows can be ordered: r and c must divide s."""
    return window_size % (height // window_size) == 0 and window_size % (width // window_size) == 0


def to_window_order(tokens: torch.Tensor, window_size: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, H · W, C)"""
    batch, height, width, channels = tokens.shape
    axes = tokens.reshape(batch, *_raster_axes(height, width, window_size), channels)
    return axes.permute(0, 3, 6, 2, 5, 1, 4, 7).reshape(batch, height * width, channels)


def view_in_window_order(grid: torch.Tensor, window_size: int) -> torch.Tensor:
    """View of one contiguous sample (H, W, C) by (p, m, i), rows before columns in each: (r, c, s/r, s/c, r, c, C)."""
    height, width, channels = grid.shape
    return grid.view(*_raster_axes(height, width, window_size), channels).permute(2, 5, 1, 4, 0, 3, 6)


def window_batches(tokens: torch.Tensor, count: int, num_heads: int, kind: str) -> tuple[torch.Tensor, ...]:
    """Views of the windows of one ordered sample, as few as strides allow, each for one batched product.

    Args:
        tokens: (T, heads · d); the columns of a wider matrix will do.
        count: of windows of a kind.

    Returns:
        (heads, T / count, d) of each window in turn, or one (count · heads, T / count, d) of all "neighborhood" windows
        of contiguous tokens.
    """
    dim = tokens.shape[1] // num_heads
    if kind == "remote":
        return tokens.view(count, -1, num_heads, dim).transpose(1, 2).unbind(0)
    if tokens.is_contiguous():
        return (tokens.view(-1, count * num_heads, dim).transpose(0, 1),)
    return tokens.view(-1, count, num_heads, dim).permute(1, 2, 0, 3).unbind(0)


def products_in_window_order(products: torch.Tensor, shape: torch.Size, kind: str) -> torch.Tensor:
    """View of what windows give, (windows · heads, s², d), as `shape` = (r, c, s/r, s/c, r, c, heads, d)."""
    rows, columns, row_rest, column_rest, _, _, num_heads, dim = shape
    if kind == "remote":
        axes = products.view(rows, columns, num_heads, row_rest, column_rest, rows, columns, dim)
        return axes.permute(0, 1, 3, 4, 5, 6, 2, 7)
    axes = products.view(rows, columns, num_heads, rows, columns, row_rest, column_rest, dim)
    return axes.permute(3, 4, 5, 6, 0, 1, 2, 7)


def _raster_axes(height: int, width: int, window_size: int) -> tuple[int, ...]:
    """(i, m, p) of the rows, then of the columns."""
    rows, columns = height // window_size, width // window_size
    return rows, window_size // rows, rows, columns, window_size // columns, columns
