"""From images to features in shards, by any number of processes."""

import time
from collections.abc import Iterator

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from demo_diffusion.eval.samples.image_sources import ImageSource

from .extractors import FeatureExtractor, Features
from .moments import Moments
from .shards import FeatureShards

POLL_SECONDS = 0.2


def extract_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    shards: FeatureShards,
    batch_size: int,
    state: PartialState,
    keep_images: int,
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
