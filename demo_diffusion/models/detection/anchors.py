"""The boxes that each detector starts from."""

import math

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

SSD_SIZES = (48, 100, 150, 202, 253, 304, 320)  # pixels, at an image size of 320
SSD_STEPS = (16, 32, 64, 107, 160, 320)
SSD_STRIDES = (16, 32, 64, 128, 256, 512)
SSD_RATIOS = ((2, 3),) * 6  # and their inverses: six boxes at each place


def ssd_anchors(image_size: int, scaled: bool) -> DefaultBoxGenerator:
    """Six boxes at each place of six maps, not clipped at the image's border.

    Args:
        scaled: False: sizes and steps in pixels as the authors have them, whatever the image size. Above 320 pixels
            their boxes are too small for large objects, and do not reach the right and lower border. True: both grow
            with the image.
    """
    steps, factor = list(SSD_STEPS), image_size
    if scaled:
        steps = [round(image_size / math.ceil(image_size / stride)) for stride in SSD_STRIDES]
        factor = SSD_SIZES[-1]
    with torch.device("cpu"):  # plain tensors, which a model made on the "meta" device could not fill later
        return DefaultBoxGenerator(
            [list(ratios) for ratios in SSD_RATIOS], scales=[s / factor for s in SSD_SIZES], steps=steps, clip=False
        )


def retinanet_anchors() -> AnchorGenerator:
    """Nine boxes at each place of five maps: 4 · stride · 2^{0, 1/3, 2/3} pixels at the ratios ½, 1 and 2."""
    sizes = tuple(tuple(int(4 * stride * 2 ** (i / 3)) for i in range(3)) for stride in (8, 16, 32, 64, 128))
    return _anchors(sizes)


def rpn_anchors() -> AnchorGenerator:
    """Three boxes at each place of five maps: 8 · stride pixels at the ratios ½, 1 and 2."""
    return _anchors(tuple((8 * stride,) for stride in (4, 8, 16, 32, 64)))


def _anchors(sizes: tuple[tuple[int, ...], ...]) -> AnchorGenerator:
    with torch.device("cpu"):
        return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
