"""Open implementation of D-EMO: class-conditional diffusion with the i2RMB block of EMOv2 (arXiv 2412.06674)."""

from ._version import __version__
from .models import DEMOTransformer2DModel, DiTModel, create_transformer, list_transformers
from .pipelines import DEMOPipeline
from .schedulers import FlowMatchDopri5Scheduler, FlowMatchSDEScheduler

__all__ = [
    "DEMOPipeline",
    "DEMOTransformer2DModel",
    "DiTModel",
    "FlowMatchDopri5Scheduler",
    "FlowMatchSDEScheduler",
    "__version__",
    "create_transformer",
    "list_transformers",
]
