"""D-EMO: DiT with EMOv2's i2RMB block in place of the Transformer block (arXiv 2412.06674, Table XIV)."""

from typing import Literal

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from demo_diffusion.checks import LARGEST, check_flag, check_number, check_whole

from .class_conditional import ClassConditionalTransformer, modulate
from .layers.conv_norm import DepthwiseConvNorm
from .layers.window_positions import WINDOW_POSITIONS
from .mobile_block import MobileMixer
from .spanning_attention import ATTENTION_MODES

DEMO_PRESETS = {
    "DEMO-S/2": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "DEMO-B/2": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "DEMO-L/2": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "DEMO-XL/2": {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}


class DEMOBlock(nn.Module):
    """x + gate · MobileMixer(LayerNorm(x) · (1 + scale) + shift), the three vectors from the conditioning.

    Shapes: tokens (B, H, W, D), conditioning (B, D) after its SiLU -> (B, H, W, D). 13·D² + 119·D parameters with the
    default settings.
    """

    def __init__(self, width: int, norm_eps: float, **mixer_config):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.modulation = nn.Linear(width, 3 * width)
        self.mixer = MobileMixer(width, width, eps=norm_eps, **mixer_config)

    def forward(
        self, tokens: torch.Tensor, conditioning: torch.Tensor, rotary: torch.Tensor | None = None
    ) -> torch.Tensor:
        shift, scale, gate = self.modulation(conditioning).chunk(3, dim=-1)
        return tokens + gate[:, None, None] * self.mixer(modulate(self.norm(tokens), shift, scale), rotary)


class DEMOTransformer2DModel(ClassConditionalTransformer, ModelMixin):
    """Class-conditional diffusion network of the D-EMO paper. Use `create_transformer` for its four sizes.

    Args:
        sample_size: height and width of the input in latent pixels (or pixels): one number or (height, width).
        patch_size: side of a token's patch.
        in_channels: channels of the input.
        out_channels: channels of the output; None: twice `in_channels` (noise and learned variance, as DiT).
        num_layers: number of blocks.
        num_attention_heads, attention_head_dim: heads and their width; the network's width D is their product.
        expansion_ratio: width of a block's value over D.
        attention_mode: windows that a token attends to: "none" or another of `ATTENTION_MODES`.
        window_size: side of the attention windows in tokens.
        kernel_size: odd side of the depthwise convolution.
        num_classes: number of classes; the label table's last row, number `num_classes`, is the null class.
        timestep_scale: factor on the timestep before its sinusoidal features: 1 for timesteps 0 … 999, and for t in
            [0, 1] as SiT does; 1000 spreads t in [0, 1] over the range that the features were made for.
        reverse_time: features of 1 − t instead of t, for t in [0, 1]: SiT's time.
        timestep_frequency_shift: the i-th of 128 frequencies is 10000^(−i / (128 − shift)); 0 in DiT, 1 in diffusers'.
        norm_eps: of LayerNorm and BatchNorm.
        qk_norm: RMSNorm of each head's queries and keys.
        rotary_positions: turn queries and keys by their row and column in the whole grid.
        window_position: position inside the windows, one of `WINDOW_POSITIONS`; None: there is none.
        batch_norm: BatchNorm after the depthwise convolution; False: the convolution has a bias instead.

    Raises:
        ValueError: if the settings do not fit together.
    """

    _no_split_modules = ["DEMOBlock"]
    _repeated_blocks = ["DEMOBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 12,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
        expansion_ratio: float = 4.0,
        attention_mode: Literal[ATTENTION_MODES] = "spanning",
        window_size: int = 8,
        kernel_size: int = 5,
        num_classes: int = 1000,
        timestep_scale: float = 1.0,
        reverse_time: bool = False,
        timestep_frequency_shift: int = 0,
        norm_eps: float = 1e-6,
        qk_norm: bool = False,
        rotary_positions: bool = False,
        window_position: Literal[tuple(WINDOW_POSITIONS)] | None = None,
        batch_norm: bool = True,
    ):
        super().__init__()
        check_number("expansion_ratio", expansion_ratio, above=0, below=LARGEST)
        check_whole("window_size", window_size)
        check_whole("kernel_size", kernel_size)
        check_flag("batch_norm", batch_norm)
        if rotary_positions and window_position == "rotary":
            raise ValueError("rotary_positions and window_position='rotary' turn the same channels; use one of them.")
        if attention_mode == "none" and (qk_norm or rotary_positions or window_position):
            raise ValueError(
                "attention_mode is 'none'; qk_norm, rotary_positions and window_position need an attention."
            )
        self._assemble(
            lambda: DEMOBlock(
                num_attention_heads * attention_head_dim,
                norm_eps,
                expansion_ratio=expansion_ratio,
                num_heads=num_attention_heads,
                attention_mode=attention_mode,
                window_size=window_size,
                kernel_size=kernel_size,
                batch_norm=batch_norm,
                qk_norm=qk_norm,
                window_position=window_position,
            ),
            affine_output=True,
            rotary_multiple=window_size,
        )

    def fuse(self) -> None:
        """Folds every BatchNorm into its depthwise convolution for inference. Saving still writes the original weights.

        Raises:
            RuntimeError: if the model is in training mode, where BatchNorm normalises by the batch.
        """
        if self.training:
            raise RuntimeError("fuse() is for inference: call eval() first. train() undoes it.")
        for layer in self._depthwise_layers():
            layer.fuse()

    def unfuse(self) -> None:
        """Undoes `fuse`."""
        for layer in self._depthwise_layers():
            layer.unfuse()

    def _depthwise_layers(self):
        return (m for m in self.modules() if isinstance(m, DepthwiseConvNorm))
