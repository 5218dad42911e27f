"""Images with masks for a segmenter to learn from."""

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from demo_diffusion.eval.metrics.segmentation import prepare
from demo_diffusion.models.segmentation.configuration import IGNORED
from demo_diffusion.train.engine.random_state import random_state_of

from .config import SegmentationAugmentationConfig

CROP_ATTEMPTS = 10
GREY = [round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN]


class AugmentedPixels(Dataset):
    """Random crops, as (pixel values (3, S, S), class ids (S, S)); keys are (index, epoch).

    The augmentation of an image is a function of seed, epoch and index, whichever process or worker reads it.
    """

    def __init__(self, pixels: Dataset, config: SegmentationAugmentationConfig, seed: int):
        self.pixels, self.config, self.seed = pixels, config, seed
        self.distort = v2.RandomPhotometricDistort() if config.photometric else torch.nn.Identity()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        index, epoch = key
        image, classes = self.pixels[index]
        with random_state_of(self.seed, epoch, index):
            image, classes = self._crop(*self._scale(image, classes))
            if torch.rand(()) < self.config.flip_probability:
                image, classes = image.flip(-1), classes.flip(-1)
            image = self.distort(tv_tensors.Image(image)).as_subclass(torch.Tensor)
        return prepare(image[None])[0], classes

    def _scale(self, image: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config, size = self.config, image.shape[-2:]
        factor = config.min_scale + (config.max_scale - config.min_scale) * float(torch.rand(()))
        if config.shorter_side is not None:
            factor *= config.shorter_side / min(size)
        new = [max(1, round(side * factor)) for side in size]
        if new == list(size):
            return image, classes
        nearest = transforms.InterpolationMode.NEAREST
        return transforms.resize(image, new), transforms.resize(classes[None], new, nearest)[0]

    def _crop(self, image: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        side = self.config.crop_size
        right, bottom = (max(0, side - x) for x in (image.shape[-1], image.shape[-2]))
        if right or bottom:
            image = transforms.pad(image, [0, 0, right, bottom], fill=GREY)
            classes = transforms.pad(classes[None], [0, 0, right, bottom], fill=IGNORED)[0]
        for _ in range(CROP_ATTEMPTS):
            top, left = (int(torch.randint(x - side + 1, ())) for x in classes.shape)
            area = (..., slice(top, top + side), slice(left, left + side))
            counts = classes[area].unique(return_counts=True)
            counted = counts[1][counts[0] != IGNORED]
            if len(counted) > 1 and counted.max() <= self.config.most_of_a_class * counted.sum():
                break
        return image[area].contiguous(), classes[area].contiguous()
