"""Samples drawn from a pipeline, each of them fixed by the seed and its index alone."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch

from demo_diffusion.data.autoencoder import decoded_side
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.pipelines.pipeline_demo import NotFiniteError
from demo_diffusion.pipelines.samplers import create_sampler

from .fingerprint import describe_pipeline
from .image_sources import to_uint8


@dataclass
class SamplingPlan:
    """How samples are drawn.

    Attributes:
        labels: "balanced": sample i has class i mod num_classes (MAR, JiT, RAE); "random": drawn (DiT, SiT, REPA).
        others: as `DEMOPipeline.__call__`.
    """

    num_samples: int
    num_inference_steps: int
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int | None = None
    labels: Literal["balanced", "random"] = "balanced"
    seed: int = 0


def load_pipeline(name: str, sampler: str | None) -> DEMOPipeline:
    """A pipeline from a folder or the hub, with the sampler of that name; None: its own.

    Raises:
        ValueError: if it cannot be read whole, or has no such sampler.
    """
    try:
        pipeline = DEMOPipeline.from_pretrained(name)
    except Exception as error:  # diffusers raises almost anything on a damaged folder
        raise ValueError(f"The pipeline {name} cannot be read: {error}") from error
    pipeline.scheduler = create_sampler(pipeline.scheduler, sampler)
    return pipeline


def open_pipeline(
    name: str, sampler: str | None, plan: SamplingPlan, dtype: str, device: torch.device
) -> tuple["GeneratedSamples", dict]:
    """Samples of a pipeline from a folder or the hub, and what decides them; raises as `load_pipeline`."""
    pipeline = load_pipeline(name, sampler)
    facts = {**describe_pipeline(pipeline), **asdict(plan), "dtype": dtype}
    return GeneratedSamples(pipeline.to(device, getattr(torch, dtype)), plan), facts


class GeneratedSamples:
    """`ImageSource` that samples; batches of the same indices are the same, bit for bit, on the same machine."""

    def __init__(self, pipeline: DEMOPipeline, plan: SamplingPlan):
        self.pipeline, self.plan = pipeline, plan
        self.num_classes = pipeline.transformer.config.num_classes
        side = pipeline.transformer.input_shape[-1]
        side = side if pipeline.vae is None else decoded_side(pipeline.vae, side)
        self.size = side, side
        self.labels_are_imagenet = self.num_classes == 1000
        self.labels = [self._label(index) for index in range(plan.num_samples)]
        pipeline.set_progress_bar_config(disable=True)

    def __len__(self) -> int:
        return self.plan.num_samples

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[torch.Tensor]:
        """Samples start … stop − 1 as uint8 (B, 3, H, W).

        Raises:
            ValueError: if sampling gives values that are not finite, or an argument of the pipeline is not allowed.
        """
        for first in range(start, stop, batch_size):
            indices = range(first, min(first + batch_size, stop))
            try:
                images = self.pipeline(
                    [self.labels[i] for i in indices],
                    guidance_scale=self.plan.guidance_scale,
                    guidance_interval=self.plan.guidance_interval,
                    guidance_channels=self.plan.guidance_channels,
                    num_inference_steps=self.plan.num_inference_steps,
                    generator=[torch.Generator().manual_seed(self._seed(i, "noise")) for i in indices],
                    output_type="pt",
                ).images
            except NotFiniteError as error:  # by the samples' own numbers
                raise NotFiniteError({indices[i]: label for i, label in error.classes.items()}) from None
            yield to_uint8(images * 2 - 1).cpu()

    def _label(self, index: int) -> int:
        if self.plan.labels == "balanced":
            return index % self.num_classes
        return int(np.random.default_rng(self._seed(index, "label")).integers(self.num_classes))

    def _seed(self, index: int, use: Literal["noise", "label"]) -> int:
        key = (self.plan.seed, index, ("noise", "label").index(use))
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
