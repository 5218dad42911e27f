"""Spanning window attention: each token attends to its neighbourhood and to a strided, image-wide set of tokens.

The two kinds of windows share one set of queries, keys and values (EMOv2, arXiv 2412.06674, Sec. 3.3.1, "SEW-MHSA").
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

WINDOW_KINDS = {
    "none": (),
    "neighborhood": ("neighborhood",),
    "remote": ("remote",),
    "spanning": ("neighborhood", "remote"),
}
ATTENTION_MODES = tuple(WINDOW_KINDS)

# A grid axis of n·s positions is viewed as (n, s) for contiguous windows and as (s, n) for strided ones; the
# permutations bring (batch, rows, columns, heads) to the front and the two in-window axes next to the channels.
_TO_WINDOWS = {"neighborhood": (0, 1, 3, 5, 2, 4, 6), "remote": (0, 2, 4, 5, 1, 3, 6)}
_FROM_WINDOWS = {"neighborhood": (0, 1, 4, 2, 5, 3, 6), "remote": (0, 4, 1, 5, 2, 3, 6)}


def partition_windows(tokens: torch.Tensor, window_size: int, kind: str, num_heads: int) -> torch.Tensor:
    """Splits a token grid into windows and heads.

    With n = H / window_size, token (i, j) belongs to window (i // window_size, j // window_size) if `kind` is
    "neighborhood" and to window (i mod n, j mod n) if it is "remote".

    Args:
        tokens: (B, H, W, heads · d); H and W are multiples of `window_size`.

    Returns:
        (B · windows, heads, window_size², d)
    """
    batch, height, width, channels = tokens.shape
    rows, columns = height // window_size, width // window_size
    axes = (rows, window_size, columns, window_size)
    if kind == "remote":
        axes = (window_size, rows, window_size, columns)
    windows = tokens.reshape(batch, *axes, num_heads, channels // num_heads).permute(_TO_WINDOWS[kind])
    return windows.reshape(batch * rows * columns, num_heads, window_size**2, channels // num_heads)


def merge_windows(windows: torch.Tensor, height: int, width: int, window_size: int, kind: str) -> torch.Tensor:
    """Inverse of `partition_windows`: (B · windows, heads, window_size², d) -> (B, H, W, heads · d)."""
    _, num_heads, _, head_dim = windows.shape
    rows, columns = height // window_size, width // window_size
    grid = windows.reshape(-1, rows, columns, num_heads, window_size, window_size, head_dim)
    return grid.permute(_FROM_WINDOWS[kind]).reshape(-1, height, width, num_heads * head_dim)


def pad_to_windows(tokens: torch.Tensor, window_size: int) -> torch.Tensor:
    """Zero-pads (B, H, W, C) at the bottom and the right to multiples of `window_size`, as the official EMOv2 does."""
    bottom, right = -tokens.shape[1] % window_size, -tokens.shape[2] % window_size
    return F.pad(tokens, (0, 0, 0, right, 0, bottom)) if bottom or right else tokens


def spanning_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str,
    window_position: Callable | None = None,
) -> torch.Tensor:
    """Sum over the window kinds of `mode` of softmax(q kᵀ / √d) v, in windows.

    Args:
        query, key: (B, H, W, heads · d)
        value: (B, H, W, heads · e); e may differ from d.
        mode: one of `ATTENTION_MODES` but "none". H and W are multiples of `window_size`.
        window_position: of `WINDOW_POSITIONS`, gives queries and keys in windows their position; None: there is none.

    Returns:
        (B, H, W, heads · e)
    """
    height, width = query.shape[1:3]
    output = None
    for kind in WINDOW_KINDS[mode]:
        q, k, v = (partition_windows(x, window_size, kind, num_heads) for x in (query, key, value))
        q, k, bias = (q, k, None) if window_position is None else window_position(q, k)
        attended = merge_windows(_attention(q, k, v, bias), height, width, window_size, kind)
        output = attended if output is None else output + attended
    return output


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """softmax(q kᵀ / √d + bias) v of (windows, heads, tokens, d) and values of another width.

    On the CPU PyTorch has no fused attention for values of another width; plain products are faster.
    """
    if query.device.type != "cpu" or query.shape[-1] == value.shape[-1]:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5)
    if bias is not None:
        scores = (scores.unflatten(0, query.shape[:2]) + bias).flatten(0, 1)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, query.shape[:2])
