"""Exponential moving averages of a network's weights and of BatchNorm's running statistics."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class MovingAverages:
    """One average of the state dict for each decay, starting at the network's own values.

    Buffers are averaged like weights, because sampling needs BatchNorm's running statistics too. Integers (BatchNorm's
    counter) are copied. Parameters that FSDP2 has sharded are averaged shard by shard.

    Args:
        network: already on its device and sharded.
        decays: decays in [0, 1). The run samples from the average with the first one.
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
        """The average with this decay, as unsharded tensors. Every process must call it."""
        return {name: whole(value) for name, value in self.states[decay].items()}

    @torch.no_grad()
    def load(self, decay: float, state: Mapping[str, torch.Tensor]) -> None:
        """Restores an average from unsharded tensors.

        Raises:
            ValueError: if the names differ.
        """
        if state.keys() != self.states[decay].keys():
            raise ValueError(f"These are other tensors: {sorted(state.keys() ^ self.states[decay].keys())[:10]}.")
        for name, value in self.states[decay].items():
            source = state[name].to(value.device)
            if isinstance(value, DTensor):
                source = distribute_tensor(source, value.device_mesh, value.placements)
            value.copy_(source)


def whole(value: torch.Tensor) -> torch.Tensor:
    """The unsharded tensor. Every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    """In half precision an average would not move, because 1 − decay is below its resolution."""
    return value.float() if value.is_floating_point() else value
