"""What bounds a network's speed on this machine: its arithmetic, and what must pass through memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .timing import Clock

PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}  # far beyond the caches
REPEATS = 5  # of which the fastest counts


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second.

    Attributes:
        flops: of a large matrix product, two a multiply-accumulate, by the faster of the libraries at hand.
        eager_flops: the same by the library that eager PyTorch calls.
        bytes: read and written by a large copy.
    """

    flops: float
    eager_flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a call must do at least: floating-point operations, and bytes read from and written to memory."""

    flops: int
    bytes: int

    def seconds_of_arithmetic(self, rates: Rates) -> float:
        return self.flops / rates.flops

    def seconds_of_memory(self, rates: Rates) -> float:
        return self.bytes / rates.bytes

    def bound(self, rates: Rates) -> float:
        """Seconds that a call takes at least, arithmetic and memory being busy at once."""
        return max(self.seconds_of_arithmetic(rates), self.seconds_of_memory(rates))


@torch.no_grad()
def measure_rates(device: torch.device, dtype: torch.dtype, clock: Clock) -> Rates:
    """Rates of products in `dtype`, which accumulate as PyTorch is set to."""
    side = PRODUCT_SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    eager = library = _fastest(lambda: a @ b, clock)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        # Eager float32 is MKL's, which makes no use of AVX-512 on AMD's processors. Fused code may call oneDNN.
        library = _fastest(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""), clock)
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy = _fastest(lambda: target.copy_(source), clock)
    return Rates(2 * side**3 / min(eager, library), 2 * side**3 / eager, 2 * source.nbytes / copy)


def _fastest(call: Callable[[], object], clock: Clock) -> float:
    return min(clock.seconds(call) for _ in range(REPEATS))
