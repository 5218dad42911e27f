"""Images with a COCO JSON file, checked as a whole before work starts."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms.v2.functional import pil_to_tensor

from demo_diffusion.checks import is_number
from demo_diffusion.records.reading import read_parsed

from .coco_file import checked_content
from .preparation import read_rgb


class CocoImages(CocoDetection):
    """torchvision's, with images as every command reads them."""

    def _load_image(self, id: int) -> Image.Image:
        return read_rgb(Path(self.root) / self.coco.imgs[id]["file_name"])


ROUNDING = 1.0  # pixels by which a box may leave its image; it is clipped then
LEAST_LEARNED_SIDE = 32  # pixels, of a training image
MAX_LISTED = 3


class CocoObjects(torch.utils.data.Dataset):
    """torchvision's `CocoDetection` with class ids from 0 in the order of the category ids, and clipped boxes.

    Use `open_coco`, which checks the file.

    Attributes:
        id2label: {class id: name of the category}.
    """

    def __init__(self, coco: CocoDetection, masks: bool):
        self.coco, self.masks = coco, masks
        categories = sorted(coco.coco.dataset["categories"], key=lambda category: category["id"])
        self.class_ids = {category["id"]: number for number, category in enumerate(categories)}
        self.id2label = {number: category["name"] for number, category in enumerate(categories)}
        keys = ("image_id", "bbox", "boxes", "category_id", "area", "iscrowd", *(("masks",) if masks else ()))
        self.wrapped = wrap_dataset_for_transforms_v2(coco, target_keys=keys)

    def __len__(self) -> int:
        return len(self.coco.ids)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, torch.Tensor]]:
        facts = self.coco.coco.imgs[self.coco.ids[index]]
        image, found = self.wrapped[index]
        image = tv_tensors.Image(pil_to_tensor(image))
        height, width = image.shape[-2:]
        if (width, height) != (facts["width"], facts["height"]):
            raise ValueError(
                f"{facts['file_name']} has {width} × {height} pixels; its annotations are for {facts['width']} × "
                f"{facts['height']}."
            )
        return image, self._target(found, (height, width))

    def _target(self, found: dict, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """An image without annotations has a target with none."""
        count = len(found.get("category_id", ()))
        boxes = found["boxes"].as_subclass(torch.Tensor).float() if count else torch.zeros(0, 4)
        limits = torch.tensor([size[1], size[0]] * 2)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self.class_ids[i] for i in found.get("category_id", ())], dtype=torch.int64),
            "area": torch.tensor(found.get("area", ()), dtype=torch.float32),
            "iscrowd": torch.tensor(found.get("iscrowd", ()), dtype=torch.int64),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(found["masks"].bool() if count else torch.zeros(0, *size, dtype=bool))
        return target


def open_coco(images: str, annotations: str, is_training: bool, masks: bool, skip_bad_boxes: bool) -> CocoObjects:
    """Opens a folder of images with a COCO JSON file; see `load_objects`.

    Raises:
        ValueError: with one line that names the first of what is wrong.
    """
    require_packages(["pycocotools"], "detection", "Reading COCO JSON files")
    folder, file = Path(images), Path(annotations)
    if not folder.is_dir():
        raise ValueError(f"There is no folder of images {folder}.")
    if not file.is_file():
        raise ValueError(f"There is no COCO JSON file {file}.")
    content = read_parsed(file, lambda text: checked_content(json.loads(text), masks), "")
    _check_files(content["images"], folder, file)
    bad = _find_bad_boxes(content)
    if bad and not skip_bad_boxes:
        raise ValueError(f"{file}: {next(iter(bad.values()))} --skip_bad_boxes leaves out such objects ({len(bad)}).")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints how long it takes
        coco = CocoImages(folder, str(file))
        _keep(coco, set(bad), is_training)
    if not coco.ids:
        raise ValueError(f"{file} has no image{' with an object to learn' if is_training else ''}.")
    return CocoObjects(coco, masks)


def _keep(coco: CocoDetection, bad: set, is_training: bool) -> None:
    """Drops bad objects and, in training, crowds, images without objects and tiny ones."""
    content = coco.coco.dataset
    for each in content.setdefault("annotations", []):
        each.setdefault("iscrowd", 0)
        each.setdefault("area", each["bbox"][2] * each["bbox"][3])
    content["annotations"] = [
        each for each in content["annotations"] if each["id"] not in bad and not (is_training and each["iscrowd"])
    ]
    coco.coco.createIndex()
    if is_training:
        counts = Counter(each["image_id"] for each in content["annotations"])
        is_large = {each["id"]: min(each["width"], each["height"]) >= LEAST_LEARNED_SIDE for each in content["images"]}
        coco.ids = [number for number in coco.ids if counts[number] and is_large[number]]


def _check_files(images: list[dict], folder: Path, file: Path) -> None:
    there = {path.name for path in folder.iterdir()}
    missing = [
        name for each in images if (name := str(each["file_name"])) not in there and not (folder / name).is_file()
    ]
    if missing:
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        raise ValueError(f"{folder} has not all images of {file}: {', '.join(missing[:MAX_LISTED])}{more} are missing.")


def _find_bad_boxes(content: dict) -> dict[object, str]:
    """{id of an annotation: what is wrong with its box, a sentence}."""
    sizes = {each["id"]: (each["width"], each["height"]) for each in content["images"]}
    found = {}
    for each in content["annotations"]:
        box, (width, height) = each["bbox"], sizes[each["image_id"]]
        problem = _problem(box, width, height)
        if problem:
            found[each["id"]] = (
                f"the box {box} (x, y, width, height) of annotation {each['id']} {problem} of {width} × {height} "
                "pixels."
            )
    return found


def _problem(box: object, width: int, height: int) -> str | None:
    numbers = box if isinstance(box, list) and len(box) == 4 else ["?"]
    if not all(map(is_number, numbers)):
        return "is no list of four numbers, in an image"
    left, top, across, down = numbers
    if across <= 0 or down <= 0:
        return "is empty, in an image"
    if min(left, top) < -ROUNDING or left + across > width + ROUNDING or top + down > height + ROUNDING:
        return "lies outside its image"
    is_left = min(left + across, width) > max(left, 0) and min(top + down, height) > max(top, 0)
    return None if is_left else "lies outside its image"
