"""Every registered network, made tiny: forward, backward, saving and loading, compiling, gradient checkpointing."""

from collections.abc import Callable

import pytest
import torch

from demo_diffusion import create_emov2, create_transformer, list_emov2, list_transformers
from demo_diffusion.models.mobile_block import MobileBlock
from tests.support.classifiers import TINY as TINY_EMOV2
from tests.support.networks import TINY, inputs_for, randomize

ALL = [*list_transformers(), *list_emov2()]
NETWORKS = pytest.mark.parametrize("name", ALL)


def tiny_network(name: str) -> torch.nn.Module:
    if name in list_emov2():
        return randomize(create_emov2(name, **TINY_EMOV2)).eval()
    has_windows = name.startswith("DEMO")
    config = {field: value for field, value in TINY.items() if has_windows or field != "window_size"}
    return randomize(create_transformer(name, **config)).eval()


def caller(model: torch.nn.Module) -> Callable[[torch.nn.Module], torch.Tensor]:
    """Calls a network of this kind with random inputs, the same each time."""
    if hasattr(model, "transformer_blocks"):
        inputs = inputs_for(model, batch=3)
        return lambda network: network(*inputs).sample
    pixels = torch.randn(3, 3, 32, 32)
    return lambda network: network(pixels).logits


def gradients(model: torch.nn.Module, call: Callable) -> dict[str, torch.Tensor]:
    model.zero_grad()
    call(model).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def all_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    blocks = getattr(model, "transformer_blocks", None)
    return list(blocks) if blocks is not None else [m for m in model.modules() if isinstance(m, MobileBlock)]


@NETWORKS
def test_forward_and_backward(name):
    model = tiny_network(name).train()
    call = caller(model)
    output = call(model)
    assert len(output) == 3 and output.isfinite().all()
    without = [key for key, gradient in gradients(model, call).items() if not gradient.abs().sum() > 0]
    assert not without


@NETWORKS
@torch.no_grad()
def test_saved_network_is_loaded_as_it_was(name, tmp_path):
    model = tiny_network(name)
    call = caller(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training and torch.equal(call(loaded), call(model))
    assert loaded.state_dict().keys() == model.state_dict().keys()


@NETWORKS
@torch.no_grad()
def test_blocks_compile_without_graph_breaks(name):
    model = tiny_network(name)
    call = caller(model)
    expected = call(model)
    for block in (all_blocks(model)[0], all_blocks(model)[-1]):  # EMOv2's first has no attention and stride 2
        block.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(call(model), expected, atol=1e-5, rtol=1e-5)


@NETWORKS
def test_gradient_checkpointing_changes_nothing(name):
    model = tiny_network(name).train()
    call, state = caller(model), {key: value.clone() for key, value in model.state_dict().items()}
    expected, moved = gradients(model, call), statistics(model)
    model.load_state_dict(state)
    enable = model.activation_checkpointing_enable if name in list_emov2() else model.enable_gradient_checkpointing
    enable()
    torch.testing.assert_close(gradients(model, call), expected)
    torch.testing.assert_close(statistics(model), moved)


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("DiT", "SiT"))])
@torch.no_grad()
def test_folding_changes_nothing(name):
    model = tiny_network(name)
    call = caller(model)
    expected = call(model)
    model.fuse()
    torch.testing.assert_close(call(model), expected, atol=1e-5, rtol=1e-5)
