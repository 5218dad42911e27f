"""Noise prediction with learned variance: the objective of DiT and of the D-EMO paper's table XIV."""

import math
from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from demo_diffusion.checks import check_choice, check_flag, check_number, check_whole

from .common import Objective, check_draw, expand_to, integrates_velocity, mean_over_sample, samples

PREDICTION_TYPES = ("epsilon", "v_prediction")
MAX_TIMESTEPS = 10**6
MOST_DATA_LEFT = 0.1  # √ᾱ at the last timestep; samples begin there, from noise alone
NOISE_SETTINGS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


class DDPMObjective(Objective):
    """MSE on the noise plus the variational bound on the variance (Improved DDPM, arXiv 2102.09672, Sec. 3.1).

    The network gives 2·C channels for C: the noise, then the variance's place in [−1, 1] between its two bounds. The
    bound's gradient reaches the variance alone. x_t = √ᾱ_t · x0 + √(1 − ᾱ_t) · noise with linear betas. The defaults
    are DiT's; the last three arguments are improvements that later papers found.

    Args:
        num_train_timesteps: number of steps; a timestep is an integer in [0, num_train_timesteps).
        beta_start: first beta (DDPM, arXiv 2006.11239).
        beta_end: last beta.
        prediction_type: "epsilon" (the noise) or "v_prediction", √ᾱ · noise − √(1 − ᾱ) · x0 (arXiv 2202.00512, App. D).
        min_snr_gamma: weigh the MSE by min(SNR, gamma) / SNR, for v by min(SNR, gamma) / (SNR + 1)
            (arXiv 2303.09556, Sec. 3.4; gamma 5 there); None: do not.
        zero_terminal_snr: rescale the betas so that the last timestep is pure noise (arXiv 2305.08891, Alg. 1); needs
            v_prediction.

    Raises:
        ValueError: if a setting is not allowed, the last timestep still shows the data, or zero_terminal_snr is used
            without v-prediction (the noise of pure noise says nothing about x0) or with min_snr_gamma.
    """

    continuous_time = False
    samplers = {
        "ddpm": (DDPMScheduler, {"timestep_spacing": "linspace"}),  # the official one
        "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),  # starts from the last timestep
        "dpm_solver": (DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}),
    }

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction_type: Literal[PREDICTION_TYPES] = "epsilon",
        min_snr_gamma: float | None = None,
        zero_terminal_snr: bool = False,
    ):
        super().__init__()
        _check_settings(num_train_timesteps, beta_start, beta_end, prediction_type, min_snr_gamma, zero_terminal_snr)
        self.num_train_timesteps = num_train_timesteps
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.prediction_type = prediction_type
        self.min_snr_gamma = min_snr_gamma
        self.zero_terminal_snr = zero_terminal_snr

        betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        if zero_terminal_snr:
            betas = rescale_zero_terminal_snr(betas)
        signal = torch.cumprod(1 - betas, dim=0)  # ᾱ_t
        check_ends_as_noise(signal)
        previous_signal = torch.cat([signal.new_ones(1), signal[:-1]])
        posterior_variance = betas * (1 - previous_signal) / (1 - signal)
        posterior_variance[0] = posterior_variance[1]  # it is 0 at t = 0, where the decoder's likelihood is used

        tables = {
            "signal_scale": signal.sqrt(),
            "noise_scale": (1 - signal).sqrt(),
            "posterior_x0_scale": betas * previous_signal.sqrt() / (1 - signal),
            "posterior_xt_scale": (1 - previous_signal) * (1 - betas).sqrt() / (1 - signal),
            "min_log_variance": posterior_variance.log(),
            "max_log_variance": betas.log(),
            "mse_weight": self._mse_weight(signal / (1 - signal)),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    @property
    def last_timestep(self) -> int:
        return self.num_train_timesteps - 1

    @staticmethod
    def fits(scheduler: SchedulerMixin) -> bool:
        """Whether a scheduler integrates a prediction of noise (or v) from noise to data."""
        predicts_noise = scheduler.config.get("prediction_type") in PREDICTION_TYPES
        has_levels = hasattr(scheduler, "alphas_cumprod")
        return samples(scheduler) and not integrates_velocity(scheduler) and predicts_noise and has_levels

    @staticmethod
    def noise_settings(scheduler: SchedulerMixin) -> dict:
        """Betas and prediction type."""
        settings = {name: scheduler.config[name] for name in NOISE_SETTINGS if name in scheduler.config}
        if settings.get("trained_betas") is not None:
            settings["trained_betas"] = [float(beta) for beta in settings["trained_betas"]]
        return settings

    @staticmethod
    def trained_scheduler(noise_settings: dict) -> DDPMScheduler:
        """A scheduler with these betas and prediction type."""
        if unknown := sorted(set(map(str, noise_settings)) - set(NOISE_SETTINGS)):
            raise ValueError(f"{unknown} are unknown; the settings of the noise are {list(NOISE_SETTINGS)}.")
        check_whole("num_train_timesteps", noise_settings.get("num_train_timesteps", 1000), 1, MAX_TIMESTEPS)
        return DDPMScheduler(**noise_settings)

    @staticmethod
    def check_trained_with(scheduler: SchedulerMixin, trained_with: SchedulerMixin) -> None:
        """Raises ValueError if prediction type or noise levels differ from those that the network was trained with."""
        name = type(scheduler).__name__
        advice = f"Create it with {name}.from_config(scheduler.config), from the pipeline's own scheduler."
        if scheduler.config.prediction_type != trained_with.config.prediction_type:
            raise ValueError(
                f"{name} integrates {scheduler.config.prediction_type!r}, but this network was trained for "
                f"{trained_with.config.prediction_type!r}. {advice}"
            )
        own, known = (each.alphas_cumprod.float().cpu() for each in (scheduler, trained_with))
        if own.shape != known.shape or not torch.allclose(own, known, atol=1e-6):
            raise ValueError(
                f"{name} has other noise levels (betas, number of training steps) than this network was trained with. "
                f"{advice}"
            )

    def out_channels(self, in_channels: int) -> int:
        """Channels that the network must give for `in_channels`."""
        return 2 * in_channels

    def check_channels(self, out_channels: int, in_channels: int) -> None:
        """Raises ValueError if a network with these channels does not fit."""
        if out_channels != 2 * in_channels:
            raise ValueError(
                f"The network gives {out_channels} channels for {in_channels}; noise and learned variance need "
                f"{2 * in_channels}. Set out_channels to {2 * in_channels}."
            )

    def scheduler(self) -> DDPMScheduler:
        """The official sampler of DiT, for any number of steps."""
        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule="linear",
            variance_type="learned_range",
            timestep_spacing="linspace",
            clip_sample=False,
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.zero_terminal_snr,
        )

    def _mse_weight(self, snr: torch.Tensor) -> torch.Tensor:
        if self.min_snr_gamma is None:
            return torch.ones_like(snr)
        return snr.clamp(max=self.min_snr_gamma) / (snr if self.prediction_type == "epsilon" else snr + 1)

    def sample_timesteps(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Uniform integer timesteps (B,), on the generator's device (the CPU without one)."""
        check_draw(batch_size, generator)
        device = generator.device if generator is not None else "cpu"
        return torch.randint(self.num_train_timesteps, (batch_size,), generator=generator, device=device)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t of (B, C, H, W) for timesteps (B,)."""
        self.check_noised(x0, noise, timesteps)
        timesteps = timesteps.long()  # uint8 would be a mask
        return self._at(self.signal_scale, timesteps, x0) * x0 + self._at(self.noise_scale, timesteps, x0) * noise

    def losses(
        self, model_output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch.

        Args:
            model_output: (B, 2·C, H, W), the network's output for `add_noise(x0, noise, timesteps)`.
            x0, noise: (B, C, H, W)
            timesteps: (B,) integers.

        Returns:
            "mse", "vb" (in bits per dimension) and "loss", the sum of the weighted "mse" and "vb"; each (B,).

        Raises:
            ValueError: if the output has not twice the channels of `x0`, or shapes, kinds of numbers or times are not
                allowed.
        """
        self.check_noised(x0, noise, timesteps)
        self.check_output(model_output, x0)
        timesteps = timesteps.long()
        prediction, variance_place = model_output.float().chunk(2, dim=1)
        mse = mean_over_sample((prediction - self._target(x0, noise, timesteps)) ** 2)
        vb = self._variational_bound(prediction.detach(), variance_place, x0, noise, timesteps)
        weight = self.mse_weight.to(timesteps.device)[timesteps]
        return {"loss": weight * mse + vb, "mse": mse, "vb": vb}

    def _target(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return noise
        return self._at(self.signal_scale, timesteps, x0) * noise - self._at(self.noise_scale, timesteps, x0) * x0

    def _variational_bound(
        self,
        prediction: torch.Tensor,
        variance_place: torch.Tensor,
        x0: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        x_t = self._at(self.signal_scale, timesteps, x0) * x0 + self._at(self.noise_scale, timesteps, x0) * noise
        min_log = self._at(self.min_log_variance, timesteps, x0)
        max_log = self._at(self.max_log_variance, timesteps, x0)
        log_variance = min_log + (variance_place + 1) / 2 * (max_log - min_log)
        mean = self._posterior_mean(self._predict_x0(x_t, prediction, timesteps), x_t, timesteps)

        kl = normal_kl(self._posterior_mean(x0, x_t, timesteps), min_log, mean, log_variance)
        decoder_nll = -discretized_gaussian_log_likelihood(x0, mean, log_variance / 2)
        nats = torch.where(timesteps == 0, mean_over_sample(decoder_nll), mean_over_sample(kl))
        return nats / math.log(2)

    def _predict_x0(self, x_t: torch.Tensor, prediction: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        signal_scale = self._at(self.signal_scale, timesteps, x_t)
        noise_scale = self._at(self.noise_scale, timesteps, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - noise_scale * prediction) / signal_scale
        return signal_scale * x_t - noise_scale * prediction

    def _posterior_mean(self, x0: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mean of q(x_{t−1} | x_t, x0) (DDPM, eq. 7)."""
        x0_scale = self._at(self.posterior_x0_scale, timesteps, x0)
        return x0_scale * x0 + self._at(self.posterior_xt_scale, timesteps, x0) * x_t

    def _at(self, table: torch.Tensor, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return expand_to(table.to(timesteps.device)[timesteps], like)


def check_ends_as_noise(signal: torch.Tensor) -> None:
    """Raises ValueError unless almost nothing of the data is left at the last of the timesteps' ᾱ (T,)."""
    if signal.is_meta:
        return
    left = math.sqrt(max(signal[-1].item(), 0.0))
    if not left <= MOST_DATA_LEFT:
        raise ValueError(
            f"After the last of {len(signal)} timesteps {left:.2f} of the data is left (√ᾱ); it must be at most "
            f"{MOST_DATA_LEFT}, because samples begin there from noise. Use more timesteps (num_train_timesteps, 1000 "
            "is usual) or a larger beta_end."
        )


def _check_settings(
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    prediction_type: str,
    min_snr_gamma: float | None,
    zero_terminal_snr: bool,
) -> None:
    check_whole("num_train_timesteps", num_train_timesteps, 2, MAX_TIMESTEPS)
    check_number("beta_start", beta_start, above=0, below=1)
    check_number("beta_end", beta_end, above=0, below=1)
    if beta_end < beta_start:
        raise ValueError(f"beta_start is {beta_start} and beta_end {beta_end}; betas must not fall.")
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    check_flag("zero_terminal_snr", zero_terminal_snr)
    if min_snr_gamma is not None:
        check_number("min_snr_gamma", min_snr_gamma, above=0)
    if zero_terminal_snr and prediction_type != "v_prediction":
        raise ValueError("zero_terminal_snr needs prediction_type 'v_prediction'.")
    if zero_terminal_snr and min_snr_gamma is not None:
        raise ValueError(
            "min_snr_gamma would give the last timestep of zero_terminal_snr no weight, from which sampling starts; "
            "use one of them."
        )


def normal_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean1, variance1) ‖ N(mean2, variance2)) in nats, elementwise."""
    variance_ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + variance_ratio - 1 + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Log-probability in nats of the 1/127.5-wide bin around x in [−1, 1] (DDPM, eq. 13), elementwise.

    The outermost bins reach to infinity. The normal distribution function is DDPM's tanh approximation, so that the
    numbers are those of the official code.
    """
    inverse_std = torch.exp(-log_std)
    upper = _approximate_normal_cdf(inverse_std * (x - mean + 1 / 255))
    lower = _approximate_normal_cdf(inverse_std * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _approximate_normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
