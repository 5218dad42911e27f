"""EMOv2 as torchvision's detectors expect a backbone: maps by name, and their channels in `out_channels`."""

from collections import OrderedDict
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from demo_diffusion.models.emov2.configuration import EMOv2Config
from demo_diffusion.models.emov2.modeling import EMOv2Backbone

FPN_CHANNELS = 256
EXTRA_CHANNELS = (512, 256, 256, 128)
ssd_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)


class DetectionBackbone(nn.Module):
    """EMOv2, and the layers that make the maps of a detector out of its stages.

    Args:
        config: its `out_features` are the stages to read.
        neck: makes named maps out of the named stages.
        out_channels: of each map, or of all of them.
        freeze_first_stage, freeze_batch_norm: see `EMOv2DetectorConfig`.
    """

    def __init__(
        self,
        config: EMOv2Config,
        neck: nn.Module,
        out_channels: int | list[int],
        freeze_first_stage: bool,
        freeze_batch_norm: bool,
    ):
        super().__init__()
        self.body, self.neck = EMOv2Backbone(config), neck
        self.out_channels = out_channels
        self.freeze_first_stage, self.freeze_batch_norm = freeze_first_stage, freeze_batch_norm
        self.train(self.training)

    def train(self, mode: bool = True) -> "DetectionBackbone":
        super().train(mode)
        if self.freeze_first_stage:
            for module in (self.body.stem, self.body.stages[0]):
                module.eval().requires_grad_(False)  # here, because loading makes new parameters
        if self.freeze_batch_norm:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):  # synchronised ones too
                    module.eval()
        return self

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps = self.neck(OrderedDict((str(i), x) for i, x in enumerate(self.body(images).feature_maps)))
        # torchvision makes the anchors in the maps' type: in half precision they would be off by pixels.
        return OrderedDict((name, x.to(images.dtype)) for name, x in maps.items())


class SSDExtras(nn.Module):
    """The stages as they are, then four further maps, each of half the side of the one before it."""

    def __init__(self, in_channels: int):
        super().__init__()
        channels = (in_channels, *EXTRA_CHANNELS)
        self.layers = nn.ModuleList(_extra_layer(*pair) for pair in pairwise(channels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.03)

    def forward(self, maps: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
        maps = OrderedDict(maps)
        for layer in self.layers:
            maps[str(len(maps))] = layer(next(reversed(maps.values())))
        return maps


def _extra_layer(in_channels: int, out_channels: int) -> nn.Sequential:
    half, style = out_channels // 2, {"norm_layer": ssd_norm, "activation_layer": nn.ReLU6}
    return nn.Sequential(
        Conv2dNormActivation(in_channels, half, 1, **style),
        Conv2dNormActivation(half, half, 3, stride=2, groups=half, **style),
        Conv2dNormActivation(half, out_channels, 1, **style),
    )


def ssd_backbone(config: EMOv2Config, **freeze: bool) -> DetectionBackbone:
    """Six maps for SSDLite: stages 3 and 4 and four extra layers."""
    channels = [*config.hidden_sizes[2:], *EXTRA_CHANNELS]
    return DetectionBackbone(config, SSDExtras(config.hidden_sizes[-1]), channels, **freeze)


def retinanet_backbone(config: EMOv2Config, **freeze: bool) -> DetectionBackbone:
    """Five maps for RetinaNet: a pyramid of stages 2 to 4, and two more, the first of them made from stage 4."""
    widths = list(config.hidden_sizes[1:])
    more = LastLevelP6P7(widths[-1], FPN_CHANNELS)
    more.use_P5 = False  # torchvision would take the pyramid's map if stage 4 had its width
    neck = FeaturePyramidNetwork(widths, FPN_CHANNELS, extra_blocks=more)
    return DetectionBackbone(config, neck, FPN_CHANNELS, **freeze)


def mask_rcnn_backbone(config: EMOv2Config, **freeze: bool) -> DetectionBackbone:
    """Five maps for Mask R-CNN: a pyramid of stages 1 to 4, and the last of it at half the side."""
    neck = FeaturePyramidNetwork(list(config.hidden_sizes), FPN_CHANNELS, extra_blocks=LastLevelMaxPool())
    return DetectionBackbone(config, neck, FPN_CHANNELS, **freeze)
