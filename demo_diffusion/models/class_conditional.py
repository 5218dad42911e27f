"""What DiT, SiT and D-EMO share: everything of the network but its blocks (DiT, arXiv 2212.09748, Sec. 3.2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from demo_diffusion.checks import (
    LARGEST,
    check_choice,
    check_dense,
    check_flag,
    check_number,
    check_tensor,
    check_values,
    check_whole,
    shown,
)

from .input_checks import check_computable
from .layers.checkpointing import checkpoint_module
from .layers.positions import position_table, rotary_table
from .loading import CheckedLoading

COUNTS = (
    "patch_size", "in_channels", "out_channels", "num_layers", "num_attention_heads", "attention_head_dim",
    "num_classes",
)  # fmt: skip
FLAGS = ("reverse_time", "qk_norm", "rotary_positions")
TIMESTEP_FEATURES = 256  # width of the sinusoidal features of t (ADM, DiT)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive LayerNorm's shift and scale (DiT, arXiv 2212.09748, Sec. 3.2): x (B, H, W, D); shift, scale (B, D)."""
    return x * (1 + scale[:, None, None]) + shift[:, None, None]


class AdaptiveOutput(nn.Module):
    """DiT's final layer, its LayerNorm `affine` in D-EMO alone: (B, H, W, D), (B, D) -> (B, H, W, out_features)."""

    def __init__(self, width: int, out_features: int, norm_eps: float, affine: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=affine)
        self.modulation = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, out_features)

    def forward(self, tokens: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        shift, scale = self.modulation(conditioning).chunk(2, dim=-1)
        return self.proj(modulate(self.norm(tokens), shift, scale))


class ClassConditionalTransformer(CheckedLoading, ModelMixin, ConfigMixin):
    """Patches, position table, conditioning computed once for all blocks, blocks, adaptive output.

    A subclass registers its config, with at least the fields that `_assemble` reads, and gives its blocks, which are
    called as block(tokens (B, H, W, D), conditioning (B, D) after its SiLU, rotary table or None) and have a
    `modulation` layer. It names `ModelMixin` among its bases: diffusers loads a saved component only if the module
    that holds its class holds that name too.
    """

    _supports_gradient_checkpointing = True

    def _assemble(self, make_block: Callable[[], nn.Module], affine_output: bool, rotary_multiple: int = 1) -> None:
        """Builds the network from the registered config; rotary tables are made for sides rounded up to a multiple.

        Raises:
            ValueError: if the settings do not fit together.
        """
        check_whole("in_channels", self.config.in_channels)
        if self.config.out_channels is None:
            self.register_to_config(out_channels=2 * self.config.in_channels)
        config = self.config
        for name in COUNTS:
            check_whole(name, config[name])
        for name in FLAGS:
            check_flag(name, config[name])
        check_number("timestep_scale", config.timestep_scale, above=0)
        check_number("norm_eps", config.norm_eps, above=0)
        check_choice("timestep_frequency_shift", config.timestep_frequency_shift, (0, 1))
        height, width = self.grid_size
        dim = config.num_attention_heads * config.attention_head_dim
        if dim % 4:
            raise ValueError(
                f"The width, num_attention_heads · attention_head_dim = {config.num_attention_heads} · "
                f"{config.attention_head_dim}, must be a multiple of 4 for the two-axis sine-cosine position table."
            )
        self.patch_embed = nn.Conv2d(config.in_channels, dim, config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Parameter(position_table(dim, height, width), requires_grad=False)
        self.time_proj = Timesteps(
            TIMESTEP_FEATURES,
            flip_sin_to_cos=True,
            downscale_freq_shift=config.timestep_frequency_shift,
            scale=config.timestep_scale,
        )
        self.timestep_embedder = TimestepEmbedding(TIMESTEP_FEATURES, dim)
        self.label_embedder = nn.Embedding(config.num_classes + 1, dim)
        self.transformer_blocks = nn.ModuleList(make_block() for _ in range(config.num_layers))
        self.output = AdaptiveOutput(dim, config.patch_size**2 * config.out_channels, config.norm_eps, affine_output)
        if config.rotary_positions:
            sides = (-(-side // rotary_multiple) * rotary_multiple for side in (height, width))
            self.register_buffer("rotary", rotary_table(config.attention_head_dim, *sides), persistent=False)
        else:
            self.rotary = None  # not a buffer: hooks that offload a model cannot move one without a tensor
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

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(in_channels, height, width) of `hidden_states`; `sample_size` may be one number or two."""
        return self.config.in_channels, *_sides(self.config.sample_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of tokens.

        Raises:
            ValueError: if patches do not fill the sample.
        """
        _, height, width = self.input_shape
        patch_size = self.config.patch_size
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"sample_size is {self.config.sample_size}; it must be a multiple of patch_size, {patch_size}."
            )
        return height // patch_size, width // patch_size

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Trades compute for memory in training; None: `checkpoint_module`, which moves BatchNorm's statistics once."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or checkpoint_module)

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

        Raises:
            ValueError: if shapes, kinds of numbers or (on the CPU) class labels are not allowed.
        """
        self._check_inputs(hidden_states, timestep, class_labels)
        tokens = self.patch_embed(hidden_states).permute(0, 2, 3, 1)
        tokens = tokens + self.pos_embed.view(1, *tokens.shape[1:])
        conditioning = F.silu(self._embed_conditioning(timestep, class_labels, hidden_states.dtype))

        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens, conditioning, self.rotary)
            else:
                tokens = block(tokens, conditioning, self.rotary)

        sample = unpatchify(self.output(tokens, conditioning), self.config.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _embed_conditioning(
        self, timestep: torch.Tensor, class_labels: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        timestep = 1 - timestep if self.config.reverse_time else timestep
        return self.timestep_embedder(self.time_proj(timestep).to(dtype)) + self.label_embedder(class_labels)

    def _check_inputs(self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> None:
        for name, value in {"hidden_states": hidden_states, "timestep": timestep, "class_labels": class_labels}.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{name} is {shown(value)}; it must be a tensor.")
        if tuple(hidden_states.shape[1:]) != self.input_shape:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}; this model takes (batch, channels, height, "
                f"width) = (B, {', '.join(map(str, self.input_shape))})."
            )
        batch = hidden_states.shape[:1]
        check_tensor("hidden_states", hidden_states, hidden_states.shape, floating=True)
        check_tensor("timestep", timestep, batch, floating=timestep.is_floating_point())
        check_tensor("class_labels", class_labels, batch, floating=False)
        check_computable("hidden_states", hidden_states, self.patch_embed)
        if not hidden_states.is_meta:
            check_dense("timestep", timestep)
            check_dense("class_labels", class_labels)
        check_values("timestep", timestep, -LARGEST, LARGEST)
        check_values("class_labels", class_labels, 0, self.config.num_classes)


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, h, w, patch_size² · C), channels innermost -> (B, C, h · patch_size, w · patch_size)."""
    batch, rows, columns, features = patches.shape
    channels = features // patch_size**2
    patches = patches.view(batch, rows, columns, patch_size, patch_size, channels)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * patch_size, columns * patch_size)


def _sides(sample_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(sample_size) if isinstance(sample_size, tuple | list) else (sample_size, sample_size)
    if len(sides) != 2:
        raise ValueError(f"sample_size is {shown(sample_size)}; it must be a whole number or (height, width).")
    for side in sides:
        check_whole("sample_size", side)
    return sides
