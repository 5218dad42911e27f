"""Random numbers of libraries that draw from the global generators, as a function of a key."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_of(*key: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and PyTorch's (CPU) generators by `key` inside, and restores their states afterwards."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)
