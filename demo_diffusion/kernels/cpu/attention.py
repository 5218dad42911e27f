"""Spanning attention for a CPU: products over views of tokens in window order, sample by sample, within its cache.

`models.spanning_attention` defines the result. No window is gathered: the operands of the products are strided views,
and the addition of the two kinds' results writes the raster. The operators' `mode` is their kinds of windows, joined
by "+".
"""

from collections.abc import Sequence

import torch

from demo_diffusion.kernels.guards import is_single_threaded, refuse_second_derivative
from demo_diffusion.kernels.switch import is_enabled

from .window_order import has_window_order, products_in_window_order, view_in_window_order, window_batches

DTYPES = (torch.float32, torch.float64)
MIN_ELEMENTS = 2**16  # of a sample's tokens; with fewer, calls sample by sample cost more than they save


def supports(tokens: torch.Tensor, window_size: int) -> bool:
    """Whether `cpu_spanning_attention` takes what is projected from tokens (B, H, W, C), H and W whole windows.

    It works sample by sample. The definition is faster in training on several threads, and in bfloat16 on processors
    that have such products.
    """
    return (
        is_enabled()
        and tokens.device.type == "cpu"
        and tokens.dtype in DTYPES
        and not torch.is_autocast_enabled("cpu")
        and tokens.shape[1] * tokens.shape[2] * tokens.shape[3] >= MIN_ELEMENTS
        and (is_single_threaded() or not torch.is_grad_enabled())
        and has_window_order(tokens.shape[1], tokens.shape[2], window_size)
    )


def cpu_spanning_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    grid: tuple[int, int],
    kinds: Sequence[str],
) -> torch.Tensor:
    """Sum over the kinds of windows of softmax(q kᵀ / √d) v.

    Args:
        query, key: (B, H · W, heads · d) in window order
        value: (B, H · W, heads · e) in window order
        grid: H and W, multiples of `window_size`.
        kinds: "neighborhood", "remote" or both.

    Returns:
        (B, H, W, heads · e) in raster order
    """
    mode = "+".join(kinds)
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _attention_for_training(query, key, value, num_heads, window_size, grid, mode)[0]
    return _attention(query, key, value, num_heads, window_size, grid, mode)


@torch.library.custom_op("demo_diffusion::cpu_attention", mutates_args=())
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    grid: Sequence[int],
    mode: str,
) -> torch.Tensor:
    probabilities = _new_probabilities(query, num_heads, window_size, mode)
    return _attend(query, key, value, num_heads, window_size, grid, mode, [probabilities] * len(query))


@_attention.register_fake
def _(query, key, value, num_heads, window_size, grid, mode):
    return value.new_empty(len(value), *grid, value.shape[-1])


@torch.library.custom_op("demo_diffusion::cpu_attention_for_training", mutates_args=())
def _attention_for_training(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    grid: Sequence[int],
    mode: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention and its probabilities, (B, kinds, windows · heads, window_size², window_size²)."""
    probabilities = _new_probabilities(query, num_heads, window_size, mode, len(query))
    return _attend(query, key, value, num_heads, window_size, grid, mode, probabilities), probabilities


@_attention_for_training.register_fake
def _(query, key, value, num_heads, window_size, grid, mode):
    probabilities = _new_probabilities(query, num_heads, window_size, mode, len(query))
    return value.new_empty(len(value), *grid, value.shape[-1]), probabilities


def _new_probabilities(query: torch.Tensor, num_heads: int, window_size: int, mode: str, *batch: int) -> torch.Tensor:
    """(*batch, kinds, windows · heads, window_size², window_size²), empty."""
    count = query.shape[1] // window_size**2
    return query.new_empty(*batch, len(mode.split("+")), count * num_heads, window_size**2, window_size**2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    window_size: int,
    grid: Sequence[int],
    mode: str,
    probabilities: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The attention in raster order; writes each sample's probabilities."""
    kinds = mode.split("+")
    output = value.new_empty(len(value), *grid, value.shape[-1])
    scores = _new_probabilities(query, num_heads, window_size, mode)
    for q, k, v, p, raster in zip(query, key, value, probabilities, output, strict=True):
        _multiply_windows(q, k, kinds, scores, (q.shape[-1] // num_heads) ** -0.5)
        torch.softmax(scores, dim=-1, out=p)
        _sum_over_windows(p, v, kinds, view_in_window_order(raster, window_size))
    return output


def _multiply_windows(
    left: torch.Tensor, right: torch.Tensor, kinds: Sequence[str], out: torch.Tensor, scale: float = 1.0
) -> None:
    """out = scale · left · rightᵀ of each window and head.

    Args:
        left, right: (T, heads · d) of one sample in window order
        out: (kinds, windows · heads, window_size², window_size²)
    """
    count = len(left) // out.shape[-1]
    num_heads = out.shape[1] // count
    for kind, of_kind in zip(kinds, out, strict=True):
        lefts, rights = (window_batches(x, count, num_heads, kind) for x in (left, right))
        for x, y, products in zip(lefts, rights, of_kind.chunk(len(lefts)), strict=True):
            torch.baddbmm(products, x, y.mT, beta=0, alpha=scale, out=products)


def _sum_over_windows(weights: torch.Tensor, tokens: torch.Tensor, kinds: Sequence[str], out: torch.Tensor) -> None:
    """out = Σ weights · tokens, of the window of each kind that a token lies in.

    Args:
        weights: (kinds, windows · heads, window_size², window_size²)
        tokens: (T, heads · d) of one sample in window order
        out: (r, c, s/r, s/c, r, c, heads · d), as `view_in_window_order` gives it
    """
    count = len(tokens) // weights.shape[-1]
    num_heads = weights.shape[1] // count
    out = out.unflatten(-1, (num_heads, -1))
    sums = []
    for kind, of_kind in zip(kinds, weights, strict=True):
        batches = window_batches(tokens, count, num_heads, kind)
        products = tokens.new_empty(*weights.shape[1:3], out.shape[-1])
        for x, weight, product in zip(batches, of_kind.chunk(len(batches)), products.chunk(len(batches)), strict=True):
            torch.bmm(weight, x, out=product)
        sums.append(products_in_window_order(products, out.shape, kind))
    torch.add(*sums, out=out) if len(sums) == 2 else out.copy_(sums[0])


@torch.library.custom_op("demo_diffusion::cpu_attention_backward", mutates_args=())
def _attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    probabilities: torch.Tensor,
    num_heads: int,
    window_size: int,
    mode: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, contiguous and in window order; `grad` is that of the raster (B, H, W, …)."""
    kinds = mode.split("+")
    gradients = tuple(x.new_empty(x.shape) for x in (query, key, value))
    grad_probabilities, grad_scores = probabilities.new_empty(2, *probabilities.shape[1:])
    ordered = probabilities.new_empty(value.shape[1:])
    samples = zip(grad.contiguous(), query, key, value, probabilities, *gradients, strict=True)
    for g, q, k, v, p, grad_q, grad_k, grad_v in samples:
        raster = view_in_window_order(g, window_size)
        ordered.view(raster.shape).copy_(raster)
        _multiply_windows(ordered, v, kinds, grad_probabilities)
        torch._softmax_backward_data(grad_probabilities, p, -1, p.dtype, grad_input=grad_scores)
        grad_scores *= (q.shape[-1] // num_heads) ** -0.5
        for weights, x, out in ((p.mT, ordered, grad_v), (grad_scores, k, grad_q), (grad_scores.mT, q, grad_k)):
            _sum_over_windows(weights, x, kinds, out.view(*raster.shape[:-1], -1))
    return gradients


@_attention_backward.register_fake
def _(grad, query, key, value, probabilities, num_heads, window_size, mode):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _save(ctx, inputs, output) -> None:
    query, key, value, ctx.num_heads, ctx.window_size, _, ctx.mode = inputs
    ctx.save_for_backward(query, key, value, output[1])
    ctx.set_materialize_grads(False)  # the probabilities have none


def _backward(ctx, grad, _):
    gradients = _attention_backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.window_size, ctx.mode)
    return *gradients, None, None, None, None


_attention_for_training.register_autograd(_backward, setup_context=_save)
_attention_backward.register_autograd(refuse_second_derivative)
