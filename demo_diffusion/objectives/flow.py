"""Velocity prediction on the linear path: flow matching as in SiT and Stable Diffusion 3."""

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)

from demo_diffusion.checks import check_choice, check_number
from demo_diffusion.schedulers import FlowMatchDopri5Scheduler, FlowMatchSDEScheduler

from .common import Objective, check_draw, expand_to, integrates_velocity, mean_over_sample, samples

TIMESTEP_SAMPLING = ("uniform", "logit_normal")
LINEAR_PATH = {"path": "linear"}


class FlowObjective(Objective):
    """MSE on the velocity noise − x0 along x_t = (1 − t) · x0 + t · noise, t in [0, 1].

    t = 1 is noise, as in diffusers' flow-matching schedulers (arXiv 2210.02747; SiT, arXiv 2401.08740, runs time the
    other way). A network with 2·C output channels for C is accepted, as SiT's are: the second half is not used.

    Args:
        timestep_sampling: distribution of t; "logit_normal": t = sigmoid(z), z normal (arXiv 2403.03206, Sec. 3.1).
        logit_mean: mean of the logit-normal's z.
        logit_std: standard deviation of the logit-normal's z.
        direction_weight: weight of an added 1 − cos(prediction, velocity), the angle taken over the channels of each
            position (FasterDiT, arXiv 2410.10356, Sec. 3.3); 0: plain flow matching.

    Raises:
        ValueError: if a setting is not allowed.
    """

    continuous_time = True
    samplers = {
        "euler": (FlowMatchEulerDiscreteScheduler, {}),
        "heun": (FlowMatchHeunDiscreteScheduler, {}),
        "dpm_solver": (DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
        "dopri5": (FlowMatchDopri5Scheduler, {}),
        "sde": (FlowMatchSDEScheduler, {}),
    }

    def __init__(
        self,
        timestep_sampling: Literal[TIMESTEP_SAMPLING] = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        direction_weight: float = 0.0,
    ):
        super().__init__()
        check_choice("timestep_sampling", timestep_sampling, TIMESTEP_SAMPLING)
        check_number("logit_mean", logit_mean)
        check_number("logit_std", logit_std, above=0)
        check_number("direction_weight", direction_weight, least=0)
        self.timestep_sampling = timestep_sampling
        self.logit_mean = logit_mean
        self.logit_std = logit_std
        self.direction_weight = direction_weight

    @property
    def last_timestep(self) -> int:
        return 1

    @staticmethod
    def fits(scheduler: SchedulerMixin) -> bool:
        """Whether a scheduler integrates a velocity from noise to data."""
        predicts_velocity = scheduler.config.get("prediction_type") in (None, "flow_prediction")
        return samples(scheduler) and integrates_velocity(scheduler) and predicts_velocity

    @staticmethod
    def noise_settings(scheduler: SchedulerMixin) -> dict:
        """The path between data and noise."""
        return dict(LINEAR_PATH)

    @staticmethod
    def trained_scheduler(noise_settings: dict) -> FlowMatchEulerDiscreteScheduler:
        """The default sampler; there is only one path."""
        if noise_settings != LINEAR_PATH:
            raise ValueError(f"the settings of the noise must be {LINEAR_PATH}.")
        return FlowMatchEulerDiscreteScheduler()

    def out_channels(self, in_channels: int) -> int:
        """Channels that the network must give for `in_channels`."""
        return in_channels

    def check_channels(self, out_channels: int, in_channels: int) -> None:
        """Raises ValueError if a network or images with these channels do not fit."""
        if self.direction_weight and in_channels == 1:
            raise ValueError("direction_weight needs more than one channel: with one, a direction is only a sign.")
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(
                f"The network gives {out_channels} channels for {in_channels}; the velocity needs {in_channels} (or "
                f"twice as many, as SiT has). Set out_channels to {in_channels}."
            )

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The default sampler; `DEMOPipeline` gives it steps of equal length."""
        return FlowMatchEulerDiscreteScheduler()

    def sample_timesteps(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Times t (B,), on the generator's device (the CPU without one)."""
        check_draw(batch_size, generator)
        device = generator.device if generator is not None else "cpu"
        if self.timestep_sampling == "uniform":
            return torch.rand(batch_size, generator=generator, device=device)
        z = torch.randn(batch_size, generator=generator, device=device)
        return torch.sigmoid(self.logit_mean + self.logit_std * z)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t of (B, C, H, W) for times t (B,)."""
        self.check_noised(x0, noise, t)
        t = expand_to(t, x0)
        return (1 - t) * x0 + t * noise

    def losses(
        self, model_output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Args:
            model_output: (B, C or 2·C, H, W), the network's output for `add_noise(x0, noise, t)`.
            x0, noise: (B, C, H, W)
            t: (B,), unused, so that all objectives are called alike.

        Returns:
            "loss" (B,).

        Raises:
            ValueError: if the output has neither C nor 2·C channels, or shapes, kinds of numbers or times are not
                allowed.
        """
        self.check_noised(x0, noise, t)
        self.check_output(model_output, x0)
        channels = x0.shape[1]
        prediction, velocity = model_output[:, :channels].float(), noise - x0
        loss = mean_over_sample((prediction - velocity) ** 2)
        if self.direction_weight:
            loss = loss + self.direction_weight * mean_over_sample(1 - F.cosine_similarity(prediction, velocity, dim=1))
        return {"loss": loss}
