"""Samplers by name, for configs and commands."""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)

from demo_diffusion.schedulers import FlowMatchDopri5Scheduler, FlowMatchSDEScheduler

from .scheduler_fit import objective_of

# Objective -> name -> (class, settings that it needs besides the objective's own); the first is the default.
SAMPLERS = {
    "ddpm": {
        "ddpm": (DDPMScheduler, {"timestep_spacing": "linspace"}),  # the official one
        "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),  # starts from the last timestep
        "dpm_solver": (DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}),
    },
    "flow": {
        "euler": (FlowMatchEulerDiscreteScheduler, {}),
        "heun": (FlowMatchHeunDiscreteScheduler, {}),
        "dpm_solver": (DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
        "dopri5": (FlowMatchDopri5Scheduler, {}),
        "sde": (FlowMatchSDEScheduler, {}),
    },
}


def create_sampler(scheduler: SchedulerMixin, name: str | None) -> SchedulerMixin:
    """The sampler `name` for networks that `scheduler` fits; None: `scheduler` itself.

    Raises:
        ValueError: if there is no such sampler for their objective.
    """
    if name is None:
        return scheduler
    objective = objective_of(scheduler)
    if name not in SAMPLERS[objective]:
        raise ValueError(
            f"sampler is {name!r}; for objective {objective!r} it must be one of {list(SAMPLERS[objective])}."
        )
    scheduler_class, settings = SAMPLERS[objective][name]
    return scheduler_class.from_config(scheduler.config, **settings)
