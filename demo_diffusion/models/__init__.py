from .class_conditional import ClassConditionalTransformer
from .mobile_block import MobileBlock, MobileMixer
from .presets import create_transformer, list_transformers
from .spanning_attention import ATTENTION_MODES, spanning_attention
from .transformer_demo import DEMOTransformer2DModel
from .transformer_dit import DiTModel

__all__ = [
    "ATTENTION_MODES",
    "ClassConditionalTransformer",
    "DEMOTransformer2DModel",
    "DiTModel",
    "MobileBlock",
    "MobileMixer",
    "create_transformer",
    "list_transformers",
    "spanning_attention",
]
