"""From images to features in shards, by any number of processes."""

import torch
from accelerate import PartialState
from tqdm import tqdm

from demo_diffusion.eval.samples.image_sources import ImageSource
from demo_diffusion.records.shards import make_missing, remove_unfit

from .extractors import FeatureExtractor, Features
from .shards import FeatureShards


def extract_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    shards: FeatureShards,
    batch_size: int,
    state: PartialState,
    keep_images: int,
) -> float | None:
    """Fills the missing shards; rank 0 returns when all are there, whichever process makes them.

    A shard is always made of the same batches, so that neither the number of processes nor an interruption changes a
    bit. Every process must call it.

    Args:
        keep_images: how many images, from index 0, are kept beside the features (at least those of the contact sheet).

    Returns:
        Images a second over all processes; None if there was nothing left to do.

    Raises:
        ValueError: if an image is not fit.
    """

    def make(mine: list[int]) -> None:
        total = sum(len(shards.span(shard)) for shard in mine)
        with tqdm(total=total, unit="image", disable=not state.is_main_process, dynamic_ncols=True) as progress:
            for shard in mine:
                span, features, images = shards.span(shard), [], []
                for batch in source.batches(span.start, span.stop, batch_size):
                    features.append(extractor(batch))
                    images.append(batch)
                    progress.update(len(batch))
                kept = torch.cat(images)[: max(0, keep_images - span.start)].clone()
                shards.write(shard, Features(*map(torch.cat, zip(*features, strict=True))), kept)

    remove_unfit(shards, state)
    return make_missing(shards, state, make)
