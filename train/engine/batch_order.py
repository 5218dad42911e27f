"""Which samples a process reads, and in which order: a pure function of seed, step and rank."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


@dataclass
class BatchOrder:
    """Iterates over lists of (index, epoch), one list for each forward pass of one process.

    Each epoch is a new permutation of the dataset, and epochs follow each other as one endless stream. A step takes the
    next `batch_size` samples for any number of processes and accumulation steps, so a run continues where it stopped.

    Args:
        num_samples: number of samples in the dataset.
        batch_size: samples of a step, over all processes and accumulation steps.
        accumulation_steps: forward passes of a process in a step.
        rank: number of this process.
        first_step, last_step: the steps to iterate over, without `last_step`.

    Raises:
        ValueError: if the batch cannot be divided equally.
    """

    num_samples: int
    batch_size: int
    accumulation_steps: int
    rank: int
    num_processes: int
    first_step: int
    last_step: int
    seed: int

    def __post_init__(self):
        parts = self.accumulation_steps * self.num_processes
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be a multiple of processes times accumulation steps, "
                f"{self.num_processes} · {self.accumulation_steps} = {parts}."
            )

    @property
    def part_size(self) -> int:
        """Samples of one forward pass."""
        return self.batch_size // (self.accumulation_steps * self.num_processes)

    def part(self, number: int) -> slice:
        """The slice of a step's batch that this process takes in its forward pass `number`."""
        start = (number * self.num_processes + self.rank) * self.part_size
        return slice(start, start + self.part_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        for step in range(self.first_step, self.last_step):
            for number in range(self.accumulation_steps):
                part, samples = self.part(number), []
                for position in range(step * self.batch_size + part.start, step * self.batch_size + part.stop):
                    if position // self.num_samples != epoch:
                        epoch = position // self.num_samples
                        order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
                    samples.append((int(order[position % self.num_samples]), epoch))
                yield samples


def coin(seed: int, epoch: int, index: int) -> bool:
    """A fair coin for a sample of an epoch, the same on every process and worker."""
    return np.random.default_rng((seed, epoch, index)).random() < 0.5


def ignore_signals(worker: int) -> None:
    """Makes a worker ignore SIGTERM and Ctrl-C.

    A whole process group gets them, but the process that trains still needs samples to finish its step.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def batches(samples: Dataset, order: BatchOrder, num_workers: int, collate: Callable | None = None) -> DataLoader:
    """A loader for `samples`, whose keys are (index, epoch), in the given order.

    Args:
        collate: makes a batch of a list of samples; None: PyTorch's default.
    """
    return DataLoader(
        samples,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
    )


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator]:
    """An iterator over a loader, whose workers end with the context.

    Otherwise the traceback of an error keeps the workers alive, and Python waits for them forever, because they ignore
    its SIGTERM.
    """
    iterator = iter(loader)
    try:
        yield iterator
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()
