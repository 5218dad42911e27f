"""The metrics of an evaluation."""

import torch

from demo_diffusion.eval.features.extraction import moments_of
from demo_diffusion.eval.features.extractors import FeatureExtractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards

from .distances import frechet_distance, inception_score, kernel_distance, precision_recall


def score(
    shards: FeatureShards, reference: Reference, extractor: FeatureExtractor, imagenet_labels: list[int] | None
) -> dict[str, float | None]:
    """All metrics; what cannot be computed is None.

    With Inception they are "fid", "sfid", "is", "is_std", "kid", "kid_std", "precision" and "recall". Other extractors'
    are other numbers and are called so: "fd_<extractor>", …; "recognized_<extractor>" is the share of the samples whose
    largest logit is that of their class.

    Args:
        imagenet_labels: the samples' classes, if they are ImageNet's.
    """
    pooled, spatial = moments_of(shards, "pooled"), moments_of(shards, "spatial")
    samples, logits = shards.read("pooled"), shards.read("logits")
    real = torch.from_numpy(reference.features)
    distance = frechet_distance(pooled.mean, pooled.covariance, reference.mean, reference.covariance)
    spatial_distance = frechet_distance(
        spatial.mean, spatial.covariance, reference.spatial_mean, reference.spatial_covariance
    )
    kernel, kernel_std = kernel_distance(samples, real)
    precision, recall = precision_recall(samples, real)
    if extractor.name == "inception":
        is_mean, is_std = inception_score(logits)
        return {
            "fid": distance, "sfid": spatial_distance, "is": is_mean, "is_std": is_std, "kid": kernel,
            "kid_std": kernel_std, "precision": precision, "recall": recall,
        }  # fmt: skip
    recognized = None
    if imagenet_labels is not None:
        recognized = (logits.argmax(dim=1) == torch.tensor(imagenet_labels)).float().mean().item()
    scores = {
        "fd": distance, "sfd": spatial_distance, "kd": kernel, "kd_std": kernel_std, "precision": precision,
        "recall": recall, "recognized": recognized,
    }  # fmt: skip
    return {f"{name}_{extractor.name}": value for name, value in scores.items()}
