import os
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported: its kernels then run on the CPU

from demo_diffusion import DEMOTransformer2DModel, DiTModel
from demo_diffusion.models import ClassConditionalTransformer

from .evaluation_fixtures import lite_reference, random_inception, two_sets  # noqa: F401

GOLDENS = Path(__file__).parent / "goldens"
TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "window_size": 2,
    "num_classes": 10,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.compiler.reset()  # else models of many tests share one cache of compiled code, whose size is limited


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


def load_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights (1×1 convolutions as matrices) and the other tensors of a golden file."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    weights = {key: v.flatten(1) if v.ndim == 4 and v.shape[2:] == (1, 1) else v for key, v in weights.items()}
    return weights, {key: value for key, value in tensors.items() if not key.startswith("state.")}


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
    size = model.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    hidden_states = torch.randn(batch, model.config.in_channels, height, width)
    return hidden_states, torch.linspace(0, 999, batch), torch.arange(batch) % (model.config.num_classes + 1)
