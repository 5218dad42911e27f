"""A bad argument of a network is a ValueError that names it, before anything is computed."""

import pytest
import torch

from demo_diffusion import create_emov2, create_transformer
from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2
from tests.support.bad_values import NOT_FLAGS, NOT_NAMES, NOT_NUMBERS, NOT_WHOLE, shown
from tests.support.classifiers import tiny_emov2
from tests.support.networks import inputs_for, tiny_dit, tiny_transformer
from tests.support.pipelines import tiny_taef2

CREATE = {"D-EMO": tiny_transformer, "DiT": tiny_dit}
OF_BOTH = ("patch_size", "in_channels", "num_layers", "num_attention_heads", "attention_head_dim", "num_classes")
WHOLE = {"D-EMO": (*OF_BOTH, "sample_size", "window_size", "kernel_size"), "DiT": (*OF_BOTH, "sample_size")}
NUMBERS = {
    "D-EMO": ("timestep_scale", "norm_eps", "expansion_ratio"),
    "DiT": ("timestep_scale", "norm_eps", "mlp_ratio"),
}
FLAGS = {
    "D-EMO": ("reverse_time", "qk_norm", "rotary_positions", "batch_norm"),
    "DiT": ("reverse_time", "qk_norm", "rotary_positions"),
}
BAD_FIELDS = [
    (network, field, value)
    for fields, values in ((WHOLE, NOT_WHOLE), (NUMBERS, (*NOT_NUMBERS, -1, 0)), (FLAGS, NOT_FLAGS))
    for network, names in fields.items()
    for field in names
    for value in values
    if not (network == "D-EMO" and field == "sample_size" and value == [1])
]


@pytest.mark.parametrize(("network", "field", "value"), BAD_FIELDS, ids=lambda each: shown(each))
def test_a_field_of_a_transformer_is_named(network, field, value):
    with pytest.raises(ValueError, match=rf"{field} is "):
        CREATE[network](**{field: value})


EMOV2_WHOLE = ("num_channels", "image_size", "window_size", "num_labels")
PER_STAGE = ("hidden_sizes", "depths", "attention_head_dims", "kernel_sizes")
BAD_EMOV2 = [
    *((field, value) for field in EMOV2_WHOLE for value in NOT_WHOLE),
    *((field, (value,) * 4) for field in PER_STAGE for value in (True, float("nan"), 10**20, -1, 0, None, 2.5)),
    *((field, value) for field in (*PER_STAGE, "expansion_ratios", "norms") for value in ((), (1,) * 3, 4, None)),
    *(("expansion_ratios", (value,) * 4) for value in (True, float("nan"), float("inf"), 10**20, -1, 0, None)),
    *((field, value) for field in ("norm_eps", "drop_path_rate", "initializer_range") for value in NOT_NUMBERS),
    *(("layer_scale_init_value", value) for value in NOT_NUMBERS if value is not None),
    *(("drop_path_rate", value) for value in (-0.1, 1.0, 2)),
    *((field, value) for field in ("attend_before_value", "stem_squeeze_excitation") for value in ("yes", 1, None)),
]


@pytest.mark.parametrize(("field", "value"), BAD_EMOV2, ids=shown)
def test_a_field_of_emov2_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        tiny_emov2("EMOv2-1M", **{field: value})


@pytest.mark.parametrize("name", NOT_NAMES, ids=shown)
@pytest.mark.parametrize("create", [create_transformer, create_emov2])
def test_names_of_networks_are_listed(create, name):
    with pytest.raises(ValueError, match="Unknown .*; known are"):
        create(name)


BAD_INPUTS = {
    "x list": ("hidden_states is ", lambda x, t, y: (x.tolist(), t, y)),
    "x None": ("hidden_states is None", lambda x, t, y: (None, t, y)),
    "x whole": ("hidden_states has dtype", lambda x, t, y: (x.long(), t, y)),
    "x complex": ("hidden_states has dtype", lambda x, t, y: (x + 0j, t, y)),
    "x float64": ("hidden_states is float64", lambda x, t, y: (x.double(), t, y)),
    "x half": ("hidden_states is float16", lambda x, t, y: (x.half(), t, y)),
    "x bfloat16": ("hidden_states is bfloat16", lambda x, t, y: (x.bfloat16(), t, y)),
    "x meta": ("hidden_states is on the meta device", lambda x, t, y: (x.to("meta"), t, y)),
    "x sparse": ("hidden_states is of layout torch.sparse_coo", lambda x, t, y: (x.to_sparse(), t, y)),
    "t meta": ("timestep is on the meta device", lambda x, t, y: (x, t.to("meta"), y)),
    "t sparse": ("timestep is of layout", lambda x, t, y: (x, t.to_sparse(), y)),
    "labels meta": ("class_labels is on the meta device", lambda x, t, y: (x, t, y.to("meta"))),
    "labels sparse": ("class_labels is of layout", lambda x, t, y: (x, t, y.to_sparse())),
    "x without batch": ("hidden_states has shape", lambda x, t, y: (x[0], t, y)),
    "x smaller": ("hidden_states has shape", lambda x, t, y: (x[..., :4], t, y)),
    "t number": ("timestep is 0.5", lambda x, t, y: (x, 0.5, y)),
    "t text": ("timestep is '0'", lambda x, t, y: (x, "0", y)),
    "t NaN": ("timestep has values from nan", lambda x, t, y: (x, t * float("nan"), y)),
    "t bool": ("timestep has dtype torch.bool", lambda x, t, y: (x, t > 0, y)),
    "t of one": ("timestep has shape", lambda x, t, y: (x, t[:1], y)),
    "labels float": ("class_labels has dtype", lambda x, t, y: (x, t, y.float())),
    "labels bool": ("class_labels has dtype", lambda x, t, y: (x, t, y > 0)),
    "labels list": ("class_labels is ", lambda x, t, y: (x, t, y.tolist())),
    "labels None": ("class_labels is None", lambda x, t, y: (x, t, None)),
    "labels -1": ("class_labels has values from -1", lambda x, t, y: (x, t, y * 0 - 1)),
    "labels too large": (r"must be in \[0, 10\]", lambda x, t, y: (x, t, y * 0 + 11)),
    "labels of one": ("class_labels has shape", lambda x, t, y: (x, t, y[:1])),
}


@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("network", CREATE)
def test_an_input_of_a_transformer_is_named(network, bad):
    model = CREATE[network](num_classes=10).eval()
    message, change = BAD_INPUTS[bad]
    with pytest.raises(ValueError, match=message):
        model(*change(*inputs_for(model)))


PIXELS = torch.zeros(2, 3, 32, 32)
BAD_PIXELS = {
    "pixel_values is None": (None,),
    "pixel_values is ": (PIXELS.tolist(),),
    "pixel_values has dtype torch.uint8": (PIXELS.byte(),),
    "pixel_values has shape .* at least one pixel": (PIXELS[..., :0],),
    "pixel_values has shape": (PIXELS[:, :1],),
    "pixel_values is float64": (PIXELS.double(),),
    "pixel_values is float16": (PIXELS.half(),),
    "pixel_values is on the meta device": (PIXELS.to("meta"),),
    "pixel_values is of layout torch.sparse_coo": (PIXELS.to_sparse(),),
    "labels is 3": (PIXELS, 3),
    "labels has shape": (PIXELS, torch.tensor([1])),
    "labels has shape .*must be .2, 1000": (PIXELS, torch.tensor([1.0, 2.0])),
    "labels has dtype torch.bool": (PIXELS, torch.tensor([True, False])),
    "labels has values from 0 to 1000": (PIXELS, torch.tensor([0, 1000])),
    "labels has values from -1": (PIXELS, torch.tensor([0, -1])),
}


@pytest.mark.parametrize("message", BAD_PIXELS)
def test_an_input_of_emov2_is_named(message):
    with pytest.raises(ValueError, match=message):
        tiny_emov2("EMOv2-1M", num_labels=1000).eval()(*BAD_PIXELS[message])


BAD_IMAGES = {
    "is None": lambda x: None,
    "is float64": lambda x: x.double(),
    "is float16": lambda x: x.half(),
    "has dtype torch.int64": lambda x: x.long(),
    "is on the meta device": lambda x: x.to("meta"),
    "is of layout torch.sparse_coo": lambda x: x.to_sparse(),
    "has shape": lambda x: x[:, :1],
    "has shape .* at least one pixel": lambda x: x[..., :0],
}


@pytest.mark.parametrize("message", BAD_IMAGES)
@pytest.mark.parametrize(("method", "name", "channels"), [("encode", "x", 3), ("decode", "z", 4), ("forward", "x", 3)])
def test_an_input_of_taef2_is_named(method, name, channels, message):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        getattr(tiny_taef2(), method)(BAD_IMAGES[message](torch.zeros(1, channels, 16, 16)))


def test_autocast_and_networks_of_low_precision_take_what_they_took():
    model = tiny_dit(num_classes=10).eval()
    x, timestep, labels = inputs_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x, timestep, labels).sample.isfinite().all()
        assert model(x.bfloat16(), timestep, labels).sample.isfinite().all()
    model.enable_layerwise_casting(torch.bfloat16, torch.float32)
    assert model(x, timestep, labels).sample.isfinite().all()
    assert tiny_dit(num_classes=10).to("meta")(*(each.to("meta") for each in (x, timestep, labels))).sample.is_meta


BAD_TAEF2 = [
    *((name, value) for name in ("in_channels", "out_channels", "latent_channels", "width") for value in NOT_WHOLE),
    *((name, value) for name in ("scaling_factor", "shift_factor") for value in NOT_NUMBERS),
    *(("scaling_factor", value) for value in (0, -1)),
    *((f"num_{part}_blocks", value) for part in ("encoder", "decoder") for value in ((), 3, "abc", (1, 2.5), (0, 1))),
]


@pytest.mark.parametrize(("field", "value"), BAD_TAEF2, ids=shown)
def test_a_field_of_taef2_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is "):
        AutoencoderTAEF2(**{"width": 8, field: value})
