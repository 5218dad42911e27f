"""What the package asks of an objective, and what objectives share."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from diffusers import SchedulerMixin
from torch import nn

from demo_diffusion.checks import check_dense, check_tensor, check_values, check_whole, shown

MAX_BATCH = 10**6
UNSUITABLE_SETTINGS = ("invert_sigmas", "use_dynamic_shifting")


class Objective(nn.Module, ABC):
    """What a network learns to predict, and what can sample from it.

    Attributes:
        continuous_time: the network takes t in [0, 1], 0 data and 1 noise; False: it takes a scheduler's timesteps,
            whole numbers from 0.
        samplers: name -> (scheduler class, settings that it needs besides the objective's own); the first one is the
            default.
    """

    continuous_time: ClassVar[bool]
    samplers: ClassVar[dict[str, tuple[type[SchedulerMixin], dict]]]

    @staticmethod
    @abstractmethod
    def fits(scheduler: SchedulerMixin) -> bool:
        """Whether a scheduler integrates what this objective's networks predict, from noise to data."""

    @staticmethod
    @abstractmethod
    def noise_settings(scheduler: SchedulerMixin) -> dict:
        """What a network learned of the noise, if `scheduler` is right for it; pipelines save it, as JSON."""

    @staticmethod
    @abstractmethod
    def trained_scheduler(noise_settings: dict) -> SchedulerMixin:
        """A scheduler with these settings; raises ValueError or TypeError if they are not allowed."""

    @staticmethod
    def check_trained_with(scheduler: SchedulerMixin, trained_with: SchedulerMixin) -> None:
        """Raises ValueError if a scheduler's settings differ from those that the network was trained with."""

    @abstractmethod
    def scheduler(self) -> SchedulerMixin:
        """The default sampler."""

    @abstractmethod
    def out_channels(self, in_channels: int) -> int:
        """Channels that the network must give for `in_channels`."""

    @abstractmethod
    def check_channels(self, out_channels: int, in_channels: int) -> None:
        """Raises ValueError if a network or images with these channels do not fit."""

    @property
    @abstractmethod
    def last_timestep(self) -> int:
        """The noisiest timestep; 0 is the data's end."""

    @abstractmethod
    def sample_timesteps(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Random times (B,) as the network takes them, on the generator's device (the CPU without one)."""

    @abstractmethod
    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t of x0 and noise (B, C, H, W) for times (B,)."""

    @abstractmethod
    def losses(
        self, model_output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch, each (B,); "loss" is what is minimised."""

    def check_noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> None:
        """Checks what `add_noise` is given: nothing is broadcast.

        Raises:
            ValueError: if shapes, kinds of numbers or (on the CPU) times are not allowed.
        """
        if not isinstance(x0, torch.Tensor) or x0.ndim < 2:
            raise ValueError(f"x0 is {shown(x0)}; it must be a tensor (B, C, …).")
        check_tensor("x0", x0, x0.shape, floating=True)
        check_tensor("noise", noise, x0.shape, floating=True)
        check_tensor("timesteps", timesteps, x0.shape[:1], floating=self.continuous_time)
        if not all(each.is_meta for each in (x0, noise, timesteps)):
            for name, value in {"x0": x0, "noise": noise, "timesteps": timesteps}.items():
                check_dense(name, value)
        check_values("timesteps", timesteps, 0, self.last_timestep)

    def check_output(self, model_output: torch.Tensor, x0: torch.Tensor) -> None:
        """Raises ValueError if a network's output does not belong to x0."""
        check_tensor("model_output", model_output, (len(x0), "channels", *x0.shape[2:]), floating=True)
        self.check_channels(model_output.shape[1], x0.shape[1])


def check_draw(batch_size: int, generator: torch.Generator | None) -> None:
    """Raises ValueError unless random times can be drawn so."""
    check_whole("batch_size", batch_size, 1, MAX_BATCH)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator is {shown(generator)}; it must be a torch.Generator or None.")


def samples(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler goes from noise to data, by steps that no image changes."""
    is_inverse = type(scheduler).__name__.endswith("InverseScheduler")
    return not is_inverse and not any(scheduler.config.get(name) for name in UNSUITABLE_SETTINGS)


def integrates_velocity(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler is one of flow matching, for sigmas in [0, 1]."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def expand_to(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, …) with as many dimensions as `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def mean_over_sample(values: torch.Tensor) -> torch.Tensor:
    """(B, …) -> (B,)."""
    return values.flatten(1).mean(dim=1)
