"""Mean and covariance of features, a part at a time."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Moments:
    """n, Σx and Σxxᵀ of features (n, D), in float64; they add up over parts and processes."""

    count: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, features: torch.Tensor) -> "Moments":
        x = features.double().numpy()
        return cls(len(x), x.sum(axis=0), x.T @ x)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased one, as numpy.cov gives it.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples; there are {self.count}.")
        mean = self.mean
        return (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
