"""Mean and covariance of features, a part at a time."""

from dataclasses import dataclass

import numpy as np
import torch

ROUNDING = 1e-5  # of a covariance, over its largest variance: enough for one saved as float32
SMALLEST = 1e-300  # variance that a matrix of zeros is given


def check_covariance(name: str, matrix: np.ndarray) -> None:
    """Raises ValueError unless a square matrix of finite numbers is symmetric and positive semidefinite."""
    matrix = matrix.astype(np.float64)
    allowed = ROUNDING * np.abs(matrix).max(initial=0)
    if (asymmetry := np.abs(matrix - matrix.T).max(initial=0)) > allowed:
        raise ValueError(f"{name} is not symmetric (entries differ by up to {asymmetry:.3g}), so it is no covariance.")
    try:
        np.linalg.cholesky(matrix + max(allowed, SMALLEST) * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        raise ValueError(f"{name} has negative eigenvalues, so it is no covariance.") from None


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
