"""Position inside an attention window, in three ways that can be chosen; the published D-EMO uses none.

Each module takes the queries and keys of windows, (B · windows, heads, window_size², d), and returns them with their
position, and what is added to the attention logits (None, or (heads, window_size², window_size²)). One module serves
both kinds of windows of a block.
"""

import torch
from torch import nn

from .positions import rotary_table, rotate


class WindowEmbedding(nn.Module):
    """A learned vector for each position, added to queries and keys: window_size² · width parameters, zero at first."""

    def __init__(self, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, window_size**2, head_dim))

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return query + self.weight, key + self.weight, None


class WindowBias(nn.Module):
    """A learned bias for each head and pair of positions: heads · window_size⁴ parameters, zero at first."""

    def __init__(self, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, window_size**2, window_size**2))

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return query, key, self.weight.to(query.dtype)


class WindowRotary(nn.Module):
    """Rotations by row and column inside the window: no parameters."""

    def __init__(self, num_heads: int, head_dim: int, window_size: int):
        super().__init__()
        self.register_buffer("table", rotary_table(head_dim, window_size, window_size), persistent=False)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return rotate(query, self.table, sequence_dim=2), rotate(key, self.table, sequence_dim=2), None


WINDOW_POSITIONS = {"embedding": WindowEmbedding, "bias": WindowBias, "rotary": WindowRotary}


def create_window_position(name: str | None, num_heads: int, head_dim: int, window_size: int) -> nn.Module | None:
    """The module of that name; None: no position.

    Raises:
        ValueError: if the name is unknown.
    """
    if name is None:
        return None
    if name not in WINDOW_POSITIONS:
        raise ValueError(f"window_position is {name!r}; it must be None or one of {list(WINDOW_POSITIONS)}.")
    return WINDOW_POSITIONS[name](num_heads, head_dim, window_size)
