"""Whether a scheduler gives right samples in the steps that are asked for."""

import json
import math

from diffusers import SchedulerMixin

from demo_diffusion.objectives.ddpm import check_ends_as_noise

from .gaussian_probe import Gaussian, probe
from .scheduler_fit import fitting_schedulers

DATA = Gaussian(mean=0.5, std=0.8)
MANY_STEPS = 200
# Allowed error of the spread, times the number of steps: the largest of diffusers' right solvers, rounded up. In few
# steps spread is lost (DDIM 1.7/n, DDPM with the smaller variance 4/n); solvers of second order gain some.
LOST_SPREAD, LOST_SPREAD_STOCHASTIC, GAINED_SPREAD = 2.0, 4.5, 1.5
# Allowed besides: flow solvers that start at t = 0.999 miss 1/1000 of the mean; adaptive ones have a tolerance.
MEAN_FLOOR, SPREAD_FLOOR = 0.0006, 0.003

_known_problems: dict[tuple, str | None] = {}


def check_samples_are_right(
    scheduler: SchedulerMixin, objective: str, trained_with: SchedulerMixin, num_inference_steps: int
) -> None:
    """Compares a Gaussian with what the scheduler makes of it, given the network that is exact for it.

    The mean must be right in any number of steps, and the spread within an error that falls with their number. In
    many steps both must be right, whatever the number asked for.

    Args:
        trained_with: a scheduler with the noise levels that the network knows.

    Raises:
        ValueError: if they are not, if the noise that the network knows is none, or if the scheduler cannot be run as
            a pipeline runs it.
    """
    signal = getattr(trained_with, "alphas_cumprod", None) if objective == "ddpm" else None
    if signal is not None:
        check_ends_as_noise(signal)
    settings = (type(scheduler), _settings_of(scheduler), _settings_of(trained_with))
    for steps in (num_inference_steps, _many_steps(scheduler.config.num_train_timesteps)):
        if (settings, steps) not in _known_problems:
            _known_problems[settings, steps] = _problem(scheduler, signal, steps)
        if problem := _known_problems[settings, steps]:
            raise ValueError(
                f"{type(scheduler).__name__} {problem}. Use {fitting_schedulers(objective)}, or another number of "
                "steps."
            )


def _settings_of(scheduler: SchedulerMixin) -> str:
    """A scheduler's settings as text; one may be another scheduler or an array."""
    return json.dumps(
        dict(scheduler.config), default=lambda value: value.tolist() if hasattr(value, "tolist") else repr(value)
    )


def _many_steps(num_train_timesteps: int) -> int:
    """A number that also DDIM takes: it divides the number of training steps."""
    return max(n for n in range(1, min(MANY_STEPS, num_train_timesteps) + 1) if num_train_timesteps % n == 0)


def _problem(scheduler: SchedulerMixin, signal, num_inference_steps: int) -> str | None:
    try:
        (mean, std), is_stochastic = probe(scheduler, signal, DATA, num_inference_steps)
    except Exception as error:  # schedulers raise almost anything where they do not fit
        return f"cannot be run with {num_inference_steps} steps here ({type(error).__name__}: {error})".replace(
            "\n", " "
        )
    missing_signal = 0.0 if signal is None else 1.2 * math.sqrt(signal[-1].item())  # the initial noise has none
    lost = LOST_SPREAD_STOCHASTIC if is_stochastic else LOST_SPREAD
    floor = SPREAD_FLOOR + missing_signal * DATA.std
    is_right = (
        abs(mean - DATA.mean) <= MEAN_FLOOR + missing_signal * DATA.mean
        and -lost / num_inference_steps - floor <= std - DATA.std <= GAINED_SPREAD / num_inference_steps + floor
    )
    if is_right:
        return None
    return (
        f"gives wrong samples with {num_inference_steps} steps: mean {mean:.3f} and spread {std:.3f} where "
        f"{DATA.mean} and {DATA.std} are right"
    )
