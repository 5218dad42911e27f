import diffusers

from .pipeline_demo import DEMOPipeline

# diffusers.DiffusionPipeline.from_pretrained finds a pipeline's class by its name in diffusers' namespace.
diffusers.DEMOPipeline = DEMOPipeline

__all__ = ["DEMOPipeline"]
