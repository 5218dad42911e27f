"""Which of SSDLite's two settings of anchors fits objects of which size: `python eval/studies/ssd_anchors.py`.

Random boxes, uniform in side and place, with sides at ratios of ½ to 2. Prints the mean of each box's best IoU with an
anchor, and the share of boxes with an anchor of IoU 0.5 or more; others are learned from one forced anchor alone.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from demo_diffusion.models.detection.anchors import SSD_STRIDES, ssd_anchors
from demo_diffusion.records.tables import markdown_table

SIDES = ((32, 96), (96, 192), (192, 320), (320, 480))  # pixels


def anchors_of(image_size: int, scaled: bool) -> torch.Tensor:
    """All anchors (N, 4) of an image."""
    maps = [torch.zeros(1, 1, *[math.ceil(image_size / stride)] * 2) for stride in SSD_STRIDES]
    images = ImageList(torch.zeros(1, 3, image_size, image_size), [(image_size, image_size)])
    (anchors,) = ssd_anchors(image_size, scaled)(images, maps)
    return anchors


def random_boxes(image_size: int, sides: tuple[int, int], count: int) -> torch.Tensor:
    """Boxes (count, 4) inside an image."""
    side, ratio, x, y = torch.rand(4, count, generator=torch.Generator().manual_seed(0))
    side = side * (sides[1] - sides[0]) + sides[0]
    root = 2 ** (ratio - 0.5)  # of the ratio of width to height
    width, height = (side * root).clamp(max=image_size), (side / root).clamp(max=image_size)
    left, top = x * (image_size - width), y * (image_size - height)
    return torch.stack([left, top, left + width, top + height], dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image_size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--count", type=int, default=4000, help="boxes of each size")
    options = parser.parse_args(arguments)
    rows = []
    for sides in SIDES:
        boxes, row = random_boxes(options.image_size, sides, options.count), {"side": f"{sides[0]}–{sides[1]}"}
        for name, scaled in (("authors'", False), ("scaled", True)):
            best = box_iou(boxes, anchors_of(options.image_size, scaled)).amax(1)
            row |= {
                f"{name}: mean IoU": f"{best.mean():.2f}",
                f"{name}: IoU ≥ 0.5": f"{(best >= 0.5).float().mean():.0%}",
            }
        rows.append(row)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
