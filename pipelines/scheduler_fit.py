"""Which diffusers scheduler fits which objective, and how each is to be called."""

import inspect
import itertools

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)

from demo_diffusion.objectives.ddpm import PREDICTION_TYPES

OBJECTIVES = {
    "ddpm": "DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler or another one with prediction_type='epsilon' "
    "(or 'v_prediction')",
    "flow": "FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, demo_diffusion's FlowMatchSDEScheduler "
    "and FlowMatchDopri5Scheduler, or DPMSolverMultistepScheduler with prediction_type='flow_prediction', "
    "use_flow_sigmas=True",
}
LEARNED_VARIANCE = ("learned", "learned_range")
UNSUITABLE_SETTINGS = ("invert_sigmas", "use_dynamic_shifting")


def objective_of(scheduler: SchedulerMixin) -> str:
    """ "ddpm" if the scheduler integrates a prediction of noise (or v) from noise to data, "flow" if a velocity.

    Raises:
        ValueError: if it does something else.
    """
    name, config = type(scheduler).__name__, scheduler.config
    settings = {key: config.get(key) for key in ("prediction_type", *UNSUITABLE_SETTINGS, "use_flow_sigmas")}
    samples = not any(settings[key] for key in UNSUITABLE_SETTINGS) and not name.endswith("InverseScheduler")
    if samples and (name.startswith("FlowMatch") or settings["use_flow_sigmas"]):
        if settings["prediction_type"] in (None, "flow_prediction"):
            return "flow"
    elif samples and settings["prediction_type"] in PREDICTION_TYPES and hasattr(scheduler, "alphas_cumprod"):
        return "ddpm"
    raise ValueError(
        f"{name} with {', '.join(f'{key}={value}' for key, value in settings.items())} fits no objective of this "
        f"package. Noise or v-prediction: {OBJECTIVES['ddpm']}. Velocity prediction: {OBJECTIVES['flow']}."
    )


def check_scheduler_fits(scheduler: SchedulerMixin, objective: str, trained_with: SchedulerMixin | None = None) -> None:
    """Checks that `scheduler` integrates what a network of `objective` predicts.

    Args:
        trained_with: a scheduler with the prediction type and the noise levels that the network knows; None: not known.

    Raises:
        ValueError: if it does not, or if its noise levels are others.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be one of {list(OBJECTIVES)}.")
    name = type(scheduler).__name__
    if objective_of(scheduler) != objective:
        raise ValueError(
            f"{name} does not fit this network, which was trained with the {objective!r} objective. "
            f"Use {OBJECTIVES[objective]}."
        )
    if objective == "flow" or trained_with is None:
        return
    if scheduler.config.prediction_type != trained_with.config.prediction_type:
        raise ValueError(
            f"{name} integrates {scheduler.config.prediction_type!r}, but this network was trained for "
            f"{trained_with.config.prediction_type!r}. {_advice(name)}"
        )
    own, known = scheduler.alphas_cumprod.cpu(), trained_with.alphas_cumprod.cpu()
    if own.shape != known.shape or not torch.allclose(own, known, atol=1e-6):
        raise ValueError(
            f"{name} has other noise levels (betas, number of training steps) than this network was trained with. "
            f"{_advice(name)}"
        )


def _advice(name: str) -> str:
    return f"Create it with {name}.from_config(scheduler.config), from the scheduler that the pipeline was loaded with."


def takes_learned_variance(scheduler: SchedulerMixin) -> bool:
    """Whether `scheduler.step` is given noise and variance (2·C channels) or the noise alone (C).

    Other schedulers made from a DDPM's config carry its `variance_type` without using it.
    """
    is_ddpm = isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)
    return is_ddpm and scheduler.config.variance_type in LEARNED_VARIANCE


def without_variance_slicing(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler, or, if it would cut what it is given to three channels, a copy of it that does not.

    That is what a DPM-Solver made from a learned-variance DDPM's config does (the layout of one pixel model); it would
    ruin four-channel latents.
    """
    has_setting = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
    slices = has_setting and scheduler.config.variance_type in LEARNED_VARIANCE
    if takes_learned_variance(scheduler) or not slices:
        return scheduler
    return type(scheduler).from_config(scheduler.config, variance_type=None)


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
        if isinstance(scheduler, DDIMScheduler) and scheduler.config.timestep_spacing != "leading":
            _check_divides(num_inference_steps, scheduler.config.num_train_timesteps)
        if isinstance(scheduler, DPMSolverMultistepScheduler) and not scheduler.config.use_flow_sigmas:
            _check_fewer(num_inference_steps, scheduler.config.num_train_timesteps)
        scheduler.set_timesteps(num_inference_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it looks the first timestep up, and finds the second of two equal ones


def _check_divides(num_inference_steps: int, num_train_timesteps: int) -> None:
    """diffusers' DDIM steps by the whole part of the ratio, whatever the spacing of its timesteps."""
    if num_train_timesteps % num_inference_steps:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}; DDIM's steps end where the next ones start only if it "
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
