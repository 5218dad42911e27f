"""Samplers by name, for configs and commands; the objectives hold the list."""

from diffusers import SchedulerMixin

from demo_diffusion.checks import shown
from demo_diffusion.objectives import OBJECTIVES

from .scheduler_fit import objective_of


def describe_samplers() -> str:
    """The names of all samplers, for help texts."""
    return "; ".join(f"{name}: {', '.join(objective.samplers)}" for name, objective in OBJECTIVES.items())


def check_sampler(name: str | None, objective: str) -> None:
    """Raises ValueError if the objective has no sampler of this name; None is its default."""
    samplers = OBJECTIVES[objective].samplers
    if name is not None and (not isinstance(name, str) or name not in samplers):
        raise ValueError(f"sampler is {shown(name)}; for objective {objective!r} it must be one of {list(samplers)}.")


def create_sampler(scheduler: SchedulerMixin, name: str | None) -> SchedulerMixin:
    """The sampler `name` for networks that `scheduler` fits; None: `scheduler` itself.

    Raises:
        ValueError: if their objective has no such sampler.
    """
    if name is None:
        return scheduler
    objective = objective_of(scheduler)
    check_sampler(name, objective)
    scheduler_class, settings = OBJECTIVES[objective].samplers[name]
    return scheduler_class.from_config(scheduler.config, **settings)
