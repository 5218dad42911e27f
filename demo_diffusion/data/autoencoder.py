"""Between images and the network: a diffusers autoencoder, draws from its posterior, and the latents' normalisation."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from demo_diffusion.checks import check_number, shown
from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2
from demo_diffusion.models.loading import load_checked

Autoencoder = AutoencoderKL | AutoencoderTiny | AutoencoderDC | AutoencoderTAEF2
AUTOENCODERS = {each.__name__: each for each in (AutoencoderKL, AutoencoderTiny, AutoencoderDC, AutoencoderTAEF2)}
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # that of diffusers' DiagonalGaussianDistribution


def load_vae(name: str | None, image_channels: int, device: torch.device) -> Autoencoder | None:
    """A frozen autoencoder from a folder or the hub.

    Raises:
        ValueError: if it cannot be read, is none of `AUTOENCODERS`, or takes other images.
    """
    if name is None:
        return None
    try:
        kind = AutoencoderKL.load_config(name).get("_class_name")
        vae = load_checked(AUTOENCODERS[kind].from_pretrained, name)[0] if kind in AUTOENCODERS else None
        if vae is not None:
            normalization_of(vae)
    except Exception as error:  # a damaged config or file of weights makes the readers raise almost anything
        reason = error if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"The autoencoder {name} cannot be read: {reason}") from error
    if vae is None:
        raise ValueError(
            f"{name} is a {kind or 'model of another library'}; it must be an {' or '.join(AUTOENCODERS)}."
        )
    if vae.config.in_channels != image_channels:
        raise ValueError(f"{name} takes {vae.config.in_channels} channels; the images have {image_channels}.")
    # Channels last: convolutions take half the time on CPUs, and tensor cores want it.
    return vae.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


@torch.no_grad()
def encode_moments(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """What the encoder says of images (B, image channels, H, W) in [−1, 1], not normalised.

    Returns:
        (B, M, h, w): mean and log variance of the posterior, M = 2C; of a deterministic encoder the latents, M = C.
    """
    (encoded,) = vae.encode(images.to(vae.dtype), return_dict=False)
    moments = encoded.parameters if isinstance(encoded, DiagonalGaussianDistribution) else encoded
    return moments.contiguous()


def draw_latents(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) from moments (B, M, h, w) and standard normal noise (B, C, h, w), in the noise's dtype.

    With M = 2C they are mean + exp(log variance / 2) · noise, as diffusers samples them; with M = C the moments
    themselves.

    Raises:
        ValueError: if the shapes do not fit.
    """
    channels, moments = noise.shape[1], moments.to(noise.dtype)
    if moments.shape == noise.shape:
        return moments
    if moments.shape != (len(noise), 2 * channels, *noise.shape[2:]):
        raise ValueError(
            f"moments have shape {tuple(moments.shape)} and noise {tuple(noise.shape)}; the moments need as many "
            "channels (a deterministic autoencoder's latents) or twice as many (mean and log variance)."
        )
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)) * noise


@dataclass(frozen=True)
class LatentNormalization:
    """Latents (B, C, h, w) <-> (latents − mean) / std, what the network sees.

    Attributes:
        mean, std: of each channel, or one number for all.

    Raises:
        ValueError: if their lengths differ, a number is not finite, or a std is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple):
                raise ValueError(f"The latents' {name} is {shown(values)}; it must be a list of numbers.")
            for value in values:
                check_number(f"The latents' {name}", value)
            object.__setattr__(self, name, tuple(map(float, values)))
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"There are {len(self.mean)} means and {len(self.std)} stds; there must be one per channel."
            )
        if min(self.std) <= 0:
            raise ValueError(f"The latents' std is {self.std}; every one must be positive.")

    def check_channels(self, channels: int) -> None:
        """Raises a ValueError if it is not for latents of so many channels."""
        if len(self.mean) not in (1, channels):
            raise ValueError(
                f"The latents' statistics are of {len(self.mean)} channels; the latents have {channels} (one number "
                "for all is allowed too)."
            )

    def apply(self, latents: torch.Tensor) -> torch.Tensor:
        """Autoencoder's latents to network's."""
        mean, std = self._columns(latents)
        return (latents - mean) / std

    def undo(self, latents: torch.Tensor) -> torch.Tensor:
        """Network's latents to autoencoder's."""
        mean, std = self._columns(latents)
        return latents * std + mean

    def _columns(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = torch.tensor((self.mean, self.std), dtype=latents.dtype, device=latents.device)
        mean, std = statistics[..., None, None]
        return mean, std


def normalization_of(vae: Autoencoder) -> LatentNormalization:
    """By the autoencoder's own config: `scaling_factor`, and `latents_mean`, `latents_std` or else `shift_factor`.

    Raises:
        ValueError: if they are no such numbers.
    """
    config = vae.config
    check_number("The autoencoder's scaling_factor", config.get("scaling_factor"), above=0)
    check_number("The autoencoder's shift_factor", config.get("shift_factor") or 0.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    std = LatentNormalization(mean, std).std
    return LatentNormalization(mean, [each / config.scaling_factor for each in std])


def moments_shape(vae: Autoencoder, resolution: int) -> tuple[int, int, int]:
    """(M, h, w) of the moments of a square image."""
    image = torch.zeros(1, vae.config.in_channels, resolution, resolution, device=vae.device)
    return tuple(encode_moments(vae, image).shape[1:])


@torch.no_grad()
def decoded_side(vae: Autoencoder, side: int) -> int:
    """Side in pixels of the image that square latents of a side become; nothing is computed."""
    with torch.device("meta"):
        decoder = type(vae).from_config(vae.config)
        return decoder.decode(torch.zeros(1, vae.config.latent_channels, side, side)).sample.shape[-1]


@torch.no_grad()
def latent_shape(vae: Autoencoder, resolution: int) -> tuple[int, int]:
    """(channels, side) of the latents of square images.

    Raises:
        ValueError: if images of this size do not come back in their size.
    """
    channels, config = vae.config.latent_channels, vae.config
    try:
        image = torch.zeros(1, config.in_channels, resolution, resolution, device=vae.device)
        moments = encode_moments(vae, image)
        decoded = vae.decode(moments[:, :channels].to(vae.dtype)).sample.shape[-1]
    except RuntimeError as error:
        raise ValueError(f"resolution is {resolution}, which this autoencoder cannot encode: {error}") from error
    if decoded != resolution:
        factor = decoded // moments.shape[-1]
        raise ValueError(f"resolution is {resolution}; for this autoencoder it must be a multiple of {factor}.")
    return channels, moments.shape[-1]
