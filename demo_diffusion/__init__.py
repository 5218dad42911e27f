"""Open implementation of D-EMO: class-conditional diffusion with the i2RMB block of EMOv2 (arXiv 2412.06674)."""

# ruff: isort: off
from . import _start  # noqa: F401 (before the others, which take seconds)
from ._version import __version__

# ruff: isort: on
from .models import (
    DEMOTransformer2DModel,
    DiTModel,
    EMOv2Backbone,
    EMOv2Config,
    EMOv2Detector,
    EMOv2ForImageClassification,
    EMOv2ForSemanticSegmentation,
    UEMOConfig,
    UEMOForSemanticSegmentation,
    create_detector,
    create_emov2,
    create_segmenter,
    create_transformer,
    list_detectors,
    list_emov2,
    list_heads,
    list_transformers,
    predict_logits,
)
from .pipelines import DEMOPipeline
from .schedulers import FlowMatchDopri5Scheduler, FlowMatchSDEScheduler

__all__ = [
    "DEMOPipeline",
    "DEMOTransformer2DModel",
    "DiTModel",
    "EMOv2Backbone",
    "EMOv2Config",
    "EMOv2Detector",
    "EMOv2ForImageClassification",
    "EMOv2ForSemanticSegmentation",
    "FlowMatchDopri5Scheduler",
    "FlowMatchSDEScheduler",
    "UEMOConfig",
    "UEMOForSemanticSegmentation",
    "__version__",
    "create_detector",
    "create_emov2",
    "create_segmenter",
    "create_transformer",
    "list_detectors",
    "list_emov2",
    "list_heads",
    "list_transformers",
    "predict_logits",
]
