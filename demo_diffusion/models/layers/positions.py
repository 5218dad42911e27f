"""Where a token stands: the fixed table that is added to the tokens, and rotations of queries and keys."""

import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed, get_2d_sincos_pos_embed_from_grid


def _coordinates(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each position, both (height, width)."""
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def position_table(dim: int, height: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine table (1, height · width, dim): half of `dim` for each axis, the width axis first (DiT).

    It is computed in double precision and then cast to the default dtype, as which diffusers loads a network.
    """
    rows, columns = _coordinates(height, width)
    table = get_2d_sincos_pos_embed_from_grid(dim, torch.stack([columns, rows]))[None]
    return table.to(torch.get_default_dtype())


def rotary_table(head_dim: int, height: int, width: int) -> torch.Tensor:
    """Cosines and sines (2, height · width, head_dim) of 2-D rotary positions (RoFormer, arXiv 2104.09864).

    The first half of a head's channels turns with the row, the second with the column; base 10000. The table is
    computed in single precision and then cast to the default dtype.

    Raises:
        ValueError: if `head_dim` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"The head dimension is {head_dim}; two-axis rotary positions need a multiple of 4.")
    tables = [
        torch.stack(get_1d_rotary_pos_embed(head_dim // 2, axis.flatten(), use_real=True))
        for axis in _coordinates(height, width)
    ]
    return torch.cat(tables, dim=-1).to(torch.get_default_dtype())


def rotate(x: torch.Tensor, table: torch.Tensor, sequence_dim: int) -> torch.Tensor:
    """Turns queries or keys (B, heads, N, d), or (B, N, heads, d) with `sequence_dim` 1, by `rotary_table`."""
    return apply_rotary_emb(x, tuple(table), sequence_dim=sequence_dim)
