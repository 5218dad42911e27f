"""Sampling: class labels in, images out.

Read `pipeline_demo` first, then `guidance` (what the loop calls), `labels`, `samplers` (by name) and `scheduler_fit`
(which scheduler fits which network).
"""

import diffusers

from .pipeline_demo import DEMOPipeline

# diffusers.DiffusionPipeline.from_pretrained finds a pipeline's class by its name in diffusers' namespace.
diffusers.DEMOPipeline = DEMOPipeline

__all__ = ["DEMOPipeline"]
