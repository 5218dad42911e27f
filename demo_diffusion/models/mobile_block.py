"""The i2RMB block: attention over an expanded value, depthwise convolution, projection.

EMOv2 (arXiv 2412.06674, Sec. 3.2 and 3.3) calls the pattern Meta Mobile Block. `MobileMixer` is its inside, shared by
D-EMO (which puts adaptive LayerNorm and a gate around it) and by EMOv2 and EMOv1 (`MobileBlock`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from . import operators
from .layers.conv_norm import DepthwiseConvLayerNorm, DepthwiseConvNorm
from .layers.folding import FoldableLinear, is_folded
from .layers.window_positions import create_window_position
from .operators import ACTIVATIONS, add, gelu, silu
from .spanning_attention import ATTENTION_MODES, pad_to_windows


class MobileMixer(nn.Module):
    """proj(z + SiLU(BatchNorm(DepthwiseConv(z)))), z = attention(q, k, act(v)); without attention z = act(v).

    With stride 2 the sum loses its first term. Shapes: (B, H, W, in_channels) -> (B, ⌈H / stride⌉, ⌈W / stride⌉,
    out_channels).

    Args:
        expansion_ratio: width of v over `in_channels`.
        num_heads: heads of q, k (d = in_channels / heads) and of v (expansion_ratio · d); unused by mode "none".
        attention_mode: "none", "neighborhood", "remote" or "spanning".
        window_size: side of the attention windows in tokens; the grid is zero-padded to a multiple of it.
        kernel_size: odd side of the depthwise convolution.
        activation: of v, "gelu" (exact) or "silu".
        qk_norm: RMSNorm of each head's queries and keys (arXiv 2302.05442, Sec. 2, has LayerNorm there).
        window_position: position inside the windows, None or a name that `create_window_position` knows.
        attend_before_value: EMOv1's order, z = act(Linear(attention(q, k, input))); heads then split the input.
        batch_norm: BatchNorm after the convolution; False: the convolution has a bias instead.
        conv_layer_norm: LayerNorm and GELU after the convolution, in place of BatchNorm and SiLU (U-EMO).
        skip: the sum has its first term; None: where the stride is 1.

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
        batch_norm: bool = True,
        conv_layer_norm: bool = False,
        skip: bool | None = None,
    ):
        super().__init__()
        self.hidden_channels = hidden_channels = int(in_channels * expansion_ratio)
        attended_channels = in_channels if attend_before_value else hidden_channels
        _check_attention(attention_mode, window_size, num_heads, in_channels, attended_channels)
        _check_convolution(kernel_size, stride, attention_mode)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {sorted(ACTIVATIONS)}.")
        self.skip = stride == 1 if skip is None else skip
        self.conv_layer_norm = conv_layer_norm
        self.num_heads = num_heads
        self.attention_mode = attention_mode
        self.window_size = window_size
        self.attend_before_value = attend_before_value
        self.activation = ACTIVATIONS[activation]
        self.window_position = self.query_norm = self.key_norm = None
        if attention_mode != "none":
            self.qk = FoldableLinear(in_channels, 2 * in_channels)
            head_dim = in_channels // num_heads
            if qk_norm:
                self.query_norm, self.key_norm = nn.RMSNorm(head_dim, eps), nn.RMSNorm(head_dim, eps)
            self.window_position = create_window_position(window_position, num_heads, head_dim, window_size)
        self.v = FoldableLinear(in_channels, hidden_channels)
        if conv_layer_norm:
            self.conv_local = DepthwiseConvLayerNorm(hidden_channels, kernel_size, stride, eps)
        else:
            self.conv_local = DepthwiseConvNorm(hidden_channels, kernel_size, stride, eps, batch_norm)
        self.proj = FoldableLinear(hidden_channels, out_channels, bias=False)

    @operators.in_parts
    def forward(self, tokens: torch.Tensor, rotary: torch.Tensor | None = None) -> torch.Tensor:
        """`rotary`: `rotary_table` of the grid padded to whole windows, which turns queries and keys; None: nothing."""
        # 1. Values, mixed by window attention where the block attends.
        z = self.attend(tokens, rotary) if self.attention_mode != "none" else self.activation(self.v(tokens))
        # 2. z + SiLU(BatchNorm(DepthwiseConv(z))); without the first term where the stride is 2.
        if self.conv_layer_norm:
            update = gelu(self.conv_local(z))
            z = add(update, z) if self.skip else update
        else:
            z = operators.add_conv_norm_silu(z, self.conv_local) if self.skip else silu(self.conv_local(z))
        # 3. To the width of the output.
        return self.proj(z)

    def attend(self, tokens: torch.Tensor, rotary: torch.Tensor | None = None) -> torch.Tensor:
        """(B, H, W, in_channels) -> (B, H, W, expansion_ratio · in_channels)."""
        height, width = tokens.shape[1:3]
        tokens = pad_to_windows(tokens, self.window_size)
        activation = None if self.attend_before_value else self.activation
        settings = self.num_heads, self.window_size, self.attention_mode
        z = operators.window_attention(self.project, tokens, *settings, activation, rotary, self.window_position)
        z = z[:, :height, :width]
        return self.activation(self.v(z)) if self.attend_before_value else z

    def project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value before its activation, token by token: each (B, …, in_channels) -> (B, …, its width)."""
        query, key = self.qk(tokens).chunk(2, dim=-1)
        query, key = self._normalize(query, self.query_norm), self._normalize(key, self.key_norm)
        return query, key, (tokens if self.attend_before_value else self.v(tokens))

    def _normalize(self, x: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        if norm is None:
            return x
        heads = x.reshape(len(x), -1, self.num_heads, x.shape[-1] // self.num_heads)
        return norm(heads.to(norm.weight.dtype)).to(x.dtype).reshape(x.shape)  # in the weight's precision in autocast


NORMS = {"batch": nn.BatchNorm2d, "layer": nn.LayerNorm}


class MobileBlock(nn.Module):
    """The i2RMB of EMOv2: x + gamma · MobileMixer(norm(x)).

    Where the stride is 2 or the width changes there is neither this skip nor the mixer's.

    Shapes: (B, H, W, in_channels) -> (B, ⌈H / stride⌉, ⌈W / stride⌉, out_channels).

    Args:
        norm: "batch" or "layer" (both affine, over channels).
        layer_scale_init: initial value of gamma; None: there is no gamma (EMOv1).
        drop_path: probability of skipping the block for a training sample (stochastic depth, arXiv 1603.09382).
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
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; it must be a probability below 1.")
        self.skip = stride == 1 and in_channels == out_channels
        self.drop_path = drop_path
        self.norm = NORMS[norm](in_channels, eps=eps)
        self.mixer = MobileMixer(in_channels, out_channels, stride=stride, eps=eps, skip=self.skip, **mixer_config)
        self.gamma = None
        if layer_scale_init is not None:
            self.gamma = nn.Parameter(torch.full((out_channels,), layer_scale_init))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # 1. gamma · mixer(norm(x)), without what is folded into the mixer.
        gamma = None if is_folded(self.mixer.proj) else self.gamma
        update = self.mixer(self._normalize(tokens))
        if gamma is not None:
            update = gamma * update
        if not self.skip:
            return update
        # 2. Stochastic depth: the whole update of some samples is dropped.
        if self.training and self.drop_path > 0:
            update = update * F.dropout(update.new_ones(len(update), 1, 1, 1), self.drop_path)
        # 3. The skip.
        return add(update, tokens)

    def _normalize(self, tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(tokens)
        return tokens if self._norm_is_folded else self.norm(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def fuse(self) -> None:
        """Folds BatchNorms and gamma into the layers beside them, for inference.

        The norm before attention stays: padding comes between it and the linear layers. So does what stands before or
        behind an adapter in a layer's place.
        """
        mixer = self.mixer
        mixer.conv_local.fuse()
        if self._norm_can_be_folded and isinstance(mixer.v, FoldableLinear):
            mixer.v.fuse_norm_before(self.norm)
        if self.gamma is not None and isinstance(mixer.proj, FoldableLinear):
            mixer.proj.fuse_scale_after(self.gamma)

    @property
    def _norm_can_be_folded(self) -> bool:
        return not isinstance(self.norm, nn.LayerNorm) and self.mixer.attention_mode == "none"

    @property
    def _norm_is_folded(self) -> bool:
        return self._norm_can_be_folded and is_folded(self.mixer.v)


def _check_attention(mode: str, window_size: int, num_heads: int, channels: int, value_channels: int) -> None:
    if mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode is {mode!r}; it must be one of {list(ATTENTION_MODES)}.")
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; it must be at least 1.")
    if window_size < 1:
        raise ValueError(f"window_size is {window_size}; it must be at least 1 token.")
    if mode != "none" and (channels % num_heads or value_channels % num_heads):
        raise ValueError(
            f"num_heads is {num_heads}; it must divide the width {channels} and that of the values, {value_channels}."
        )


def _check_convolution(kernel_size: int, stride: int, mode: str) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; it must be odd, so that the grid keeps its size.")
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; it must be 1 or 2.")
    if mode != "none" and stride != 1:
        raise ValueError("A block of stride 2 has no attention; use attention_mode='none'.")
