"""Logits of images of any size, from windows of the size that a network was trained at."""

from itertools import product

import torch
from torch import nn

from .heads import resize


@torch.no_grad()
def predict_logits(
    network: nn.Module, pixel_values: torch.Tensor, window: int | None = None, stride: int | None = None
) -> torch.Tensor:
    """Logits (B, labels, H, W) of pixel_values (B, C, H, W), at the images' size.

    Args:
        network: a segmenter in eval mode.
        window: side of the square windows in pixels; where they overlap, logits are averaged. None: the whole image.
        stride: pixels from one window to the next, at most `window`; None: two thirds of it.

    Raises:
        ValueError: if window or stride is not allowed.
    """
    height, width = pixel_values.shape[-2:]
    if window is None:
        return resize(network(pixel_values).logits.float(), (height, width))
    stride = window_stride(window, stride)
    total = count = None
    for top, left in product(_starts(height, window, stride), _starts(width, window, stride)):
        area = (..., slice(top, top + window), slice(left, left + window))
        part = pixel_values[area]
        logits = resize(network(part).logits.float(), part.shape[-2:])
        if total is None:
            total = logits.new_zeros(len(logits), logits.shape[1], height, width)
            count = logits.new_zeros(height, width)
        total[area] += logits
        count[area] += 1
    return total / count


def window_stride(window: int, stride: int | None) -> int:
    """Pixels from one window to the next; raises ValueError if windows would leave pixels out."""
    stride = max(1, 2 * window // 3) if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride is {stride}; it must be from 1 to the window of {window} pixels.")
    return stride


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin; the last one ends at the border."""
    last = max(0, side - window)
    return [*range(0, last, stride), last]
