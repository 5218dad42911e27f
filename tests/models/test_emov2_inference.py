import pytest
import torch

from demo_diffusion import kernels
from demo_diffusion.models import MobileBlock, operators
from demo_diffusion.models.layers.conv_norm import ConvNorm
from demo_diffusion.models.layers.folding import FoldableLinear, Linear
from tests.support.classifiers import STYLES, tiny_emov2
from tests.support.networks import randomize

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@STYLES
@pytest.mark.parametrize("overrides", [{}, {"attention_modes": ("spanning",) * 4}])
@torch.no_grad()
def test_fused_model_equals_model(name, overrides):
    model, pixels = tiny_emov2(name, **overrides).double(), torch.randn(2, 3, 44, 36, dtype=torch.float64)
    expected, keys = model(pixels).logits, model.state_dict().keys()
    model.fuse()
    torch.testing.assert_close(model(pixels).logits, expected)
    assert model.state_dict().keys() == keys
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.add_(1)
    after = model(pixels).logits
    model.unfuse()
    assert not torch.allclose(model(pixels).logits, expected)
    if not overrides:  # BatchNorm before attention is the only one that stays
        torch.testing.assert_close(after, expected)


def test_every_batch_norm_and_layer_scale_is_folded():
    model = tiny_emov2()
    model.fuse()
    assert all(m.is_fused for m in model.modules() if isinstance(m, ConvNorm))
    blocks = [m for m in model.modules() if isinstance(m, MobileBlock)]
    assert all(block.mixer.proj.is_fused for block in blocks)
    assert all(block.mixer.v.is_fused for block in blocks if isinstance(block.norm, torch.nn.BatchNorm2d))
    assert [block._norm_is_folded for block in blocks] == [True] * 3 + [False] * 4


def test_training_and_loading_undo_fusion():
    model = tiny_emov2()
    with pytest.raises(RuntimeError, match="eval"):
        model.train().fuse()
    for undo in (lambda: model.train(), lambda: model.load_state_dict(model.state_dict()), lambda: model.unfuse()):
        model.eval().fuse()
        undo()
        assert not any(m.is_fused for m in model.modules() if isinstance(m, (ConvNorm, FoldableLinear)))


@torch.no_grad()
def test_linear_takes_in_norm_and_scale():
    layer, norm = randomize(FoldableLinear(4, 3)).double(), randomize(torch.nn.BatchNorm2d(4)).double().eval()
    x, scale = torch.randn(2, 5, 6, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = layer(norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    scaled = layer(x) * scale
    layer.fuse_norm_before(norm)
    torch.testing.assert_close(layer(x), expected)
    layer.fuse_scale_after(scale)
    torch.testing.assert_close(layer(x), scaled)


@STYLES
@torch.no_grad()
def test_fused_model_in_single_precision_equals_model(name, monkeypatch):
    model, pixels = tiny_emov2(name), torch.randn(3, 3, 44, 36)
    expected = model(pixels).logits
    model.fuse()
    torch.testing.assert_close(model(pixels).logits, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(operators, "ELEMENTS_AT_ONCE", 1)  # image by image
    torch.testing.assert_close(model(pixels).logits, expected, atol=1e-5, rtol=1e-5)
    for batch in (0, 1):
        assert model(pixels[:batch]).logits.shape == (batch, model.num_labels)


def test_fused_model_has_gradients_and_autocast():
    model, pixels = tiny_emov2(), torch.randn(2, 3, 44, 36)
    expected = model(pixels).logits
    model.fuse()
    logits = model(pixels.requires_grad_()).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(logits.sum(), pixels)[0].abs().sum() > 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(pixels).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_fused_model_compiles_as_one_graph():
    model, pixels = tiny_emov2(), torch.randn(2, 3, 44, 36)
    model.fuse()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_linear_is_the_same_product(bias):
    layer, x = Linear(6, 3, bias), torch.randn(2, 5, 7, 6)
    with kernels.disabled():
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[:, ::2, 1:]), expected[:, ::2, 1:])


@STYLES
@torch.no_grad()
def test_channels_last_changes_nothing(name):
    model, pixels = tiny_emov2(name), torch.randn(2, 3, 48, 40)
    expected = model(pixels).logits
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(channels_last).logits, expected)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(channels_last).logits, expected)


@pytest.mark.parametrize(("name", "fused"), [("EMOv2-5M", True), ("EMOv1-5M", False)])
@torch.no_grad()
def test_exported_program_and_onnx_take_any_batch(name, fused, tmp_path):
    model, pixels = tiny_emov2(name, depths=(1, 1, 2, 1)), torch.randn(2, 3, 40, 48)
    if fused:
        model.fuse()
    batch = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": pixels}, dynamic_shapes=batch)
    torch.onnx.export(program, (), tmp_path / "emov2.onnx", output_names=["logits"], verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "emov2.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        pixels = torch.randn(size, 3, 40, 48)
        expected = model(pixels).logits
        torch.testing.assert_close(program.module()(pixel_values=pixels).logits, expected)
        logits = session.run(["logits"], {"pixel_values": pixels.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)
