"""Classifier-free guidance: what a sampling loop calls instead of the network."""

from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.objectives import OBJECTIVES

from .scheduler_fit import takes_learned_variance


class Guidance(NamedTuple):
    """null + w · (class − null), arXiv 2207.12598, at times t in [low, high] (arXiv 2404.07724) and in some channels.

    Args:
        scale: w; 1 is no guidance and 0 unconditional.
        interval: (low, high) in [0, 1], 0 data, 1 noise; outside, w is 1.
        channels: how many are guided, from the first one; None: all.
    """

    scale: float
    interval: tuple[float, float]
    channels: int | None

    def scale_at(self, time: float) -> float:
        low, high = self.interval
        return self.scale if low <= time <= high else 1.0


class GuidedNetwork:
    """The network of one sampling run, as the loop calls it: (latents, timestep) -> what the scheduler takes.

    What is the same in all steps is prepared once, and no step waits for the device. Every output is a copy, because
    the replay of a CUDA graph overwrites what the last replay gave, which solvers of several stages still need.

    Args:
        objective: name of it; it says in which units the network takes its timestep.
        class_ids: (B,), on the device of the samples.
    """

    def __init__(
        self,
        transformer: ClassConditionalTransformer,
        scheduler: SchedulerMixin,
        objective: str,
        class_ids: torch.Tensor,
        guidance: Guidance,
    ):
        self.transformer, self.scheduler, self.guidance = transformer, scheduler, guidance
        self.continuous_time = OBJECTIVES[objective].continuous_time
        config = transformer.config
        self.out_channels = config.out_channels if takes_learned_variance(scheduler) else config.in_channels
        self.guided_channels = slice(guidance.channels or config.in_channels)
        self.class_ids, self.null_ids = class_ids, torch.full_like(class_ids, config.num_classes)
        self.both_ids = torch.cat([self.class_ids, self.null_ids])
        self.dtype = transformer.dtype  # diffusers searches all modules for it
        self.is_compiled = _is_compiled(transformer)

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H, W) -> (B, C, H, W), or (B, 2·C, H, W) with a learned variance; float32.

        Args:
            timestep: one of the scheduler's, which are on the host.
        """
        if hasattr(self.scheduler, "scale_model_input"):
            latents = self.scheduler.scale_model_input(latents, timestep)
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        scale = self.guidance.scale_at(timestep.item() / num_train_timesteps)
        if self.continuous_time:
            timestep = timestep / num_train_timesteps
        if scale == 1:
            return self._evaluate(latents, timestep, self.class_ids)
        if scale == 0:
            return self._evaluate(latents, timestep, self.null_ids)
        output, null_output = self._evaluate(torch.cat([latents, latents]), timestep, self.both_ids).chunk(2)
        guided = self.guided_channels
        output[:, guided] = torch.lerp(null_output[:, guided], output[:, guided], scale)
        return output

    def _evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor:
        timesteps = torch.full((len(latents),), timestep.item(), dtype=timestep.dtype, device=latents.device)
        if self.is_compiled:
            torch.compiler.cudagraph_mark_step_begin()  # else each compiled block would begin a step of its own
        output = self.transformer(latents.to(self.dtype), timesteps, class_ids).sample
        return output[:, : self.out_channels].to(torch.float32, copy=True)


def _is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it was compiled: in place, or as `torch.compile(model)`."""
    return any(is_compiled_module(part) or part._compiled_call_impl is not None for part in model.modules())
