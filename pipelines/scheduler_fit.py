"""Which diffusers scheduler fits which objective, and how each is to be called."""

import inspect
import itertools

import numpy as np
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)

from demo_diffusion.checks import check_number, is_number, shown
from demo_diffusion.objectives import OBJECTIVES

LEARNED_VARIANCE = ("learned", "learned_range")
STEPS_OF_ONE_LENGTH = (DDIMScheduler, DDIMParallelScheduler, PNDMScheduler)  # whatever the spacing of their timesteps
TELLING_SETTINGS = ("prediction_type", "invert_sigmas", "use_dynamic_shifting", "use_flow_sigmas")


def objective_of(scheduler: SchedulerMixin) -> str:
    """Name of the objective whose predictions the scheduler integrates from noise to data.

    Raises:
        ValueError: if there is none.
    """
    for name, objective in OBJECTIVES.items():
        if objective.fits(scheduler):
            return name
    settings = ", ".join(f"{name}={scheduler.config.get(name)}" for name in TELLING_SETTINGS)
    fitting = " ".join(f"For {name!r}: {fitting_schedulers(name)}." for name in OBJECTIVES)
    raise ValueError(f"{type(scheduler).__name__} with {settings} fits no objective of this package. {fitting}")


def fitting_schedulers(objective: str) -> str:
    """The schedulers of an objective's samplers, as they are created."""
    schedulers = OBJECTIVES[objective].samplers.values()
    return ", ".join(
        f"{scheduler.__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
        for scheduler, settings in schedulers
    )


def check_scheduler_fits(scheduler: SchedulerMixin, objective: str, trained_with: SchedulerMixin | None = None) -> None:
    """Checks that `scheduler` integrates what a network of `objective` predicts.

    Args:
        trained_with: a scheduler with the prediction type and the noise levels that the network knows; None: not known.

    Raises:
        ValueError: if it does not, or if its noise levels are others.
    """
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be one of {list(OBJECTIVES)}.")
    if objective_of(scheduler) != objective:
        raise ValueError(
            f"{type(scheduler).__name__} does not fit this network, which was trained with the {objective!r} "
            f"objective. Use {fitting_schedulers(objective)}."
        )
    if trained_with is not None:
        OBJECTIVES[objective].check_trained_with(scheduler, trained_with)


def takes_learned_variance(scheduler: SchedulerMixin) -> bool:
    """Whether `scheduler.step` is given noise and variance (2·C channels) or the noise alone (C).

    Other schedulers made from a DDPM's config carry its `variance_type` without using it.
    """
    is_ddpm = isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)
    return is_ddpm and scheduler.config.variance_type in LEARNED_VARIANCE


def sampling_scheduler(scheduler: SchedulerMixin, are_latents: bool) -> SchedulerMixin:
    """The scheduler, or, if a setting that has only one right value has another one, a copy with the right one.

    - The steps of DDIM and PNDM join only with "trailing" spacing.
    - Clipping to [−1, 1] is right for pixels and wrong for latents; to less it is wrong for both.
    - A DPM-Solver made from a learned-variance DDPM's config would cut what it is given to three channels (the layout
      of one pixel model).

    Raises:
        ValueError: if it would scale pixels so that they are no pixels any more.
    """
    corrections = {}
    if isinstance(scheduler, STEPS_OF_ONE_LENGTH):
        corrections["timestep_spacing"] = "trailing"
    if are_latents:
        corrections |= {"clip_sample": False, "thresholding": False}
    else:
        _check_thresholding(scheduler)
        corrections |= _range_of_pixels(scheduler)
    if scheduler.config.get("variance_type") in LEARNED_VARIANCE and not takes_learned_variance(scheduler):
        corrections["variance_type"] = None
    taken = inspect.signature(type(scheduler).__init__).parameters
    corrections = {k: v for k, v in corrections.items() if k in taken and scheduler.config.get(k) != v}
    return type(scheduler).from_config(scheduler.config, **corrections) if corrections else scheduler


def _range_of_pixels(scheduler: SchedulerMixin) -> dict[str, float]:
    limit = scheduler.config.get("clip_sample_range")
    clips_pixels = scheduler.config.get("clip_sample") and not (is_number(limit) and limit >= 1)
    return {"clip_sample_range": 1.0} if clips_pixels else {}


def _check_thresholding(scheduler: SchedulerMixin) -> None:
    """Dynamic thresholding clips to s = a quantile in [1, sample_max_value] and divides by s."""
    if scheduler.config.get("thresholding"):
        name = type(scheduler).__name__
        check_number(f"{name}'s sample_max_value", scheduler.config.get("sample_max_value"), least=1)
        ratio = scheduler.config.get("dynamic_thresholding_ratio")
        if not is_number(ratio) or not 0 <= ratio <= 1:
            raise ValueError(f"{name}'s dynamic_thresholding_ratio is {shown(ratio)}; it must be in [0, 1].")


def set_timesteps(scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device) -> None:
    """Prepares the scheduler for a run.

    diffusers' Euler scheduler for flow matching by itself stops at t = 0.001 and spends a last network evaluation on
    the rest; here its steps are equal and end at 0. DDPM keeps the timesteps that the official code keeps.

    Raises:
        ValueError: if the scheduler cannot take this number of steps.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    elif isinstance(scheduler, DDPMScheduler) and scheduler.config.timestep_spacing == "linspace":
        kept = respaced_timesteps(scheduler.config.num_train_timesteps, num_inference_steps)
        scheduler.set_timesteps(timesteps=kept[::-1], device=device)
    else:
        if isinstance(scheduler, STEPS_OF_ONE_LENGTH):
            _check_divides(num_inference_steps, scheduler.config.num_train_timesteps)
        if isinstance(scheduler, DPMSolverMultistepScheduler) and not scheduler.config.use_flow_sigmas:
            _check_fewer(num_inference_steps, scheduler.config.num_train_timesteps)
        scheduler.set_timesteps(num_inference_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it looks the first timestep up, and finds the second of two equal ones


def _check_divides(num_inference_steps: int, num_train_timesteps: int) -> None:
    """diffusers' DDIM and PNDM step by the whole part of the ratio, whatever the spacing of their timesteps."""
    if num_train_timesteps % num_inference_steps:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; the scheduler's steps join only if it "
            f"divides {num_train_timesteps}. Use such a number (20, 25, 40, 50, 100, 125, 200, 250 of 1000), or "
            "DPMSolverMultistepScheduler."
        )


def _check_fewer(num_inference_steps: int, num_train_timesteps: int) -> None:
    """diffusers' DPM-Solver divides by zero between two equal timesteps."""
    if num_inference_steps >= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; DPM-Solver's timesteps differ only if there are fewer than "
            f"{num_train_timesteps}. 10 to 50 are usual."
        )


def respaced_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """The timesteps that Improved DDPM's code (ADM's, DiT's) keeps, ascending.

    It adds up the stride before it rounds; numpy.linspace, as diffusers uses it, differs by one timestep for 278 of the
    numbers of steps up to 1000.

    Raises:
        ValueError: if there are more steps than timesteps.
    """
    if num_inference_steps > num_train_timesteps:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at most {num_train_timesteps}.")
    stride = (num_train_timesteps - 1) / max(num_inference_steps - 1, 1)
    positions = itertools.accumulate([stride] * (num_inference_steps - 1), initial=0.0)
    return [round(position) for position in positions]
