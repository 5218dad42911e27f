import json
import os
import re
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from demo_diffusion.models.spanning_attention import WINDOW_KINDS, spanning_attention

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime import interpreter  # noqa: E402

from demo_diffusion.kernels.gpu import attention as kernels  # noqa: E402

DEVICE = kernels.DEVICE
MODES = ["spanning", "neighborhood", "remote"]
BOTH = "neighborhood+remote"  # as the operators have the kinds of windows
pytestmark = [
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU or TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2"),  # of scores outside of the window, unused
]


def random_inputs(
    height: int, width: int, num_heads: int = 1, head_dim: int = 16, value_dim: int = 32, dtype=torch.float32, batch=1
) -> list[torch.Tensor]:
    """The projection of queries and keys (B, H, W, 2 · heads · d) and the value (B, H, W, heads · e)."""
    widths = (2 * num_heads * head_dim, num_heads * value_dim)
    return [torch.randn(batch, height, width, w, device=DEVICE).to(dtype).requires_grad_() for w in widths]


def fused(query_key, value, num_heads, window_size, mode="spanning", activation="gelu"):
    kinds = WINDOW_KINDS[mode]
    return kernels.triton_spanning_attention(
        *query_key.chunk(2, dim=-1), value, num_heads, window_size, kinds, activation
    )


def by_definition(query_key, value, num_heads, window_size, mode="spanning", activation="gelu"):
    value = value if activation is None else F.gelu(value)
    return spanning_attention(*query_key.chunk(2, dim=-1), value, num_heads, window_size, mode)


def output_and_gradients(function, inputs, gradient, *settings, **options) -> list[torch.Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = function(*inputs, *settings, **options)
    return [output, *torch.autograd.grad(output, inputs, gradient)]


def assert_near(actual, expected, tolerance: float) -> None:
    """Largest error relative to the largest value of every tensor."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        error = ((a.double() - e.double()).abs().max() / e.double().abs().max()).item()
        assert error <= tolerance, f"relative error {error:.1e}"


def assert_equals_definition(inputs, *settings, tolerance: float, **options) -> None:
    gradient = torch.randn_like(inputs[1])
    exact = [x.double() for x in inputs]
    expected = output_and_gradients(by_definition, exact, gradient.double(), *settings, **options)
    actual = output_and_gradients(fused, inputs, gradient, *settings, **options)
    assert all(x.dtype == inputs[0].dtype for x in actual)
    assert_near(actual, expected, tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("height", "width", "window_size", "num_heads", "head_dim", "value_dim"),
    [
        (8, 8, 8, 1, 64, 256),
        (8, 8, 4, 2, 20, 80),
        (8, 16, 8, 1, 16, 40),
        (4, 12, 4, 1, 24, 20),
        (2, 2, 2, 2, 8, 8),
        (7, 14, 7, 1, 16, 16),
    ],
)
def test_equals_definition(height, width, window_size, num_heads, head_dim, value_dim, mode):
    inputs = random_inputs(height, width, num_heads, head_dim, value_dim)
    assert_equals_definition(inputs, num_heads, window_size, mode, tolerance=1e-5)


@pytest.mark.parametrize("dims", [(72, 288), (64, 64)])
def test_equals_definition_on_the_grid_of_the_models(dims):
    assert_equals_definition(random_inputs(16, 16, 1, *dims), 1, 8, tolerance=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_value_without_activation(mode):
    assert_equals_definition(random_inputs(8, 8, 2), 2, 4, mode, activation=None, tolerance=1e-5)


@pytest.fixture
def round_to_nearest(monkeypatch):
    """Triton's interpreter truncates to bfloat16 where a GPU rounds to nearest."""
    truncate = interpreter._convert_float

    def convert(data, source, target, rounding_mode):
        if (source, target) != (triton.language.float32, triton.language.bfloat16):
            return truncate(data, source, target, rounding_mode)
        rounded = torch.from_numpy(np.ascontiguousarray(data, np.float32)).bfloat16()
        return rounded.view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("activation", ["gelu", None])
def test_half_precision_stays_near_definition(dtype, tolerance, activation, round_to_nearest):
    inputs = random_inputs(8, 8, 2, 72, 32, dtype=dtype)
    assert_equals_definition(inputs, 2, 4, activation=activation, tolerance=tolerance)


def test_large_scores_do_not_overflow():
    query_key, value = random_inputs(8, 8)
    assert_equals_definition([30 * query_key, value], 1, 4, tolerance=1e-3)  # float32 rounds scores of 4000 to 2e-4


def test_scores_far_apart_in_the_two_windows_do_not_underflow():
    query_key, value = (x.detach() for x in random_inputs(8, 8))
    query_key[:, :, :4] *= 30
    assert_equals_definition([query_key, value], 1, 4, tolerance=1e-3)


def test_strides_of_every_input_are_followed():
    query, key, value = (torch.randn(2, 4, 4, 48, device=DEVICE)[..., i : i + 16] for i in (0, 16, 7))
    padded = [F.pad(x, (0, 0, 1, 2, 3, 1))[:, 3:-1, 1:-2] for x in (query, key, value)]
    expected = kernels.triton_spanning_attention(*(x.contiguous() for x in (query, key, value)), 1, 4)
    for inputs in ((query, key, value), padded):
        assert kernels.supports(*inputs, 1, 4)
        torch.testing.assert_close(kernels.triton_spanning_attention(*inputs, 1, 4), expected, rtol=0, atol=0)


def test_gradient_may_be_expanded():
    inputs = random_inputs(4, 4)
    actual = torch.autograd.grad(fused(*inputs, 1, 4).sum(), inputs)
    assert_near(actual, torch.autograd.grad(by_definition(*inputs, 1, 4).sum(), inputs), tolerance=1e-5)


def test_results_repeat_bit_by_bit():
    inputs = random_inputs(8, 8)
    first, second = (output_and_gradients(fused, inputs, inputs[1].detach(), 1, 4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_inference_saves_no_log_sum_exp():
    inputs = [*random_inputs(4, 4)[0].detach().chunk(2, dim=-1), random_inputs(4, 4)[1].detach()]
    output, log_sum_exp = kernels._attention(*inputs, 1, 4, BOTH, True, False)
    trained, saved = kernels._attention(*inputs, 1, 4, BOTH, True, True)
    assert torch.equal(output, trained)
    assert log_sum_exp.numel() == 0 and saved.shape == (1, 1, 2, 16)


def test_compiles_once_without_graph_breaks():
    compiled = torch.compile(supported_and_fused, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        inputs = random_inputs(4, 4)
        with torch._dynamo.config.patch(error_on_recompile=True):
            actual = output_and_gradients(compiled, inputs, inputs[1].detach(), 1, 2)
        assert_near(actual, output_and_gradients(fused, inputs, inputs[1].detach(), 1, 2), tolerance=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs, 1, 2), fused(*inputs, 1, 2))


def supported_and_fused(query_key, value, num_heads, window_size):
    query, key = query_key.chunk(2, dim=-1)
    assert kernels.supports(query, key, value, num_heads, window_size)
    return kernels.triton_spanning_attention(query, key, value, num_heads, window_size)


def test_autocast_takes_inputs_as_they_are():
    inputs = random_inputs(4, 4, dtype=torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16):
        output = fused(*inputs, 1, 4)
    assert output.dtype == torch.bfloat16
    assert all(x.dtype == torch.bfloat16 for x in torch.autograd.grad(output.sum(), inputs))


@pytest.mark.parametrize("gelu", [True, False])
def test_operators_are_registered_completely(gelu):
    query_key, value = random_inputs(2, 2)
    query, key = (x.detach().requires_grad_() for x in query_key.chunk(2, dim=-1))
    settings = (1, 1, BOTH, gelu)
    torch.library.opcheck(kernels._attention, (query, key, value, *settings, True))
    constants = [x.detach() for x in (query, key, value)]
    output, log_sum_exp = kernels._attention(*constants, *settings, True)
    torch.library.opcheck(kernels._attention_gradient, (output, *constants, log_sum_exp, *settings))


@pytest.mark.parametrize(
    ("shape", "dtype", "num_heads", "window_size"),
    [
        ((1, 8, 8, 16), torch.float64, 1, 8),
        ((1, 8, 8, 97), torch.float32, 1, 8),
        ((1, 9, 8, 16), torch.float32, 1, 8),
        ((1, 24, 16, 16), torch.float32, 1, 8),
        ((0, 8, 8, 16), torch.float32, 1, 8),
    ],
)
def test_other_grids_are_not_supported(shape, dtype, num_heads, window_size):
    tokens = torch.zeros(shape, dtype=dtype, device=DEVICE)
    assert not kernels.supports(tokens, tokens, tokens, num_heads, window_size)


@pytest.mark.parametrize(("shared_memory", "fits"), [(232_448, True), (166_912, True), (101_376, False)])
def test_gpus_with_less_shared_memory_are_not_supported(shared_memory, fits, monkeypatch):
    properties = types.SimpleNamespace(shared_memory_per_block_optin=shared_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert kernels._fits_on(0) == fits


def test_mixed_inputs_are_not_supported():
    tokens = torch.zeros(1, 8, 8, 16, device=DEVICE)
    for other in (tokens.bfloat16(), tokens.to("meta"), torch.zeros(1, 16, 8, 8, device=DEVICE).permute(0, 2, 3, 1)):
        assert not kernels.supports(tokens, tokens, other, 1, 8)
        assert not kernels.supports(other, tokens, tokens, 1, 8)


@pytest.mark.parametrize("setting", [{"kinds": ()}, {"kinds": ("none",)}, {"activation": "silu"}])
def test_unknown_settings_are_refused(setting):
    tokens = torch.zeros(1, 8, 8, 16, device=DEVICE)
    with pytest.raises(ValueError, match="must be one of"):
        kernels.triton_spanning_attention(tokens, tokens, tokens, 1, 8, **setting)


def test_kernels_compile_for_a100_and_h100(tmp_path):
    """The launches of `triton_spanning_attention` and its backward, compiled for sm_80 and sm_90 instead of run."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(reports) == 4 * len(COMPILED_CASES)
    for report in reports:
        assert report["shared"] <= kernels.SHARED_MEMORY, report
        assert report["stack"] <= (256 if report["dtype"] == "torch.float32" else 0), report  # bytes of spills


COMPILED_CASES = [
    (90, torch.bfloat16, 72, 288, "spanning", "gelu"),
    (90, torch.float32, 72, 288, "spanning", "gelu"),
    (80, torch.float16, 64, 256, "remote", None),
]


def compile_kernels() -> None:
    """Prints the resources of every kernel; needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    class Compiler:
        """The parts of a driver that compilation asks for."""

        capability = None

        def get_current_target(self):
            return GPUTarget("cuda", self.capability, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    def compile_and_report(kernel, *arguments, grid, warmup, **options):
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
        report = {
            "capability": compiler.capability,
            "kernel": kernel.__name__,
            "dtype": str(arguments[0].dtype),
            "shared": compiled.metadata.shared,
        }
        print(json.dumps({**report, **resources(compiled.asm["cubin"])}))

    compiler = Compiler()
    driver.set_active(compiler)
    run, triton.JITFunction.run = triton.JITFunction.run, compile_and_report
    for compiler.capability, dtype, head_dim, value_dim, mode, activation in COMPILED_CASES:
        inputs = [torch.zeros(1, 16, 16, 2 * width, dtype=dtype) for width in (2 * head_dim, value_dim)]
        output_and_gradients(fused, inputs, inputs[1], 2, 8, mode, activation)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name.lower(): int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage)}


if __name__ == "__main__":
    compile_kernels()
