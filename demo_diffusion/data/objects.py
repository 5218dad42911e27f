"""Images with boxes, and with masks if wanted: digit scenes, or a folder of images with a COCO JSON file."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from demo_diffusion.cli.options import option
from demo_diffusion.records.hashes import tensor_hash

from .coco import open_coco
from .facts import COMPARED_IMAGES
from .scenes import DigitScenes

SCENES = "digit_scenes"


@dataclass
class ObjectsConfig:
    """Images with boxes."""

    dataset: str = option(SCENES, "'digit_scenes', or a folder of images that `annotations` describes")
    annotations: str | None = option(None, "COCO JSON file")
    skip_bad_boxes: bool = option(False, "leave out objects whose box is empty or outside its image; False: an error")
    num_scenes: int = option(2000, "digit scenes to train on", above=0)
    min_side: int = option(128, "least width and height of a digit scene in pixels", above=0)
    max_side: int = option(160, "largest width and height of a digit scene in pixels", above=0)
    scene_seed: int = option(0, "of the digit scenes", least=0)
    num_workers: int = option(0, "processes that read samples", least=0)


@dataclass
class LabelledObjects:
    """Images with boxes.

    Attributes:
        dataset: gives (image (3, H, W) uint8, target). The target holds "boxes" (N, 4) as x1, y1, x2, y2 in pixels,
            "labels" (N,) class ids from 0, "area" (N,) in pixels, "iscrowd" (N,) and, if wanted, "masks" (N, H, W).
        id2label: {class id: name}.
    """

    dataset: Dataset
    id2label: dict[int, str]

    @property
    def num_classes(self) -> int:
        return len(self.id2label)


def load_objects(config: ObjectsConfig, is_training: bool, masks: bool = False) -> LabelledObjects:
    """Opens the dataset of a config.

    Args:
        is_training: without crowds, and without images that have no object or a side below 32 pixels; digit scenes of
            the training digits. False: with all of them, and scenes of the other digits.
        masks: whether targets have masks.

    Raises:
        ValueError: if files are missing, or an annotation is not right.
    """
    if config.dataset == SCENES:
        if config.annotations is not None:
            raise ValueError(f"annotations is {config.annotations}; {SCENES} has its own. Name the folder of images.")
        split = "train" if is_training else "test"
        scenes = DigitScenes(split, config.num_scenes, config.min_side, config.max_side, config.scene_seed)
        return LabelledObjects(SceneObjects(scenes, masks), {digit: str(digit) for digit in range(10)})
    if config.annotations is None:
        raise ValueError(f"{config.dataset} needs --annotations, the COCO JSON file that describes its images.")
    dataset = open_coco(config.dataset, config.annotations, is_training, masks, config.skip_bad_boxes)
    return LabelledObjects(dataset, dataset.id2label)


class SceneObjects(Dataset):
    """Digit scenes as images with targets."""

    def __init__(self, scenes: DigitScenes, masks: bool):
        self.scenes, self.masks = scenes, masks

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, torch.Tensor]]:
        scene = self.scenes[index]
        image = tv_tensors.Image(torch.from_numpy(scene.image).permute(2, 0, 1).contiguous())
        target = {
            "boxes": tv_tensors.BoundingBoxes(scene.boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.from_numpy(scene.labels),
            "area": torch.from_numpy(scene.masks.sum((1, 2)).astype(np.float32)),
            "iscrowd": torch.zeros(len(scene.labels), dtype=torch.int64),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(scene.masks))
        return image, target


def describe_objects(objects: LabelledObjects) -> dict:
    """The dataset's size, its class names, and some of its images and boxes by hash, as `facts.describe_images`."""
    count, compared = len(objects.dataset), {}
    for index in np.unique(np.linspace(0, count - 1, COMPARED_IMAGES).astype(int)).tolist():
        image, target = objects.dataset[index]
        compared |= {f"{index} image": image, f"{index} boxes": target["boxes"], f"{index} labels": target["labels"]}
    compared = {name: value.as_subclass(torch.Tensor) for name, value in compared.items()}
    return {"num_images": count, "id2label": objects.id2label, "pixels": tensor_hash(compared, is_sorted=False)}
