"""The baseline: DiT (arXiv 2212.09748), and SiT (arXiv 2401.08740), which is the same network in another time."""

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from demo_diffusion.checks import LARGEST, check_number

from .class_conditional import ClassConditionalTransformer, modulate
from .layers.folding import Linear
from .layers.positions import rotate

DIT_PRESETS = {
    "DiT-S/2": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "DiT-B/2": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "DiT-L/2": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "DiT-XL/2": {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}
SIT_PRESETS = {name.replace("DiT", "SiT"): {**config, "reverse_time": True} for name, config in DIT_PRESETS.items()}


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, num_heads: int, norm_eps: float, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // num_heads, norm_eps) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(width // num_heads, norm_eps) if qk_norm else nn.Identity()
        self.proj = Linear(width, width)

    def forward(self, tokens: torch.Tensor, rotary: torch.Tensor | None) -> torch.Tensor:
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = (rotate(x, rotary, sequence_dim=2) for x in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))


class DiTBlock(nn.Module):
    """Attention, then an MLP (GELU by tanh), each with adaptive LayerNorm before it and a gate after it (adaLN-Zero).

    Shapes: tokens (B, H, W, D), conditioning (B, D) after its SiLU -> (B, H, W, D). 18·D² + 15·D parameters.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, norm_eps: float, mlp_norm_eps: float, qk_norm: bool
    ):
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=False)
        self.attention = SelfAttention(width, num_heads, norm_eps, qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=mlp_norm_eps, elementwise_affine=False)
        self.fc1 = Linear(width, hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.fc2 = Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self, tokens: torch.Tensor, conditioning: torch.Tensor, rotary: torch.Tensor | None = None
    ) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditioning).chunk(6, dim=-1)
        normed = modulate(self.norm1(tokens), shift1, scale1)
        tokens = tokens + gate1[:, None, None] * self.attention(normed.flatten(1, 2), rotary).view(tokens.shape)
        hidden = self.activation(self.fc1(modulate(self.norm2(tokens), shift2, scale2)))
        return tokens + gate2[:, None, None] * self.fc2(hidden)


class DiTModel(ClassConditionalTransformer, ModelMixin):
    """Class-conditional diffusion network of DiT and SiT. Use `create_transformer` for the published sizes.

    Equal to the official networks; `demo_diffusion.conversion` reads their checkpoints. Unlike diffusers'
    `DiTTransformer2DModel` it computes timestep and label embeddings once, not once a block.

    Args:
        sample_size: height and width of the input in latent pixels (or pixels): one number or (height, width).
        patch_size: side of a token's patch.
        in_channels: channels of the input.
        out_channels: channels of the output; None: twice `in_channels` (noise and learned variance; SiT has them too
            and leaves the second half unused).
        num_layers: number of blocks.
        num_attention_heads, attention_head_dim: heads and their width; the network's width D is their product.
        mlp_ratio: width of the MLP over D.
        num_classes: number of classes; the label table's last row, number `num_classes`, is the null class.
        timestep_scale: factor on the timestep before its sinusoidal features: 1 for timesteps 0 … 999, and for t in
            [0, 1] as SiT does; 1000 spreads t in [0, 1] over the range that the features were made for.
        reverse_time: features of 1 − t instead of t, for t in [0, 1]: SiT's time.
        timestep_frequency_shift: the i-th of 128 frequencies is 10000^(−i / (128 − shift)); 0 in DiT, 1 in diffusers'.
        norm_eps: of LayerNorm.
        mlp_norm_eps: of the LayerNorm before the MLP; None: `norm_eps`. diffusers' DiT has another there.
        qk_norm: RMSNorm of each head's queries and keys.
        rotary_positions: turn queries and keys by their row and column.

    Raises:
        ValueError: if the settings do not fit together.
    """

    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        timestep_scale: float = 1.0,
        reverse_time: bool = False,
        timestep_frequency_shift: int = 0,
        norm_eps: float = 1e-6,
        mlp_norm_eps: float | None = None,
        qk_norm: bool = False,
        rotary_positions: bool = False,
    ):
        super().__init__()
        check_number("mlp_ratio", mlp_ratio, above=0, below=LARGEST)
        if mlp_norm_eps is not None:
            check_number("mlp_norm_eps", mlp_norm_eps, above=0)
        self._assemble(
            lambda: DiTBlock(
                num_attention_heads * attention_head_dim,
                num_attention_heads,
                mlp_ratio,
                norm_eps,
                norm_eps if mlp_norm_eps is None else mlp_norm_eps,
                qk_norm,
            ),
            affine_output=False,
        )
