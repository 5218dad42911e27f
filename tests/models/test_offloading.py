"""Weights that accelerate keeps elsewhere: what diffusers' `enable_sequential_cpu_offload` does, without a GPU."""

import copy
import pickle

import accelerate
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from demo_diffusion import DEMOPipeline
from demo_diffusion.models.layers.folding import Foldable, FoldableLinear
from tests.support.classifiers import tiny_emov2
from tests.support.networks import tiny_dit, tiny_transformer
from tests.support.pipelines import quiet


def sample(pipeline: DEMOPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline([1, 2], num_inference_steps=2, generator=generator, output_type="latent").images


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "create",
    [
        tiny_transformer,
        lambda **options: tiny_transformer(rotary_positions=True, qk_norm=True, **options),
        lambda **options: tiny_transformer(window_position="rotary", **options),
        lambda **options: tiny_dit(rotary_positions=True, **options),
        tiny_dit,
    ],
)
def test_sequential_offload_gives_the_same_samples(create, fused):
    network = create(out_channels=4)
    if fused and hasattr(network, "fuse"):
        network.fuse()
    pipeline = quiet(DEMOPipeline(network, FlowMatchEulerDiscreteScheduler()))
    expected = sample(pipeline)
    accelerate.cpu_offload(network, torch.device("cpu"), offload_buffers=len(network._parameters) > 0)  # as diffusers
    assert network.pos_embed.is_meta and next(network.transformer_blocks.parameters()).is_meta
    for _ in range(2):
        torch.testing.assert_close(sample(pipeline), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_no_buffer_is_without_a_tensor(fused):
    for model in (tiny_transformer(), tiny_dit(), tiny_emov2(), tiny_emov2("EMOv1-5M")):
        if fused and hasattr(model, "fuse"):
            model.fuse()
        for module in model.modules():
            assert all(buffer is not None for buffer in module._buffers.values()), module


@torch.no_grad()
def test_fused_tensors_are_buffers_that_are_not_saved_and_go_when_undone():
    model, pixels = tiny_emov2(), torch.randn(1, 3, 32, 32)
    plain, state = model(pixels).logits, model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    model.fuse()
    fused = model(pixels).logits
    added = {name for name, _ in model.named_buffers()} - buffers
    assert {name.rpartition(".")[2] for name in added} == {"fused_weight", "fused_bias"}
    assert model.state_dict().keys() == state.keys()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(pixels).logits, fused)
        twin.unfuse()
        assert torch.equal(twin(pixels).logits, plain)
    assert torch.equal(model(pixels).logits, fused)
    assert {x.dtype for x in model.bfloat16().buffers() if x.is_floating_point()} == {torch.bfloat16}
    for undo in (model.train, lambda: model.load_state_dict(model.state_dict()), model.unfuse):
        model.eval().fuse()
        undo()
        assert {name for name, _ in model.named_buffers()} == buffers
        assert not any(module.is_fused for module in model.modules() if isinstance(module, Foldable))
        assert not any(module._non_persistent_buffers_set for module in model.modules())


@torch.no_grad()
def test_compiled_layer_follows_folding():
    layer, x = FoldableLinear(4, 3, bias=False).eval(), torch.randn(2, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    expected = layer(x)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), expected)
        layer.fuse_scale_after(torch.full((3,), 2.0))
        torch.testing.assert_close(compiled(x), 2 * expected)
        layer.fuse_scale_after(torch.full((3,), 3.0))
        torch.testing.assert_close(compiled(x), 3 * expected)
        layer.unfuse()
