"""From images to scores: features in shards, by any number of processes, then the metrics."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from demo_diffusion.eval.contact_sheet import SHEET_SAMPLES, contact_sheet
from demo_diffusion.eval.distances import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from demo_diffusion.eval.extractors import FeatureExtractor, Features
from demo_diffusion.eval.feature_shards import FeatureShards
from demo_diffusion.eval.image_sources import ImageSource
from demo_diffusion.eval.reference_statistics import Reference
from demo_diffusion.train.run_folder import replace_text

POLL_SECONDS = 0.2


def extract_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    shards: FeatureShards,
    batch_size: int,
    state: PartialState,
    keep_images: int = SHEET_SAMPLES,
) -> float | None:
    """Fills the missing shards; rank 0 returns when all are there, whichever process makes them.

    Rank 0 lists what is missing for everybody. A shard is always made of the same batches, so that neither the number
    of processes nor an interruption changes a bit.

    Args:
        keep_images: how many images, from index 0, are kept beside the features (at least those of the contact sheet).

    Returns:
        Images a second over all processes; None if there was nothing left to do.

    Raises:
        ValueError: if an image is not fit.
    """
    if state.is_main_process:
        shards.clean()
    (missing,) = broadcast_object_list([shards.missing() if state.is_main_process else None])
    mine, started = missing[state.process_index :: state.num_processes], time.perf_counter()
    total = sum(end - first for first, end in map(shards.span, mine))
    with tqdm(total=total, unit="image", disable=not state.is_main_process, dynamic_ncols=True) as progress:
        for shard in mine:
            first, end = shards.span(shard)
            features, images = [], []
            for batch in source.batches(first, end, batch_size):
                features.append(extractor(batch))
                images.append(batch)
                progress.update(len(batch))
            kept = torch.cat(images)[: max(0, keep_images - first)].clone()
            shards.write(shard, Features(*map(torch.cat, zip(*features, strict=True))), kept)
    while state.is_main_process and shards.missing():
        time.sleep(POLL_SECONDS)
    made = sum(end - first for first, end in map(shards.span, missing))
    return made / (time.perf_counter() - started) if made else None


def moments_of(shards: FeatureShards, name: str) -> Moments:
    """Of one kind of features, a shard at a time."""
    parts: Iterator[Moments] = (Moments.of(shards.read_shard(shard, name)) for shard in range(len(shards)))
    total = next(parts)
    for part in parts:
        total = total + part
    return total


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


def write_results(
    out: Path,
    shards: FeatureShards,
    reference: Reference,
    extractor: FeatureExtractor,
    source: ImageSource,
    facts: dict,
) -> dict[str, float | None]:
    """Scores, and writes contact_sheet.png and results.json."""
    labels = None if source.labels is None else source.labels[: shards.num_images]
    metrics = score(shards, reference, extractor, labels if source.labels_are_imagenet else None)
    contact_sheet(shards, reference, labels).save(out / "contact_sheet.png")
    results = {"num_samples": shards.num_images, "metrics": metrics, **facts}
    replace_text(out / "results.json", json.dumps(results, indent=1))
    return metrics


def in_words(metrics: dict[str, float | None]) -> str:
    """The metrics in one line."""
    return ", ".join(f"{name} {'unavailable' if value is None else f'{value:.4g}'}" for name, value in metrics.items())
