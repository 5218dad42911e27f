import pytest
import torch

from demo_diffusion.models import MobileBlock, MobileMixer, spanning_attention
from demo_diffusion.models.layers.conv_norm import DepthwiseConvNorm
from tests.support.goldens import load_golden
from tests.support.networks import randomize

OFFICIAL_TO_OURS = {
    "norm.norm.": "norm.",
    "eops.0.net.conv.": "mixer.v.",
    "eops.0.qk.conv.": "mixer.qk.",
    "eops.0.v.conv.": "mixer.v.",
    "conv_local.": "mixer.conv_local.",
    "proj.conv.": "mixer.proj.",
    "ls.gamma": "gamma",
}


def load_official_block(name: str, **config) -> tuple[MobileBlock, dict[str, torch.Tensor]]:
    weights, data = load_golden(name)
    block = MobileBlock(40, data["output"].shape[1], expansion_ratio=2, num_heads=2, window_size=4, **config)
    renamed = {}
    for key, value in weights.items():
        prefix = next((old for old in OFFICIAL_TO_OURS if key.startswith(old)), "")
        renamed[OFFICIAL_TO_OURS.get(prefix, "") + key.removeprefix(prefix)] = value
    renamed["gamma"] = renamed["gamma"].flatten()
    block.load_state_dict(renamed)
    return block.eval(), data


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("i2rmb_conv", {"attention_mode": "none", "norm": "batch", "activation": "silu"}),
        ("i2rmb_downsample", {"attention_mode": "none", "norm": "batch", "activation": "silu", "stride": 2}),
        ("i2rmb_neighborhood", {"attention_mode": "neighborhood"}),
        ("i2rmb_remote", {"attention_mode": "remote"}),
        ("i2rmb_spanning", {"attention_mode": "spanning"}),
    ],
)
def test_block_equals_official_emov2(name, config):
    block, data = load_official_block(name, **config)
    output = block(data["input"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(output, data["output"], atol=1e-5, rtol=0)


def attention_by_definition(query, key, value, num_heads, window, mode):
    """Every token on its own: its window is looked up by the paper's definition."""
    _, height, width, _ = query.shape
    rows, columns = height // window, width // window
    window_of = {
        "neighborhood": lambda i, j: (i // window, j // window),
        "remote": lambda i, j: (i % rows, j % columns),
    }
    kinds = ("neighborhood", "remote") if mode == "spanning" else (mode,)
    query, key, value = (x.unflatten(-1, (num_heads, -1)) for x in (query, key, value))
    output = torch.zeros_like(value)
    positions = [(i, j) for i in range(height) for j in range(width)]
    for kind in kinds:
        for i, j in positions:
            members = [p for p in positions if window_of[kind](*p) == window_of[kind](i, j)]
            k = torch.stack([key[:, a, b] for a, b in members], dim=2)
            v = torch.stack([value[:, a, b] for a, b in members], dim=2)
            scores = (query[:, i, j, :, None] * k).sum(-1) / query.shape[-1] ** 0.5
            output[:, i, j] += (scores.softmax(-1)[..., None] * v).sum(2)
    return output.flatten(-2)


@pytest.mark.parametrize("mode", ["neighborhood", "remote", "spanning"])
@pytest.mark.parametrize(("height", "width", "window"), [(4, 4, 2), (6, 12, 3), (8, 4, 4), (5, 5, 5)])
def test_attention_equals_its_definition(mode, height, width, window):
    query, key = torch.randn(2, 2, height, width, 6, dtype=torch.float64)
    value = torch.randn(2, height, width, 10, dtype=torch.float64)
    output = spanning_attention(query, key, value, 2, window, mode)
    torch.testing.assert_close(output, attention_by_definition(query, key, value, 2, window, mode))


@pytest.mark.parametrize("mode", ["spanning", "neighborhood", "remote"])
@pytest.mark.parametrize(("spread", "tolerance"), [(1, 0.01), (3, 0.05)])  # of queries and keys: logits of 1 and of 9
def test_attention_in_bfloat16_is_near_the_exact_one(mode, spread, tolerance):
    """Forward and gradients: the products are rounded before the softmax, which large logits feel."""
    query, key, value = (torch.randn(2, 16, 16, 3 * width) for width in (64, 64, 96))
    inputs = [x.bfloat16().requires_grad_() for x in (spread * query, spread * key, value)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    output, expected = (spanning_attention(*x, 3, 8, mode) for x in (inputs, exact))
    weight = torch.randn_like(expected)
    results = (output, *torch.autograd.grad((output.double() * weight).sum(), inputs))
    for got, wanted in zip(results, (expected, *torch.autograd.grad((expected * weight).sum(), exact)), strict=True):
        assert (got - wanted).norm() <= tolerance * wanted.norm()


def test_padded_grid_equals_grid_with_zero_tokens():
    mixer = randomize(MobileMixer(8, 8, num_heads=2, window_size=4)).double()
    tokens = torch.randn(1, 6, 7, 8, dtype=torch.float64)
    padded = torch.zeros(1, 8, 8, 8, dtype=torch.float64)
    padded[:, :6, :7] = tokens
    torch.testing.assert_close(mixer.attend(tokens), mixer.attend(padded)[:, :6, :7])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_fused_depthwise_conv_equals_conv_and_norm(stride, kernel_size):
    layer = randomize(DepthwiseConvNorm(6, kernel_size, stride)).double().eval()
    tokens = torch.randn(2, 5, 8, 6, dtype=torch.float64)
    expected, keys = layer(tokens), layer.state_dict().keys()
    layer.fuse()
    assert layer.fused_weight is not None
    torch.testing.assert_close(layer(tokens), expected)
    assert layer.state_dict().keys() == keys

    layer.norm.weight.data.mul_(2)
    torch.testing.assert_close(layer(tokens), expected)  # the fused weights are in use
    layer.unfuse()
    assert not torch.allclose(layer(tokens), expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_batch_norm_the_convolution_has_a_bias(mode):
    """Value by value: a sum over the kernel's places, and no other sample matters."""
    layer = getattr(randomize(DepthwiseConvNorm(6, 3, batch_norm=False)), mode)()
    tokens = torch.randn(2, 4, 5, 6)
    padded = torch.nn.functional.pad(tokens, (0, 0, 1, 1, 1, 1))
    expected = layer.conv.bias + sum(
        padded[:, i : i + 4, j : j + 5] * layer.conv.weight[:, 0, i, j] for i in range(3) for j in range(3)
    )
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5, rtol=1e-5)
    layer.fuse()
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5, rtol=1e-5)
    assert not list(layer.buffers())


def test_training_and_loading_undo_fusion():
    layer = randomize(DepthwiseConvNorm(4, 3)).eval()
    layer.fuse()
    layer.train()
    assert layer.fused_weight is None
    layer.eval().fuse()
    layer.load_state_dict(layer.state_dict())
    assert layer.fused_weight is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_mode": "global"}, "'global'.*neighborhood"),
        ({"kernel_size": 4}, "kernel_size is 4.*odd"),
        ({"window_size": 0}, "window_size is 0"),
        ({"num_heads": 3}, "num_heads is 3.*16"),
        ({"activation": "relu"}, "'relu'.*gelu"),
        ({"stride": 2}, "stride 2 has no attention"),
        ({"stride": 3, "attention_mode": "none"}, "stride is 3"),
    ],
)
def test_wrong_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        MobileMixer(16, 16, **{"num_heads": 2, **config})


def test_a_block_that_changes_the_width_has_no_skip():
    block, x = MobileBlock(8, 16, layer_scale_init=0.0, window_size=2), torch.randn(1, 4, 4, 8)
    assert not block.skip and not block.mixer.skip and not block(x).any()
    assert MobileBlock(8, 8).skip and MobileBlock(8, 8).mixer.skip
    with pytest.raises(ValueError, match="'group'"):
        MobileBlock(8, 8, norm="group")
