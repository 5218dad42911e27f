"""Which diffusers scheduler fits which objective, and a slicing that must not happen."""

from diffusers import DDPMParallelScheduler, DDPMScheduler, SchedulerMixin

OBJECTIVES = {
    "ddpm": "DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler or another one with prediction_type='epsilon'",
    "flow": "FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, or DPMSolverMultistepScheduler with "
    "prediction_type='flow_prediction', use_flow_sigmas=True",
}


def objective_of(scheduler: SchedulerMixin) -> str:
    """ "ddpm" if the scheduler integrates a noise prediction, "flow" if a velocity.

    Raises:
        ValueError: if it integrates another prediction.
    """
    prediction_type = scheduler.config.get("prediction_type")
    if prediction_type == "epsilon":
        return "ddpm"
    if prediction_type == "flow_prediction" or type(scheduler).__name__.startswith("FlowMatch"):
        return "flow"
    raise ValueError(
        f"{type(scheduler).__name__} (prediction_type={prediction_type!r}) fits no objective of this package. "
        f"Noise prediction: {OBJECTIVES['ddpm']}. Velocity prediction: {OBJECTIVES['flow']}."
    )


def check_scheduler_fits(scheduler: SchedulerMixin, objective: str) -> None:
    """Raises a ValueError unless `scheduler` integrates what a network of `objective` predicts."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be one of {list(OBJECTIVES)}.")
    if objective_of(scheduler) != objective:
        raise ValueError(
            f"{type(scheduler).__name__} does not fit this network, which was trained with the {objective!r} "
            f"objective. Use {OBJECTIVES[objective]}."
        )


def takes_learned_variance(scheduler: SchedulerMixin) -> bool:
    """Whether `scheduler.step` is given noise and variance (2·C channels) or the noise alone (C).

    Other schedulers made from a DDPM's config carry its `variance_type` without using it.
    """
    is_ddpm = isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler)
    return is_ddpm and scheduler.config.variance_type in ("learned", "learned_range")


def without_variance_slicing(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The same scheduler, told that it is given the noise alone, unless it takes the learned variance.

    A DPM-Solver made from a learned-variance DDPM's config cuts its input to three channels (the layout of one pixel
    model), which ruins four-channel latents.
    """
    if takes_learned_variance(scheduler) or scheduler.config.get("variance_type") not in ("learned", "learned_range"):
        return scheduler
    return type(scheduler).from_config(scheduler.config, variance_type=None)
