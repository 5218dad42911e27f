"""Device code of the fused spanning attention; `attention.py` explains the algorithm and launches it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
KINDS = ("neighborhood", "remote")  # numbered in this order
SHARED_MEMORY = 163 * 1024  # bytes of a program; what an A100 offers and no kernel exceeds

# Tokens of a program: a row of scores of 256 tokens takes the most registers, two of them in the scores' gradient.
FORWARD_TILE = 128
VALUE_GRADIENT_TILE = 128
SCORE_GRADIENT_TILE = 64
FLOAT32_BLOCK = 16  # without tensor cores `tl.dot` holds whole rows and columns in registers

LOG2_E = tl.constexpr(math.log2(math.e))
SQRT_HALF = tl.constexpr(math.sqrt(0.5))
INV_SQRT_TWO_PI = tl.constexpr(1 / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Problem:
    """What a kernel is compiled for: the windows, the heads, and how a program divides them.

    Attributes:
        rows, columns: windows along the grid's axes, the n of `partition_windows`.
        first_kind, end_kind: the kinds of windows are those of `KINDS` in between.
        tile: tokens whose results a program computes.
        block_values: channels of the value that it takes at once.
    """

    rows: int
    columns: int
    window_size: int
    num_heads: int
    head_dim: int
    value_dim: int
    first_kind: int
    end_kind: int
    gelu: bool
    tile: int
    block_values: int

    @property
    def width(self) -> int:
        return self.columns * self.window_size

    @property
    def tokens(self) -> int:
        return self.rows * self.columns * self.window_size**2

    @property
    def block_tokens(self) -> int:
        return block_size(self.tokens)

    @property
    def num_tiles(self) -> int:
        return triton.cdiv(self.tokens, self.tile)

    @property
    def head_block(self) -> int:
        """The first channels of a head, as many as a block can have without padding: 64 of 72."""
        return max(16, block_size(self.head_dim + 1) // 2)

    @property
    def head_rest(self) -> int:
        """A block for the other channels, or 0: 16 for 8 of 72."""
        rest = self.head_dim - self.head_block
        return block_size(rest) if rest > 0 else 0

    @property
    def num_warps(self) -> int:
        return 4 if self.block_tokens <= 64 else 8

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


def block_size(size: int) -> int:
    """The smallest block of `tl.dot` that holds `size` elements."""
    return max(16, triton.next_power_of_2(size))


class Head(NamedTuple):
    """One head of one image: (tokens, `width` channels), `stride` elements from token to token."""

    start: tl.tensor
    stride: tl.tensor
    width: tl.constexpr


@triton.jit
def _locate_head(tensor, batch_stride, token_stride, program, WIDTH: tl.constexpr, PROBLEM: tl.constexpr):
    """The head of `program` = image · num_heads + head in a tensor (B, tokens, num_heads · WIDTH)."""
    image = tl.cast(program // PROBLEM.num_heads, tl.int64)
    return Head(tensor + image * batch_stride + program % PROBLEM.num_heads * WIDTH, token_stride, WIDTH)


@triton.jit
def _locate_contiguous_head(tensor, program, WIDTH: tl.constexpr, PROBLEM: tl.constexpr):
    TOKEN_STRIDE: tl.constexpr = PROBLEM.num_heads * WIDTH
    return _locate_head(tensor, PROBLEM.tokens * TOKEN_STRIDE, TOKEN_STRIDE, program, WIDTH, PROBLEM)


@triton.jit
def _locate_scores(scores, program, PROBLEM: tl.constexpr):
    """The same for a tensor (B · num_heads, tokens, tokens) of queries and keys; here the channels are the keys."""
    start = scores + tl.cast(program, tl.int64) * (PROBLEM.tokens * PROBLEM.tokens)
    return Head(start, PROBLEM.tokens, PROBLEM.tokens)


@triton.jit
def _locate(head, tokens, channels, PROBLEM: tl.constexpr):
    """Pointers to (tokens, channels) of a head, and whether they exist."""
    is_inside = (tokens < PROBLEM.tokens)[:, None] & (channels < head.width)[None, :]
    return head.start + tokens[:, None] * head.stride + channels[None, :], is_inside


@triton.jit
def _load(head, tokens, channels, PROBLEM: tl.constexpr):
    """Zero outside of the head."""
    pointers, is_inside = _locate(head, tokens, channels, PROBLEM)
    return tl.load(pointers, mask=is_inside, other=0.0)


@triton.jit
def _store(head, tokens, channels, elements, PROBLEM: tl.constexpr):
    pointers, is_inside = _locate(head, tokens, channels, PROBLEM)
    tl.store(pointers, elements.to(head.start.dtype.element_ty), mask=is_inside)


@triton.jit
def _dot(left, right, total=None):
    if IS_INTERPRETED:  # the interpreter would multiply the bits of bfloat16 as integers
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _scores(left, left_tokens, right, right_tokens, PROBLEM: tl.constexpr):
    """q kᵀ · scale · log₂e, (left_tokens, right_tokens), of queries and keys or of keys and queries."""
    channels = tl.arange(0, PROBLEM.head_block)
    columns = tl.trans(_load(right, right_tokens, channels, PROBLEM))
    scores = _dot(_load(left, left_tokens, channels, PROBLEM), columns)
    if PROBLEM.head_rest:
        channels = PROBLEM.head_block + tl.arange(0, PROBLEM.head_rest)
        columns = tl.trans(_load(right, right_tokens, channels, PROBLEM))
        scores = _dot(_load(left, left_tokens, channels, PROBLEM), columns, scores)
    return scores * (PROBLEM.scale * LOG2_E)


@triton.jit
def _window_ids(tokens, KIND: tl.constexpr, PROBLEM: tl.constexpr):
    """The window of each token, as in `partition_windows`; tokens beyond the grid have their own."""
    row, column = tokens // PROBLEM.width, tokens % PROBLEM.width
    if KIND == 1:
        row, column = row % PROBLEM.rows, column % PROBLEM.columns
    else:
        row, column = row // PROBLEM.window_size, column // PROBLEM.window_size
    return tl.where(tokens < PROBLEM.tokens, row * PROBLEM.columns + column, -1)


@triton.jit
def _share_window(left_tokens, right_tokens, KIND: tl.constexpr, PROBLEM: tl.constexpr):
    left = _window_ids(left_tokens, KIND, PROBLEM)
    return left[:, None] == _window_ids(right_tokens, KIND, PROBLEM)[None, :]


@triton.jit
def _log_sum_exp(scores, is_inside):
    """log₂ Σ 2^scores over the keys of the window: (queries, keys) -> (queries,)."""
    scores = tl.where(is_inside, scores, -float("inf"))
    maximum = tl.max(scores, 1)
    return maximum + tl.log2(tl.sum(tl.exp2(scores - maximum[:, None]), 1))


@triton.jit
def _probabilities(scores, is_inside, log_sum_exp):
    return tl.where(is_inside, tl.exp2(scores - log_sum_exp), 0.0)


@triton.jit
def _locate_log_sum_exp(log_sum_exp, tokens, program, KIND: tl.constexpr, PROBLEM: tl.constexpr):
    """Pointers into (B · num_heads, kinds, tokens)."""
    row = tl.cast(program, tl.int64) * (PROBLEM.end_kind - PROBLEM.first_kind) + (KIND - PROBLEM.first_kind)
    return log_sum_exp + row * PROBLEM.tokens + tokens


@triton.jit
def _load_log_sum_exp(log_sum_exp, tokens, program, KIND: tl.constexpr, PROBLEM: tl.constexpr):
    pointers = _locate_log_sum_exp(log_sum_exp, tokens, program, KIND, PROBLEM)
    return tl.load(pointers, mask=tokens < PROBLEM.tokens, other=0.0)


@triton.jit
def _store_log_sum_exp(log_sum_exp, tokens, program, elements, KIND: tl.constexpr, PROBLEM: tl.constexpr):
    pointers = _locate_log_sum_exp(log_sum_exp, tokens, program, KIND, PROBLEM)
    tl.store(pointers, elements, mask=tokens < PROBLEM.tokens)


@triton.jit
def _normal_cdf(x):
    return 0.5 + 0.5 * tl.erf(x * SQRT_HALF)


@triton.jit
def _gelu_gradient(x):
    """Φ(x) + x φ(x)."""
    return _normal_cdf(x) + x * (INV_SQRT_TWO_PI * tl.exp2(x * x * (-0.5 * LOG2_E)))


@triton.jit
def forward_kernel(
    query,
    key,
    value,
    output,
    log_sum_exp,
    query_batch_stride,
    query_token_stride,
    key_batch_stride,
    key_token_stride,
    value_batch_stride,
    value_token_stride,
    SAVE: tl.constexpr,
    PROBLEM: tl.constexpr,
):
    """z of one tile of a head's queries, and their log-sum-exps if SAVE."""
    program = tl.program_id(0) // PROBLEM.num_tiles
    queries = tl.program_id(0) % PROBLEM.num_tiles * PROBLEM.tile + tl.arange(0, PROBLEM.tile)
    keys = tl.arange(0, PROBLEM.block_tokens)
    q = _locate_head(query, query_batch_stride, query_token_stride, program, PROBLEM.head_dim, PROBLEM)
    k = _locate_head(key, key_batch_stride, key_token_stride, program, PROBLEM.head_dim, PROBLEM)
    v = _locate_head(value, value_batch_stride, value_token_stride, program, PROBLEM.value_dim, PROBLEM)
    z = _locate_contiguous_head(output, program, PROBLEM.value_dim, PROBLEM)

    scores = _scores(q, queries, k, keys, PROBLEM)
    p = tl.zeros_like(scores)
    for kind in tl.static_range(tl.constexpr(PROBLEM.first_kind), tl.constexpr(PROBLEM.end_kind)):
        is_inside = _share_window(queries, keys, kind, PROBLEM)
        total = _log_sum_exp(scores, is_inside)
        p += _probabilities(scores, is_inside, total[:, None])
        if SAVE:
            _store_log_sum_exp(log_sum_exp, queries, program, total, kind, PROBLEM)
    p = p.to(value.dtype.element_ty)

    for first_channel in range(0, PROBLEM.value_dim, PROBLEM.block_values):
        channels = first_channel + tl.arange(0, PROBLEM.block_values)
        values = _load(v, keys, channels, PROBLEM)
        if PROBLEM.gelu:
            x = values.to(tl.float32)
            values = (x * _normal_cdf(x)).to(values.dtype)
        _store(z, queries, channels, _dot(p, values), PROBLEM)


@triton.jit
def value_gradient_kernel(
    query,
    key,
    value,
    gradient,
    log_sum_exp,
    value_gradient,
    activated_value,
    query_batch_stride,
    query_token_stride,
    key_batch_stride,
    key_token_stride,
    value_batch_stride,
    value_token_stride,
    PROBLEM: tl.constexpr,
):
    """dv = (Pᵀ dz) ∘ GELU'(v) of one tile of a head's keys, and GELU(v) for the other gradients."""
    program = tl.program_id(0) // PROBLEM.num_tiles
    keys = tl.program_id(0) % PROBLEM.num_tiles * PROBLEM.tile + tl.arange(0, PROBLEM.tile)
    queries = tl.arange(0, PROBLEM.block_tokens)
    q = _locate_head(query, query_batch_stride, query_token_stride, program, PROBLEM.head_dim, PROBLEM)
    k = _locate_head(key, key_batch_stride, key_token_stride, program, PROBLEM.head_dim, PROBLEM)
    v = _locate_head(value, value_batch_stride, value_token_stride, program, PROBLEM.value_dim, PROBLEM)
    dz = _locate_contiguous_head(gradient, program, PROBLEM.value_dim, PROBLEM)
    dv = _locate_contiguous_head(value_gradient, program, PROBLEM.value_dim, PROBLEM)
    activated = _locate_contiguous_head(activated_value, program, PROBLEM.value_dim, PROBLEM)

    scores = _scores(k, keys, q, queries, PROBLEM)
    p = tl.zeros_like(scores)
    for kind in tl.static_range(tl.constexpr(PROBLEM.first_kind), tl.constexpr(PROBLEM.end_kind)):
        total = _load_log_sum_exp(log_sum_exp, queries, program, kind, PROBLEM)
        p += _probabilities(scores, _share_window(keys, queries, kind, PROBLEM), total[None, :])
    p = p.to(gradient.dtype.element_ty)

    for first_channel in range(0, PROBLEM.value_dim, PROBLEM.block_values):
        channels = first_channel + tl.arange(0, PROBLEM.block_values)
        gradients = _dot(p, _load(dz, queries, channels, PROBLEM))
        if PROBLEM.gelu:
            x = _load(v, keys, channels, PROBLEM).to(tl.float32)
            gradients *= _gelu_gradient(x)
            _store(activated, keys, channels, x * _normal_cdf(x), PROBLEM)
        _store(dv, keys, channels, gradients, PROBLEM)


@triton.jit
def score_gradient_kernel(
    query,
    key,
    activated_value,
    gradient,
    log_sum_exp,
    score_gradient,
    query_batch_stride,
    query_token_stride,
    key_batch_stride,
    key_token_stride,
    value_batch_stride,
    value_token_stride,
    PROBLEM: tl.constexpr,
):
    """ds of one tile of a head's queries."""
    program = tl.program_id(0) // PROBLEM.num_tiles
    queries = tl.program_id(0) % PROBLEM.num_tiles * PROBLEM.tile + tl.arange(0, PROBLEM.tile)
    keys = tl.arange(0, PROBLEM.block_tokens)
    q = _locate_head(query, query_batch_stride, query_token_stride, program, PROBLEM.head_dim, PROBLEM)
    k = _locate_head(key, key_batch_stride, key_token_stride, program, PROBLEM.head_dim, PROBLEM)
    v = _locate_head(activated_value, value_batch_stride, value_token_stride, program, PROBLEM.value_dim, PROBLEM)
    dz = _locate_contiguous_head(gradient, program, PROBLEM.value_dim, PROBLEM)

    dp = _probability_gradient(dz, queries, v, keys, PROBLEM)
    scores = _scores(q, queries, k, keys, PROBLEM)
    ds = tl.zeros_like(scores)
    for kind in tl.static_range(tl.constexpr(PROBLEM.first_kind), tl.constexpr(PROBLEM.end_kind)):
        total = _load_log_sum_exp(log_sum_exp, queries, program, kind, PROBLEM)
        p = _probabilities(scores, _share_window(queries, keys, kind, PROBLEM), total[:, None])
        mean = tl.sum(p * dp, 1) / tl.sum(p, 1)  # the sum of p is 1 but for the rounding of its log-sum-exp
        ds += p * (dp - mean[:, None])
    _store(_locate_scores(score_gradient, program, PROBLEM), queries, keys, ds, PROBLEM)


@triton.jit
def query_key_gradient_kernel(
    query,
    key,
    score_gradient,
    query_gradient,
    key_gradient,
    query_batch_stride,
    query_token_stride,
    key_batch_stride,
    key_token_stride,
    PROBLEM: tl.constexpr,
):
    """dq = ds k / √d and dk = dsᵀ q / √d of one tile of a head's tokens."""
    program = tl.program_id(0) // PROBLEM.num_tiles
    tokens = tl.program_id(0) % PROBLEM.num_tiles * PROBLEM.tile + tl.arange(0, PROBLEM.tile)
    q = _locate_head(query, query_batch_stride, query_token_stride, program, PROBLEM.head_dim, PROBLEM)
    k = _locate_head(key, key_batch_stride, key_token_stride, program, PROBLEM.head_dim, PROBLEM)
    dq = _locate_contiguous_head(query_gradient, program, PROBLEM.head_dim, PROBLEM)
    dk = _locate_contiguous_head(key_gradient, program, PROBLEM.head_dim, PROBLEM)
    ds = _locate_scores(score_gradient, program, PROBLEM)
    _store_product(dq, tokens, ds, k, False, PROBLEM)
    _store_product(dk, tokens, ds, q, True, PROBLEM)


@triton.jit
def _store_product(output, tokens, ds, right, TRANSPOSE: tl.constexpr, PROBLEM: tl.constexpr):
    """ds · right / √d, or dsᵀ · right / √d, of `tokens`."""
    channels = tl.arange(0, PROBLEM.head_block)
    sums = tl.zeros((PROBLEM.tile, PROBLEM.head_block), tl.float32)
    if PROBLEM.head_rest:
        rest = PROBLEM.head_block + tl.arange(0, PROBLEM.head_rest)
        rest_sums = tl.zeros((PROBLEM.tile, PROBLEM.head_rest), tl.float32)
    for first_token in range(0, PROBLEM.tokens, PROBLEM.tile):
        others = first_token + tl.arange(0, PROBLEM.tile)
        left = tl.trans(_load(ds, others, tokens, PROBLEM)) if TRANSPOSE else _load(ds, tokens, others, PROBLEM)
        sums = _dot(left, _load(right, others, channels, PROBLEM), sums)
        if PROBLEM.head_rest:
            rest_sums = _dot(left, _load(right, others, rest, PROBLEM), rest_sums)
    _store(output, tokens, channels, sums * PROBLEM.scale, PROBLEM)
    if PROBLEM.head_rest:
        _store(output, tokens, rest, rest_sums * PROBLEM.scale, PROBLEM)


@triton.jit
def _probability_gradient(dz, queries, v, keys, PROBLEM: tl.constexpr):
    """dP = dz GELU(v)ᵀ, (queries, keys)."""
    dp = tl.zeros((PROBLEM.tile, PROBLEM.block_tokens), tl.float32)
    for first_channel in range(0, PROBLEM.value_dim, PROBLEM.block_values):
        channels = first_channel + tl.arange(0, PROBLEM.block_values)
        gradients = _load(dz, queries, channels, PROBLEM)
        dp = _dot(gradients, tl.trans(_load(v, keys, channels, PROBLEM)), dp)
    return dp
