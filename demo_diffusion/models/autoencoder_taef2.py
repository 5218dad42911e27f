"""TAEF2, the tiny autoencoder of FLUX.2's latent space (Ollin Boer Bohan, github.com/madebyollin/taesd)."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DecoderTiny, EncoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from demo_diffusion.checks import check_number, check_tensor, check_whole, shown

from .input_checks import check_computable
from .loading import CheckedLoading

POOL_EXPANSION = 4  # width of the pooling's middle over the network's
POOL_GROUPS = 4


class PooledBlock(AutoencoderTinyBlock):
    """A block that first adds what GroupNorm, whose moments span the image, makes of each position: (B, D, H, W)."""

    def __init__(self, width: int):
        super().__init__(width, width, "relu")
        self.pool = nn.Sequential(
            nn.Conv2d(width, POOL_EXPANSION * width, kernel_size=1, bias=False),
            nn.GroupNorm(POOL_GROUPS, POOL_EXPANSION * width),
            nn.ReLU(),
            nn.Conv2d(POOL_EXPANSION * width, width, kernel_size=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.pool(x))


class AutoencoderTAEF2(CheckedLoading, ModelMixin, ConfigMixin):
    """diffusers' `AutoencoderTiny` with pooled blocks in the encoder's last and the decoder's first stage.

    `AutoencoderTiny` itself has no place for them. Images are in [−1, 1]; latents have 1/8 of their side with the
    four stages of the published weights, which `demo_diffusion.conversion.taef2` converts.

    Args:
        in_channels, out_channels: of the images.
        latent_channels: of the latents.
        width: channels of every layer between.
        num_encoder_blocks, num_decoder_blocks: blocks of each stage, from the input on.
        scaling_factor, shift_factor: what the latents are normalised with, (latents − shift) · scaling.

    Raises:
        ValueError: if a setting is not allowed.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 32,
        width: int = 64,
        num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        for name in ("in_channels", "out_channels", "latent_channels", "width"):
            check_whole(name, self.config[name])
        for name in ("num_encoder_blocks", "num_decoder_blocks"):
            _check_blocks(name, self.config[name])
        check_number("scaling_factor", scaling_factor, above=0)
        check_number("shift_factor", shift_factor)
        self.encoder = EncoderTiny(
            in_channels, latent_channels, num_encoder_blocks, (width,) * len(num_encoder_blocks), act_fn="relu"
        )
        self.decoder = DecoderTiny(
            latent_channels,
            out_channels,
            num_decoder_blocks,
            (width,) * len(num_decoder_blocks),
            upsampling_scaling_factor=2,
            act_fn="relu",
            upsample_fn="nearest",
        )
        output = len(self.encoder.layers) - 1
        for i in range(output - num_encoder_blocks[-1], output):
            self.encoder.layers[i] = PooledBlock(width)
        for i in range(2, 2 + num_decoder_blocks[0]):  # behind the first convolution and its ReLU
            self.decoder.layers[i] = PooledBlock(width)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[torch.Tensor]:
        """Images (B, in_channels, H, W) in [−1, 1] -> `.latents` (B, latent_channels, H / 8, W / 8)."""
        self._check_input("x", x, self.config.in_channels, self.encoder.layers[0])
        latents = self.encoder(x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Latents (B, latent_channels, h, w) -> `.sample` (B, out_channels, 8 h, 8 w) around [−1, 1], not clamped."""
        self._check_input("z", z, self.config.latent_channels, self.decoder.layers[0])
        images = self.decoder(z)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Images (B, in_channels, H, W) encoded and decoded."""
        return self.decode(self.encode(sample).latents, return_dict)

    def _check_input(self, name: str, value: torch.Tensor, channels: int, layer: nn.Module) -> None:
        """Raises ValueError unless a first layer takes (B, channels, H, W)."""
        check_tensor(name, value, ("batch", channels, "height", "width"), floating=True)
        if 0 in value.shape[1:]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must hold at least one pixel.")
        check_computable(name, value, layer)


def _check_blocks(name: str, blocks: object) -> None:
    if not isinstance(blocks, tuple | list) or len(blocks) < 2:
        raise ValueError(f"{name} is {shown(blocks)}; it must be a list of whole numbers, one a stage.")
    for count in blocks:
        check_whole(name, count)
