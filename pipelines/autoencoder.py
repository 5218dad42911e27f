"""Latents on the fly: a diffusers autoencoder between the images and the network."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, AutoModel


def load_vae(name: str | None, image_channels: int, device: torch.device) -> AutoencoderKL | AutoencoderTiny | None:
    """A frozen autoencoder from a folder or the hub.

    Raises:
        ValueError: if it cannot be read, is not an AutoencoderKL or AutoencoderTiny, or takes other images.
    """
    if name is None:
        return None
    try:
        vae = AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"The autoencoder {name} cannot be read: {error}") from error
    if not isinstance(vae, AutoencoderKL | AutoencoderTiny):
        raise ValueError(f"{name} is a {type(vae).__name__}; it must be an AutoencoderKL or AutoencoderTiny.")
    if vae.config.in_channels != image_channels:
        raise ValueError(f"{name} takes {vae.config.in_channels} channels; the images have {image_channels}.")
    return vae.requires_grad_(False).eval().to(device)


def encode(vae: AutoencoderKL | AutoencoderTiny, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normalised latents of images in [−1, 1]."""
    with torch.no_grad():
        encoded = vae.encode(images)
    latents = encoded.latent_dist.sample(generator) if hasattr(encoded, "latent_dist") else encoded.latents
    return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def latent_shape(vae: AutoencoderKL | AutoencoderTiny, resolution: int) -> tuple[int, int]:
    """(channels, side) of the latents of square images.

    Raises:
        ValueError: if images of this size do not come back in their size.
    """
    image = torch.zeros(1, vae.config.in_channels, resolution, resolution, device=vae.device)
    latents = encode(vae, image, torch.Generator(vae.device))
    with torch.no_grad():
        decoded = vae.decode(latents).sample.shape[-1]
    if decoded != resolution:
        factor = decoded // latents.shape[-1]
        raise ValueError(f"resolution is {resolution}; for this autoencoder it must be a multiple of {factor}.")
    return latents.shape[1], latents.shape[-1]
