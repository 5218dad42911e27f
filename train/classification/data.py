"""Images for a classifier: augmented images to train on, processed images to measure on."""

import dataclasses
import warnings

import torch
from torch.utils.data import Dataset

from demo_diffusion.data.images import LabelledImages, load_images
from demo_diffusion.data.raw_images import RawImages
from demo_diffusion.train.engine.random_state import random_state_of

from .config import AugmentationConfig, ClassificationDataConfig


class AugmentedImages(Dataset):
    """Random augmentations of images, as (pixels (3, side, side) float32, class id); keys are (index, epoch).

    The augmentation of an image is a function of seed, epoch and index, whichever process or worker reads it.

    Raises:
        ValueError: if timm does not know `auto_augment`.
    """

    def __init__(self, images: RawImages, data: ClassificationDataConfig, config: AugmentationConfig, seed: int):
        from timm.data import create_transform

        self.images, self.seed = images, seed
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
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, epoch = key
        image, label = self.images[index]
        with random_state_of(self.seed, epoch, index):
            return self.transform(image), label


def load_validation_images(config: ClassificationDataConfig, images: LabelledImages) -> LabelledImages:
    """Opens the images that accuracy is measured on.

    Raises:
        ValueError: if they cannot be read, or their classes are not those of the training images.
    """
    dataset = config.val_dataset or config.dataset
    measured = load_images(dataclasses.replace(config, dataset=dataset, split=config.val_split), own_size=True)
    if measured.id2label != images.id2label:
        raise ValueError(
            f"The validation images ({dataset}, split {config.val_split!r}) have {_describe(measured)}, the training "
            f"images {_describe(images)}; they must be the same. See --val_dataset and --val_split."
        )
    if dataset == config.dataset and (config.val_split == config.split or dataset == "digits"):
        warnings.warn("Accuracy is measured on the training images; see --val_dataset and --val_split.", stacklevel=2)
    return measured


def _describe(images: LabelledImages) -> str:
    return f"{images.num_classes} classes ({', '.join(list(images.id2label.values())[:3])}, …)"
