"""Samples beside their nearest real images, so that copies of training images are seen."""

import torch
from PIL import Image

from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.metrics.distances import nearest
from demo_diffusion.records.figures import labelled_grid

SHEET_SAMPLES, NEIGHBORS_SHOWN = 16, 5


def contact_sheet(shards: FeatureShards, reference: Reference, labels: list[int] | None) -> Image.Image:
    """One row for each of the first samples: the sample, then the real images nearest in feature space."""
    images, features = shards.first("images", SHEET_SAMPLES), shards.first("pooled", SHEET_SAMPLES)
    real = torch.from_numpy(reference.features)
    count = min(NEIGHBORS_SHOWN, len(real))
    indices = nearest(features, real, count)
    size = tuple(images.shape[:1:-1])
    rows = [
        [Image.fromarray(image.permute(1, 2, 0).numpy())]
        + [Image.fromarray(reference.images[i]).resize(size) for i in row.tolist()]
        for image, row in zip(images, indices, strict=True)
    ]
    names = [f"sample {i}" if labels is None else f"class {labels[i]}" for i in range(len(images))]
    return labelled_grid(rows, names)
