"""SiT's stochastic samplers for velocity networks (arXiv 2401.08740, Sec. 3.3 and App. A)."""

import itertools
import math

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from demo_diffusion.checks import check_choice, check_number, check_whole

from .step_checks import check_generator, check_step

# The diffusion coefficient w(t), t = 1 noise, before diffusion_norm (SiT, Sec. 3.3; the names are its code's).
DIFFUSION_FORMS = {
    "constant": lambda t, norm: norm,
    "sbdm": lambda t, norm: norm * t / (1 - t),
    "sigma": lambda t, norm: norm * t,
    "linear": lambda t, norm: norm * t,
    "decreasing": lambda t, norm: 0.25 * (norm * math.cos(math.pi * (1 - t)) + 1) ** 2,
    "increasing-decreasing": lambda t, norm: norm * math.sin(math.pi * t) ** 2,
}
SOLVERS = ("euler", "heun")
LAST_STEPS = ("mean", "tweedie", "euler", None)
SBDM_START = 0.999  # "sbdm" is infinite at t = 1; as far from it as SiT's code keeps from its other singularities


def score_from_velocity(velocity: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
    """∇ log p_t(x) = −(x + (1 − t) · velocity) / t of the linear path, velocity = noise − data (SiT, eq. 9)."""
    return -(x + (1 - t) * velocity) / t


class FlowMatchSDEScheduler(SchedulerMixin, ConfigMixin):
    """Integrates the reverse-time SDE dx = (v − w · score) dt + √(2 w) dW from noise (t = 1) to data (t = 0).

    Its marginals are those of the probability-flow ODE for every diffusion coefficient w(t) ≥ 0. The defaults are the
    setting of SiT's published numbers: Euler–Maruyama, w = t, and a last step of 0.04 without noise; with 250 steps,
    250 network calls. `num_inference_steps` counts the steps, the last one included; with Heun every step but the
    last calls the network twice.

    Args:
        num_train_timesteps: scale of the timesteps that a pipeline sees: timestep = t · num_train_timesteps.
        solver: "euler" (Euler–Maruyama) or "heun" (noise first, then a Heun step of the drift).
        diffusion_form: w(t), one of `DIFFUSION_FORMS`; on this path "linear" is "sigma" by its other name.
        diffusion_norm: factor on w(t) ("decreasing": on its cosine).
        last_step: from t = last_step_size to 0: "mean" (the SDE's drift), "tweedie" (the posterior mean of the data),
            "euler" (the ODE), or None: steps of equal length to the end, with noise in all of them.
        last_step_size: length of the last step, in (0, 1); not used if there is none.

    Raises:
        ValueError: if a setting is not allowed.
    """

    _compatibles = []
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver: str = "euler",
        diffusion_form: str = "sigma",
        diffusion_norm: float = 1.0,
        last_step: str | None = "mean",
        last_step_size: float = 0.04,
    ):
        for name, value, allowed in (
            ("solver", solver, SOLVERS),
            ("diffusion_form", diffusion_form, tuple(DIFFUSION_FORMS)),
            ("last_step", last_step, LAST_STEPS),
        ):
            check_choice(name, value, allowed)
        check_whole("num_train_timesteps", num_train_timesteps)
        check_number("diffusion_norm", diffusion_norm, least=0)
        check_number("last_step_size", last_step_size, above=0, below=1)
        self.timesteps = None
        self.init_noise_sigma = 1.0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Prepares a run.

        Raises:
            ValueError: if there is not at least one step, or, with a last step, one before it.
        """
        config = self.config
        least = 1 if config.last_step is None else 2
        check_whole("num_inference_steps", num_inference_steps, least)
        self.num_inference_steps = num_inference_steps
        start = SBDM_START if config.diffusion_form == "sbdm" else 1.0
        end = 0.0 if config.last_step is None else config.last_step_size
        intervals = num_inference_steps - (config.last_step is not None)
        grid = torch.linspace(start, end, intervals + 1, dtype=torch.float64).tolist()
        self._step_size = grid[0] - grid[1]
        # Each entry is one network call: its time, and which part of a step it is.
        self._calls = []
        for now, later in itertools.pairwise(grid):
            self._calls.append((now, "first"))
            if config.solver == "heun" and later > 0:  # at t = 0 the score does not exist
                self._calls.append((later, "second"))
        if config.last_step is not None:
            self._calls.append((end, "last"))
        times = torch.tensor([t for t, _ in self._calls], dtype=torch.float64)
        self.timesteps = (times * config.num_train_timesteps).to(device, torch.float32)
        # Heun adds a step's noise before its first network call; to the first step's, noise of this size is given.
        self.init_noise_sigma = math.sqrt(1 + self._noise_scale(start) ** 2) if config.solver == "heun" else 1.0
        self._index = 0
        self._before_step = self._drift_at_start = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Takes the network's velocity at the next of `timesteps`, in their order, and gives the next sample.

        Args:
            model_output, sample: (B, C, H, W), velocity noise − data and the current sample.
            timestep: the current entry of `timesteps`.

        Raises:
            RuntimeError: if `set_timesteps` was not called, or all steps have been taken.
            ValueError: if an argument is not allowed, or the velocity is not finite.
        """
        if self.timesteps is None or self._index >= len(self._calls):
            raise RuntimeError("There is no step left; call set_timesteps(num_inference_steps) before a run.")
        expected = self._calls[self._index][0] * self.config.num_train_timesteps
        check_step(model_output, timestep, sample, expected, self.config.num_train_timesteps)
        check_generator(generator)
        (t, part), dtype = self._calls[self._index], sample.dtype
        velocity, x = model_output.float(), sample.float()
        self._index += 1
        if part == "last":
            x = self._last_step(velocity, x, t)
        elif self.config.solver == "euler":
            x = x + self._drift(velocity, x, t) * self._step_size
            x = x + self._noise_scale(t) * self._noise(x, generator)
        else:
            x = self._heun(velocity, x, t, part, generator)
        x = x.to(dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def _heun(
        self,
        velocity: torch.Tensor,
        x: torch.Tensor,
        t: float,
        part: str,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        drift = self._drift(velocity, x, t)
        if part == "first":
            self._before_step, self._drift_at_start = x, drift
            return x + drift * self._step_size
        x = self._before_step + (self._drift_at_start + drift) / 2 * self._step_size
        begins_step = self._index < len(self._calls) and self._calls[self._index][1] == "first"
        return x + self._noise_scale(t) * self._noise(x, generator) if begins_step else x

    def _drift(self, velocity: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
        """The SDE's drift towards the data: −v + w · score."""
        return self._diffusion(t) * score_from_velocity(velocity, x, t) - velocity

    def _last_step(self, velocity: torch.Tensor, x: torch.Tensor, t: float) -> torch.Tensor:
        if self.config.last_step == "mean":
            return x + self._drift(velocity, x, t) * t
        if self.config.last_step == "tweedie":
            return (x + t**2 * score_from_velocity(velocity, x, t)) / (1 - t)
        return x - velocity * t

    def _diffusion(self, t: float) -> float:
        return DIFFUSION_FORMS[self.config.diffusion_form](t, self.config.diffusion_norm)

    def _noise_scale(self, t: float) -> float:
        """Standard deviation of the noise of the step that starts at t."""
        return math.sqrt(2 * self._diffusion(t) * self._step_size)

    def _noise(self, like: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
