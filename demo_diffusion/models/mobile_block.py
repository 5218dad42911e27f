"""The i2RMB block: attention over an expanded value, depthwise convolution, projection.

EMOv2 (arXiv 2412.06674, Sec. 3.2 and 3.3) calls the pattern Meta Mobile Block. `MobileMixer` is its inside, shared by
D-EMO (which puts adaptive LayerNorm and a gate around it), by EMOv2 and EMOv1 (`MobileBlock`) and by their stems.
"""

import torch
import torch.nn.functional as F
from torch import nn

from demo_diffusion import kernels

from .layers.conv_norm import DepthwiseConvNorm
from .layers.folding import FoldableLinear
from .layers.positions import rotate
from .layers.squeeze_excitation import SqueezeExcitation
from .layers.window_positions import WINDOW_POSITIONS
from .operators import ACTIVATIONS, add, gelu, silu
from .spanning_attention import ATTENTION_MODES, pad_to_windows, spanning_attention

# Elements of v that inference computes at once on a CPU unless `keep_freed_memory` was called: the C library keeps the
# memory of so many, where it gets that of more from the system anew each time.
ELEMENTS_AT_ONCE = 2**20


class MobileMixer(nn.Module):
    """proj(z + SiLU(BatchNorm(DepthwiseConv(z)))), z = attention(q, k, act(v)); without attention z = act(v).

    Without `skip` the sum loses its first term. Shapes: (B, H, W, in_channels) -> (B, ⌈H / stride⌉, ⌈W / stride⌉,
    out_channels).

    Args:
        expansion_ratio: width of v over `in_channels`.
        num_heads: heads of q, k (d = in_channels / heads) and of v (expansion_ratio · d); unused by mode "none".
        attention_mode: "none", "neighborhood", "remote" or "spanning".
        window_size: side of the attention windows in tokens; the grid is zero-padded to a multiple of it.
        kernel_size: odd side of the depthwise convolution.
        activation: of v, "gelu" (exact) or "silu".
        qk_norm: RMSNorm of each head's queries and keys (arXiv 2302.05442, Sec. 2, has LayerNorm there).
        window_position: position inside the windows, None or one of `WINDOW_POSITIONS`.
        attend_before_value: EMOv1's order, z = act(Linear(attention(q, k, input))); heads then split the input.
        value_projection: False: z is the input itself (the stems).
        squeeze_excitation: after the convolution and its SiLU (EMOv1's stem).
        batch_norm: BatchNorm after the convolution; False: the convolution has a bias instead.
        skip: add z to the convolution's output; None: where the stride is 1.

    Raises:
        ValueError: if a setting is not among those allowed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion_ratio: float = 4.0,
        num_heads: int = 1,
        attention_mode: str = "spanning",
        window_size: int = 8,
        kernel_size: int = 5,
        stride: int = 1,
        activation: str = "gelu",
        eps: float = 1e-6,
        qk_norm: bool = False,
        window_position: str | None = None,
        attend_before_value: bool = False,
        value_projection: bool = True,
        squeeze_excitation: bool = False,
        skip: bool | None = None,
        batch_norm: bool = True,
    ):
        super().__init__()
        hidden_channels = int(in_channels * expansion_ratio)
        attended_channels = in_channels if attend_before_value else hidden_channels
        _check_settings(
            in_channels, attended_channels, num_heads, attention_mode, window_size, kernel_size, stride, activation
        )
        self.skip = stride == 1 if skip is None else skip
        if self.skip and stride != 1:
            raise ValueError("A mixer of stride 2 has no skip; leave it out or give skip=False.")
        if not value_projection and (attention_mode != "none" or expansion_ratio != 1):
            raise ValueError("Without value_projection a mixer has expansion_ratio=1 and attention_mode='none'.")
        self.num_heads = num_heads
        self.hidden_channels = hidden_channels
        self.attention_mode = attention_mode
        self.window_size = window_size
        self.attend_before_value = attend_before_value
        self.activation = ACTIVATIONS[activation]
        self.window_position = self.query_norm = self.key_norm = None
        if attention_mode != "none":
            self.qk = FoldableLinear(in_channels, 2 * in_channels)
            head_dim = in_channels // num_heads
            if qk_norm:
                self.query_norm = nn.RMSNorm(head_dim, eps)
                self.key_norm = nn.RMSNorm(head_dim, eps)
            if window_position is not None:
                self.window_position = _window_position(window_position, num_heads, head_dim, window_size)
        self.v = FoldableLinear(in_channels, hidden_channels) if value_projection else None
        self.conv_local = DepthwiseConvNorm(hidden_channels, kernel_size, stride, eps, batch_norm)
        self.squeeze_excitation = SqueezeExcitation(hidden_channels) if squeeze_excitation else None
        self.proj = FoldableLinear(hidden_channels, out_channels, bias=False)

    def forward(self, tokens: torch.Tensor, rotary: torch.Tensor | None = None) -> torch.Tensor:
        """`rotary`: `rotary_table` of the grid padded to whole windows, which turns queries and keys; None: nothing."""
        is_whole = self.conv_local.norm.training or kernels.is_memory_kept()
        if is_whole or not kernels.is_eager_cpu_inference(tokens):
            return self._forward(tokens, rotary)
        parts = [self._forward(part, rotary) for part in tokens.split(self._images_at_once(tokens))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _images_at_once(self, tokens: torch.Tensor) -> int:
        return max(1, ELEMENTS_AT_ONCE // (tokens.shape[1] * tokens.shape[2] * self.hidden_channels))

    def _forward(self, tokens: torch.Tensor, rotary: torch.Tensor | None) -> torch.Tensor:
        if self.attention_mode != "none":
            z = self.attend(tokens, rotary)
        else:
            z = tokens if self.v is None else self.activation(self.v(tokens))
        if self.skip and self.squeeze_excitation is None:
            return self.proj(self.conv_local.add_silu(z))
        local = silu(self.conv_local(z))
        if self.squeeze_excitation is not None:
            local = self.squeeze_excitation(local)
        return self.proj(add(local, z) if self.skip else local)

    def attend(self, tokens: torch.Tensor, rotary: torch.Tensor | None = None) -> torch.Tensor:
        """(B, H, W, in_channels) -> (B, H, W, expansion_ratio · in_channels)."""
        height, width = tokens.shape[1:3]
        tokens = pad_to_windows(tokens, self.window_size)
        grid = tokens.shape[1:3]
        is_ordered = self._attends_in_window_order(tokens, rotary)
        if is_ordered:
            tokens = kernels.to_window_order(tokens, self.window_size)
        query, key = self.qk(tokens).chunk(2, dim=-1)
        query = self._norm_and_rotate(query, self.query_norm, rotary)
        key = self._norm_and_rotate(key, self.key_norm, rotary)
        value = tokens if self.attend_before_value else self.v(tokens)
        z = self._attention(query, key, value, grid if is_ordered else None)[:, :height, :width]
        return self.activation(self.v(z)) if self.attend_before_value else z

    def _attends_in_window_order(self, tokens: torch.Tensor, rotary: torch.Tensor | None) -> bool:
        has_positions = rotary is not None or self.window_position is not None
        return not has_positions and kernels.cpu_attention_supports(tokens, self.window_size)

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ordered_grid: tuple[int, int] | None
    ) -> torch.Tensor:
        """Attention over the activated value; `ordered_grid`: H and W of tokens in window order, None: of a raster."""
        settings = self.num_heads, self.window_size
        activation = None if self.attend_before_value else self.activation
        fits_triton = self.window_position is None and activation in (None, gelu)
        if ordered_grid is None and fits_triton and kernels.triton_attention_supports(query, key, value, *settings):
            name = None if activation is None else "gelu"
            return kernels.triton_spanning_attention(query, key, value, *settings, self.attention_mode, name)
        value = value if activation is None else activation(value)
        if ordered_grid is not None:
            return kernels.cpu_spanning_attention(query, key, value, *settings, ordered_grid, self.attention_mode)
        return spanning_attention(query, key, value, *settings, self.attention_mode, self.window_position)

    def _norm_and_rotate(self, x: torch.Tensor, norm: nn.Module | None, rotary: torch.Tensor | None) -> torch.Tensor:
        if norm is None and rotary is None:
            return x
        heads = x.reshape(len(x), -1, self.num_heads, x.shape[-1] // self.num_heads)
        if norm is not None:
            heads = norm(heads.to(norm.weight.dtype)).to(x.dtype)  # under autocast in the weight's precision
        heads = heads if rotary is None else rotate(heads, rotary, sequence_dim=1)
        return heads.reshape(x.shape)


NORMS = {"batch": nn.BatchNorm2d, "layer": nn.LayerNorm}


class MobileBlock(nn.Module):
    """The i2RMB of EMOv2: x + gamma · MobileMixer(norm(x)); with stride 2 there is no skip.

    Shapes: (B, H, W, in_channels) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, out_channels).

    Args:
        norm: "batch" or "layer" (both affine, over channels).
        layer_scale_init: initial value of gamma; None: there is no gamma (EMOv1).
        drop_path: probability that a training sample passes by the block (stochastic depth, arXiv 1603.09382).
        mixer_config: the other arguments of `MobileMixer`.

    Raises:
        ValueError: if a setting is not among those allowed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str = "layer",
        layer_scale_init: float | None = 1e-6,
        eps: float = 1e-6,
        stride: int = 1,
        drop_path: float = 0.0,
        **mixer_config,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; it must be one of {sorted(NORMS)}.")
        if stride == 1 and in_channels != out_channels:
            raise ValueError(
                f"A block with a skip keeps its width; got in_channels={in_channels}, out_channels={out_channels}. "
                "Use stride=2 to change the width."
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; it must be a probability below 1.")
        self.skip = stride == 1
        self.drop_path = drop_path
        self.norm = NORMS[norm](in_channels, eps=eps)
        self.mixer = MobileMixer(in_channels, out_channels, stride=stride, eps=eps, **mixer_config)
        self.gamma = None
        if layer_scale_init is not None:
            self.gamma = nn.Parameter(torch.full((out_channels,), layer_scale_init))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        update = self.mixer(tokens if self._norm_is_folded else self._normalize(tokens))
        if self.gamma is not None and not self.mixer.proj.is_fused:
            update = self.gamma * update
        if not self.skip:
            return update
        if self.training and self.drop_path > 0:
            update = update * F.dropout(update.new_ones(len(update), 1, 1, 1), self.drop_path)
        return add(update, tokens)

    def _normalize(self, tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(tokens)
        return self.norm(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def fuse(self) -> None:
        """Folds BatchNorms and gamma into the layers beside them, for inference.

        The norm before attention stays: padding comes between it and the linear layers.
        """
        mixer = self.mixer
        mixer.conv_local.fuse()
        if self._norm_can_be_folded:
            mixer.v.fuse_norm_before(self.norm)
        if self.gamma is not None:
            mixer.proj.fuse_scale_after(self.gamma)

    @property
    def _norm_can_be_folded(self) -> bool:
        return not isinstance(self.norm, nn.LayerNorm) and self.mixer.attention_mode == "none"

    @property
    def _norm_is_folded(self) -> bool:
        return self._norm_can_be_folded and self.mixer.v.is_fused


def _window_position(name: str, num_heads: int, head_dim: int, window_size: int) -> nn.Module:
    if name not in WINDOW_POSITIONS:
        raise ValueError(f"window_position is {name!r}; it must be None or one of {list(WINDOW_POSITIONS)}.")
    return WINDOW_POSITIONS[name](num_heads, head_dim, window_size)


def _check_settings(
    in_channels: int,
    attended_channels: int,
    num_heads: int,
    attention_mode: str,
    window_size: int,
    kernel_size: int,
    stride: int,
    activation: str,
) -> None:
    if attention_mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode is {attention_mode!r}; it must be one of {list(ATTENTION_MODES)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {sorted(ACTIVATIONS)}.")
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; it must be at least 1.")
    if window_size < 1:
        raise ValueError(f"window_size is {window_size}; it must be at least 1 token.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; it must be odd, so that the grid keeps its size.")
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; it must be 1 or 2.")
    if attention_mode != "none" and stride != 1:
        raise ValueError("A block of stride 2 has no attention; use attention_mode='none'.")
    if attention_mode != "none" and (in_channels % num_heads or attended_channels % num_heads):
        raise ValueError(
            f"num_heads is {num_heads}; it must divide the width {in_channels} and that of the values, "
            f"{attended_channels}."
        )
