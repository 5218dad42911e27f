"""Tiny autoencoders, and pipelines without a progress bar."""

from diffusers import AutoencoderKL, AutoencoderTiny

from demo_diffusion import DEMOPipeline
from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2
from tests.support.networks import randomize


def quiet(pipeline: DEMOPipeline) -> DEMOPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_vae(**options) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        **{"scaling_factor": 0.3, "shift_factor": 0.1, **options},
    ).eval()


def tiny_taesd() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


def tiny_taef2(latent_channels: int = 4) -> AutoencoderTAEF2:
    network = AutoencoderTAEF2(latent_channels=latent_channels, width=8, scaling_factor=0.5, shift_factor=0.2)
    return randomize(network).eval()
