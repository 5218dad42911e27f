import copy
import re

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from demo_diffusion import EMOv2Backbone, EMOv2Config, create_emov2, list_emov2
from demo_diffusion.flops import count_macs
from demo_diffusion.models.classifiers import image_processor
from demo_diffusion.models.emov2.modeling import EMOv2Model
from demo_diffusion.models.emov2.presets import IRMB_IN_EMOV2
from demo_diffusion.models.mobile_block import MobileBlock
from tests.support.classifiers import STYLES, TINY, tiny_emov2
from tests.support.networks import randomize

# Parameters and multiply-accumulates in millions at 224 pixels of the authors' released code, by fvcore.
SIZES = {
    "EMOv2-1M": (1_460_844, 284.8),
    "EMOv2-2M": (2_384_312, 487.5),
    "EMOv2-5M": (5_126_440, 1035.5),
    "EMOv2-20M": (20_195_208, 4017.2),
    "EMOv2-50M": (49_815_560, 8804.2),
    "EMOv1-1M": (1_361_168, 260.8),
    "EMOv1-2M": (2_377_472, 439.4),
    "EMOv1-5M": (5_108_848, 902.6),
}
IRMB_SIZES = {
    "EMOv2-1M": (1_454_316, 249.4),
    "EMOv2-2M": (2_374_840, 431.6),
    "EMOv2-5M": (5_110_312, 943.6),
    "EMOv2-20M": (20_170_632, 3788.3),
}
ABLATIONS = [  # of EMOv2-5M, the paper's table XVII
    ({"attention_modes": ("none", "none", "none", "none")}, 4_381_352, 802.2),
    ({"attention_modes": ("none", "none", "neighborhood", "neighborhood")}, 5_126_440, 967.1),
    ({"attention_modes": ("none", "none", "remote", "remote")}, 5_126_440, 967.1),
    ({"attention_modes": ("none", "none", "none", "spanning")}, 4_714_280, 832.3),
    ({"attention_modes": ("none", "spanning", "spanning", "spanning")}, 5_147_464, 1096.0),
    ({"attention_modes": ("spanning", "spanning", "spanning", "spanning")}, 5_156_872, 1213.4),
    ({"kernel_sizes": (1, 1, 1, 1)}, 4_879_528, 969.2),
    ({"kernel_sizes": (3, 3, 3, 3)}, 4_961_832, 991.3),
    ({"kernel_sizes": (7, 7, 7, 7)}, 5_373_352, 1101.7),
    ({"kernel_sizes": (9, 9, 9, 9)}, 5_702_568, 1190.0),
]


def assert_size(parameters: int, millions: float, name: str, image_size: int = 224, **overrides) -> None:
    with torch.device("meta"):
        model = create_emov2(name, num_labels=1000, **overrides)
        macs = count_macs(model, torch.zeros(1, 3, image_size, image_size))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs / 1e6 == pytest.approx(millions, rel=5e-4)


@pytest.mark.parametrize("name", SIZES)
def test_size_of_presets(name):
    assert_size(*SIZES[name], name)


@pytest.mark.parametrize("name", IRMB_SIZES)
def test_size_of_irmb_in_emov2(name):
    assert_size(*IRMB_SIZES[name], name, **IRMB_IN_EMOV2)


@pytest.mark.parametrize(("overrides", "parameters", "millions"), ABLATIONS)
def test_size_of_ablations(overrides, parameters, millions):
    assert_size(parameters, millions, "EMOv2-5M", **overrides)


@pytest.mark.parametrize(("image_size", "millions"), [(256, 1407.0), (512, 5627.3)])
def test_size_at_other_resolutions(image_size, millions):
    assert_size(5_126_440, millions, "EMOv2-5M", image_size, window_size=8)


def test_presets_are_listed():
    assert set(SIZES) == set(list_emov2())


@STYLES
@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (33, 47), (1, 1)])
@torch.no_grad()
def test_feature_maps_have_their_strides_at_any_size(name, height, width):
    config = tiny_emov2(name).config
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    backbone = EMOv2Backbone(config).eval()
    maps = backbone(torch.randn(2, 3, height, width)).feature_maps
    expected = [
        (2, c, -(-height // s), -(-width // s)) for c, s in zip(config.hidden_sizes, (4, 8, 16, 32), strict=True)
    ]
    assert [tuple(x.shape) for x in maps] == expected
    assert backbone.channels == list(config.hidden_sizes)


@torch.no_grad()
def test_backbone_returns_the_chosen_stages_of_the_classifier():
    model = tiny_emov2()
    pixels = torch.randn(1, 3, 40, 32)
    hidden_states = model(pixels, output_hidden_states=True).hidden_states
    assert len(hidden_states) == 5 and model(pixels).hidden_states is None
    model.config.out_indices = [0, 3]
    backbone = EMOv2Backbone(model.config).eval()
    backbone.load_state_dict(model.emov2.state_dict())
    output = backbone(pixels, output_hidden_states=True)
    torch.testing.assert_close(output.feature_maps, (hidden_states[0], hidden_states[3]))
    torch.testing.assert_close(output.hidden_states, hidden_states)
    assert isinstance(backbone(pixels, return_dict=False), tuple)


@torch.no_grad()
def test_logits_are_classifier_of_mean_of_norm():
    model, pixels = tiny_emov2(), torch.randn(2, 3, 64, 64)
    features = model.emov2(pixels).last_hidden_state.permute(0, 2, 3, 1)
    expected = model.classifier(torch.stack([model.norm(x).reshape(-1, 24).mean(0) for x in features]))
    torch.testing.assert_close(model(pixels).logits, expected)


def test_labels_give_cross_entropy_and_gradients():
    model, pixels, labels = tiny_emov2().train(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 4])
    output = model(pixels, labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@STYLES
@torch.no_grad()
def test_saved_folder_loads_through_auto_classes(name, tmp_path):
    model, pixels = tiny_emov2(name), torch.randn(1, 3, 48, 32)
    model.save_pretrained(tmp_path)
    image_processor(48).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EMOv2Config)
    torch.testing.assert_close(
        AutoModelForImageClassification.from_pretrained(tmp_path)(pixels).logits, model(pixels).logits
    )
    assert isinstance(AutoModel.from_pretrained(tmp_path), EMOv2Model)
    assert isinstance(AutoBackbone.from_config(model.config), EMOv2Backbone)
    backbone, loading = EMOv2Backbone.from_pretrained(tmp_path, out_features=["stage2"], output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    maps = backbone(pixels).feature_maps
    torch.testing.assert_close(maps[0], model(pixels, output_hidden_states=True).hidden_states[2])
    images = AutoImageProcessor.from_pretrained(tmp_path)(torch.full((3, 60, 90), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images.pixel_values[0], expected[:, None, None].expand(3, 48, 48))


def test_initial_weights_are_the_official_codes():
    model = create_emov2("EMOv2-1M", num_labels=100)
    block = model.emov2.stages[2][1]
    assert torch.all(block.gamma == 1e-6)
    bound = 80**-0.5
    assert block.mixer.v.weight.abs().max() <= bound
    assert block.mixer.v.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.classifier.bias.abs().max() == 0


def test_drop_path_is_linear_in_depth():
    model = create_emov2("EMOv2-5M", **{**TINY, "drop_path_rate": 0.3})
    rates = [m.drop_path for m in model.modules() if isinstance(m, MobileBlock)]
    assert rates == pytest.approx([0.05 * i for i in range(7)])


def test_drop_path_drops_samples_and_keeps_the_mean():
    block = randomize(MobileBlock(4, 4, num_heads=1, window_size=2, drop_path=0.5))
    block.mixer.conv_local.norm.eval()
    tokens = torch.randn(1, 2, 2, 4).expand(400, 2, 2, 4)
    update = (block(tokens) - tokens).flatten(1)
    full = block.mixer(block.norm(tokens[:1])).mul(block.gamma).flatten() * 2
    dropped = update.abs().sum(1) < 1e-6
    assert 130 < dropped.sum() < 270
    torch.testing.assert_close(update[~dropped], full.expand(int((~dropped).sum()), -1), atol=1e-5, rtol=1e-4)
    block.eval()
    torch.testing.assert_close((block(tokens[:1]) - tokens[:1]).flatten(), full / 2, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    model, pixels, labels = tiny_emov2().train(), torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    buffers = {name: b.clone() for name, b in model.named_buffers() if b is not None}
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
            model.load_state_dict({**model.state_dict(), **buffers})
        model.zero_grad()
        model(pixels, labels=labels).loss.backward()
        state = {name: b.clone() for name, b in model.named_buffers() if b is not None}
        results.append(({name: p.grad.clone() for name, p in model.named_parameters()}, state))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths.*4 entries"),
        ({"attention_head_dims": (8, 12, 8, 7)}, "has 7 for a stage of width 24"),
        ({"depth": 3}, r"no config field \['depth'\].*depths"),
        ({"stem_activation": "relu"}, "stem_activation is 'relu'.*silu"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"attention_modes": ("none", "none", "none", "global")}, "'global'.*spanning"),
    ],
)
def test_wrong_settings_are_named(overrides, message):
    with pytest.raises(Exception, match=message):
        create_emov2("EMOv2-5M", **{**TINY, **overrides})


def test_wrong_names_and_inputs_are_named():
    with pytest.raises(ValueError, match="EMOv2-3M.*EMOv2-5M"):
        create_emov2("EMOv2-3M")
    with pytest.raises(ValueError, match=re.escape("(2, 1, 8, 8); it must be (batch, 3")):
        tiny_emov2()(torch.zeros(2, 1, 8, 8))


def test_batch_norm_over_processes_is_the_same_network():
    """What the training's sync_batch_norm does; SyncBatchNorm computes as BatchNorm in eval mode, on CPUs too."""
    model = randomize(create_emov2("EMOv2-1M", num_labels=3)).eval()
    pixels = torch.randn(1, 3, 64, 64)
    expected = model(pixels).logits
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(pixels).logits, expected)
    assert converted.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (0, 1, 1, 1)}, "depths is 0; it must be a whole number in .1, "),
        ({"hidden_sizes": (24, 32, 64, 0)}, "hidden_sizes is 0; it must be a whole number in .1, "),
        ({"stem_width": 0}, "stem_width is 0"),
        ({"image_size": -224}, "image_size is -224"),
    ],
)
def test_sizes_that_cannot_be_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EMOv2Config(**fields)
