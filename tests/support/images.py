"""Pictures and folders of them, made on the spot."""

import numpy as np
from PIL import Image


def picture(size=(20, 12), mode="RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def image_folder(path, classes=("cat", "dog"), images_per_class=3):
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(images_per_class):
            picture(mode="L" if i == 0 else "RGB").save(path / name / f"{i}.png")
    return path
