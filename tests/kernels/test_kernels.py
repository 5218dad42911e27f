"""Whole networks with the kernels that are chosen for them, beside the same networks by their definition."""

import platform
import runpy
import subprocess
import sys

import accelerate
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from demo_diffusion import DEMOTransformer2DModel, kernels
from demo_diffusion.flops import count_macs
from demo_diffusion.models import operators
from demo_diffusion.models.layers.folding import Linear
from tests.support.classifiers import tiny_emov2
from tests.support.networks import inputs_for, tiny_dit, tiny_transformer

ATTENTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_mode": "neighborhood"},
        {"attention_mode": "remote", "kernel_size": 3},
        {"attention_mode": "none"},
        {"qk_norm": True},
        {"rotary_positions": True},
        {"window_position": "bias"},
        {"sample_size": (8, 16), "window_size": 4},
        {"sample_size": 12, "window_size": 4},  # padded
        {"sample_size": 12, "window_size": 2},  # three windows of two tokens have no window order
    ],
    ids=str,
)


@pytest.fixture(autouse=True)
def kernels_for_small_networks(monkeypatch):
    monkeypatch.setattr(kernels.cpu.attention, "MIN_ELEMENTS", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # training on more is faster by the definition
    yield
    torch.set_num_threads(threads)


class Operators(TorchDispatchMode):
    """Collects the names of this package's operators, and oneDNN's, that are called inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("demo_diffusion", "mkldnn"):
            self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """Networks on the CPU choose the kernels of GPUs, which Triton interprets."""
    triton_attention = pytest.importorskip(
        "demo_diffusion.kernels.gpu.attention", reason="Triton is not installed", exc_type=ImportError
    )
    if triton_attention.DEVICE != "cpu":
        pytest.skip("Triton's interpreter is for machines without a GPU")
    monkeypatch.setattr(kernels.gpu.available, "DEVICE", "cpu")
    monkeypatch.setattr(kernels, "cpu_attention_supports", lambda *_: False)


def training_step(model, *inputs, precision=None) -> dict[str, torch.Tensor]:
    """Output, running statistics, and gradients of the input and the weights."""
    hidden_states = inputs[0].clone().requires_grad_()
    model.train().zero_grad()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        output = model(hidden_states, *inputs[1:]).sample
    output.float().square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    statistics = {name: x.clone() for name, x in model.named_buffers() if "running" in name}
    return {"output": output.detach(), "input": hidden_states.grad} | gradients | statistics


def recording(graphs: list[list[str]]):
    """A compiler that changes nothing and adds the operators of each graph to `graphs`."""

    def compile_graph(module, example_inputs):
        graphs.append([str(node.target).removesuffix(".default") for node in module.graph.nodes])
        return module.forward

    return compile_graph


def by_definition(function, *args, **options):
    with kernels.disabled(), Operators() as operators:
        result = function(*args, **options)
    assert not operators.names
    return result


def assert_near(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    """Errors are held against the largest entry of all gradients, or of the tensor itself if that is larger."""
    largest = max(x.abs().max() for name, x in wanted.items() if name.endswith("weight"))
    for name, expected in wanted.items():
        error = (got[name].double() - expected.double()).abs().max()
        assert error <= tolerance * max(expected.abs().max(), largest), (name, error)


def twins(**options) -> list[DEMOTransformer2DModel]:
    """Two networks with the same weights."""
    models = [tiny_transformer(**options) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return models


@ATTENTIONS
@torch.no_grad()
def test_inference_equals_the_definition(options, monkeypatch):
    model = tiny_transformer(**options)
    inputs = inputs_for(model, batch=3)
    expected = by_definition(model, *inputs).sample
    torch.testing.assert_close(model(*inputs).sample, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(operators, "ELEMENTS_AT_ONCE", 1)  # sample by sample
    torch.testing.assert_close(model(*inputs).sample, expected, atol=1e-5, rtol=1e-5)
    model.fuse()
    torch.testing.assert_close(model(*inputs).sample, expected, atol=1e-5, rtol=1e-5)


@ATTENTIONS
def test_training_equals_the_definition(options):
    models = twins(**options)
    inputs = inputs_for(models[0], batch=3)
    assert_near(training_step(models[0], *inputs), by_definition(training_step, models[1], *inputs), 1e-5)
    models[1].load_state_dict(models[0].state_dict())  # running statistics are rounded differently
    hidden_states, *others = inputs
    exact = hidden_states.double(), *others
    results = training_step(models[0].double(), *exact), by_definition(training_step, models[1].double(), *exact)
    for (name, got), wanted in zip(results[0].items(), results[1].values(), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-6, msg=name)  # however small a gradient is


def test_training_in_bf16_is_as_near_to_fp32_as_the_definition_is():
    model = tiny_transformer(num_attention_heads=3, attention_head_dim=16)
    inputs = inputs_for(model, batch=3)
    exact = by_definition(training_step, model, *inputs)
    fused = training_step(model, *inputs, precision=torch.bfloat16)
    defined = by_definition(training_step, model, *inputs, precision=torch.bfloat16)
    for name in exact:
        errors = [(x[name].float() - exact[name]).norm() / exact[name].norm() for x in (fused, defined)]
        assert errors[0] <= 1.5 * errors[1] + 1e-2, (name, errors)


def test_small_samples_keep_the_definition(monkeypatch):
    model = tiny_transformer()
    monkeypatch.undo()
    with torch.no_grad(), Operators() as operators:
        model(*inputs_for(model))
    assert operators.names == {"_linear_pointwise"}


def test_training_in_bf16_keeps_the_definition_of_attention():
    model = tiny_transformer()
    with Operators() as operators:
        training_step(model, *inputs_for(model), precision=torch.bfloat16)
    assert operators.names == {"cpu_depthwise_conv", "cpu_depthwise_conv_backward"}


def test_a_convolution_without_batch_norm_is_trained_by_the_kernel_too():
    models = twins(batch_norm=False)
    inputs = inputs_for(models[0])
    with Operators() as operators:
        fused = training_step(models[0], *inputs)
    assert "cpu_depthwise_conv" in operators.names
    assert_near(fused, by_definition(training_step, models[1], *inputs), 1e-5)


def test_training_on_several_threads_keeps_the_definition():
    model = tiny_transformer()
    torch.set_num_threads(2)
    with Operators() as operators:
        training_step(model, *inputs_for(model))
    assert not operators.names


def test_kernels_are_chosen():
    model = tiny_transformer()
    inputs = inputs_for(model)
    with torch.no_grad(), Operators() as operators:
        model(*inputs)
    assert operators.names == {"cpu_attention", "_linear_pointwise"}
    with Operators() as operators:
        training_step(model, *inputs)
    assert operators.names == {
        "cpu_attention_for_training",
        "cpu_attention_backward",
        "cpu_depthwise_conv",
        "cpu_depthwise_conv_backward",
    }
    with torch.no_grad(), Operators() as operators:
        tiny_dit()(*inputs)
    assert operators.names == {"_linear_pointwise"}


@pytest.mark.parametrize(("value", "enabled"), [("0", False), ("off", False), ("1", True)])
def test_environment_switches_kernels_off(value, enabled, monkeypatch):
    monkeypatch.setenv("DEMO_KERNELS", value)
    assert runpy.run_path(kernels.switch.__file__)["is_enabled"]() == enabled


@torch.no_grad()
def test_compiled_network_follows_the_switch():
    model = tiny_transformer()
    inputs = inputs_for(model)
    expected = by_definition(model, *inputs).sample
    graphs = []
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=recording(graphs))
    for _ in range(2):
        torch.testing.assert_close(compiled(*inputs).sample, expected, atol=1e-5, rtol=1e-5)
        with kernels.disabled():
            torch.testing.assert_close(compiled(*inputs).sample, expected, atol=1e-5, rtol=1e-5)
    assert [operators.count("demo_diffusion.cpu_attention") for operators in graphs] == [model.config.num_layers, 0]


def test_compiled_training_equals_eager():
    models = twins()
    inputs = inputs_for(models[0], batch=3)
    models[0].compile_repeated_blocks(fullgraph=True, dynamic=False, backend="aot_eager")
    assert_near(training_step(models[0], *inputs), training_step(models[1], *inputs), 1e-5)


def test_exported_program_holds_no_operator_of_this_package():
    model = tiny_emov2(window_size=4).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 256, 256),))
    assert "demo_diffusion" not in str(program.graph)


@torch.no_grad()
def test_arithmetic_is_counted_by_the_definition():
    model = tiny_transformer()
    inputs = inputs_for(model)
    assert count_macs(model, *inputs) == by_definition(count_macs, model, *inputs)


@pytest.mark.parametrize("mode", ["spanning", "neighborhood"])
def test_triton_in_a_whole_network(mode, triton_on_cpu):
    models = twins(num_layers=1, num_attention_heads=1, attention_mode=mode)
    inputs = inputs_for(models[0])
    with Operators() as operators:
        got = training_step(models[0], *inputs)
    assert {"spanning_attention", "spanning_attention_gradient", "depthwise_norm_silu_gradient"} <= operators.names
    assert_near(got, by_definition(training_step, models[1], *inputs), 1e-5)
    with torch.no_grad():
        expected = by_definition(models[0].eval(), *inputs).sample
        torch.testing.assert_close(models[0](*inputs).sample, expected, atol=1e-5, rtol=1e-5)
        models[0].fuse()
        torch.testing.assert_close(models[0](*inputs).sample, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=str)
def test_triton_in_a_compiled_and_autocast_network(options, triton_on_cpu):
    model = tiny_transformer(num_layers=1, num_attention_heads=1, **options)
    inputs = inputs_for(model)
    exact = by_definition(training_step, model, *inputs)
    defined = by_definition(training_step, model, *inputs, precision=torch.bfloat16)
    graphs = []
    model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=recording(graphs))
    fused = training_step(model, *inputs, precision=torch.bfloat16)
    assert len(graphs) == 1 and "demo_diffusion.spanning_attention" in graphs[0]
    for name in exact:  # the interpreter rounds to bfloat16 worse than a GPU
        errors = [(x[name].float() - exact[name]).norm() / exact[name].norm() for x in (fused, defined)]
        assert errors[0] <= 2 * errors[1] + 2e-2, (name, errors)


class Adapter(torch.nn.Module):
    """Stands in a layer's place, as adapters do."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.base_layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.base_layer(x)


@pytest.mark.parametrize("name", ["qk", "v", "proj", "conv_local.conv"])
def test_an_adapter_in_a_layers_place_acts(name):
    models = twins(num_layers=1)
    for model in models:
        mixer = model.transformer_blocks[0].mixer
        mixer.set_submodule(name, Adapter(mixer.get_submodule(name)))
    inputs = inputs_for(models[0])
    assert_near(training_step(models[0], *inputs), by_definition(training_step, models[1], *inputs), 1e-5)
    with torch.no_grad():
        expected = by_definition(models[1].eval(), *inputs).sample
        torch.testing.assert_close(models[0].eval()(*inputs).sample, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv_local.conv", "conv_local.norm"])
def test_hooks_are_called(name):
    model, calls = tiny_transformer(num_layers=1), []
    model.transformer_blocks[0].mixer.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    training_step(model, *inputs_for(model))
    assert calls == [name]


@pytest.mark.parametrize("kernel", ["cpu", "triton"])
def test_offloaded_weights_are_brought_back(kernel, request):
    if kernel == "triton":
        request.getfixturevalue("triton_on_cpu")
    models = twins(num_layers=1, num_attention_heads=1)
    inputs = inputs_for(models[0])
    expected = by_definition(models[1], *inputs).sample
    accelerate.cpu_offload(models[0], execution_device=torch.device("cpu"))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(models[0](*inputs).sample, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_transforms_and_forward_derivatives_are_the_definitions(frozen):
    model = tiny_transformer().double().requires_grad_(not frozen)
    hidden_states, *others = inputs_for(model)
    hidden_states, direction = hidden_states.double(), torch.randn(hidden_states.shape).double()

    def output(x):
        return model(x, *others).sample[:, :4]

    difference = (output(hidden_states + 1e-6 * direction) - output(hidden_states - 1e-6 * direction)) / 2e-6
    _, derivative = torch.func.jvp(output, (hidden_states,), (direction,))
    torch.testing.assert_close(derivative, difference, atol=1e-6, rtol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = output(torch.autograd.forward_ad.make_dual(hidden_states, direction))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, derivative)
    gradient = torch.func.grad(lambda x: (output(x) * direction).sum())(hidden_states)
    x = hidden_states.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad((output(x) * direction).sum(), x)[0])


def test_second_derivatives_are_refused_but_by_definition():
    model = tiny_transformer(num_layers=1)
    hidden_states, *others = inputs_for(model)
    hidden_states.requires_grad_()

    def penalty():
        gradient = torch.autograd.grad(model(hidden_states, *others).sample.sum(), hidden_states, create_graph=True)[0]
        return gradient.square().sum()

    with pytest.raises(RuntimeError, match="first derivatives only"):
        penalty().backward()
    by_definition(lambda: penalty().backward())
    assert hidden_states.grad.abs().sum() > 0


@torch.no_grad()
def test_batch_norm_alone_in_training_sees_the_whole_batch(monkeypatch):
    model = tiny_transformer()
    for module in model.modules():
        module.training = isinstance(module, torch.nn.BatchNorm2d)
    inputs = inputs_for(model, batch=3)
    expected = by_definition(model, *inputs).sample
    monkeypatch.setattr(operators, "ELEMENTS_AT_ONCE", 1)
    torch.testing.assert_close(model(*inputs).sample, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_linear_layers_that_do_not_fit_are_pytorchs_to_refuse():
    layer = Linear(4, 3)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        layer(torch.randn(2, 5))
    with pytest.raises(RuntimeError, match="dtype"):
        layer.bfloat16()(torch.randn(2, 4))


PAGE_FAULTS = """
import resource, torch
from demo_diffusion import DEMOTransformer2DModel, kernels

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
kernels.keep_freed_memory()
faults()
print(before > 100 * max(faults(), 1), kernels.is_memory_kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_faults_no_pages():
    result = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "True"], result


def test_another_c_library_is_named(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(RuntimeError, match="sets options of glibc"):
        kernels.keep_freed_memory()
