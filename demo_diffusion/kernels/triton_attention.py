"""Spanning window attention with the value's activation, fused by Triton for NVIDIA GPUs.

The definition is `demo_diffusion.models.spanning_attention.spanning_attention` of query, key and GELU(value). Both
kinds of windows share the scores s = q kᵀ / √d of all pairs of tokens of the grid, so that

    z = P · GELU(v),    P = P_neighborhood + P_remote,    P_kind = exp(s − L_kind) inside the kind's windows, else 0,

with L_kind the log-sum-exp of s over the window. Tensors stay in raster order: a window is a mask, nothing is gathered,
and there is one product with the value however many kinds there are.

Of this, only L_kind is kept for the backward. With dP = dz GELU(v)ᵀ the gradients are

    dv = (Pᵀ dz) ∘ GELU'(v),    ds = Σ_kind P_kind ∘ (dP − rowsum(P_kind ∘ dP)),    dq = ds k / √d,    dk = dsᵀ q / √d,

by one kernel for dv, which writes GELU(v) as well, one for ds, and one for dq and dk. No sum is split over programs, so
that results are deterministic. Sums and softmaxes are in float32.

The kernels were compiled for sm_90 and tested with Triton's interpreter only. The tile sizes follow from counts of
registers and shared memory; they were not tuned on a GPU.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .guards import refuse_second_derivative

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
DEVICE = "cpu" if IS_INTERPRETED.value else "cuda"
KINDS = {"neighborhood": (0, 1), "remote": (1, 2), "spanning": (0, 2)}  # first and end of (neighborhood, remote)
ACTIVATIONS = ("gelu", None)
MAX_TOKENS = 256
MAX_HEAD_DIM = 96
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
        first_kind, end_kind: the kinds of windows are those in between; 0 is "neighborhood" and 1 "remote".
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
        return _block(self.tokens)

    @property
    def num_tiles(self) -> int:
        return triton.cdiv(self.tokens, self.tile)

    @property
    def head_block(self) -> int:
        """The first channels of a head, as many as a block can have without padding: 64 of 72."""
        return max(16, _block(self.head_dim + 1) // 2)

    @property
    def head_rest(self) -> int:
        """A block for the other channels, or 0: 16 for 8 of 72."""
        rest = self.head_dim - self.head_block
        return _block(rest) if rest > 0 else 0

    @property
    def num_warps(self) -> int:
        return 4 if self.block_tokens <= 64 else 8

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


def _block(size: int) -> int:
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
def _forward_kernel(
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
def _value_gradient_kernel(
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
def _score_gradient_kernel(
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
def _query_key_gradient_kernel(
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


@torch.compiler.assume_constant_result
def _fits_on(device_index: int) -> bool:
    """Whether a GPU has what the tiles need: A100, H100 and later data-centre GPUs do."""
    properties = torch.cuda.get_device_properties(device_index)
    return torch.version.hip is None and properties.shared_memory_per_block_optin >= SHARED_MEMORY


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, window_size: int) -> bool:
    """Whether `triton_spanning_attention` can compute these; otherwise the eager definition has to."""
    height, width = query.shape[1:3]
    head_dim = query.shape[3] // num_heads
    return (
        query.device.type == DEVICE
        and (DEVICE == "cpu" or _fits_on(query.device.index))
        and query.device == key.device == value.device
        and query.dtype in DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.numel() > 0
        and query.stride(3) == key.stride(3) == value.stride(3) == 1
        and height % window_size == 0
        and width % window_size == 0
        and height * width <= MAX_TOKENS
        and head_dim <= MAX_HEAD_DIM
    )


def triton_spanning_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str = "spanning",
    activation: str | None = "gelu",
) -> torch.Tensor:
    """Sum over the window kinds of `mode` of softmax(q kᵀ / √d) · activation(v), for what `supports` admits.

    Args:
        query, key: (B, H, W, heads · d), of which each may be a half of one projection: strides are followed.
        value: (B, H, W, heads · e), before the activation.
        mode: "neighborhood", "remote" or "spanning".
        activation: "gelu", the exact one, or None.

    Returns:
        (B, H, W, heads · e)

    Raises:
        ValueError: if `mode` or `activation` is not among those allowed.
    """
    if mode not in KINDS:
        raise ValueError(f"mode is {mode!r}; it must be one of {list(KINDS)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {list(ACTIVATIONS)}.")
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return _attention(query, key, value, num_heads, window_size, mode, activation == "gelu", needs_gradient)[0]


@torch.library.custom_op("demo_diffusion::spanning_attention", mutates_args=())
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str,
    gelu: bool,
    needs_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """z, and the log-sum-exps in base 2, (B, heads, kinds, H · W) in float32, empty if not `needs_gradient`."""
    output, log_sum_exp = _new_outputs(query, value, num_heads, mode, needs_gradient)
    problem = _problem(query, value, num_heads, window_size, mode, gelu, FORWARD_TILE)
    query, key, value = (_as_rows(x) for x in (query, key, value))
    arguments = (query, key, value, output, log_sum_exp, *_strides(query, key, value), needs_gradient)
    _launch(_forward_kernel, len(query) * num_heads, arguments, problem)
    return output, log_sum_exp


@_attention.register_fake
def _(query, key, value, num_heads, window_size, mode, gelu, needs_gradient):
    return _new_outputs(query, value, num_heads, mode, needs_gradient)


@torch.library.custom_op("demo_diffusion::spanning_attention_gradient", mutates_args=())
def _attention_gradient(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_sum_exp: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str,
    gelu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value; `gradient` is that of z, the other arguments are those of `_attention`."""
    dq, dk, dv = _new_gradients(query, key, value)
    problem = _problem(query, value, num_heads, window_size, mode, gelu, VALUE_GRADIENT_TILE)
    score_problem = _problem(query, value, num_heads, window_size, mode, gelu, SCORE_GRADIENT_TILE)
    gradient = gradient.contiguous()
    query, key, value = (_as_rows(x) for x in (query, key, value))
    activated = _as_rows(torch.empty_like(dv)) if gelu else value
    heads = len(query) * num_heads

    arguments = (query, key, value, gradient, log_sum_exp, dv, activated, *_strides(query, key, value))
    _launch(_value_gradient_kernel, heads, arguments, problem)
    ds = query.new_empty(heads, problem.tokens, problem.tokens)
    arguments = (query, key, activated, gradient, log_sum_exp, ds, *_strides(query, key, activated))
    _launch(_score_gradient_kernel, heads, arguments, score_problem)
    _launch(_query_key_gradient_kernel, heads, (query, key, ds, dq, dk, *_strides(query, key)), score_problem)
    return dq, dk, dv


@_attention_gradient.register_fake
def _(gradient, query, key, value, log_sum_exp, num_heads, window_size, mode, gelu):
    return _new_gradients(query, key, value)


def _save_for_backward(ctx, inputs, output) -> None:
    query, key, value, *ctx.settings, _ = inputs
    ctx.set_materialize_grads(False)  # the log-sum-exps have none
    ctx.save_for_backward(query, key, value, output[1])


def _backward(ctx, gradient, _):
    return *_attention_gradient(gradient, *ctx.saved_tensors, *ctx.settings), None, None, None, None, None


_attention.register_autograd(_backward, setup_context=_save_for_backward)
_attention_gradient.register_autograd(refuse_second_derivative)


def _new_outputs(
    query: torch.Tensor, value: torch.Tensor, num_heads: int, mode: str, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    first_kind, end_kind = KINDS[mode]
    batch, height, width, _ = query.shape
    kinds = end_kind - first_kind if needs_gradient else 0
    log_sum_exp = query.new_empty((batch, num_heads, kinds, height * width), dtype=torch.float32)
    return value.new_empty(value.shape), log_sum_exp


def _new_gradients(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in tensors)


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) -> (B, H · W, C), without a copy where strides allow it."""
    return x.flatten(1, 2)


def _strides(*tensors: torch.Tensor) -> tuple[int, ...]:
    """The strides of images and of tokens of each tensor (B, tokens, C)."""
    return tuple(stride for x in tensors for stride in x.stride()[:2])


def _problem(
    query: torch.Tensor, value: torch.Tensor, num_heads: int, window_size: int, mode: str, gelu: bool, tile: int
) -> Problem:
    height, width = query.shape[1:3]
    head_dim, value_dim = query.shape[3] // num_heads, value.shape[3] // num_heads
    block_values = min(_block(value_dim), 64 if value_dim % 64 == 0 else 32)
    if query.dtype == torch.float32:
        tile, block_values = FLOAT32_BLOCK, FLOAT32_BLOCK
    return Problem(
        rows=height // window_size,
        columns=width // window_size,
        window_size=window_size,
        num_heads=num_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        first_kind=KINDS[mode][0],
        end_kind=KINDS[mode][1],
        gelu=gelu,
        tile=min(tile, _block(height * width)),
        block_values=block_values,
    )


def _launch(kernel, heads: int, arguments: tuple, problem: Problem) -> None:
    with torch.cuda.device_of(arguments[0]):
        kernel[(heads * problem.num_tiles,)](*arguments, problem, num_warps=problem.num_warps)
