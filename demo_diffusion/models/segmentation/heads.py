"""Heads that turn feature maps into logits: from maps (B, C, H, W), fine to coarse, to (B, labels, h, w)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetPyramidPoolingModule

DILATIONS = (12, 24, 36)
POOLED_SIDES = (1, 2, 3, 6)

Maps = Sequence[torch.Tensor]


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear: (B, C, H, W) -> (B, C, *size)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class Classifier(nn.Conv2d):
    """A 1×1 convolution behind a dropout of whole channels: (B, C, H, W) -> (B, labels, H, W)."""

    def __init__(self, channels: int, num_labels: int, dropout: float):
        super().__init__(channels, num_labels, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(x))


class DeepLabV3Head(nn.Module):
    """Convolutions of several dilations on the last map, whose concatenation a 3×3 convolution projects."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_labels: int, dropout: float):
        super().__init__()
        self.aspp = ASPP(in_channels[-1], DILATIONS, channels)
        self.aspp.project = Conv2dNormActivation((2 + len(DILATIONS)) * channels, channels, 3)
        self.classifier = Classifier(channels, num_labels, dropout)

    def forward(self, maps: Maps) -> torch.Tensor:
        return self.classifier(self.aspp(maps[-1]))


class PSPHead(nn.Module):
    """The last map beside its means over 1, 2², 3² and 6² places, then a 3×3 convolution."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_labels: int, dropout: float):
        super().__init__()
        last = in_channels[-1]
        self.pools = UperNetPyramidPoolingModule(POOLED_SIDES, last, channels, align_corners=False)
        self.bottleneck = UperNetConvModule(last + len(POOLED_SIDES) * channels, channels, 3, padding=1)
        self.classifier = Classifier(channels, num_labels, dropout)

    def forward(self, maps: Maps) -> torch.Tensor:
        last = maps[-1]
        return self.classifier(self.bottleneck(torch.cat([last, *self.pools(last)], dim=1)))


class FPNHead(nn.Module):
    """A feature pyramid, each of whose levels convolutions bring to the first level's grid, where they are added."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_labels: int, dropout: float):
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(in_channels), 2 * channels)
        self.levels = nn.ModuleList(
            nn.ModuleList(
                Conv2dNormActivation(2 * channels if number == 0 else channels, channels, 3)
                for number in range(max(1, level))
            )
            for level in range(len(in_channels))
        )
        self.classifier = Classifier(channels, num_labels, dropout)

    def forward(self, maps: Maps) -> torch.Tensor:
        pyramid = list(self.pyramid({str(level): x for level, x in enumerate(maps)}).values())
        sizes = [x.shape[-2:] for x in pyramid]
        total = self.levels[0][0](pyramid[0])
        for level in range(1, len(pyramid)):
            x = pyramid[level]
            for number, layer in enumerate(self.levels[level]):
                x = resize(layer(x), sizes[level - 1 - number])
            total = total + x
        return self.classifier(total)


class SegformerHead(nn.Module):
    """All maps at one width and on the first map's grid, fused by a 1×1 convolution."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_labels: int, dropout: float):
        super().__init__()
        self.projections = nn.ModuleList(Conv2dNormActivation(width, channels, 1) for width in in_channels)
        self.fusion = Conv2dNormActivation(len(in_channels) * channels, channels, 1)
        self.classifier = Classifier(channels, num_labels, dropout)

    def forward(self, maps: Maps) -> torch.Tensor:
        size = maps[0].shape[-2:]
        maps = [resize(project(x), size) for project, x in zip(self.projections, maps, strict=True)]
        return self.classifier(self.fusion(torch.cat(maps, dim=1)))


class FCNHead(nn.Module):
    """A 3×3 convolution on one map: the second head of a training."""

    def __init__(self, in_channels: int, channels: int, num_labels: int, dropout: float):
        super().__init__()
        self.conv = Conv2dNormActivation(in_channels, channels, 3)
        self.classifier = Classifier(channels, num_labels, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.conv(x))


HEAD_CLASSES = {"deeplabv3": DeepLabV3Head, "pspnet": PSPHead, "fpn": FPNHead, "segformer": SegformerHead}
