"""The adaptive ODE solver that SiT samples with by default: Dormand–Prince 5(4)."""

import math
from collections.abc import Iterator

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from demo_diffusion.checks import check_number, check_whole

from .step_checks import check_step

# Dormand & Prince (1980), Table 2: the stages' nodes and weights; the last stage is the fifth-order solution.
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Fifth-order minus fourth-order weights.
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0  # of the step size (Hairer, Nørsett & Wanner, II.4)
SMALLEST_STEP = 1e-6


class FlowMatchDopri5Scheduler(SchedulerMixin, ConfigMixin):
    """Integrates the velocity from noise (t = 1) to data (t = 0) with steps chosen by their error.

    A step of size h is taken if the root mean square of error / (atol + rtol · |x|) over the whole batch is at most 1;
    so, within the tolerance, a sample depends on the batch that it is drawn in. A step costs six network calls (the
    first one seven), a rejected one too; how many there are is known at the end: `num_evaluations`.

    `timesteps` is not a list but an iterator over the times at which the network is called, each known only after the
    step before. It serves any loop `for t in scheduler.timesteps: … scheduler.step(…)`.

    Args:
        num_train_timesteps: scale of the timesteps that a pipeline sees: timestep = t · num_train_timesteps.
        rtol, atol: relative and absolute tolerance (SiT's: 1e-3 and 1e-6).

    Raises:
        ValueError: if a setting is not positive.
    """

    _compatibles = []
    order = 5
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, rtol: float = 1e-3, atol: float = 1e-6):
        check_whole("num_train_timesteps", num_train_timesteps)
        check_number("rtol", rtol, above=0)
        check_number("atol", atol, above=0)
        self._device = self._time = None
        self.num_evaluations = 0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Prepares a run. The first step tried is 1 / num_inference_steps long; what follows, the error decides."""
        check_whole("num_inference_steps", num_inference_steps)
        self.num_evaluations = 0
        self._time, self._step_size = 1.0, 1.0 / num_inference_steps
        self._start, self._slopes, self._rejected, self._device = None, [], False, device

    @property
    def timesteps(self) -> Iterator[torch.Tensor] | None:
        return None if self._time is None else self._times()

    def _times(self) -> Iterator[torch.Tensor]:
        while self._time > 0:
            yield torch.tensor(self._next_timestep(), device=self._device)

    def _next_timestep(self) -> float:
        t = self._time - NODES[len(self._slopes)] * self._step_size
        return max(t, 0.0) * self.config.num_train_timesteps

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Takes the velocity noise − data at the current one of `timesteps`; gives where the next one is needed.

        Args:
            model_output, sample: (B, C, H, W)

        Raises:
            RuntimeError: if there is no step left.
            ValueError: if an argument is not allowed, or the velocity is not finite or too rough for any step.
        """
        if self._time is None or self._time <= 0:
            raise RuntimeError("There is no step left; call set_timesteps(num_inference_steps) before a run.")
        check_step(model_output, timestep, sample, self._next_timestep(), self.config.num_train_timesteps)
        if self._start is None:
            self._start = sample.float()
        self.num_evaluations += 1
        self._slopes.append(-model_output.float())  # towards the data, in which direction the steps are positive
        if len(self._slopes) == len(NODES):
            self._finish_step()
        x = self._start
        if self._time > 0:
            x = x + self._step_size * _weighted_sum(STAGES[len(self._slopes)], self._slopes)
        x = x.to(sample.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _finish_step(self) -> None:
        """Accepts or rejects the step and chooses the next one's size; the first slope is kept in both cases."""
        size = self._step_size
        end = self._start + size * _weighted_sum(STAGES[-1], self._slopes[:-1])
        tolerance = self.config.atol + self.config.rtol * torch.maximum(self._start.abs(), end.abs())
        error = (size * _weighted_sum(ERROR, self._slopes) / tolerance).square().mean().sqrt().item()
        if not math.isfinite(error):
            raise ValueError(f"The velocity is not finite near t = {self._time:.6f}; there is no sample.")
        factor = MAX_FACTOR if error == 0 else min(MAX_FACTOR, max(MIN_FACTOR, SAFETY * error**-0.2))
        if error <= 1:
            factor = min(factor, 1.0) if self._rejected else factor  # do not grow at once what was just too long
            self._time = 0.0 if self._time - size < SMALLEST_STEP else self._time - size
            self._start, self._slopes = end, [self._slopes[-1]]
        else:
            self._slopes = [self._slopes[0]]
        self._rejected = error > 1
        self._step_size = min(size * factor, self._time)
        if self._time > 0 and self._step_size < SMALLEST_STEP:
            raise ValueError(
                f"No step of at least {SMALLEST_STEP} meets rtol={self.config.rtol:g}, atol={self.config.atol:g} near "
                f"t = {self._time:.6f}; use larger tolerances."
            )


def _weighted_sum(weights: tuple[float, ...], tensors: list[torch.Tensor]) -> torch.Tensor:
    return sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True) if weight)
