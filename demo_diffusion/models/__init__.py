"""The networks.

Read `mobile_block` (i2RMB) and `spanning_attention` first, then `transformer_demo` and `class_conditional` (what D-EMO
shares with DiT and SiT), `transformer_dit` and `presets`. `emov2` has the classifiers, `detection` and
`segmentation` the detectors and segmenters on them, `layers` what several share, and `operators` chooses the
implementation of each operator.
"""

from .autoencoder_taef2 import AutoencoderTAEF2
from .class_conditional import ClassConditionalTransformer
from .detection import EMOv2Detector, EMOv2DetectorConfig, create_detector, list_detectors
from .emov2.auto import register_emov2
from .emov2.configuration import EMOv2Config
from .emov2.modeling import EMOv2Backbone, EMOv2ForImageClassification, EMOv2Model
from .emov2.presets import create_emov2, list_emov2
from .mobile_block import MobileBlock, MobileMixer
from .presets import create_transformer, list_transformers
from .segmentation import (
    EMOv2ForSemanticSegmentation,
    UEMOConfig,
    UEMOForSemanticSegmentation,
    create_segmenter,
    list_heads,
    predict_logits,
)
from .spanning_attention import ATTENTION_MODES, spanning_attention
from .transformer_demo import DEMOTransformer2DModel
from .transformer_dit import DiTModel

__all__ = [
    "ATTENTION_MODES",
    "AutoencoderTAEF2",
    "ClassConditionalTransformer",
    "DEMOTransformer2DModel",
    "DiTModel",
    "EMOv2Backbone",
    "EMOv2Config",
    "EMOv2Detector",
    "EMOv2DetectorConfig",
    "EMOv2ForImageClassification",
    "EMOv2ForSemanticSegmentation",
    "EMOv2Model",
    "MobileBlock",
    "MobileMixer",
    "UEMOConfig",
    "UEMOForSemanticSegmentation",
    "create_detector",
    "create_emov2",
    "create_segmenter",
    "create_transformer",
    "list_detectors",
    "list_emov2",
    "list_heads",
    "list_transformers",
    "predict_logits",
    "register_emov2",
    "spanning_attention",
]

register_emov2()
