"""Everything of a loaded network has the dtype that was asked for, however it is loaded."""

import pytest
import torch

from demo_diffusion import EMOv2Backbone, EMOv2ForImageClassification
from demo_diffusion.models.layers.positions import position_table, rotary_table
from demo_diffusion.models.layers.window_positions import WINDOW_POSITIONS
from tests.support.classifiers import tiny_emov2
from tests.support.networks import inputs_for, tiny_dit, tiny_transformer

NETWORKS = {
    "demo": tiny_transformer,
    "demo, rotary": lambda: tiny_transformer(rotary_positions=True, qk_norm=True),
    "demo, no BatchNorm": lambda: tiny_transformer(batch_norm=False),
    **{
        f"demo, window {name}": lambda name=name: tiny_transformer(window_position=name, qk_norm=True)
        for name in WINDOW_POSITIONS
    },
    "dit": tiny_dit,
    "dit, rotary": lambda: tiny_dit(rotary_positions=True, qk_norm=True),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SAVED_DTYPES = pytest.mark.parametrize("saved_dtype", [torch.float32, torch.bfloat16], ids=str)


def dtypes_of(model: torch.nn.Module) -> set[torch.dtype]:
    return {x.dtype for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()}


@DTYPES
@SAVED_DTYPES
@pytest.mark.parametrize("argument", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_transformers_load_in_the_dtype_asked_for(name, low_cpu_mem_usage, argument, saved_dtype, dtype, tmp_path):
    model = NETWORKS[name]()
    model.to(saved_dtype).save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, **{argument: dtype})
    assert dtypes_of(loaded) == {dtype}
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.to(dtype) if value.is_floating_point() else value), key
    hidden_states, *others = inputs_for(loaded)
    output = loaded(hidden_states.to(dtype), *others).sample
    assert output.dtype == dtype and output.isfinite().all()


@DTYPES
@SAVED_DTYPES
@pytest.mark.parametrize("argument", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("model_class", [EMOv2ForImageClassification, EMOv2Backbone])
def test_emov2_loads_in_the_dtype_asked_for(model_class, low_cpu_mem_usage, argument, saved_dtype, dtype, tmp_path):
    tiny_emov2("EMOv1-5M", attention_modes=("none", "spanning") * 2).to(saved_dtype).save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, **{argument: dtype})
    assert dtypes_of(loaded) == {dtype}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_what_is_made_at_construction_follows_the_default_dtype(dtype, monkeypatch):
    expected = {name: create() for name, create in NETWORKS.items()}
    tables = position_table(16, 3, 5), rotary_table(8, 3, 5)
    assert {table.dtype for table in tables} == {torch.float32}
    torch.set_default_dtype(dtype)
    try:
        models = {name: create() for name, create in NETWORKS.items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name, model in models.items():
        assert dtypes_of(model) == {dtype}, name
        assert dtypes_of(expected[name]) == {torch.float32}
        for key in ("pos_embed", "rotary"):
            table, wanted = (getattr(each, key) for each in (model, expected[name]))
            assert (table is None) == (wanted is None)
            if table is not None:
                torch.testing.assert_close(table.float(), wanted, atol=torch.finfo(dtype).eps + 1e-6, rtol=0)
