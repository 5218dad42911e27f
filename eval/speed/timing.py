"""Times calls in turns, so that what disturbs the machine disturbs them alike, and measures what memory they take."""

import random
import time
from collections.abc import Callable, Hashable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP_ROUNDS = (
    3  # the first compiles and fills caches, the second may compile for gradients that now have their layout
)


class Clock:
    """Measures a call's seconds by what other programs disturb the least.

    On a GPU: CUDA events. On a CPU with one thread: time of this thread, which runs the backward pass too. With more
    threads: wall time.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        self.name = "cuda_event" if device.type == "cuda" else self.now.__name__

    def seconds(self, call: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            return self._seconds_on_gpu(call)
        start = self.now()
        call()
        return self.now() - start

    def _seconds_on_gpu(self, call: Callable[[], object]) -> float:
        """Of the second of two calls, which the GPU finds queued as it does in a loop."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def time_in_turns(
    calls: Mapping[Hashable, Callable[[], object]], clock: Clock, rounds: int
) -> dict[Hashable, list[float]]:
    """Seconds of every call in every round, after a warm-up; each round has its own order."""
    order, shuffle = list(calls), random.Random(0).shuffle
    seconds = {name: [] for name in calls}
    for i in range(WARM_UP_ROUNDS + rounds):
        shuffle(order)
        for name in order:
            elapsed = clock.seconds(calls[name])
            if i >= WARM_UP_ROUNDS:
                seconds[name].append(elapsed)
    return seconds


def ratio_to(reference: list[float], seconds: list[float]) -> dict[str, float]:
    """Median and quartiles over the rounds of seconds / reference."""
    ratios = torch.tensor(seconds, dtype=torch.float64) / torch.tensor(reference, dtype=torch.float64)
    low, median, high = ratios.quantile(ratios.new_tensor([0.25, 0.5, 0.75])).tolist()
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes of PyTorch's allocator that a call holds at once, beyond those held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()  # negative where memory is given back
        peak = max(peak, live)
    return peak
