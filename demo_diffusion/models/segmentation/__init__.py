"""Semantic segmentation with EMOv2 and EMOv1 (arXiv 2412.06674, Tables XI and XII).

Read `configuration`, `heads` and `modeling` (four heads on EMOv2's feature maps), then `unet` (U-EMO and the plain
UNet), `sliding_window` (images of any size), `presets` (the named segmenters) and `auto` (transformers' Auto classes).
"""

from .auto import register_segmenters
from .configuration import EMOv2SegmenterConfig, UEMOConfig
from .modeling import EMOv2ForSemanticSegmentation
from .presets import create_segmenter, list_heads
from .sliding_window import predict_logits
from .unet import UEMOForSemanticSegmentation

__all__ = [
    "EMOv2ForSemanticSegmentation",
    "EMOv2SegmenterConfig",
    "UEMOConfig",
    "UEMOForSemanticSegmentation",
    "create_segmenter",
    "list_heads",
    "predict_logits",
]

register_segmenters()
