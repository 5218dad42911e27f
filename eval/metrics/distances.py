"""Distances between sets of features, and the scores of one set."""

import numpy as np
import torch

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLIT_SIZE = 5000  # ADM's evaluator takes consecutive splits of this size
NEIGHBORS = 3  # of precision and recall
ROUNDING = 1e-4  # of a Fréchet distance, over the traces: 2,048 roots of eigenvalues, each to the root of float64's


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (arXiv 1706.08500, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of Rᵀ Σ₂ R with R Rᵀ = Σ₁: symmetric, and exact for
    singular covariances. Rounding may leave the distance of equal sets a little below 0, which becomes 0.

    Raises:
        ValueError: if it is negative beyond rounding, so that the arguments are no covariances.
    """
    values, vectors = np.linalg.eigh(covariance1.astype(np.float64))
    root = vectors * np.sqrt(values.clip(min=0))
    eigenvalues = np.linalg.eigvalsh(root.T @ covariance2.astype(np.float64) @ root)
    root_trace = np.sqrt(eigenvalues.clip(min=0)).sum()
    difference = mean1.astype(np.float64) - mean2.astype(np.float64)
    traces = np.trace(covariance1) + np.trace(covariance2)
    distance = float(difference @ difference + traces - 2 * root_trace)
    if distance < -ROUNDING * traces:
        raise ValueError(f"The Fréchet distance is {distance:.3g}; one of the covariances is none.")
    return max(distance, 0.0)


def inception_score(logits: torch.Tensor) -> tuple[float, float | None]:
    """Mean and standard deviation over consecutive splits of `IS_SPLIT_SIZE`, the last maybe shorter (1606.03498).

    One split has no standard deviation: None.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    parts = [isc_features_to_metric(part, splits=1, shuffle=False) for part in logits.split(IS_SPLIT_SIZE)]
    scores = [part[KEY_METRIC_ISC_MEAN] for part in parts]
    return float(np.mean(scores)), float(np.std(scores)) if len(scores) > 1 else None


def kernel_distance(samples: torch.Tensor, reference: torch.Tensor) -> tuple[float, float | None]:
    """Mean and standard deviation of the unbiased polynomial MMD² over subsets (KID, arXiv 1801.01401).

    Subsets have `KID_SUBSET_SIZE` items, or as many as the smaller set. Where they are a whole set they do not vary as
    fresh samples would, and the standard deviation is None.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(KID_SUBSET_SIZE, len(samples), len(reference))
    result = kid_features_to_metric(
        samples, reference, kid_subsets=KID_SUBSETS, kid_subset_size=size, rng_seed=2020, verbose=False
    )
    is_whole_set = size == min(len(samples), len(reference))
    return result[KEY_METRIC_KID_MEAN], None if is_whole_set else result[KEY_METRIC_KID_STD]


def precision_recall(samples: torch.Tensor, reference: torch.Tensor) -> tuple[float, float] | tuple[None, None]:
    """Improved precision and recall with k = 3 (arXiv 1904.06991); None if one set has no third neighbour."""
    if min(len(samples), len(reference)) <= NEIGHBORS:
        return None, None
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    return calculate_precision_recall_part(samples, reference, neighborhood=NEIGHBORS)


def nearest(samples: torch.Tensor, reference: torch.Tensor, count: int) -> torch.Tensor:
    """Indices (n, count) of the reference features nearest to each sample's, nearest first."""
    return torch.cdist(samples, reference).topk(count, largest=False).indices
