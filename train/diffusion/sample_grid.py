"""The grid of samples that a run leaves."""

import torch
from PIL import Image

from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.records.figures import labelled_grid

from .config import DiffusionRunConfig


def sample_grid(pipeline: DEMOPipeline, run: DiffusionRunConfig) -> Image.Image:
    """A grid of the first classes, from fixed noise, so that grids of one run can be compared."""
    names = pipeline.label_names.id2label
    classes = range(min(run.grid_classes, pipeline.transformer.config.num_classes))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    rows = [
        pipeline(
            [class_id] * run.grid_columns,
            guidance_scale=run.guidance_scale,
            num_inference_steps=run.num_inference_steps,
            generator=generator,
        ).images
        for class_id in classes
    ]
    return labelled_grid(rows, [names[class_id] for class_id in classes])
