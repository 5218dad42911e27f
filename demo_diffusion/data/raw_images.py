"""Labelled images of their own size, for classifiers."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image
from transformers import BaseImageProcessor

from .images import ImageTable, LabelledImages


class RawImages(Dataset):
    """Labelled images as (RGB picture of its own size, class id)."""

    def __init__(self, images: LabelledImages):
        self.images = images.dataset

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if isinstance(self.images, ImageTable):
            return self.images.picture(index)
        pixels, label = self.images[index]
        return to_pil_image((pixels + 1) / 2).convert("RGB"), int(label)


class ProcessedImages(Dataset):
    """RawImages as (pixels (3, height, width) float32, class id), prepared by a transformers image processor."""

    def __init__(self, pictures: RawImages, processor: BaseImageProcessor, indices: Sequence[int] | None = None):
        self.pictures, self.processor = pictures, processor
        self.indices = range(len(pictures)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        picture, label = self.pictures[self.indices[position]]
        return self.processor(picture, return_tensors="pt")["pixel_values"][0], label
