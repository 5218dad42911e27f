"""From a picture file of any mode and size to a square RGB image."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LONGEST = 16  # sides over which an image is cropped before it is resized: its ends would be cut off anyway


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel, turned as its EXIF data say; transparent parts become white.

    Raises:
        ValueError: if the range of the pixels is not known (32-bit modes).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode!r}, whose range is not known; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_image(path: Path, prepare: Callable[[Image.Image], Image.Image] = ImageOps.exif_transpose) -> Image.Image:
    """Reads a picture file.

    Args:
        prepare: what is made of it, here or by `to_rgb`; it must turn the image as its EXIF data say.

    Raises:
        ValueError: names the file, if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return prepare(image)
    except Exception as error:  # a damaged image makes Pillow raise almost anything
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def read_rgb(path: Path) -> Image.Image:
    """`to_rgb` of a picture file; raises a ValueError that names the file if it cannot be read."""
    return read_image(path, to_rgb)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's preparation of ImageNet (arXiv 2105.05233): halve by boxes, resize bicubically, crop the centre.

    Of an image more than `LONGEST` times as long as wide only the middle is resized, which takes less memory.
    """
    image = _crop_middle(image, LONGEST * min(image.size))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _crop_middle(image: Image.Image, longest: int) -> Image.Image:
    if max(image.size) <= longest:
        return image
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
