"""The arithmetic of a detector, counted as the paper's tables do."""

import copy

import torch
from torch import nn

from demo_diffusion.flops import count_macs

from .modeling import EMOv2Detector

NUM_BOXES, NUM_MASKS = 1000, 100  # that Mask R-CNN's two heads see


class _Dense(nn.Module):
    """All layers of a detector, without anchors and post-processing, which depend on what is found."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> None:
        maps = list(self.detector.backbone(images).values())
        if not hasattr(self.detector, "rpn"):
            self.detector.head(maps)
            return
        heads = self.detector.roi_heads
        self.detector.rpn.head(maps)
        heads.box_predictor(heads.box_head(maps[0].new_empty(NUM_BOXES, maps[0].shape[1], 7, 7)))
        heads.mask_predictor(heads.mask_head(maps[0].new_empty(NUM_MASKS, maps[0].shape[1], 14, 14)))


def count_detector_macs(detector: EMOv2Detector, height: int, width: int) -> int:
    """Multiply-accumulates for one image that has this size after resizing; Mask R-CNN's with 1000 boxes, 100 masks."""
    dense = _Dense(copy.deepcopy(detector.detector)).to("meta")
    return count_macs(dense, torch.empty(1, 3, height, width, device="meta"))
