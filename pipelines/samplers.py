"""Samplers by name, for configs and commands."""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)

from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.schedulers import FlowMatchDopri5Scheduler, FlowMatchSDEScheduler

# Objective -> name -> (class, settings that differ from the objective's scheduler); the first is the default.
SAMPLERS = {
    "ddpm": {
        "ddpm": (DDPMScheduler, {}),
        "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),  # the only spacing whose steps DDIM takes exactly
    },
    "flow": {
        "euler": (FlowMatchEulerDiscreteScheduler, {}),
        "heun": (FlowMatchHeunDiscreteScheduler, {}),
        "dopri5": (FlowMatchDopri5Scheduler, {}),
        "sde": (FlowMatchSDEScheduler, {}),
    },
}


def create_sampler(objective: DDPMObjective | FlowObjective, name: str | None = None) -> SchedulerMixin:
    """A sampler for networks of `objective`; None: its default.

    Raises:
        ValueError: if this objective has no sampler of that name.
    """
    samplers = SAMPLERS["ddpm" if isinstance(objective, DDPMObjective) else "flow"]
    if name is None:
        return objective.scheduler()
    if name not in samplers:
        raise ValueError(f"sampler is {name!r}; for this objective it must be one of {list(samplers)}.")
    scheduler_class, settings = samplers[name]
    return scheduler_class.from_config(objective.scheduler().config, **settings)
