"""Thin strokes on textured ground: outlines of real handwritten digits, one class beside the background."""

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .scenes import SPLITS, digits_of

DIGIT_SIDES = (40, 64)  # pixels
NUM_DIGITS = (2, 5)
INK = 0.45  # of the darkest grey level: from here on a pixel is inside the digit


class ThinStrokes(Dataset):
    """`num_scenes` pairs (image (H, W, 3) uint8, class map (H, W) uint8), a function of (seed, split, index).

    Raises:
        ValueError: if the split is unknown, the side leaves no room, or scikit-learn is missing.
    """

    def __init__(self, split: str, num_scenes: int, side: int = 96, seed: int = 0):
        digits_of(split)  # checks
        if side < DIGIT_SIDES[1]:
            raise ValueError(f"Scenes of thin strokes have a side of {side}; it must be at least {DIGIT_SIDES[1]}.")
        if num_scenes < 1:
            raise ValueError(f"There are {num_scenes} scenes; it must be at least one.")
        self.split, self.num_scenes, self.side, self.seed = split, num_scenes, side, seed

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < self.num_scenes:
            raise IndexError(index)
        random = np.random.default_rng((self.seed, 7 + list(SPLITS).index(self.split), index))
        digits, _ = digits_of(self.split)
        image, classes = _ground(random, self.side), np.zeros((self.side, self.side), np.uint8)
        for _ in range(random.integers(NUM_DIGITS[0], NUM_DIGITS[1] + 1)):
            side = int(random.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
            outline = _outline(digits[random.integers(len(digits))], side)
            top, left = random.integers(0, self.side - side + 1, 2).tolist()
            classes[top : top + side, left : left + side][outline] = 1
        image[classes == 1] -= random.integers(25, 60)
        image += random.normal(0, 6, image.shape)
        return image.clip(0, 255).astype(np.uint8), classes


def _outline(digit: np.ndarray, side: int) -> np.ndarray:
    """Pixels inside an enlarged digit that have a neighbour outside it, (side, side) bool."""
    inside = np.asarray(Image.fromarray(np.float32(digit)).resize((side, side), Image.Resampling.BICUBIC)) > INK
    padded = np.pad(inside, 1)
    return inside & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def _ground(random: np.random.Generator, side: int) -> np.ndarray:
    """Noise of three scales around one colour, (side, side, 3) float32."""
    ground = np.full((side, side, 3), random.integers(110, 190, 3), np.float32)
    for cells, strength in ((4, 22), (12, 14), (32, 10)):
        noise = Image.fromarray(random.normal(0, strength, (cells, cells)).astype(np.float32))
        ground += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))[..., None]
    return ground
