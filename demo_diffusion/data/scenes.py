"""Digit scenes: real handwritten digits among clutter, with boxes, masks of the objects and a map of the classes.

A scene is a function of (seed, split, index). The digits, scikit-learn's, are divided between the splits before scenes
are made of them: no digit of a test scene is ever seen in training.
"""

from dataclasses import dataclass
from functools import cache

from demo_diffusion.cli.command import require_packages

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

SPLITS = {"train": 0.75, "test": 0.25}  # shares of the 1,797 digits
DIGIT_SIDES = (20, 40)  # pixels
MOST_DIGITS = 5
INK = 0.25  # of the darkest grey level: from here on a pixel is the digit's
ATTEMPTS = 30  # at a place for a digit where no other lies
PAPER, INK_COLOR = (150, 256), (0, 91)  # each of red, green and blue


@dataclass
class Scene:
    """A picture and what is on it. N is 1 to 5.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels around the ink.
        labels: (N,) int64, the digits.
        masks: (N, H, W) bool, the ink of each; no two overlap.
        class_map: (H, W) uint8, 0 for the background and 1 + digit for ink.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    class_map: np.ndarray


class DigitScenes(Dataset):
    """`num_scenes` scenes whose width and height are each drawn from `min_side` to `max_side` pixels.

    Args:
        digit_sides: least and largest side of a digit in pixels.

    Raises:
        ValueError: if the split is unknown, the sides leave no room, or scikit-learn is missing.
    """

    def __init__(
        self,
        split: str,
        num_scenes: int,
        min_side: int = 128,
        max_side: int = 160,
        seed: int = 0,
        digit_sides: tuple[int, int] = DIGIT_SIDES,
    ):
        digits_of(split)  # checks
        least = max(2 * DIGIT_SIDES[1], digit_sides[1])
        if not least <= min_side <= max_side:
            raise ValueError(
                f"Scenes have sides of {min_side} to {max_side} pixels; they must be at least {least}, and the least "
                "no more than the most."
            )
        if num_scenes < 1:
            raise ValueError(f"There are {num_scenes} scenes; it must be at least one.")
        self.split, self.num_scenes, self.sides, self.seed = split, num_scenes, (min_side, max_side), seed
        self.digit_sides = digit_sides

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.num_scenes:
            raise IndexError(index)
        random = np.random.default_rng((self.seed, list(SPLITS).index(self.split), index))
        return _compose(random, *digits_of(self.split), self.sides, self.digit_sides)


@cache
def digits_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(grey levels (N, 8, 8) in [0, 1], labels (N,)) of a split's digits.

    Raises:
        ValueError: if the split is unknown or scikit-learn is missing.
    """
    require_packages(["sklearn"], "eval", "Making digit scenes")
    if split not in SPLITS:
        raise ValueError(f"Digit scenes have the splits {', '.join(SPLITS)}, not {split!r}.")
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    first = round(SPLITS["train"] * len(order))
    chosen = order[:first] if split == "train" else order[first:]
    return digits.images[chosen] / 16, digits.target[chosen]


def _compose(
    random: np.random.Generator,
    digits: np.ndarray,
    names: np.ndarray,
    sides: tuple[int, int],
    digit_sides: tuple[int, int],
) -> Scene:
    width, height = random.integers(sides[0], sides[1] + 1, 2).tolist()
    image = _paper(random, width, height)
    boxes, labels, masks = [], [], []
    for _ in range(random.integers(1, MOST_DIGITS + 1)):
        number = random.integers(len(digits))
        side = int(random.integers(digit_sides[0], digit_sides[1] + 1))
        ink = np.asarray(Image.fromarray(np.float32(digits[number])).resize((side, side), Image.Resampling.BICUBIC))
        place = _free_place(random, ink > INK, masks, (height, width))
        if place is None:
            continue
        left, top = place
        area = np.s_[top : top + side, left : left + side]
        strength = ink.clip(0, 1)[..., None]
        image[area] = image[area] * (1 - strength) + random.integers(*INK_COLOR, 3) * strength
        mask = np.zeros((height, width), bool)
        mask[area] = ink > INK
        masks.append(mask)
        boxes.append(_box_of(mask))
        labels.append(names[number])
    image = (image + random.normal(0, random.uniform(2, 12), image.shape)).clip(0, 255).astype(np.uint8)
    masks, labels = np.stack(masks), np.array(labels, np.int64)
    class_map = (masks * (1 + labels)[:, None, None]).max(0).astype(np.uint8)
    return Scene(image, np.array(boxes, np.float32), labels, masks, class_map)


def _paper(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Light paper with lines, rectangles and rings, (H, W, 3) float32."""
    color = random.integers(*PAPER, 3)
    picture = Image.new("RGB", (width, height), tuple(color.tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(4, 13)):
        shade = tuple((color + random.integers(-45, 46, 3)).clip(0, 255).tolist())
        x, y = random.integers(0, [width, height]).tolist()
        dx, dy = random.integers(4, 60, 2).tolist()
        kind, thickness = random.integers(3), int(random.integers(1, 4))
        if kind == 0:
            draw.line((x, y, x + dx, y + random.choice((-1, 1)) * dy), fill=shade, width=thickness)
        elif kind == 1:
            draw.rectangle((x, y, x + dx, y + dy), fill=shade)
        else:
            draw.ellipse((x, y, x + dx, y + dy), outline=shade, width=thickness)
    return np.array(picture, np.float32)


def _free_place(
    random: np.random.Generator, ink: np.ndarray, taken: list[np.ndarray], size: tuple[int, int]
) -> tuple[int, int] | None:
    """(left, top) where a digit fits between those that are there; None after many attempts."""
    side = len(ink)
    for _ in range(ATTEMPTS):
        top, left = random.integers(0, [size[0] - side + 1, size[1] - side + 1]).tolist()
        if not any(mask[top : top + side, left : left + side].any() for mask in taken):
            return left, top
    return None


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
