"""The metrics of an evaluation.

A metric is a function of the samples' features and the reference; a row of `METRICS` puts it into every result. Its
numbers are named as in the functions here, then as the extractor says (Inception's "fd" is "fid").
"""

from collections.abc import Callable
from functools import cached_property

import torch

from demo_diffusion.checks import is_number
from demo_diffusion.eval.features.extractors import FeatureExtractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards

from . import distances

Scores = dict[str, float | None]  # None: cannot be computed here


class SampleFeatures:
    """The features of all samples.

    Args:
        imagenet_labels: the samples' classes, if they are ImageNet's.
    """

    def __init__(self, shards: FeatureShards, extractor: FeatureExtractor, imagenet_labels: list[int] | None):
        self.shards, self.extractor, self.imagenet_labels = shards, extractor, imagenet_labels

    @cached_property
    def pooled(self) -> torch.Tensor:
        """(N, D) float32."""
        return self.shards.read("pooled")

    @cached_property
    def logits(self) -> torch.Tensor:
        """(N, classes) float32."""
        return self.shards.read("logits")


def frechet(features: SampleFeatures, reference: Reference) -> Scores:
    ours = features.shards.moments("pooled")
    return {"fd": distances.frechet_distance(ours.mean, ours.covariance, reference.mean, reference.covariance)}


def spatial_frechet(features: SampleFeatures, reference: Reference) -> Scores:
    ours, theirs = features.shards.moments("spatial"), (reference.spatial_mean, reference.spatial_covariance)
    return {"sfd": distances.frechet_distance(ours.mean, ours.covariance, *theirs)}


def inception_score(features: SampleFeatures, reference: Reference) -> Scores:
    """Of Inception alone, whose logits define it."""
    if features.extractor.name != "inception":
        return {}
    mean, std = distances.inception_score(features.logits)
    return {"is": mean, "is_std": std}


def kernel(features: SampleFeatures, reference: Reference) -> Scores:
    mean, std = distances.kernel_distance(features.pooled, torch.from_numpy(reference.features))
    return {"kd": mean, "kd_std": std}


def precision_recall(features: SampleFeatures, reference: Reference) -> Scores:
    precision, recall = distances.precision_recall(features.pooled, torch.from_numpy(reference.features))
    return {"precision": precision, "recall": recall}


def recognized(features: SampleFeatures, reference: Reference) -> Scores:
    """The share of the samples whose largest logit is that of their class, for extractors that know ImageNet's."""
    if not features.extractor.logits_are_imagenet:
        return {}
    if features.imagenet_labels is None:
        return {"recognized": None}
    hits = features.logits.argmax(dim=1) == torch.tensor(features.imagenet_labels)
    return {"recognized": hits.float().mean().item()}


METRICS: tuple[Callable[[SampleFeatures, Reference], Scores], ...] = (
    frechet,
    spatial_frechet,
    inception_score,
    kernel,
    precision_recall,
    recognized,
)


def score(features: SampleFeatures, reference: Reference) -> Scores:
    """All metrics under the extractor's names for them; what comes out as no finite number is None."""
    numbers = {name: value for metric in METRICS for name, value in metric(features, reference).items()}
    return {features.extractor.metric_name(name): finite_or_none(value) for name, value in numbers.items()}


def finite_or_none(value: float | None) -> float | None:
    return value if is_number(value) else None
