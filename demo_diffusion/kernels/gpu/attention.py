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

from collections.abc import Sequence

import torch

from demo_diffusion.kernels.guards import refuse_second_derivative

from .attention_kernels import (
    FLOAT32_BLOCK,
    FORWARD_TILE,
    IS_INTERPRETED,
    KINDS,
    SCORE_GRADIENT_TILE,
    SHARED_MEMORY,
    VALUE_GRADIENT_TILE,
    Problem,
    block_size,
    forward_kernel,
    query_key_gradient_kernel,
    score_gradient_kernel,
    value_gradient_kernel,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICE = "cpu" if IS_INTERPRETED.value else "cuda"
ACTIVATIONS = ("gelu", None)
MAX_TOKENS = 256
MAX_HEAD_DIM = 96


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
    kinds: Sequence[str] = KINDS,
    activation: str | None = "gelu",
) -> torch.Tensor:
    """Sum over the kinds of windows of softmax(q kᵀ / √d) · activation(v), for what `supports` admits.

    Args:
        query, key: (B, H, W, heads · d), of which each may be a half of one projection: strides are followed.
        value: (B, H, W, heads · e), before the activation.
        kinds: "neighborhood", "remote" or both.
        activation: "gelu", the exact one, or None.

    Returns:
        (B, H, W, heads · e)

    Raises:
        ValueError: if a kind or the activation is not among those allowed.
    """
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"The kinds of windows are {list(kinds)}; each must be one of {list(KINDS)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {list(ACTIVATIONS)}.")
    needs_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    mode = "+".join(kinds)
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
    _launch(forward_kernel, len(query) * num_heads, arguments, problem)
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
    _launch(value_gradient_kernel, heads, arguments, problem)
    ds = query.new_empty(heads, problem.tokens, problem.tokens)
    arguments = (query, key, activated, gradient, log_sum_exp, ds, *_strides(query, key, activated))
    _launch(score_gradient_kernel, heads, arguments, score_problem)
    _launch(query_key_gradient_kernel, heads, (query, key, ds, dq, dk, *_strides(query, key)), score_problem)
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
    first_kind, end_kind = _kind_numbers(mode)
    batch, height, width, _ = query.shape
    kinds = end_kind - first_kind if needs_gradient else 0
    log_sum_exp = query.new_empty((batch, num_heads, kinds, height * width), dtype=torch.float32)
    return value.new_empty(value.shape), log_sum_exp


def _kind_numbers(mode: str) -> tuple[int, int]:
    """First and end of the kinds' numbers; the operators' `mode` is the kinds of windows, joined by "+"."""
    numbers = [KINDS.index(kind) for kind in mode.split("+")]
    return min(numbers), max(numbers) + 1


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
    block_values = min(block_size(value_dim), 64 if value_dim % 64 == 0 else 32)
    if query.dtype == torch.float32:
        tile, block_values = FLOAT32_BLOCK, FLOAT32_BLOCK
    first_kind, end_kind = _kind_numbers(mode)
    return Problem(
        rows=height // window_size,
        columns=width // window_size,
        window_size=window_size,
        num_heads=num_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        first_kind=first_kind,
        end_kind=end_kind,
        gelu=gelu,
        tile=min(tile, block_size(height * width)),
        block_values=block_values,
    )


def _launch(kernel, heads: int, arguments: tuple, problem: Problem) -> None:
    with torch.cuda.device_of(arguments[0]):
        kernel[(heads * problem.num_tiles,)](*arguments, problem, num_warps=problem.num_warps)
