"""Exponential moving averages of a network's weights and of BatchNorm's running statistics."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class MovingAverages:
    """One average of the whole state dict for each decay; the averages start at the network's own values.

    BatchNorm's running statistics are part of what is sampled from, so buffers are averaged as weights are. Whole
    numbers (BatchNorm's counter) are copied. Parameters that FSDP2 has sharded are averaged shard by shard.

    Args:
        network: after it was sharded or moved to its device.
        decays: the first is that of the average that is sampled from.
    """

    def __init__(self, network: nn.Module, decays: Sequence[float]):
        self.decays = tuple(decays)
        self.states = {
            decay: {name: _at_least_float32(value.detach().clone()) for name, value in network.state_dict().items()}
            for decay in decays
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """average ← decay · average + (1 − decay) · network, for every decay."""
        current = network.state_dict()
        floating = [name for name, value in current.items() if value.is_floating_point()]
        values = [_local(current[name]).float() for name in floating]
        for decay, state in self.states.items():
            torch._foreach_lerp_([_local(state[name]) for name in floating], values, 1 - decay)
            for name in current.keys() - floating:
                state[name].copy_(current[name])

    def full_state(self, decay: float) -> dict[str, torch.Tensor]:
        """The average as whole tensors. Every process must call it."""
        return {name: whole(value) for name, value in self.states[decay].items()}

    @torch.no_grad()
    def load(self, decay: float, state: Mapping[str, torch.Tensor]) -> None:
        """Restores an average from whole tensors.

        Raises:
            ValueError: if names differ.
        """
        if state.keys() != self.states[decay].keys():
            raise ValueError(f"These are other tensors: {sorted(state.keys() ^ self.states[decay].keys())[:10]}.")
        for name, value in self.states[decay].items():
            source = state[name].to(value.device)
            if isinstance(value, DTensor):
                source = distribute_tensor(source, value.device_mesh, value.placements)
            value.copy_(source)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor without sharding. Every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    """In half precision an average would not move: 1 − decay is below its resolution."""
    return value.float() if value.is_floating_point() else value
