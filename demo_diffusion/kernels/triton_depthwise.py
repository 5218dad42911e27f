"""z + SiLU(BatchNorm(DepthwiseConv(z))) on channels-last token grids, fused by Triton for NVIDIA GPUs.

The definition is `demo_diffusion.models.depthwise_conv`. With d = DepthwiseConv(z), x̂ = (d − mean) · rstd and
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

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import nn

from .guards import refuse_second_derivative

ROWS = tl.constexpr(16)
COLUMNS = tl.constexpr(4)
CHANNELS = tl.constexpr(64)
MAX_GROUPS = 4
IMAGES_PER_PROGRAM = tl.constexpr(4)  # of the weight gradient: fewer partial results against fewer programs

KERNEL_SIZES = (3, 5, 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


class Tile(NamedTuple):
    """What one program computes of a (B, H, W, C) grid, and the grid's size.

    `image` is a group of images in the weight gradient; `end_row` is exclusive; `columns` (groups, 1) has the first
    column of every group; `channels` is (1, CHANNELS).
    """

    index: tl.tensor
    image: tl.tensor
    first_row: tl.tensor
    end_row: tl.tensor
    columns: tl.tensor
    channels: tl.tensor
    height: tl.tensor
    width: tl.tensor
    num_channels: tl.tensor


@triton.jit
def _locate_tile(height, width, num_channels, tile_rows, GROUPS: tl.constexpr):
    """The tile of this program: channels count fastest, then columns, rows and images."""
    channel_blocks = tl.cdiv(num_channels, CHANNELS)
    column_tiles = tl.cdiv(width, GROUPS * COLUMNS)
    row_tiles = tl.cdiv(height, tile_rows)
    index = tl.program_id(0) // channel_blocks
    image = index // (column_tiles * row_tiles)
    first_row = index // column_tiles % row_tiles * tile_rows
    end_row = tl.minimum(first_row + tile_rows, height)
    columns = (index % column_tiles * GROUPS + tl.arange(0, GROUPS)[:, None]) * COLUMNS
    channels = tl.program_id(0) % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return Tile(index, image, first_row, end_row, columns, channels, height, width, num_channels)


@triton.jit
def _image_start(tensor, image, tile):
    return tensor + tl.cast(image, tl.int64) * (tile.height * tile.width * tile.num_channels)


@triton.jit
def _locate_row(tile, row):
    """Offsets of the first column of every group, and whether row and channel are inside: (groups, CHANNELS)."""
    rows = row + tl.zeros_like(tile.columns)
    offsets = (rows * tile.width + tile.columns) * tile.num_channels + tile.channels
    return offsets, (rows >= 0) & (rows < tile.height) & (tile.channels < tile.num_channels)


@triton.jit
def _load_row(image, tile, row, RADIUS: tl.constexpr):
    """The tile's row with a margin of RADIUS columns: a tuple of COLUMNS + 2 · RADIUS × (groups, CHANNELS).

    The i-th has column i − RADIUS of every group. Outside of the grid there are zeros.
    """
    offsets, is_inside = _locate_row(tile, row)
    pixels = ()
    for i in tl.static_range(COLUMNS + 2 * RADIUS):
        columns = tile.columns + (i - RADIUS)
        mask = is_inside & (columns >= 0) & (columns < tile.width)
        values = tl.load(image + offsets + (i - RADIUS) * tile.num_channels, mask=mask, other=0.0)
        pixels += (values.to(tl.float32),)
    return pixels


@triton.jit
def _store_row(image, tile, row, pixels):
    """The reverse of `_load_row` with RADIUS = 0."""
    offsets, is_inside = _locate_row(tile, row)
    for i in tl.static_range(COLUMNS):
        mask = is_inside & (tile.columns + i < tile.width)
        tl.store(image + offsets + i * tile.num_channels, pixels[i].to(image.dtype.element_ty), mask=mask)


@triton.jit
def _load_channels(matrix, tile, COUNT: tl.constexpr):
    """The tile's channels of a (COUNT, C) matrix for every group, as pixels have them: COUNT × (groups, CHANNELS)."""
    channels = tile.channels + tl.zeros_like(tile.columns)
    rows = ()
    for i in tl.static_range(COUNT):
        offsets = i * tile.num_channels + channels
        rows += (tl.load(matrix + offsets, mask=channels < tile.num_channels, other=0.0),)
    return rows


@triton.jit
def _store_channels(matrix, tile, row, values):
    offsets = row * tile.num_channels + tile.channels
    tl.store(matrix + offsets, values, mask=tile.channels < tile.num_channels)


@triton.jit
def _zeros(COUNT: tl.constexpr, GROUPS: tl.constexpr):
    return (tl.zeros((GROUPS, CHANNELS), tl.float32),) * COUNT


@triton.jit
def _convolve_row(sums, image, tile, row, weight, KERNEL: tl.constexpr, GROUPS: tl.constexpr):
    """Adds an input row to the output rows that it is part of, of which the first, row − KERNEL // 2, is then complete.

    Args:
        sums: KERNEL · COLUMNS × (groups, CHANNELS), as the call for the row above returned it.
        weight: KERNEL² × (groups, CHANNELS).
    """
    pixels = _load_row(image, tile, row, KERNEL // 2)
    sums = sums[COLUMNS:] + _zeros(COLUMNS, GROUPS)
    updated = ()
    for i in tl.static_range(KERNEL):
        for column in tl.static_range(COLUMNS):
            total = sums[i * COLUMNS + column]
            for j in tl.static_range(KERNEL):
                total = tl.fma(weight[(KERNEL - 1 - i) * KERNEL + j], pixels[column + j], total)
            updated += (total,)
    return updated


@triton.jit
def _moments(pixels, columns):
    """Mean and sum of squared deviations of a row's pixels, of which `columns` (groups, 1) are inside the grid."""
    total = tl.zeros_like(pixels[0])
    for column in tl.static_range(COLUMNS):
        total += tl.where(column < columns, pixels[column], 0.0)
    mean = total / tl.maximum(columns, 1.0)
    m2 = tl.zeros_like(mean)
    for column in tl.static_range(COLUMNS):
        deviation = tl.where(column < columns, pixels[column] - mean, 0.0)
        m2 += deviation * deviation
    return mean, m2


@triton.jit
def _statistics_kernel(
    tokens, weight, partials, num_tiles, height, width, num_channels, KERNEL: tl.constexpr, GROUPS: tl.constexpr
):
    """Count, mean and sum of squared deviations (M2) of every tile's d; partials: (3, tiles, C).

    Rows and groups are combined by the pairwise formula of Chan, Golub and LeVeque (1979).
    """
    RADIUS: tl.constexpr = KERNEL // 2
    tile = _locate_tile(height, width, num_channels, ROWS, GROUPS)
    image = _image_start(tokens, tile.image, tile)
    taps = _load_channels(weight, tile, KERNEL * KERNEL)
    sums = _zeros(KERNEL * COLUMNS, GROUPS)
    columns = tl.minimum(tl.maximum(width - tile.columns, 0), COLUMNS).to(tl.float32)
    mean = tl.zeros((GROUPS, CHANNELS), tl.float32)
    m2 = tl.zeros((GROUPS, CHANNELS), tl.float32)
    for input_row in range(tl.maximum(tile.first_row - RADIUS, 0), tile.end_row + RADIUS):
        sums = _convolve_row(sums, image, tile, input_row, taps, KERNEL, GROUPS)
        rows_before = input_row - RADIUS - tile.first_row
        if rows_before >= 0:
            row_mean, row_m2 = _moments(sums, columns)
            delta = row_mean - mean
            fraction = 1.0 / (rows_before + 1)
            mean += delta * fraction
            m2 += row_m2 + delta * delta * columns * (rows_before * fraction)
    counts = columns * (tile.end_row - tile.first_row)
    count = tl.sum(counts, 0, keep_dims=True)
    tile_mean = tl.sum(counts * mean, 0, keep_dims=True) / count
    tile_m2 = tl.sum(m2 + counts * (mean - tile_mean) * (mean - tile_mean), 0, keep_dims=True)
    _store_channels(partials, tile, tile.index, count + tl.zeros_like(tile_mean))
    _store_channels(partials, tile, num_tiles + tile.index, tile_mean)
    _store_channels(partials, tile, 2 * num_tiles + tile.index, tile_m2)


@triton.jit
def _convolve_add_kernel(
    tokens,
    weight,
    norm,
    residual,
    output,
    height,
    width,
    num_channels,
    KERNEL: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """output = residual + SiLU(gamma · x̂ + beta), or residual + d if norm is None.

    Shapes: (B, H, W, C); weight: (KERNEL², C); norm: mean, rstd, gamma and beta (4, C).
    """
    RADIUS: tl.constexpr = KERNEL // 2
    tile = _locate_tile(height, width, num_channels, ROWS, GROUPS)
    image = _image_start(tokens, tile.image, tile)
    residual = _image_start(residual, tile.image, tile)
    output = _image_start(output, tile.image, tile)
    taps = _load_channels(weight, tile, KERNEL * KERNEL)
    if norm is not None:
        mean, rstd, gamma, beta = _load_channels(norm, tile, 4)
    sums = _zeros(KERNEL * COLUMNS, GROUPS)
    for input_row in range(tl.maximum(tile.first_row - RADIUS, 0), tile.end_row + RADIUS):
        row = input_row - RADIUS
        residuals = _load_row(residual, tile, row, 0)
        sums = _convolve_row(sums, image, tile, input_row, taps, KERNEL, GROUPS)
        if row >= tile.first_row:
            outputs = ()
            for i in tl.static_range(COLUMNS):
                update = sums[i]
                if norm is not None:
                    u = (update - mean) * (gamma * rstd) + beta
                    update = u * tl.sigmoid(u)
                outputs += (residuals[i] + update,)
            _store_row(output, tile, row, outputs)


@triton.jit
def _norm_gradient(d, gradient, mean, rstd, gamma, beta):
    """x̂ and the gradient du = gradient · SiLU'(u) of u = gamma · x̂ + beta."""
    x_hat = (d - mean) * rstd
    u = x_hat * gamma + beta
    sigmoid = tl.sigmoid(u)
    return x_hat, gradient * sigmoid * (1.0 + u * (1.0 - sigmoid))


@triton.jit
def _gradient_sums_kernel(
    tokens,
    weight,
    norm,
    gradient,
    partials,
    num_tiles,
    height,
    width,
    num_channels,
    KERNEL: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Sums of du and of du · x̂ over every tile, the gradients of beta and gamma; partials: (2, tiles, C)."""
    RADIUS: tl.constexpr = KERNEL // 2
    tile = _locate_tile(height, width, num_channels, ROWS, GROUPS)
    image = _image_start(tokens, tile.image, tile)
    gradient = _image_start(gradient, tile.image, tile)
    taps = _load_channels(weight, tile, KERNEL * KERNEL)
    mean, rstd, gamma, beta = _load_channels(norm, tile, 4)
    sums = _zeros(KERNEL * COLUMNS, GROUPS)
    beta_gradient = tl.zeros((GROUPS, CHANNELS), tl.float32)
    gamma_gradient = tl.zeros((GROUPS, CHANNELS), tl.float32)
    for input_row in range(tl.maximum(tile.first_row - RADIUS, 0), tile.end_row + RADIUS):
        row = input_row - RADIUS
        gradients = _load_row(gradient, tile, row, 0)
        sums = _convolve_row(sums, image, tile, input_row, taps, KERNEL, GROUPS)
        if row >= tile.first_row:
            for i in tl.static_range(COLUMNS):
                x_hat, du = _norm_gradient(sums[i], gradients[i], mean, rstd, gamma, beta)
                beta_gradient += du
                gamma_gradient += du * x_hat
    _store_channels(partials, tile, tile.index, tl.sum(beta_gradient, 0, keep_dims=True))
    _store_channels(partials, tile, num_tiles + tile.index, tl.sum(gamma_gradient, 0, keep_dims=True))


@triton.jit
def _conv_gradient_kernel(
    tokens,
    weight,
    norm,
    gradient,
    conv_gradient,
    height,
    width,
    num_channels,
    KERNEL: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The gradient of d: gamma · rstd · (du − mean_du − x̂ · mean_du_x̂).

    Shapes: (B, H, W, C); norm: mean, rstd, gamma, beta, mean_du and mean_du_x̂ (6, C).
    """
    RADIUS: tl.constexpr = KERNEL // 2
    tile = _locate_tile(height, width, num_channels, ROWS, GROUPS)
    image = _image_start(tokens, tile.image, tile)
    gradient = _image_start(gradient, tile.image, tile)
    conv_gradient = _image_start(conv_gradient, tile.image, tile)
    taps = _load_channels(weight, tile, KERNEL * KERNEL)
    mean, rstd, gamma, beta, mean_du, mean_du_x_hat = _load_channels(norm, tile, 6)
    sums = _zeros(KERNEL * COLUMNS, GROUPS)
    for input_row in range(tl.maximum(tile.first_row - RADIUS, 0), tile.end_row + RADIUS):
        row = input_row - RADIUS
        gradients = _load_row(gradient, tile, row, 0)
        sums = _convolve_row(sums, image, tile, input_row, taps, KERNEL, GROUPS)
        if row >= tile.first_row:
            outputs = ()
            for i in tl.static_range(COLUMNS):
                x_hat, du = _norm_gradient(sums[i], gradients[i], mean, rstd, gamma, beta)
                outputs += (gamma * rstd * (du - mean_du - x_hat * mean_du_x_hat),)
            _store_row(conv_gradient, tile, row, outputs)


@triton.jit
def _correlate_row(totals, gradients, image, tile, row, KERNEL: tl.constexpr):
    """Adds one row of z times the KERNEL rows of dd around it to KERNEL² sums of (groups, CHANNELS)."""
    pixels = _load_row(image, tile, row, KERNEL // 2)
    updated = ()
    for i in tl.static_range(KERNEL):
        for j in tl.static_range(KERNEL):
            total = totals[i * KERNEL + j]
            for column in tl.static_range(COLUMNS):
                total = tl.fma(gradients[(KERNEL - 1 - i) * COLUMNS + column], pixels[column + j], total)
            updated += (total,)
    return updated


@triton.jit
def _weight_gradient_kernel(
    tokens,
    conv_gradient,
    partials,
    batch,
    height,
    width,
    num_channels,
    KERNEL: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """dw[i, j] = Σ dd[h, w] · z[h + i − radius, w + j − radius] over the tile; partials: (tiles, KERNEL², C).

    A tile is all rows of IMAGES_PER_PROGRAM images.
    """
    RADIUS: tl.constexpr = KERNEL // 2
    tile = _locate_tile(height, width, num_channels, height, GROUPS)
    totals = _zeros(KERNEL * KERNEL, GROUPS)
    first_image = tile.image * IMAGES_PER_PROGRAM
    for image in range(first_image, tl.minimum(first_image + IMAGES_PER_PROGRAM, batch)):
        image_tokens = _image_start(tokens, image, tile)
        image_gradient = _image_start(conv_gradient, image, tile)
        gradients = _zeros(KERNEL * COLUMNS, GROUPS)
        for row in range(-RADIUS, height):
            gradients = gradients[COLUMNS:] + _load_row(image_gradient, tile, row + RADIUS, 0)
            totals = _correlate_row(totals, gradients, image_tokens, tile, row, KERNEL)
    for i in tl.static_range(KERNEL * KERNEL):
        total = tl.sum(totals[i], 0, keep_dims=True)
        _store_channels(partials, tile, tile.index * (KERNEL * KERNEL) + i, total)


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
        weight, bias: `fused_weight` (C, 1, K, K) and `fused_bias` (C,) of `models.depthwise_conv.ConvNorm`.
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
    _launch(_statistics_kernel, num_tiles, weight, (tokens, _taps(weight), partials, num_tiles), tokens.shape)
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
    _launch(_convolve_add_kernel, _count_tiles(tokens), weight, arguments, tokens.shape)
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
    _launch(_gradient_sums_kernel, num_tiles, weight, arguments, tokens.shape)
    beta_gradient, gamma_gradient = (part.sum(0) for part in partials)
    share = tokens.shape[3] / tokens.numel() if batch_statistics else 0.0
    norm = _stack(mean, rstd, gamma, beta, beta_gradient * share, gamma_gradient * share)
    conv_gradient = torch.empty_like(tokens)
    arguments = (tokens, taps, norm, gradient, conv_gradient)
    _launch(_conv_gradient_kernel, num_tiles, weight, arguments, tokens.shape)
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
    _launch(_convolve_add_kernel, _count_tiles(gradient), weight, arguments, gradient.shape)
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
    _launch(_weight_gradient_kernel, num_tiles, weight, arguments, tokens.shape)
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
