"""Device code of the fused depthwise convolution; `depthwise.py` explains the algorithm and launches it."""

from typing import NamedTuple

import triton
import triton.language as tl

ROWS = tl.constexpr(16)
COLUMNS = tl.constexpr(4)
CHANNELS = tl.constexpr(64)
MAX_GROUPS = 4
IMAGES_PER_PROGRAM = tl.constexpr(4)  # of the weight gradient: fewer partial results against fewer programs


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
def statistics_kernel(
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
def convolve_add_kernel(
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
def gradient_sums_kernel(
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
def conv_gradient_kernel(
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
def weight_gradient_kernel(
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
