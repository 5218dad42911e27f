"""Images to measure: samples or real ones, from a folder, an .npz file or a dataset, as uint8 RGB, read by index."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from demo_diffusion.data.images import LabelledImages
from demo_diffusion.data.listing import image_files
from demo_diffusion.data.preparation import center_crop, layout, read_image, read_rgb
from demo_diffusion.records.files import read_npz


class RawSamples(Dataset):
    """Generated images as (RGB picture, class id).

    Raises:
        ValueError: if the file holds something else, or no classes.
    """

    def __init__(self, path: Path):
        self.samples = SampleArray(path)
        if self.samples.labels is None:
            raise ValueError(f"{path} has no 'arr_1', the classes of the samples.")

    def check_classes(self, name: str, num_classes: int) -> None:
        """Raises ValueError if the classifier of that name has not all of the samples' classes."""
        least, greatest, last = min(self.samples.labels), max(self.samples.labels), num_classes - 1
        if least < 0 or greatest > last:
            raise ValueError(f"The samples have classes {least} … {greatest}, {name} has 0 … {last}.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.samples.images[index]), self.samples.labels[index]


READERS = 4  # threads that decode


class ImageSource(Protocol):
    """n images of one size, (height, width) in pixels; `labels` are their classes, if known."""

    size: tuple[int, int]
    labels: list[int] | None
    labels_are_imagenet: bool

    def __len__(self) -> int: ...
    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[torch.Tensor]:
        """Images start … stop − 1 as uint8 (B, 3, H, W); raises a ValueError that names an image that is not fit."""


class ReadImages:
    """Images that exist: `self[i]` is image i as uint8 (3, H, W)."""

    labels: list[int] | None = None
    labels_are_imagenet = False

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[torch.Tensor]:
        """Images start … stop − 1 as uint8 (B, 3, H, W); threads decode the next batch while one is used."""
        parts = [range(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)]
        with ThreadPoolExecutor(READERS) as readers:
            pending = [readers.submit(self.__getitem__, i) for part in parts[:1] for i in part]
            for later in [*parts[1:], range(0)]:
                current, pending = pending, [readers.submit(self.__getitem__, i) for i in later]
                yield torch.stack([image.result() for image in current])


class SampleFolder(ReadImages):
    """Generated images: every .png under a folder, in the order of their names.

    Raises:
        ValueError: if there is none, or (when it is read) one is damaged, not 8-bit RGB, or of another size.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
        files = sorted(image_files(folder))
        self.files = [f for f in files if f.suffix.lower() == ".png"]
        if others := sorted({f.suffix for f in files} - {f.suffix for f in self.files}):
            raise ValueError(f"{folder} holds {', '.join(others)} files; samples must be .png, which loses nothing.")
        if not self.files:
            raise ValueError(f"{folder} holds no .png file.")
        width, height = read_image(self.files[0]).size
        self.size = height, width

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self.files[index]
        mistake, image = read_image(path, lambda image: (_mistake(image), ImageOps.exif_transpose(image)))
        if mistake:
            raise ValueError(f"{path} {mistake}; samples must be 8-bit RGB in PNG format. Convert it first.")
        if (image.height, image.width) != self.size:
            first = self.size[::-1]
            raise ValueError(f"{path} is {image.size} pixels, but {self.files[0]} is {first}; sizes must be equal.")
        return to_tensor(image)


def _mistake(image: Image.Image) -> str:
    """Why a picture that is open is no sample; "" if it is one."""
    if image.mode != "RGB":
        return f"has mode {image.mode}"
    if image.format != "PNG":
        return f"has the format {image.format}, whatever its name"
    if layout(image) != "RGB":
        return "has 16 bits a channel"
    if image.has_transparency_data:
        return "has a transparent colour"
    return f"has {image.n_frames} frames" if getattr(image, "n_frames", 1) > 1 else ""


class SampleArray(ReadImages):
    """Generated images in ADM's layout: an .npz file with "arr_0" (N, H, W, 3) uint8 and maybe "arr_1" (N,) labels.

    Raises:
        ValueError: if it holds something else.
    """

    def __init__(self, path: Path, labels_are_imagenet: bool = False):
        content, self.labels_are_imagenet = read_npz(path), labels_are_imagenet
        if "arr_0" not in content:
            raise ValueError(f"{path} has no 'arr_0'; it has {list(content)}.")
        self.images = content["arr_0"]
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3 or not len(self.images):
            raise ValueError(
                f"{path}: arr_0 is {self.images.dtype} of shape {self.images.shape}; it must be uint8 (N, H, W, 3)."
            )
        self.size = self.images.shape[1:3]
        labels = content.get("arr_1")
        if labels is not None and (labels.shape != self.images.shape[:1] or labels.dtype.kind not in "iu"):
            raise ValueError(f"{path}: arr_1 is {labels.dtype} of shape {labels.shape}; it must be one label an image.")
        self.labels = None if labels is None else labels.tolist()
        if labels_are_imagenet and (labels is None or labels.min() < 0 or labels.max() >= 1000):
            raise ValueError(f"{path}: arr_1 does not hold classes 0 … 999, which --imagenet_labels says.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


class RealFolder(ReadImages):
    """Real images of any format under a folder, cropped and resized as ADM prepares ImageNet.

    Raises:
        ValueError: if there is none, or (when it is read) one is damaged.
    """

    def __init__(self, folder: Path, resolution: int):
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
        self.resolution, self.size = resolution, (resolution, resolution)
        self.files = sorted(image_files(folder))
        if not self.files:
            raise ValueError(f"{folder} holds no image; formats are {', '.join(IMG_EXTENSIONS)}.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_tensor(center_crop(read_rgb(self.files[index]), self.resolution))


class TrainingImages(ReadImages):
    """Real images as the network is trained on them."""

    def __init__(self, images: LabelledImages):
        self.images = images.dataset
        self.size = tuple(self.images[0][0].shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_uint8(self.images[index][0][None])[0]


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 1 or 3, H, W) in [−1, 1] -> uint8 (B, 3, H, W), rounded; grey becomes RGB."""
    pixels = (pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1)
