"""Images with a class for each pixel: digit scenes, thin strokes, ADE20K's and HRF's folders, any pair of folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from demo_diffusion.cli.options import option
from demo_diffusion.models.segmentation.configuration import IGNORED
from demo_diffusion.records.hashes import tensor_hash

from .facts import COMPARED_IMAGES
from .listing import image_files
from .preparation import STEPS, layout, read_image, read_rgb
from .scenes import DigitScenes
from .strokes import ThinStrokes

SCENES, STROKES = "digit_scenes", "thin_strokes"
GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
LOSSY = ("JPEG", "MPO", "JPEG2000")


@dataclass
class MasksConfig:
    """Images with masks."""

    dataset: str = option(SCENES, "'digit_scenes', 'thin_strokes' or a folder of images")
    masks: str | None = option(None, "folder of masks of the same names (any image suffix)")
    kind: Literal["ids", "ade20k", "hrf"] = option(
        "ids", "what a mask holds: class ids from 0; ADE20K's, whose 0 is ignored; HRF's, where all but 0 is class 1"
    )
    num_classes: int = option(2, "classes of a folder's masks; ADE20K has 150", above=0)
    num_scenes: int = option(2000, "scenes to train on", above=0)
    side: int = option(96, "side of a scene in pixels", above=0)
    scene_seed: int = option(0, "of the scenes", least=0)
    num_workers: int = option(0, "processes that read samples", least=0)


@dataclass
class LabelledPixels:
    """Images with masks.

    Attributes:
        dataset: gives (image (3, H, W) uint8, class ids (H, W) int64, 255 where a pixel does not count).
        id2label: {class id: name}.
    """

    dataset: Dataset
    id2label: dict[int, str]


def load_masks(config: MasksConfig, is_training: bool) -> LabelledPixels:
    """Opens the dataset of a config.

    Args:
        is_training: of scenes, those made of the training digits; else of the others.

    Raises:
        ValueError: if a folder has no images, or an image no mask.
    """
    split = "train" if is_training else "test"
    if config.dataset in (SCENES, STROKES):
        if config.masks is not None:
            raise ValueError(f"masks is {config.masks}; {config.dataset} has its own. Name the folder of images.")
        if config.dataset == STROKES:
            scenes = ThinStrokes(split, config.num_scenes, config.side, config.scene_seed)
            return LabelledPixels(ScenePixels(scenes), {0: "ground", 1: "stroke"})
        scenes = DigitScenes(split, config.num_scenes, config.side, config.side, config.scene_seed)
        names = {0: "background", **{1 + digit: str(digit) for digit in range(10)}}
        return LabelledPixels(ScenePixels(scenes), names)
    if config.masks is None:
        raise ValueError(f"{config.dataset} needs --masks, the folder with a mask for each of its images.")
    folder = FolderPixels(Path(config.dataset), Path(config.masks), config.kind, config.num_classes)
    names = {0: "background", 1: "vessel"} if config.kind == "hrf" else None
    return LabelledPixels(folder, names or {i: f"class {i}" for i in range(config.num_classes)})


class ScenePixels(Dataset):
    """Scenes as images with class maps."""

    def __init__(self, scenes: DigitScenes | ThinStrokes):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        scene = self.scenes[index]
        image, classes = scene if isinstance(scene, tuple) else (scene.image, scene.class_map)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(classes).long()


class FolderPixels(Dataset):
    """A folder of images and a folder of masks, matched by their paths without suffix.

    Raises:
        ValueError: if there are no images, or an image has no mask or several.
    """

    def __init__(self, images: Path, masks: Path, kind: str, num_classes: int):
        for folder in (images, masks):
            if not folder.is_dir():
                raise ValueError(f"{folder} is no folder.")
        by_name: dict[Path, list[Path]] = {}
        for file in image_files(masks):
            by_name.setdefault(file.relative_to(masks).with_suffix(""), []).append(file)
        files = image_files(images)
        if not files:
            raise ValueError(f"{images} has no images.")
        without = [file for file in files if file.relative_to(images).with_suffix("") not in by_name]
        if without:
            raise ValueError(
                f"{len(without)} of {len(files)} images have no mask in {masks}; the first is {without[0]}."
            )
        found = [(file, by_name[file.relative_to(images).with_suffix("")]) for file in files]
        for file, its_masks in found:
            if len(its_masks) > 1:
                raise ValueError(f"{file} has {len(its_masks)} masks: {', '.join(map(str, its_masks))}; keep one.")
        self.pairs = [(file, mask) for file, (mask,) in found]
        self.kind, self.num_classes = kind, 2 if kind == "hrf" else num_classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises ValueError if a file cannot be read, the sizes differ, or the mask has a label out of range."""
        file, mask_file = self.pairs[index]
        image = torch.from_numpy(np.array(read_rgb(file))).permute(2, 0, 1).contiguous()
        classes = read_mask(mask_file, self.kind, self.num_classes)
        if classes.shape != image.shape[1:]:
            raise ValueError(
                f"{mask_file} has {classes.shape[1]} × {classes.shape[0]} pixels and {file} has {image.shape[2]} × "
                f"{image.shape[1]}; they must be the same."
            )
        return image, classes


def read_mask(file: Path, kind: str, num_classes: int) -> torch.Tensor:
    """Class ids (H, W) int64 of a mask: grey levels of 1 to 16 bits, or the indices of a palette.

    Raises:
        ValueError: if it cannot be read, is in colour, in a format that changes ids, or has a label out of range.
    """
    mistake, values = read_image(file, lambda image: (_mistake(image), _levels(image)))
    if mistake:
        raise ValueError(f"{file} is a mask {mistake}")
    classes = torch.from_numpy(values.astype(np.int64))
    if kind == "hrf":
        return (classes != 0).long()
    if kind == "ade20k":
        classes = torch.where(classes == 0, IGNORED, classes - 1)
    wrong = classes[(classes != IGNORED) & ((classes < 0) | (classes >= num_classes))]
    if len(wrong):
        label = int(wrong[0]) + (kind == "ade20k")
        raise ValueError(
            f"{file} has label {label}; with {num_classes} classes of kind {kind!r} the labels are "
            f"{'1' if kind == 'ade20k' else '0'} to {num_classes - (kind != 'ade20k')}. Is it --num_classes or --kind?"
        )
    return classes


def _mistake(image: Image.Image) -> str:
    """Why the pixels of a picture that is open are no class ids; "" if they are."""
    raw, tiles = layout(image), getattr(image, "tile", ())
    if image.mode not in GREY_MODES:
        return f"of mode {image.mode}; it must hold one class id a pixel (grey of 8 or 16 bits, or a palette)."
    if image.format in LOSSY or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        return f"in {image.format} with losses, which change class ids; save it as .png from its source."
    if getattr(image, "n_frames", 1) > 1:
        return f"of {image.n_frames} pictures; it must be one."
    if raw.startswith("L") and raw.endswith("I"):
        return "whose grey levels are stored upside down (0 is white); save it as .png with class ids."
    if image.format == "PPM" and tiles[0][0] != "raw" and tiles[0][3][1] not in (255, 65535):
        return f"whose largest grey level is {tiles[0][3][1]}, to which readers scale; save it as .png."
    return ""


def _levels(image: Image.Image) -> np.ndarray:
    """The grey levels or indices (H, W) as the file has them; Pillow spreads those of 2 and 4 bits over 8."""
    step = STEPS.get(layout(image), 1)
    return np.array(ImageOps.exif_transpose(image)) // step


def describe_masks(pixels: LabelledPixels) -> dict:
    """The dataset's size, its class names, and some of its images and masks by hash, as `facts.describe_images`."""
    count, compared = len(pixels.dataset), {}
    for index in np.unique(np.linspace(0, count - 1, COMPARED_IMAGES).astype(int)).tolist():
        image, classes = pixels.dataset[index]
        compared |= {f"{index} image": image, f"{index} mask": classes}
    return {"num_images": count, "id2label": pixels.id2label, "pixels": tensor_hash(compared, is_sorted=False)}
