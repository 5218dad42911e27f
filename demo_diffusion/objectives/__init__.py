"""What a network learns to predict.

Read `common` (what the package asks of an objective), then `flow` (velocity on the linear path) and `ddpm` (noise and
learned variance).
"""

import inspect

from demo_diffusion.checks import check_choice

from .common import Objective
from .ddpm import DDPMObjective
from .flow import FlowObjective

# Name, as configs and saved pipelines have it -> class.
OBJECTIVES: dict[str, type[Objective]] = {"ddpm": DDPMObjective, "flow": FlowObjective}

__all__ = ["OBJECTIVES", "DDPMObjective", "FlowObjective", "Objective", "create_objective"]


def create_objective(name: str, **settings) -> Objective:
    """An objective from its name.

    Args:
        name: a key of `OBJECTIVES`.
        settings: arguments of its class.

    Raises:
        ValueError: if the name is unknown, or a setting is unknown, another objective's or not allowed.
    """
    check_choice("objective", name, OBJECTIVES)
    for setting, value in settings.items():
        owners = [owner for owner, each in OBJECTIVES.items() if setting in inspect.signature(each).parameters]
        if not owners:
            raise ValueError(f"No objective has the setting {setting!r}.")
        if name not in owners:
            raise ValueError(f"{setting} {value!r} needs objective {' or '.join(map(repr, owners))}.")
    return OBJECTIVES[name](**settings)
