"""From a picture file of any mode and size to a square RGB image."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from demo_diffusion.records.reading import check_regular

LONGEST = 16  # sides over which an image is cropped before it is resized: its ends would be cut off anyway


STEPS = {"L;2": 85, "L;4": 17}  # between the grey levels that Pillow makes of 2 and 4 bits
DEEP_COLOURS = ("RGB;16B", "RGBA;16B", "LA;16B")  # of 16 bits in a PNG file, of which Pillow drops the lower 8

Prepared = TypeVar("Prepared")


def layout(image: Image.Image) -> str:
    """How the pixels lie in the file (Pillow's raw mode: "L;2" is grey of 2 bits); "" once they are loaded."""
    tile = next(iter(getattr(image, "tile", ())), None)
    arguments = tile[3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel, turned as its EXIF data say; transparent parts become white.

    Sixteen bits are rounded to eight; of colours in other formats than PNG, Pillow drops the lower eight.

    Raises:
        ValueError: if the range of the pixels is not known (32-bit modes), or what is transparent.
    """
    image = _eight_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode!r}, whose range is not known; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image turned, with 16 bits of grey, or of colours in a PNG file, rounded to 8."""
    raw, clear = layout(image), image.info.get("transparency")
    if image.format == "PNG" and raw in DEEP_COLOURS:
        rounded = _rounded(_deep_pixels(image), clear)
        image.load()  # EXIF data may follow the pixels
        rounded.info = {name: value for name, value in image.info.items() if name != "transparency"}
        return ImageOps.exif_transpose(rounded)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _rounded(np.array(image)[..., None], clear)
    if isinstance(clear, int | tuple):
        clear = image.info["transparency"] = clear * STEPS[raw] if raw in STEPS else clear
        if np.max(clear) > 255:
            raise ValueError(f"its transparent colour is {clear}, of 16 bits a channel, but 8 were read")
    return image


def _rounded(deep: np.ndarray, clear: int | tuple[int, ...] | None) -> Image.Image:
    """Of pixels (H, W, C) of 16 bits, C = 1 … 4; those of the colour `clear` become transparent."""
    pixels = (deep.astype(np.float32) / 257).round().astype(np.uint8)
    if clear is not None:
        alpha = np.where((deep == clear).all(axis=-1, keepdims=True), 0, 255).astype(np.uint8)
        pixels = np.concatenate([pixels, alpha], axis=-1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _deep_pixels(image: Image.Image) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_png  # for these files alone

    image.fp.seek(0)
    encoded = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    return decode_png(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def read_image(path: Path, prepare: Callable[[Image.Image], Prepared] = ImageOps.exif_transpose) -> Prepared:
    """Reads a picture file.

    Args:
        prepare: what is made of it, here or by `to_rgb`; it must turn the image as its EXIF data say.

    Raises:
        ValueError: names the file, if it cannot be read.
    """
    try:
        check_regular(path)
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
