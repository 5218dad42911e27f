"""What a scheduler makes of data whose exact network is known: the mean and the spread of its samples."""

import copy
import inspect
import math
from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch.overrides import TorchFunctionMode

from .scheduler_fit import set_timesteps, takes_learned_variance

NORMAL_DRAWS = (torch.randn, torch.randn_like)


class Gaussian(NamedTuple):
    """Every value is drawn from N(mean, std²)."""

    mean: float
    std: float


class Probed(NamedTuple):
    """The samples that a scheduler made, and whether it drew noise on the way."""

    samples: Gaussian
    is_stochastic: bool


class _SeparateNoises(TorchFunctionMode):
    """Gives the k-th drawing of normal noise a column of its own: 1 there and 0 elsewhere."""

    def __init__(self, first_column: int):
        super().__init__()
        self.column = first_column

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in NORMAL_DRAWS:
            result.zero_()[..., self.column] = 1
            self.column += 1
        return result


def probe(scheduler: SchedulerMixin, signal: torch.Tensor | None, data: Gaussian, num_inference_steps: int) -> Probed:
    """Samples of `data` in this number of steps, exactly: without clipping, a scheduler is affine in its noises.

    Column 0 of the samples starts from zeros and gets no noise, so it ends at the mean. Each further column gets one
    of the noises (the second one the initial noise), so it differs from the mean by what this noise adds.

    Args:
        scheduler: it is not changed.
        signal: ᾱ of the trained timesteps (T,); None: the network predicts the velocity of flow matching.
    """
    scheduler = _without_clipping(scheduler)
    set_timesteps(scheduler, num_inference_steps, torch.device("cpu"))
    x = torch.zeros(1, 1, 1, 2 * num_inference_steps + 8)
    x[..., 1] = getattr(scheduler, "init_noise_sigma", 1.0)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator()} if takes_generator else {}
    with _SeparateNoises(2) as noises:
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
            output = _exact_output(seen, float(timestep), scheduler, signal, data)
            x = scheduler.step(output, timestep, x, **options).prev_sample
    x = x.double().flatten()
    samples = Gaussian(x[0].item(), (x[1:] - x[0]).square().sum().sqrt().item())
    return Probed(samples, noises.column > 2)


def _without_clipping(scheduler: SchedulerMixin) -> SchedulerMixin:
    """A copy that does not clip, which is right for pixels but not for a Gaussian."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.register_to_config(
        **{name: False for name in ("clip_sample", "thresholding") if scheduler.config.get(name)}
    )
    return scheduler


def _exact_output(
    x: torch.Tensor, timestep: float, scheduler: SchedulerMixin, signal: torch.Tensor | None, data: Gaussian
) -> torch.Tensor:
    """What the exact network gives at a timestep of the scheduler; its learned variance is the smaller bound."""
    if signal is None:
        return exact_velocity(x, timestep / scheduler.config.num_train_timesteps, data)
    output = exact_noise(x, _signal_at(signal, timestep), data, scheduler.config.prediction_type)
    return torch.cat([output, -torch.ones_like(output)], dim=1) if takes_learned_variance(scheduler) else output


def exact_velocity(x: torch.Tensor, t: float, data: Gaussian) -> torch.Tensor:
    """E[noise − x0 | x] at t, 0 data and 1 noise."""
    variance = (1 - t) ** 2 * data.std**2 + t**2
    return (t - (1 - t) * data.std**2) / variance * (x - (1 - t) * data.mean) - data.mean


def exact_noise(x: torch.Tensor, signal: float, data: Gaussian, prediction_type: str) -> torch.Tensor:
    """E[noise | x], or E[v | x], where ᾱ is `signal`."""
    centred = (x - math.sqrt(signal) * data.mean) / (signal * data.std**2 + 1 - signal)
    noise = math.sqrt(1 - signal) * centred
    if prediction_type == "epsilon":
        return noise
    x0 = data.mean + math.sqrt(signal) * data.std**2 * centred
    return math.sqrt(signal) * noise - math.sqrt(1 - signal) * x0


def _signal_at(signal: torch.Tensor, timestep: float) -> float:
    """Between two timesteps, ᾱ is taken to be linear; raises ValueError for one that the network never saw."""
    last = len(signal) - 1
    if not 0 <= timestep <= last:
        raise ValueError(f"it asks for timestep {timestep:g}; the network knows 0 … {last}")
    low = int(timestep)
    return torch.lerp(signal[low], signal[min(low + 1, last)], timestep - low).item()
