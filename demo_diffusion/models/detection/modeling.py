"""SSDLite, RetinaNet and Mask R-CNN on EMOv2: torchvision's heads, losses, matching and post-processing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from transformers import PreTrainedModel

from demo_diffusion.models.emov2.modeling import load_network
from demo_diffusion.models.loading import CheckedLoading

from .anchors import SSD_RATIOS, SSD_STRIDES, retinanet_anchors, rpn_anchors, ssd_anchors
from .backbones import mask_rcnn_backbone, retinanet_backbone, ssd_backbone, ssd_norm
from .configuration import LONGEST_SIDE, EMOv2DetectorConfig
from .targets import Target, check_images, check_targets


class EMOv2Detector(CheckedLoading, PreTrainedModel):
    """A detector with torchvision's conventions for input and output.

    Images are a list of tensors (3, H, W), RGB in [0, 1], of any and of mixed size; the detector normalises and resizes
    them, and gives boxes in pixels of the image that it got. Labels begin at `config.first_label`. See `forward`.

    Attributes:
        detector: torchvision's `SSD`, `RetinaNet` or `MaskRCNN`.
    """

    config: EMOv2DetectorConfig
    config_class = EMOv2DetectorConfig
    base_model_prefix = "detector"
    main_input_name = "images"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MobileBlock"]

    def __init__(self, config: EMOv2DetectorConfig):
        super().__init__(config)
        self.detector = BUILDERS[config.detector](config)
        for head in _heads_of(self.detector):
            head.register_forward_hook(_give_float32)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves the initial values of torchvision's layers; the backbone has its own."""

    def forward(self, images: Sequence[torch.Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Losses in training mode, detections in eval mode.

        Args:
            images: tensors (3, H, W), RGB in [0, 1].
            targets: in training, one for each image: "boxes" (N, 4) as x1, y1, x2, y2 in pixels, "labels" (N,) and, for
                Mask R-CNN, "masks" (N, H, W) of 0 and 1. N may be 0.

        Returns:
            In training mode, {name: scalar loss}; their sum is the loss. In eval mode, for each image a dict of "boxes"
            (M, 4), "labels" (M,), "scores" (M,) in descending order and, from Mask R-CNN, "masks" (M, 1, H, W) with the
            probability that a pixel is the object's. While `torch.jit.trace` looks on, which takes no list of dicts, a
            tuple in this order for each image; such a program is for images of the traced size.

        Raises:
            ValueError: if images or targets are not as described.
        """
        config = self.config
        is_square = config.detector == "SSDLite"
        check_images(
            images, self.detector.backbone.body.stem.conv.conv, None if is_square else _sides(config)["max_size"]
        )
        if self.training:
            check_targets(images, targets, config.labels, needs_masks=config.detector == "MaskRCNN")
            if is_square and len(images) == 1 and config.image_size <= SSD_STRIDES[-1]:
                raise ValueError("SSDLite's BatchNorm needs at least two images in a batch; there is one.")
        found = self.detector(list(images), None if targets is None else [dict(target) for target in targets])
        is_traced = torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export()
        return _as_tuples(found) if is_traced and not self.training else found


def load_detector(name_or_path: str | Path) -> EMOv2Detector:
    """A detector in eval mode, from a folder or the hub, for inference.

    Raises:
        ValueError: with one line, if it cannot be loaded.
    """
    return load_network(EMOv2Detector, "detector", name_or_path).eval().requires_grad_(False)


def _ssdlite(config: EMOv2DetectorConfig) -> SSD:
    backbone = ssd_backbone(config.backbone_config, **_freeze(config))
    num_outputs = config.num_classes + 1  # and the background
    anchors_per_place = [2 + 2 * len(ratios) for ratios in SSD_RATIOS]
    head = SSDLiteHead(backbone.out_channels, anchors_per_place, num_outputs, ssd_norm)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.001)
    return SSD(
        backbone,
        ssd_anchors(config.image_size, config.scaled_anchors),
        (config.image_size, config.image_size),
        num_outputs,
        head=head,
        score_thresh=0.02,
        nms_thresh=0.45,
        detections_per_img=200,
        topk_candidates=1000,
    )


def _retinanet(config: EMOv2DetectorConfig) -> RetinaNet:
    return RetinaNet(
        retinanet_backbone(config.backbone_config, **_freeze(config)),
        config.num_classes,
        **_sides(config),
        anchor_generator=retinanet_anchors(),
        detections_per_img=100,
    )


def _mask_rcnn(config: EMOv2DetectorConfig) -> MaskRCNN:
    return MaskRCNN(
        mask_rcnn_backbone(config.backbone_config, **_freeze(config)),
        config.num_classes + 1,
        **_sides(config),
        rpn_anchor_generator=rpn_anchors(),
        rpn_post_nms_top_n_train=1000,
        box_batch_size_per_image=config.box_batch_size_per_image,
    )


BUILDERS: dict[str, Callable[[EMOv2DetectorConfig], nn.Module]] = {
    "SSDLite": _ssdlite,
    "RetinaNet": _retinanet,
    "MaskRCNN": _mask_rcnn,
}


def _freeze(config: EMOv2DetectorConfig) -> dict[str, bool]:
    return {"freeze_first_stage": config.freeze_first_stage, "freeze_batch_norm": config.freeze_batch_norm}


def _sides(config: EMOv2DetectorConfig) -> dict[str, int]:
    """The shorter side of the images in pixels, and the longer one at most."""
    return {"min_size": config.image_size, "max_size": round(config.image_size * LONGEST_SIDE)}


def _heads_of(detector: nn.Module) -> list[nn.Module]:
    """The modules whose outputs become boxes, scores and losses."""
    if isinstance(detector, MaskRCNN):
        return [detector.rpn.head, detector.roi_heads.box_predictor, detector.roi_heads.mask_predictor]
    return [detector.head]


def _as_tuples(found: list[dict[str, torch.Tensor]]) -> tuple[tuple[torch.Tensor, ...], ...]:
    names = ("boxes", "labels", "scores", "masks")
    return tuple(tuple(of_image[name] for name in names if name in of_image) for of_image in found)


def _give_float32(head: nn.Module, inputs: tuple, outputs: Any) -> Any:
    """Boxes and losses need float32 under autocast too: bfloat16 would round boxes to whole pixels and worse."""
    if isinstance(outputs, dict):
        return {name: _give_float32(head, inputs, value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_give_float32(head, inputs, value) for value in outputs)
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
