"""A bad argument of a network is a ValueError that names it, before anything is computed."""

import numpy as np
import pytest
import torch

from demo_diffusion import create_emov2, create_transformer
from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2
from demo_diffusion.models.detection import EMOv2DetectorConfig, create_detector
from demo_diffusion.models.emov2.configuration import EMOv2Config
from demo_diffusion.models.segmentation import EMOv2SegmenterConfig, UEMOConfig, create_segmenter
from tests.support.bad_values import NOT_FLAGS, NOT_NAMES, NOT_NUMBERS, NOT_WHOLE, shown
from tests.support.classifiers import tiny_emov2
from tests.support.detectors import DETECTORS, TINY, images_and_targets, small_detector
from tests.support.networks import inputs_for, tiny_dit, tiny_transformer
from tests.support.pipelines import tiny_taef2
from tests.support.segmenters import HEADS, SMALL_UNET, small_segmenter, small_unet

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


SMALL = {
    "UEMOConfig": lambda **fields: UEMOConfig(**{**SMALL_UNET, **fields}),
    "EMOv2SegmenterConfig": EMOv2SegmenterConfig,
    "EMOv2DetectorConfig": lambda **fields: EMOv2DetectorConfig(**{"num_classes": 2, **fields}),
    "EMOv2Config": EMOv2Config,
    "create_segmenter": lambda **fields: create_segmenter(**{"head": "fpn", "backbone": "EMOv2-1M", **fields}),
    "create_detector": lambda **fields: create_detector(**{"name": "SSDLite", "backbone": "EMOv2-1M", **fields}),
}
COUNTS = {
    "UEMOConfig": ("num_channels", "attention_head_dim", "window_size", "head_channels", "num_labels"),
    "EMOv2SegmenterConfig": ("head_channels", "num_labels"),
    "EMOv2DetectorConfig": ("num_classes", "image_size", "box_batch_size_per_image", "num_labels"),
    "EMOv2Config": ("num_labels",),
    "create_segmenter": ("num_labels", "head_channels"),
    "create_detector": ("num_classes", "image_size", "box_batch_size_per_image"),
}
LOSSES = ("head_dropout", "auxiliary_loss_weight")
REALS = {
    "UEMOConfig": ("expansion_ratio", "norm_eps", "layer_scale_init_value", *LOSSES),
    "EMOv2SegmenterConfig": LOSSES,
}
SWITCHES = {
    "UEMOConfig": ("auxiliary",),
    "EMOv2SegmenterConfig": ("auxiliary",),
    "create_segmenter": ("auxiliary",),
    "EMOv2DetectorConfig": ("scaled_anchors", "freeze_first_stage", "freeze_batch_norm"),
    "create_detector": ("scaled_anchors", "freeze_first_stage", "freeze_batch_norm"),
}
WORDS = {
    "UEMOConfig": ("block",),
    "EMOv2SegmenterConfig": ("head",),
    "EMOv2DetectorConfig": ("detector",),
    "create_segmenter": ("head", "backbone"),
    "create_detector": ("name", "backbone"),
}
WIDTHS = ((), (8,), 3, None, "a", (8, "a"), (8, 16.5), (8, -1), (0, 8), (8, 10**20), (True, 8), (8,) * 100)
CLASSES = (
    3, "cat", ["a"], [("a", "b")], {"a": "b"}, {99: "x"}, {1: 3, 2: "b"}, {1.5: "a"}, {True: "a", 2: "b"}, {-1: "a"},
    {10**30: "a"}, {1: "a", "1": "b"}, {"1e3": "a"}, {"1" * 5000: "a"}, {1: None, 2: "b"}, {1: ["x"], 2: "b"},
)  # fmt: skip
BAD_CREATIONS = [
    *(
        (create, field, value)
        for fields, values in (
            (COUNTS, (*(value for value in NOT_WHOLE if value is not None), 2**40)),
            (REALS, (*NOT_NUMBERS, -float("inf"))),
            (SWITCHES, [value for value in NOT_FLAGS if value is not None]),
            (WORDS, NOT_NAMES),
            (dict.fromkeys(SMALL, ("id2label",)), CLASSES),
        )
        for create, names in fields.items()
        for field in names
        for value in values
    ),
    *((create, "id2label", {0: "a", 1: "a"}) for create in ("UEMOConfig", "EMOv2SegmenterConfig", "create_segmenter")),
    *((create, "id2label", {1: "a", 2: "a"}) for create in ("EMOv2DetectorConfig", "create_detector")),
    *(("UEMOConfig", "hidden_sizes", value) for value in WIDTHS),
    *(("UEMOConfig", field, -0.1) for field in ("expansion_ratio", "norm_eps", *LOSSES)),
    *(("UEMOConfig", "semantic_loss_ignore_index", value) for value in (None, "x", True, 2.5, 10**20, -(10**20))),
    *((create, "depths", (10**9,) * 4) for create in ("EMOv2Config", "create_segmenter", "create_detector")),
    *(
        (create, "backbone_config", value)
        for create in ("EMOv2SegmenterConfig", "EMOv2DetectorConfig")
        for value in (3, "x", [1], {1: 2}, {"depths": "x"}, {"num_labels": 2**40})
    ),
]


@pytest.mark.parametrize(("create", "field", "value"), BAD_CREATIONS, ids=lambda each: shown(each)[:40])
def test_a_bad_argument_of_a_segmenter_or_detector_is_named_in_one_line(create, field, value):
    inner = next(iter(value)) if field == "backbone_config" and isinstance(value, dict) else field
    pattern = "Unknown" if field in ("head", "backbone", "detector", "name", "block") else str(inner)
    with pytest.raises(ValueError, match=f"{pattern}|{field}") as error:
        SMALL[create](**{field: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("value", [3, [], {}, True, "", "/nowhere", "a\0b", b"x"], ids=shown)
@pytest.mark.parametrize("create", [small_segmenter, small_detector])
def test_weights_that_cannot_be_loaded_are_named(create, value):
    with pytest.raises(ValueError, match=r".") as error:
        create("fpn" if create is small_segmenter else "SSDLite", **TINY, backbone_weights=value)
    assert "\n" not in str(error.value)


DENSE = {
    **{head: lambda head=head: small_segmenter(head, **TINY) for head in HEADS},
    "U-EMO": small_unet,
    "UNet": lambda: small_unet("conv"),
    "EMOv2": lambda: tiny_emov2("EMOv2-1M"),
}
IMAGES = torch.rand(2, 3, 32, 32)
NOT_IMAGES = {
    "None": (None, "pixel_values is None"),
    "list": ([1], r"pixel_values is \[1\]"),
    "NumPy": (IMAGES.numpy(), "pixel_values is array"),
    "uint8": (IMAGES.byte(), "pixel_values has dtype torch.uint8"),
    "bool": (IMAGES > 0, "pixel_values has dtype torch.bool"),
    "complex": (IMAGES * 1j, "pixel_values has dtype torch.complex64"),
    "float64": (IMAGES.double(), "is float64; this model's weights are torch.float32"),
    "half": (IMAGES.half(), "is float16; this model's weights are torch.float32"),
    "one channel": (IMAGES[:, :1], "pixel_values has shape"),
    "one image": (IMAGES[0], "pixel_values has shape"),
    "no width": (IMAGES[..., :0], "pixel_values has shape .* at least"),
    "no height": (IMAGES[:, :, :0], "pixel_values has shape .* at least"),
    "meta": (IMAGES.to("meta"), "pixel_values is on the meta device"),
    "sparse": (IMAGES.to_sparse(), "pixel_values is of layout torch.sparse_coo"),
}


@pytest.mark.parametrize("network", DENSE)
def test_images_that_are_none_are_named(network):
    model = DENSE[network]().eval()
    for bad, message in NOT_IMAGES.values():
        with pytest.raises(ValueError, match=message) as error:
            model(bad)
        assert "\n" not in str(error.value)


LABELS = torch.zeros(2, 32, 32, dtype=torch.long)
NOT_LABELS = {
    "number": (3, "labels is 3"),
    "list": ([1], "labels is"),
    "float": (LABELS.float(), "labels has dtype torch.float32"),
    "bool": (LABELS > 0, "labels has dtype torch.bool"),
    "complex": (LABELS * 1j, "labels has dtype torch.complex64"),
    "smaller": (LABELS[:, :8], "labels has shape"),
    "with a channel": (LABELS[:, None], "labels has shape"),
    "99": (LABELS + 99, "labels has class 99"),
    "-1": (LABELS - 1, "labels has class -1"),
    "uint16": ((LABELS + 256).to(torch.uint16), "labels has class 256"),
    "meta": (LABELS.to("meta"), "labels is on meta"),
    "sparse": (LABELS.to_sparse(), "labels is torch.sparse_coo"),
}


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("network", ["fpn", "U-EMO"])
def test_labels_of_pixels_that_are_none_are_named(network, is_training):
    model = DENSE[network]().train(is_training)
    for bad, message in NOT_LABELS.values():
        with pytest.raises(ValueError, match=message):
            model(IMAGES, bad)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_labels_of_any_whole_type_give_the_same_loss(dtype):
    model, labels = small_unet().eval(), LABELS.clone()
    labels[:, :5] = 3
    labels[:, 5:7] = 255
    assert model(IMAGES, labels.to(dtype)).loss == model(IMAGES, labels).loss


IMAGE = IMAGES[0]
NOT_DETECTED = {
    "None": (None, "give a list"),
    "nothing": ([], "no images"),
    "texts": (["a"], "Image 0 is str"),
    "NumPy": ([np.zeros((3, 32, 32))], "Image 0 is ndarray"),
    "uint8": ([IMAGE.byte()], "Image 0 holds torch.uint8"),
    "bool": ([IMAGE > 0], "Image 0 holds torch.bool"),
    "complex": ([IMAGE * 1j], "Image 0 holds torch.complex64"),
    "float64": ([IMAGE.double()], "Image 0 is float64"),
    "half": ([IMAGE.half()], "Image 0 is float16"),
    "NaN": ([IMAGE, IMAGE * float("nan")], "Image 1 has values from nan to nan"),
    "inf": ([IMAGE / 0], "Image 0 has values from .* to inf"),
    "negative": ([-IMAGE], "Image 0 has values from -"),
    "0 … 255": ([IMAGE * 255], "Divide by 255"),
    "no pixel": ([IMAGE[:, :0]], "too narrow"),
    "meta": ([IMAGE.to("meta")], "Image 0 is on the meta device"),
    "sparse": ([IMAGE.to_sparse()], "Image 0 is of layout"),
}


@pytest.mark.parametrize("network", DETECTORS)
def test_images_to_detect_on_that_are_none_are_named(network):
    model = small_detector(network, **TINY).eval()
    long = {} if network == "SSDLite" else {"long and thin": ([torch.rand(3, 4, 4000)], "too narrow")}
    for bad, message in {**NOT_DETECTED, **long}.values():
        with pytest.raises(ValueError, match=message):
            model(bad)


NOT_TARGETS = {
    "number": (lambda target: 3, "it is 3"),
    "boxes on meta": (lambda target: {**target, "boxes": target["boxes"].to("meta")}, "boxes must be a dense tensor"),
    "sparse labels": (lambda target: {**target, "labels": target["labels"].to_sparse()}, "labels must be a dense"),
    "complex boxes": (lambda target: {**target, "boxes": target["boxes"] * 1j}, "its boxes are torch.complex64"),
    "NaN masks": (lambda target: {**target, "masks": target["masks"] * float("nan")}, "its masks have values from nan"),
    "complex masks": (lambda target: {**target, "masks": target["masks"] * 1j}, "its masks are torch.complex64"),
    "sparse masks": (lambda target: {**target, "masks": target["masks"].to_sparse()}, "masks must be a dense"),
}


@pytest.mark.parametrize("targets", [3, "boxes", {}, ()], ids=shown)
def test_targets_that_are_no_list_are_named(targets):
    images, _ = images_and_targets(1)
    with pytest.raises(ValueError, match="There are 3 images and .* targets"):
        small_detector("MaskRCNN", **TINY).train()(images, targets)


def test_targets_that_are_none_are_named():
    model = small_detector("MaskRCNN", **TINY).train()
    images, targets = images_and_targets(1)
    for change, message in NOT_TARGETS.values():
        with pytest.raises(ValueError, match=f"The target of image 0 is not right: .*{message}"):
            model(images, [change(targets[0]), *targets[1:]])


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
