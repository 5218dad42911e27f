"""What the objectives share."""

import torch


def expand_to(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, …) with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def mean_over_sample(values: torch.Tensor) -> torch.Tensor:
    """(B, …) -> (B,)."""
    return values.flatten(1).mean(dim=1)
