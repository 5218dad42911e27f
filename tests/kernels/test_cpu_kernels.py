import pytest
import torch
import torch.nn.functional as F

from demo_diffusion import kernels
from demo_diffusion.kernels.cpu.window_order import view_in_window_order, window_batches
from demo_diffusion.models import spanning_attention
from demo_diffusion.models.spanning_attention import WINDOW_KINDS, partition_windows

MODES = pytest.mark.parametrize("mode", ["spanning", "neighborhood", "remote"])
GRIDS = pytest.mark.parametrize(
    ("grid", "window"), [((16, 16), 8), ((8, 8), 4), ((4, 8), 4), ((16, 8), 4), ((4, 4), 4)]
)


def parted(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def attention_inputs(grid, heads=2, dim=8, dtype=torch.float64):
    """Queries and keys as the block has them, two halves of one tensor, and values of another width."""
    qk, value = parted(3, *grid, 2 * heads * dim, dtype=dtype), parted(3, *grid, heads * 12, dtype=dtype)
    return qk, value


def fused(qk, value, heads, window, mode):
    query, key = kernels.to_window_order(qk, window).chunk(2, -1)
    value = kernels.to_window_order(value, window)
    return kernels.cpu_spanning_attention(query, key, value, heads, window, qk.shape[1:3], WINDOW_KINDS[mode])


def by_definition(qk, value, heads, window, mode):
    return spanning_attention(*qk.chunk(2, -1), value, heads, window, mode)


@GRIDS
def test_windows_are_views_of_ordered_tokens(grid, window):
    tokens = torch.randn(1, *grid, 6)
    ordered = kernels.to_window_order(tokens, window)
    view = view_in_window_order(tokens[0], window)
    assert view.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
    assert torch.equal(view.reshape(ordered[0].shape), ordered[0])
    for kind in ("neighborhood", "remote"):
        count = grid[0] * grid[1] // window**2
        views = window_batches(ordered[0], count, 2, kind)
        assert all(v.untyped_storage().data_ptr() == ordered.untyped_storage().data_ptr() for v in views)
        expected = partition_windows(tokens, window, kind, 2).flatten(0, 1)  # the same tokens, in another order
        assert torch.equal(torch.cat(views).sort(1).values, expected.sort(1).values)


@MODES
@GRIDS
def test_attention_equals_its_definition(grid, window, mode):
    qk, value = attention_inputs(grid)
    expected = by_definition(qk, value, 2, window, mode)
    output = fused(qk, value, 2, window, mode)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(fused(qk, value, 2, window, mode), expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(expected)
    gradients, wanted = (torch.autograd.grad((x * weight).sum(), (qk, value)) for x in (output, expected))
    torch.testing.assert_close(gradients, wanted, atol=1e-12, rtol=0)


@MODES
@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (3, 1)])  # of logits; of values and what comes back
def test_attention_in_single_precision(mode, spread, offset):
    qk, value = (x.detach() for x in attention_inputs((16, 16), heads=3, dim=64, dtype=torch.float32))
    exact = [(spread * qk).requires_grad_(), (offset + value).requires_grad_()]
    rounded = [x.detach().double().requires_grad_() for x in exact]
    outputs = [fused(*exact, 3, 8, mode), by_definition(*rounded, 3, 8, mode)]
    weight = (torch.randn_like(outputs[0]) + offset).double()
    results = [
        (output, *torch.autograd.grad((output.double() * weight).sum(), inputs))
        for output, inputs in zip(outputs, (exact, rounded), strict=True)
    ]
    for got, wanted in zip(*results, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_attention_is_an_operator_that_compilers_understand():
    qk, value = attention_inputs((8, 8))
    query, key = (x.contiguous() for x in kernels.to_window_order(qk, 4).chunk(2, -1))
    value = kernels.to_window_order(value, 4)
    arguments = (query.detach(), key.detach(), value.detach(), 2, 4, [8, 8], "neighborhood+remote")
    torch.library.opcheck(torch.ops.demo_diffusion.cpu_attention, arguments)
    with_gradients = [x.clone().requires_grad_() for x in arguments[:3]]
    torch.library.opcheck(torch.ops.demo_diffusion.cpu_attention_for_training, (*with_gradients, *arguments[3:]))


@pytest.mark.parametrize(("channels", "kernel_size", "stride"), [(130, 5, 1), (64, 3, 1), (40, 3, 2), (129, 5, 2)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_depthwise_conv_equals_pytorchs(channels, kernel_size, stride, dtype, tolerance):
    tokens, weight = parted(2, 7, 6, channels, dtype=dtype), parted(channels, 1, kernel_size, kernel_size, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (tokens, weight)]
    expected = F.conv2d(
        exact[0].permute(0, 3, 1, 2), exact[1], stride=stride, padding=kernel_size // 2, groups=channels
    ).permute(0, 2, 3, 1)
    output = kernels.cpu_depthwise_conv(tokens, weight, stride)
    scale = torch.randn_like(expected)
    gradients = torch.autograd.grad((output.double() * scale).sum(), (tokens, weight))
    wanted = torch.autograd.grad((expected * scale).sum(), exact)
    for got, want in zip((output, *gradients), (expected, *wanted), strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_depthwise_conv_is_an_operator_that_compilers_understand():
    arguments = parted(2, 5, 6, 70), parted(70, 1, 5, 5)
    torch.library.opcheck(torch.ops.demo_diffusion.cpu_depthwise_conv, (*arguments, 2))
