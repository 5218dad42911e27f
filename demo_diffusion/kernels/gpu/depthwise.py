"""z + SiLU(BatchNorm(DepthwiseConv(z))) on channels-last token grids, fused by Triton for NVIDIA GPUs.

The definition is `demo_diffusion.models.layers.conv_norm`. With d = DepthwiseConv(z), x̂ = (d − mean) · rstd and
u = gamma · x̂ + beta the output is z + SiLU(u). Neither d nor u is ever written to memory: a training step computes d
once for the statistics of the batch, once for the output and twice for the gradients. The backward pass writes the
gradient dd of d, in the dtype of z, for the gradients of z and of the weight.

A program computes `ROWS` rows × (groups · `COLUMNS`) columns × `CHANNELS` channels, one warp a group. It walks down the
rows; a thread holds the sums of the `kernel_size` output rows that the input row adds to, and loads every pixel once
for all of its `COLUMNS` columns. Arithmetic is in float32 whatever the dtypes are. PyTorch adds the partial results of
programs, without atomics, so that results are deterministic.

The kernels were compiled for sm_90 and tested with Triton's interpreter only. The constants below follow from counts of
registers and instructions; they were not tuned on a GPU.
"""

import torch
import triton
from torch import nn

from demo_diffusion.kernels.guards import refuse_second_derivative

from .depthwise_kernels import (
    CHANNELS,
    COLUMNS,
    IMAGES_PER_PROGRAM,
    MAX_GROUPS,
    ROWS,
    conv_gradient_kernel,
    convolve_add_kernel,
    gradient_sums_kernel,
    statistics_kernel,
    weight_gradient_kernel,
)

KERNEL_SIZES = (3, 5, 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


def supports(tokens: torch.Tensor, conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Whether `triton_conv_norm_silu_add` can compute these; otherwise the modules themselves have to."""
    kernel_size = conv.kernel_size[0]
    return (
        tokens.device.type == DEVICE
        and tokens.dtype in DTYPES
        and tokens.ndim == 4
        and tokens.is_contiguous()
        and tokens.shape[0] * tokens.shape[1] * tokens.shape[2] > 1
        and 0 < tokens.shape[1] * tokens.shape[2] * tokens.shape[3] < 2**31
        and kernel_size in KERNEL_SIZES
        and conv.kernel_size == (kernel_size, kernel_size)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding == (kernel_size // 2, kernel_size // 2)
        and conv.padding_mode == "zeros"
        and conv.groups == conv.in_channels == conv.out_channels == tokens.shape[3]
        and conv.bias is None
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
    )


def triton_conv_norm_silu_add(tokens: torch.Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> torch.Tensor:
    """tokens + SiLU(norm(conv(tokens))), (B, H, W, C) -> (B, H, W, C), for what `supports` admits.

    In training mode `norm` normalises by the batch and moves its running statistics, as `nn.BatchNorm2d` does.
    """
    if norm.training:
        mean, variance = depthwise_statistics(tokens.detach(), conv.weight.detach())
        _update_running_statistics(norm, mean, variance, tokens.numel() // len(mean))
    else:
        mean, variance = norm.running_mean.float(), norm.running_var.float()
    rstd = torch.rsqrt(variance + norm.eps)
    return depthwise_norm_silu_add(tokens, conv.weight, mean, rstd, norm.weight, norm.bias, norm.training)


def triton_folded_conv_silu_add(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """tokens + SiLU(DepthwiseConv(tokens) + bias), (B, H, W, C) -> (B, H, W, C).

    Args:
        weight, bias: `fused_weight` (C, 1, K, K) and `fused_bias` (C,) of `models.layers.conv_norm.ConvNorm`.
    """
    zero, one = torch.zeros_like(bias), torch.ones_like(bias)
    return depthwise_norm_silu_add(tokens, weight, zero, one, one, bias, False)


@torch.no_grad()
def _update_running_statistics(norm: nn.BatchNorm2d, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.mul_(1 - momentum).add_(momentum * mean)
    norm.running_var.mul_(1 - momentum).add_(momentum * variance * (count / (count - 1)))


@torch.library.custom_op("demo_diffusion::depthwise_statistics", mutates_args=())
def depthwise_statistics(tokens: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of DepthwiseConv(tokens): (B, H, W, C), (C, 1, K, K) -> (C,), (C,) in float32."""
    num_tiles = _count_tiles(tokens)
    partials = tokens.new_empty(3, num_tiles, tokens.shape[3], dtype=torch.float32)
    _launch(statistics_kernel, num_tiles, weight, (tokens, _taps(weight), partials, num_tiles), tokens.shape)
    counts, means, m2 = partials
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return mean, (m2 + counts * (means - mean).square()).sum(0) / count


@depthwise_statistics.register_fake
def _(tokens, weight):
    return tuple(tokens.new_empty(tokens.shape[3], dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("demo_diffusion::depthwise_norm_silu_add", mutates_args=())
def depthwise_norm_silu_add(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    batch_statistics: bool,
) -> torch.Tensor:
    """tokens + SiLU(gamma · x̂ + beta), x̂ = (DepthwiseConv(tokens) − mean) · rstd: (B, H, W, C) -> (B, H, W, C).

    Args:
        weight: (C, 1, K, K); `mean`, `rstd`, `gamma` and `beta` are (C,).
        batch_statistics: mean and rstd are those of DepthwiseConv(tokens), and gradients pass through them; otherwise
            they are constants.
    """
    output = torch.empty_like(tokens)
    norm = _stack(mean, rstd, gamma, beta)
    arguments = (tokens, _taps(weight), norm, tokens, output)
    _launch(convolve_add_kernel, _count_tiles(tokens), weight, arguments, tokens.shape)
    return output


@depthwise_norm_silu_add.register_fake
def _(tokens, weight, mean, rstd, gamma, beta, batch_statistics):
    return torch.empty_like(tokens)


@torch.library.custom_op("demo_diffusion::depthwise_norm_silu_gradient", mutates_args=())
def depthwise_norm_silu_gradient(
    gradient: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    batch_statistics: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of DepthwiseConv(tokens) (B, H, W, C), of gamma and of beta (C,), the latter two in float32.

    `gradient` (B, H, W, C) is that of the output; the other arguments are those of `depthwise_norm_silu_add`.
    """
    num_tiles = _count_tiles(tokens)
    taps = _taps(weight)
    partials = tokens.new_empty(2, num_tiles, tokens.shape[3], dtype=torch.float32)
    arguments = (tokens, taps, _stack(mean, rstd, gamma, beta), gradient, partials, num_tiles)
    _launch(gradient_sums_kernel, num_tiles, weight, arguments, tokens.shape)
    beta_gradient, gamma_gradient = (part.sum(0) for part in partials)
    share = tokens.shape[3] / tokens.numel() if batch_statistics else 0.0
    norm = _stack(mean, rstd, gamma, beta, beta_gradient * share, gamma_gradient * share)
    conv_gradient = torch.empty_like(tokens)
    arguments = (tokens, taps, norm, gradient, conv_gradient)
    _launch(conv_gradient_kernel, num_tiles, weight, arguments, tokens.shape)
    return conv_gradient, gamma_gradient, beta_gradient


@depthwise_norm_silu_gradient.register_fake
def _(gradient, tokens, weight, mean, rstd, gamma, beta, batch_statistics):
    gamma_gradient, beta_gradient = (torch.empty_like(x, dtype=torch.float32) for x in (gamma, beta))
    return torch.empty_like(tokens), gamma_gradient, beta_gradient


@torch.library.custom_op("demo_diffusion::depthwise_input_gradient", mutates_args=())
def depthwise_input_gradient(gradient: torch.Tensor, conv_gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """gradient + TransposedDepthwiseConv(conv_gradient): (B, H, W, C), (B, H, W, C), (C, 1, K, K) -> (B, H, W, C)."""
    output = torch.empty_like(conv_gradient)
    arguments = (conv_gradient, _taps(weight.flip(2, 3)), None, gradient, output)
    _launch(convolve_add_kernel, _count_tiles(gradient), weight, arguments, gradient.shape)
    return output


@depthwise_input_gradient.register_fake
def _(gradient, conv_gradient, weight):
    return torch.empty_like(conv_gradient)


@torch.library.custom_op("demo_diffusion::depthwise_weight_gradient", mutates_args=())
def depthwise_weight_gradient(tokens: torch.Tensor, conv_gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of a depthwise convolution's weight: (B, H, W, C), (B, H, W, C) -> (C, 1, K, K) in float32."""
    batch, _, width, channels = tokens.shape
    num_tiles = triton.cdiv(batch, IMAGES_PER_PROGRAM.value) * _count_column_tiles(width)
    partials = tokens.new_empty(num_tiles, weight[0].numel(), channels, dtype=torch.float32)
    arguments = (tokens, conv_gradient, partials, batch)
    _launch(weight_gradient_kernel, num_tiles, weight, arguments, tokens.shape)
    return partials.sum(0).t().contiguous().view(weight.shape)


@depthwise_weight_gradient.register_fake
def _(tokens, conv_gradient, weight):
    return weight.new_empty(weight.shape, dtype=torch.float32)


def _save_for_backward(ctx, inputs, output) -> None:
    *tensors, ctx.batch_statistics = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    tokens, weight, mean, rstd, gamma, beta = ctx.saved_tensors
    gradient = gradient.contiguous()
    conv_gradient, gamma_gradient, beta_gradient = depthwise_norm_silu_gradient(
        gradient, tokens, weight, mean, rstd, gamma, beta, ctx.batch_statistics
    )
    tokens_gradient = weight_gradient = None
    if ctx.needs_input_grad[0]:
        tokens_gradient = depthwise_input_gradient(gradient, conv_gradient, weight)
    if ctx.needs_input_grad[1]:
        weight_gradient = depthwise_weight_gradient(tokens, conv_gradient, weight).to(weight.dtype)
    gamma_gradient, beta_gradient = gamma_gradient.to(gamma.dtype), beta_gradient.to(beta.dtype)
    return tokens_gradient, weight_gradient, None, None, gamma_gradient, beta_gradient, None


depthwise_norm_silu_add.register_autograd(_backward, setup_context=_save_for_backward)
for operator in (depthwise_norm_silu_gradient, depthwise_input_gradient, depthwise_weight_gradient):
    operator.register_autograd(refuse_second_derivative)


def _launch(kernel, num_tiles: int, weight: torch.Tensor, arguments: tuple, shape: torch.Size) -> None:
    """Runs a program for every tile and block of channels of a grid of `shape` (B, H, W, C).

    Raises:
        ValueError: if a tensor is not contiguous.
    """
    if not all(x.is_contiguous() for x in arguments if isinstance(x, torch.Tensor)):
        raise ValueError("Tokens and gradients must be contiguous in the order (B, H, W, C); call .contiguous() first.")
    _, height, width, channels = shape
    groups = _count_groups(width)
    with torch.cuda.device_of(weight):
        kernel[(num_tiles * triton.cdiv(channels, CHANNELS.value),)](
            *arguments, height, width, channels, KERNEL=weight.shape[-1], GROUPS=groups, num_warps=groups
        )


def _count_groups(width: int) -> int:
    return min(MAX_GROUPS, triton.next_power_of_2(triton.cdiv(width, COLUMNS.value)))


def _count_column_tiles(width: int) -> int:
    return triton.cdiv(width, _count_groups(width) * COLUMNS.value)


def _count_tiles(tokens: torch.Tensor) -> int:
    batch, height, width, _ = tokens.shape
    return batch * triton.cdiv(height, ROWS.value) * _count_column_tiles(width)


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(C, 1, K, K) -> (K², C) in float32."""
    return weight.flatten(1).t().float().contiguous()


def _stack(*vectors: torch.Tensor) -> torch.Tensor:
    return torch.stack([vector.float() for vector in vectors])
