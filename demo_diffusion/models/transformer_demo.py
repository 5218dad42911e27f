"""D-EMO: DiT with EMOv2's i2RMB block in place of the Transformer block (arXiv 2412.06674, Table XIV)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed_from_grid
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from .checkpointing import checkpoint_module
from .depthwise_conv import DepthwiseConvNorm
from .mobile_block import MobileMixer

DEMO_PRESETS = {
    "DEMO-S/2": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "DEMO-B/2": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "DEMO-L/2": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "DEMO-XL/2": {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}

TIMESTEP_FEATURES = 256  # width of the sinusoidal features of t (ADM, DiT)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive LayerNorm's shift and scale (DiT, arXiv 2212.09748, Sec. 3.2): x (B, H, W, D); shift, scale (B, D)."""
    return x * (1 + scale[:, None, None]) + shift[:, None, None]


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

    def forward(self, tokens: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(conditioning).chunk(3, dim=-1)
        return tokens + gate[:, None, None] * self.mixer(modulate(self.norm(tokens), shift, scale))


class AdaptiveOutput(nn.Module):
    """DiT's final layer, but with affine LayerNorm: (B, H, W, D), (B, D) -> (B, H, W, patch_size² · out_channels)."""

    def __init__(self, width: int, out_features: int, norm_eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.modulation = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, out_features)

    def forward(self, tokens: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        shift, scale = self.modulation(conditioning).chunk(2, dim=-1)
        return self.proj(modulate(self.norm(tokens), shift, scale))


class DEMOTransformer2DModel(ModelMixin, ConfigMixin):
    """Class-conditional diffusion network of the D-EMO paper. Use `create_transformer` for its four sizes.

    Args:
        sample_size: height and width of the input in latent pixels (or pixels): one number or (height, width).
        patch_size: side of a token's patch.
        in_channels: channels of the input.
        out_channels: channels of the output; None: twice `in_channels` (noise and learned variance, as DiT).
        num_layers: number of blocks.
        num_attention_heads, attention_head_dim: heads and their width; the network's width D is their product.
        expansion_ratio: width of a block's value over D.
        attention_mode: "none", "neighborhood", "remote" or "spanning".
        window_size: side of the attention windows in tokens.
        kernel_size: odd side of the depthwise convolution.
        num_classes: number of classes; the label table's last row, number `num_classes`, is the null class.
        timestep_scale: factor on the timestep before its sinusoidal features: 1 for timesteps 0 … 999, and for t in
            [0, 1] as SiT does; 1000 spreads t in [0, 1] over the range that the features were made for.
        norm_eps: of LayerNorm and BatchNorm.

    Raises:
        ValueError: if the settings do not fit together.
    """

    _supports_gradient_checkpointing = True
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
        attention_mode: str = "spanning",
        window_size: int = 8,
        kernel_size: int = 5,
        num_classes: int = 1000,
        timestep_scale: float = 1.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        _check_positive(
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            expansion_ratio=expansion_ratio,
            num_classes=num_classes,
            timestep_scale=timestep_scale,
            out_channels=1 if out_channels is None else out_channels,
        )
        height, width = _grid_size(sample_size, patch_size)
        dim = num_attention_heads * attention_head_dim
        if dim % 4:
            raise ValueError(
                f"The width, num_attention_heads · attention_head_dim = {num_attention_heads} · {attention_head_dim}, "
                "must be a multiple of 4 for the two-axis sine-cosine position table."
            )
        if out_channels is None:
            out_channels = 2 * in_channels
            self.register_to_config(out_channels=out_channels)

        self.patch_embed = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(position_table(dim, height, width), requires_grad=False)
        self.time_proj = Timesteps(
            TIMESTEP_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0, scale=timestep_scale
        )
        self.timestep_embedder = TimestepEmbedding(TIMESTEP_FEATURES, dim)
        self.label_embedder = nn.Embedding(num_classes + 1, dim)
        self.transformer_blocks = nn.ModuleList(
            DEMOBlock(
                dim,
                norm_eps,
                expansion_ratio=expansion_ratio,
                num_heads=num_attention_heads,
                attention_mode=attention_mode,
                window_size=window_size,
                kernel_size=kernel_size,
            )
            for _ in range(num_layers)
        )
        self.output = AdaptiveOutput(dim, patch_size**2 * out_channels, norm_eps)
        self.gradient_checkpointing = False
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """DiT's initialisation: every block starts as the identity, the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.patch_embed.out_channels, -1))
        nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.label_embedder.weight, std=0.02)
        nn.init.normal_(self.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(self.timestep_embedder.linear_2.weight, std=0.02)
        for layer in (*self.transformer_blocks, self.output):
            nn.init.zeros_(layer.modulation.weight)
        nn.init.zeros_(self.output.proj.weight)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Trades compute for memory in training; None: `checkpoint_module`, which moves BatchNorm's statistics once."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or checkpoint_module)

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

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predicts what the objective asks for (noise, or velocity) at a noise level.

        Args:
            hidden_states: (B, in_channels, H, W), H and W as `sample_size`.
            timestep: (B,), in the objective's units: 0 … 999 for `DDPMObjective`, t in [0, 1] for `FlowObjective`.
            class_labels: (B,) integers in [0, num_classes]; `num_classes` is the null class.

        Returns:
            `.sample` of (B, out_channels, H, W); a tuple of it if `return_dict` is False.
        """
        self._check_inputs(hidden_states, timestep, class_labels)
        tokens = self.patch_embed(hidden_states).permute(0, 2, 3, 1)
        tokens = tokens + self.pos_embed.view(1, *tokens.shape[1:])
        conditioning = F.silu(self._embed_conditioning(timestep, class_labels, hidden_states.dtype))

        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens, conditioning)
            else:
                tokens = block(tokens, conditioning)

        sample = unpatchify(self.output(tokens, conditioning), self.config.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _embed_conditioning(
        self, timestep: torch.Tensor, class_labels: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        return self.timestep_embedder(self.time_proj(timestep).to(dtype)) + self.label_embedder(class_labels)

    def _check_inputs(self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> None:
        size = self.config.sample_size
        expected = (self.config.in_channels, *((size, size) if isinstance(size, int) else size))
        if tuple(hidden_states.shape[1:]) != expected:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; this model takes (batch, channels, height, "
                f"width) = (B, {', '.join(map(str, expected))})."
            )
        batch = (hidden_states.shape[0],)
        if tuple(timestep.shape) != batch or tuple(class_labels.shape) != batch:
            raise ValueError(
                f"timestep and class_labels must have shape {batch}, one entry a sample; got {tuple(timestep.shape)} "
                f"and {tuple(class_labels.shape)}."
            )


def position_table(dim: int, height: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine table (1, height · width, dim): half of `dim` for each axis, the width axis first (DiT)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return get_2d_sincos_pos_embed_from_grid(dim, torch.stack([columns, rows]))[None].float()


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, h, w, patch_size² · C), channels innermost -> (B, C, h · patch_size, w · patch_size)."""
    batch, rows, columns, features = patches.shape
    channels = features // patch_size**2
    patches = patches.view(batch, rows, columns, patch_size, patch_size, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * patch_size, columns * patch_size)


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive.")


def _grid_size(sample_size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"sample_size is {sample_size}; it must be a positive whole number or (height, width).")
    height, width = sides
    if height % patch_size or width % patch_size:
        raise ValueError(f"sample_size is {sample_size}; it must be a multiple of patch_size, {patch_size}.")
    return height // patch_size, width // patch_size
