"""Images with boxes for a detector to learn from."""

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from demo_diffusion.data.objects import LabelledObjects, load_objects
from demo_diffusion.train.engine.random_state import random_state_of

from .config import DetectionAugmentationConfig, DetectionDataConfig

GREY = {tv_tensors.Image: [round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN], "others": 0}
LEARNED = ("boxes", "labels", "masks")


class AugmentedObjects(Dataset):
    """Random augmentations, as (image (3, H, W) uint8, {"boxes", "labels", "masks"}); keys are (index, epoch).

    The augmentation of an image is a function of seed, epoch and index, whichever process or worker reads it. Labels
    are class ids from 0.
    """

    def __init__(self, objects: Dataset, config: DetectionAugmentationConfig, seed: int):
        self.objects, self.seed = objects, seed
        steps = [
            v2.RandomZoomOut(fill=GREY, p=config.zoom_out_probability) if config.zoom_out_probability else None,
            v2.RandomIoUCrop() if config.iou_crop else None,
            v2.RandomHorizontalFlip(config.flip_probability),
            v2.RandomPhotometricDistort() if config.photometric else None,
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
        self.transform = v2.Compose([step for step in steps if step is not None])

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        index, epoch = key
        image, target = self.objects[index]
        with random_state_of(self.seed, epoch, index):
            image, target = self.transform(image, {name: target[name] for name in LEARNED if name in target})
        return image.as_subclass(torch.Tensor), {
            name: value.as_subclass(torch.Tensor) for name, value in target.items()
        }


def load_validation_objects(config: DetectionDataConfig, objects: LabelledObjects, masks: bool) -> LabelledObjects:
    """Opens the images that precision is measured on.

    Raises:
        ValueError: if they cannot be read, or their classes are not those of the training images.
    """
    measured = load_objects(config.validation(), is_training=False, masks=masks)
    if measured.id2label != objects.id2label:
        names = config.val_annotations or config.val_dataset, config.annotations or config.dataset
        raise ValueError(
            f"{names[0]} has {measured.num_classes} categories, {names[1]} has {objects.num_classes}; they must be the "
            "same, with the same names and order."
        )
    return measured
