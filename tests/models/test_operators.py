"""What `operators` adds to the choice of implementations: a look at attention."""

import pytest
import torch

from demo_diffusion import kernels
from demo_diffusion.models import operators, spanning_attention
from tests.support.networks import inputs_for, tiny_transformer


@pytest.mark.parametrize("options", [{}, {"rotary_positions": True, "qk_norm": True}, {"window_position": "bias"}])
@torch.no_grad()
def test_attention_can_be_observed(options, monkeypatch):
    monkeypatch.setattr(kernels.cpu.attention, "MIN_ELEMENTS", 0)
    model, seen = tiny_transformer(**options), []
    inputs = inputs_for(model)
    expected = model(*inputs).sample
    outputs, attention = [], spanning_attention
    monkeypatch.setattr(operators, "spanning_attention", lambda *args: outputs.append(attention(*args)) or outputs[-1])
    with operators.observed_attention(lambda *args: seen.append(args)):
        torch.testing.assert_close(model(*inputs).sample, expected, atol=1e-5, rtol=1e-5)
    assert len(seen) == len(outputs) == model.config.num_layers
    for arguments, output in zip(seen, outputs, strict=True):
        assert torch.equal(attention(*arguments), output)
    assert kernels.is_enabled()
    model(*inputs)
    assert len(seen) == model.config.num_layers


def test_observing_ends_with_an_error():
    with pytest.raises(RuntimeError, match="stop"), operators.observed_attention(print):
        raise RuntimeError("stop")
    assert operators._observe_attention is None and kernels.is_enabled()
