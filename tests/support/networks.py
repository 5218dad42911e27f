"""Tiny networks whose every weight matters, and inputs for them."""

import torch

from demo_diffusion import DEMOTransformer2DModel, DiTModel
from demo_diffusion.models import ClassConditionalTransformer

TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "window_size": 2,
    "num_classes": 10,
}


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter and every running statistic a value that matters: nothing starts at zero or one."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point() and name != "pos_embed":
                tensor.normal_(std=0.2)
    return module


def tiny_transformer(**overrides) -> DEMOTransformer2DModel:
    return randomize(DEMOTransformer2DModel(**{**TINY, **overrides})).eval()


def tiny_dit(**overrides) -> DiTModel:
    config = {name: value for name, value in TINY.items() if name != "window_size"}
    return randomize(DiTModel(**{**config, **overrides})).eval()


def inputs_for(model: ClassConditionalTransformer, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden_states = torch.randn(batch, *model.input_shape)
    return hidden_states, torch.linspace(0, 999, batch), torch.arange(batch) % (model.config.num_classes + 1)
