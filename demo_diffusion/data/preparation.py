"""From a picture of any mode and size to a square RGB image."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel; transparent parts become white.

    Raises:
        ValueError: if the range of the pixels is not known (32-bit modes).
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.array(image, dtype=np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode!r}, whose range is not known; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's preparation of ImageNet (arXiv 2105.05233): halve by boxes, resize bicubically, crop the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
