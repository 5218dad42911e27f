"""Work kept in files of a few hundred items, so that any number of processes can go on where it stopped."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from .files import remove_leftovers, write_whole

POLL_SECONDS = 0.2


class Shards(ABC):
    """Shard i holds the items i · shard_size … in one safetensors file, which is whole or not there.

    A kind of shards says in `is_as_written` what its file must hold.
    """

    def __init__(self, folder: Path, num_items: int, shard_size: int):
        self.folder, self.num_items, self.shard_size = folder, num_items, shard_size

    def __len__(self) -> int:
        return -(-self.num_items // self.shard_size)

    def span(self, shard: int) -> range:
        """Indices of its items."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_items))

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """Shards that are not there."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        return [shard for shard in range(len(self)) if self.path(shard).name not in there]

    def write_tensors(self, shard: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """`metadata` should have one entry: safetensors writes several in any order."""
        # safetensors' own save_file would make a file that its owner alone can read.
        write_whole(self.path(shard), lambda partial: partial.write_bytes(save(tensors, metadata)))

    def is_whole(self, shard: int) -> bool:
        """Reads and hashes all of it."""
        try:
            return self.is_as_written(shard, *read_tensors(self.path(shard)))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return False

    @abstractmethod
    def is_as_written(self, shard: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bool:
        """Whether these are what was written; may raise KeyError, TypeError or ValueError if not."""


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors (views of the memory-mapped file) and metadata."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def remove_unfit(shards: Shards, state: PartialState) -> None:
    """Removes what killed processes left, and damaged shards, of which each process checks its share.

    Every process must call it before any of them writes.
    """
    if state.is_main_process:
        remove_leftovers(shards.folder)
    state.wait_for_everyone()
    mine = [shard for shard in _share(range(len(shards)), state) if shards.path(shard).exists()]
    for shard in tqdm(mine, desc="checking", unit="shard", disable=not (mine and state.is_main_process)):
        if not shards.is_whole(shard):
            tqdm.write(f"{shards.path(shard)} is damaged; it is made again.")
            shards.path(shard).unlink()
    state.wait_for_everyone()


def make_missing(shards: Shards, state: PartialState, make: Callable[[list[int]], None]) -> float | None:
    """Has each process `make` its share of the missing shards, which rank 0 lists for all; every process must call it.

    Rank 0 returns when all shards are there, whichever process makes them.

    Returns:
        Items a second over all processes; None if nothing was missing.
    """
    (missing,) = broadcast_object_list([shards.missing() if state.is_main_process else None])
    started = time.perf_counter()
    make(_share(missing, state))
    while state.is_main_process and shards.missing():
        time.sleep(POLL_SECONDS)
    made = sum(len(shards.span(shard)) for shard in missing)
    return made / (time.perf_counter() - started) if made else None


def _share(items, state: PartialState):
    return items[state.process_index :: state.num_processes]
