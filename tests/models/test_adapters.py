"""Adapters in the place of linear layers, as peft's LoRA puts them there: beside the layer or merged, the same."""

import copy

import pytest
import torch
from torch import nn

from tests.support.classifiers import tiny_emov2
from tests.support.networks import inputs_for, randomize, tiny_transformer

LAYERS = ("qk", "v", "proj")


class Adapter(nn.Module):
    """What peft's layer does: the layer it holds, plus a product of low rank."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.a = nn.Linear(base_layer.in_features, 2, bias=False)
        self.b = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.b(self.a(x))

    def merged(self) -> nn.Linear:
        layer = copy.deepcopy(self.base_layer)
        layer.weight.data += self.b.weight @ self.a.weight
        return layer


def replace(model: nn.Module, names: tuple[str, ...], make) -> nn.Module:
    for module in [*model.modules()]:
        for name in names:
            if isinstance(getattr(module, name, None), (nn.Linear, Adapter)):
                setattr(module, name, make(getattr(module, name)))
    return model


@torch.no_grad()
@pytest.mark.parametrize("fuse", ["not at all", "before", "after"])
@pytest.mark.parametrize("names", [LAYERS, ("qk",), ("v",), ("proj",)], ids="+".join)
@pytest.mark.parametrize("model", ["EMOv2-1M", "EMOv1-1M", "D-EMO"])
def test_an_adapter_beside_a_layer_equals_it_merged(model, names, fuse):
    torch.manual_seed(0)
    if model == "D-EMO":
        network = tiny_transformer()
        inputs = inputs_for(network)
    else:
        network, inputs = randomize(tiny_emov2(model)).eval(), (torch.randn(2, 3, 64, 64),)
    fuse = "not at all" if model == "D-EMO" else fuse
    if fuse == "before":
        network.fuse()
    adapted = replace(network, names, Adapter).eval()
    if fuse == "after":
        adapted.fuse()
    beside = adapted(*inputs)[0]
    merged = replace(copy.deepcopy(adapted), names, Adapter.merged).train().eval()(*inputs)[0]  # train() unfolds
    torch.testing.assert_close(beside, merged, atol=1e-4 * merged.abs().max().item(), rtol=1e-4)


@torch.no_grad()
def test_peft_s_own_lora():
    peft = pytest.importorskip("peft")
    model, images = randomize(tiny_emov2("EMOv2-1M")).eval(), torch.randn(2, 3, 64, 64)
    config = peft.LoraConfig(target_modules=list(LAYERS), init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    beside = adapted(images).logits
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(images).logits, beside, atol=1e-4, rtol=1e-4)
