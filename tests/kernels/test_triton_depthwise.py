import os
import re
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from demo_diffusion.models.layers.conv_norm import DepthwiseConvNorm

triton = pytest.importorskip("triton", reason="Triton is not installed")

from demo_diffusion.kernels.gpu import depthwise as kernels  # noqa: E402

DEVICE = kernels.DEVICE
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU or TRITON_INTERPRET=1"
)


def random_layer(channels: int, kernel_size: int = 3, **norm_settings) -> DepthwiseConvNorm:
    layer = DepthwiseConvNorm(channels, kernel_size)
    layer.norm = nn.BatchNorm2d(channels, eps=1e-6, **norm_settings)
    for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.norm.running_var, 0.5, 2.0)
    return layer.to(DEVICE)


def random_tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def fused(layer: DepthwiseConvNorm, tokens: torch.Tensor) -> torch.Tensor:
    return kernels.triton_conv_norm_silu_add(tokens, layer.conv, layer.norm)


def by_definition(layer: DepthwiseConvNorm, tokens: torch.Tensor) -> torch.Tensor:
    return tokens + F.silu(layer(tokens))


def output_and_gradients(function, layer, tokens, gradient) -> list[torch.Tensor]:
    tokens = tokens.detach().requires_grad_()
    output = function(layer, tokens)
    return [output, *torch.autograd.grad(output, [tokens, *layer.parameters()], gradient)]


def assert_near(actual, expected, tolerance: float) -> None:
    """Largest error relative to the largest value of every tensor."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        error = ((a.double() - e.double()).abs().max() / e.double().abs().max()).item()
        assert error <= tolerance, f"relative error {error:.1e}"


def assert_equals_definition(layer, tokens, tolerance: float) -> None:
    gradient = torch.randn_like(tokens)
    exact = output_and_gradients(by_definition, deepcopy(layer).double(), tokens.double(), gradient.double())
    actual = output_and_gradients(fused, layer, tokens, gradient)
    assert_near(actual, exact, tolerance)
    assert [x.dtype for x in actual] == [tokens.dtype, tokens.dtype, *(p.dtype for p in layer.parameters())]


@pytest.mark.parametrize(
    ("shape", "kernel_size"),
    [((1, 16, 16, 8), 5), ((3, 5, 7, 70), 3), ((2, 8, 8, 40), 5), ((1, 2, 3, 4), 7), ((1, 18, 20, 4), 3)],
)
def test_training_equals_definition(shape, kernel_size):
    layer = random_layer(shape[-1], kernel_size)
    tokens = random_tokens(*shape)
    assert kernels.supports(tokens, layer.conv, layer.norm)
    assert_equals_definition(layer, tokens, tolerance=1e-5)


@pytest.mark.parametrize(("shape", "kernel_size"), [((5, 3, 5, 40), 3), ((1, 8, 8, 8), 5)])
def test_evaluation_equals_definition(shape, kernel_size):
    assert_equals_definition(random_layer(shape[-1], kernel_size).eval(), random_tokens(*shape), tolerance=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_half_precision_stays_near_definition(dtype, parameter_dtype, training):
    layer = random_layer(8).to(parameter_dtype).train(training)
    assert_equals_definition(layer, random_tokens(2, 2, 3, 8, dtype=dtype), tolerance=1e-2)


def test_autocast_takes_tokens_as_they_are():
    layer, tokens = random_layer(8), random_tokens(1, 2, 3, 8, dtype=torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16):
        output = fused(layer, tokens)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert tokens.grad.dtype == torch.bfloat16 and layer.conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_those_of_batch_norm(momentum):
    layer = random_layer(4, momentum=momentum)
    expected = deepcopy(layer)
    for _ in range(3):
        tokens = 2 * random_tokens(2, 2, 3, 4) + 1
        fused(layer, tokens)
        expected(tokens)
    assert layer.norm.num_batches_tracked == 3
    for name, buffer in expected.norm.named_buffers():
        torch.testing.assert_close(layer.norm.get_buffer(name), buffer, rtol=1e-6, atol=1e-6)


def nearly_constant(layer: DepthwiseConvNorm, ratio: float) -> torch.Tensor:
    """Tokens, and a convolution that hardly mixes them, whose mean is about `ratio` standard deviations."""
    nn.init.normal_(layer.conv.weight, std=0.1 / ratio)
    with torch.no_grad():
        layer.conv.weight[:, :, 1, 1] += 1
    return random_tokens(3, 5, 7, 4) + ratio


def test_statistics_are_sound_where_the_mean_is_a_thousand_deviations():
    layer = random_layer(4)
    tokens = nearly_constant(layer, 1000.0)
    mean, variance = kernels.depthwise_statistics(tokens.detach(), layer.conv.weight.detach())
    exact = layer.conv.double()(tokens.double().permute(0, 3, 1, 2))
    assert 500 < (exact.mean() / exact.std()).item() < 2000
    expected = [exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)]
    assert_near([mean, variance], expected, tolerance=1e-4)  # float32 holds the convolution itself to 6e-5 deviations


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of pixels beyond the grid, which nobody reads
def test_training_is_exact_where_the_mean_is_a_hundred_deviations():
    layer = random_layer(4)
    assert_equals_definition(layer, nearly_constant(layer, 100.0), tolerance=1e-5)


def test_folded_equals_definition():
    layer = random_layer(40, 5).eval()
    tokens = random_tokens(2, 5, 7, 40)
    expected = by_definition(deepcopy(layer).double(), tokens.double())
    layer.fuse()
    with torch.no_grad():
        actual = kernels.triton_folded_conv_silu_add(tokens, layer.fused_weight, layer.fused_bias)
    assert_near([actual], [expected], tolerance=1e-5)


def test_folded_passes_gradients_to_tokens():
    layer = random_layer(4).eval()
    layer.fuse()
    tokens = random_tokens(1, 3, 3, 4)
    output = kernels.triton_folded_conv_silu_add(tokens, layer.fused_weight, layer.fused_bias)
    (actual,) = torch.autograd.grad(output.sum(), tokens)
    (expected,) = torch.autograd.grad(by_definition(layer, tokens).sum(), tokens)
    assert_near([actual], [expected], tolerance=1e-5)


def test_tokens_of_another_layout_are_refused():
    tokens = random_tokens(1, 4, 3, 3).permute(0, 2, 3, 1)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.triton_folded_conv_silu_add(tokens, torch.ones(4, 1, 3, 3), torch.zeros(4))


def test_results_repeat_bit_by_bit():
    layer, tokens = random_layer(8), random_tokens(2, 2, 3, 8)
    first, second = (output_and_gradients(fused, layer, tokens, tokens.detach()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_graph_breaks(training):
    layer = random_layer(4).train(training)
    eager_layer, tokens, gradient = deepcopy(layer), random_tokens(2, 3, 3, 4), random_tokens(2, 3, 3, 4)
    compiled = torch.compile(supported_and_fused, fullgraph=True, backend="aot_eager")
    actual = output_and_gradients(compiled, layer, tokens, gradient)
    expected = output_and_gradients(fused, eager_layer, tokens, gradient)
    assert_near(actual, expected, tolerance=1e-6)
    torch.testing.assert_close(layer.norm.state_dict(), eager_layer.norm.state_dict(), rtol=1e-6, atol=1e-6)


def supported_and_fused(layer, tokens):
    assert kernels.supports(tokens, layer.conv, layer.norm)
    return fused(layer, tokens)


def test_operators_are_registered_completely():
    layer, tokens, gradient = random_layer(4), random_tokens(1, 2, 2, 4), torch.randn(1, 2, 2, 4, device=DEVICE)
    weight, gamma, beta = layer.parameters()
    mean, rstd = layer.norm.running_mean, layer.norm.running_var.rsqrt()
    forward = (tokens, weight, mean, rstd, gamma, beta, True)
    constants = [x.detach() if isinstance(x, torch.Tensor) else x for x in forward]
    torch.library.opcheck(kernels.depthwise_norm_silu_add, forward)
    torch.library.opcheck(kernels.depthwise_statistics, constants[:2])
    torch.library.opcheck(kernels.depthwise_norm_silu_gradient, (gradient, *constants))
    torch.library.opcheck(kernels.depthwise_input_gradient, (gradient, gradient, weight.detach()))
    torch.library.opcheck(kernels.depthwise_weight_gradient, (gradient, gradient, weight.detach()))


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2, bias=False), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, padding_mode="reflect"), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 4, 9, padding=4, groups=4, bias=False), nn.BatchNorm2d(4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4, affine=False)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.SyncBatchNorm(4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Identity()),
    ],
)
def test_other_layers_are_not_supported(conv, norm):
    assert not kernels.supports(random_tokens(2, 3, 3, 4), conv, norm)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(2, 3, 3, 4, dtype=torch.float64),
        torch.zeros(2, 4, 3, 3).permute(0, 2, 3, 1),
        torch.zeros(1, 1, 1, 4),
        torch.zeros(0, 3, 3, 4),
        torch.zeros(9, 3, 4),
        torch.zeros(2, 3, 3, 4, device="meta"),
    ],
)
def test_other_tokens_are_not_supported(tokens):
    layer = random_layer(4)
    tokens = tokens if tokens.device.type == "meta" else tokens.to(DEVICE)
    assert not kernels.supports(tokens, layer.conv, layer.norm)


def test_kernels_compile_for_an_h100_without_spills(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"STACK:0 .* LOCAL:0", result.stdout)) == len(result.stdout.splitlines()) == 12


def compile_kernels() -> None:
    """Compiles every kernel for sm_90, which needs no GPU, and prints the registers and memory of a thread."""
    for kernel_size, dtype in ((3, "fp32"), (5, "bf16")):
        for kernel, constants in (
            (kernels.statistics_kernel, {}),
            (kernels.convolve_add_kernel, {}),
            (kernels.convolve_add_kernel, {"norm": None}),
            (kernels.gradient_sums_kernel, {}),
            (kernels.conv_gradient_kernel, {}),
            (kernels.weight_gradient_kernel, {}),
        ):
            cubin = compile_kernel(kernel, dtype, kernel_size, **constants)
            print(dtype, kernel_size, kernel.__name__, *constants, resources(cubin))


def compile_kernel(kernel, dtype: str, kernel_size: int, **constants) -> bytes:
    """The cubin for tensors and sizes that are multiples of 16, as those of the models are."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"KERNEL": kernel_size, "GROUPS": kernels.MAX_GROUPS, **constants}
    types = {"weight": "*fp32", "norm": "*fp32", "partials": "*fp32"}
    types |= dict.fromkeys(("tokens", "residual", "output", "gradient", "conv_gradient"), f"*{dtype}")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, type in enumerate(signature.values()) if type != "constexpr"}
    source = ASTSource(kernel, signature, constants, divisible)
    options = {"num_warps": kernels.MAX_GROUPS}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


def resources(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", path]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"REG:\d+ STACK:\d+ SHARED:\d+ LOCAL:\d+", report).group()


if __name__ == "__main__":
    compile_kernels()
