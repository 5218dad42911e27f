"""Images for a classifier: augmented ones to train on, prepared ones to measure on."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image
from transformers import BaseImageProcessor, BitImageProcessor

from demo_diffusion.train.emov2_configuration import AugmentationConfig, ClassificationDataConfig
from demo_diffusion.train.image_data import ImageTable, LabelledImages


class Pictures(Dataset):
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


class AugmentedPictures(Dataset):
    """Pictures as (pixels (3, side, side) float32, class id), changed at random; keys are (index, epoch).

    What happens to a picture is a function of seed, epoch and index alone, whatever process or worker reads it.

    Raises:
        ValueError: if timm does not know `auto_augment`.
    """

    def __init__(self, pictures: Pictures, data: ClassificationDataConfig, config: AugmentationConfig, seed: int):
        from timm.data import create_transform

        self.pictures, self.seed = pictures, seed
        try:
            self.transform = create_transform(
                input_size=max(config.multi_scale, default=data.resolution),
                is_training=True,
                scale=(config.min_crop_area, 1.0),
                hflip=config.flip_probability,
                color_jitter=None,
                auto_augment=config.auto_augment,
                interpolation="random",
                mean=tuple(data.image_mean),
                std=tuple(data.image_std),
                re_prob=config.random_erasing,
                re_mode="pixel",
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(
                f"timm does not know auto_augment {config.auto_augment!r} ({error}); one is rand-m9-mstd0.5-inc1."
            ) from error

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, epoch = key
        picture, label = self.pictures[index]
        with random_state_of(self.seed, epoch, index):
            return self.transform(picture), label


@contextmanager
def random_state_of(*key: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's (CPU) random numbers are a function of `key` inside, and undisturbed outside."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


class PreparedPictures(Dataset):
    """Pictures as (pixels (3, height, width) float32, class id), prepared by a transformers image processor."""

    def __init__(self, pictures: Pictures, processor: BaseImageProcessor, indices: Sequence[int] | None = None):
        self.pictures, self.processor = pictures, processor
        self.indices = range(len(pictures)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        picture, label = self.pictures[self.indices[position]]
        return self.processor(picture, return_tensors="pt")["pixel_values"][0], label


def image_processor(config: ClassificationDataConfig) -> BitImageProcessor:
    """How the trained network's images are prepared: shorter side resized (bicubic), centre crop, normalisation."""
    return BitImageProcessor(
        size={"shortest_edge": int(config.resolution / config.crop_pct)},
        crop_size={"height": config.resolution, "width": config.resolution},
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
