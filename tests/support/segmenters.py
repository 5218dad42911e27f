"""Small segmenters, and labels for them."""

import torch
from torch import nn

from demo_diffusion.models.segmentation import (
    EMOv2ForSemanticSegmentation,
    UEMOConfig,
    UEMOForSemanticSegmentation,
    create_segmenter,
)

HEADS = ("deeplabv3", "pspnet", "fpn", "segformer")
SMALL_UNET = {"hidden_sizes": (8, 16, 32), "attention_head_dim": 8, "window_size": 3, "head_channels": 4}


def small_segmenter(head: str, backbone: str = "EMOv2-1M", **options) -> EMOv2ForSemanticSegmentation:
    """The paper's network with a narrow head for five classes."""
    return create_segmenter(head, backbone, **{"num_labels": 5, "head_channels": 8, "window_size": 3, **options})


def small_unet(block: str = "i2rmb", **options) -> UEMOForSemanticSegmentation:
    return UEMOForSemanticSegmentation(UEMOConfig(**{**SMALL_UNET, "num_labels": 5, "block": block, **options}))


def with_statistics(model: nn.Module, layer_scale: float = 0.5) -> nn.Module:
    """The model in eval mode, with BatchNorms and LayerScales that are not those of a new one."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
        if getattr(module, "gamma", None) is not None:
            nn.init.constant_(module.gamma, layer_scale)
    return model.eval()


def random_labels(batch: int, height: int, width: int, num_labels: int = 5) -> torch.Tensor:
    labels = torch.randint(num_labels, (batch, height, width), generator=torch.Generator().manual_seed(1))
    labels[:, :3] = 255
    return labels
