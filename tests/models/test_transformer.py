import pytest
import torch
from torch.utils.checkpoint import checkpoint

from demo_diffusion import DEMOTransformer2DModel, create_transformer, list_transformers
from demo_diffusion.flops import count_macs
from demo_diffusion.models.layers.checkpointing import checkpoint_module
from demo_diffusion.models.layers.positions import position_table
from tests.support.goldens import load_golden
from tests.support.networks import inputs_for, randomize, tiny_dit, tiny_transformer
from tests.support.sizes import SIZES

BOTH = pytest.mark.parametrize("tiny", [tiny_transformer, tiny_dit])
GOLDEN_TO_OURS = {
    "blocks.": "transformer_blocks.",
    "final_layer.": "output.",
    "label_embedder.embedding_table.": "label_embedder.",
    "patch_embed.proj.": "patch_embed.",
    "timestep_embedder.mlp.0.": "timestep_embedder.linear_1.",
    "timestep_embedder.mlp.2.": "timestep_embedder.linear_2.",
}


@pytest.mark.parametrize("name", SIZES)
def test_size_of_presets(name):
    parameters, trainable, gmacs = SIZES[name]
    with torch.device("meta"):
        model = create_transformer(name)
        macs = count_macs(model, torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert macs / 1e9 == pytest.approx(gmacs, abs=1e-3)


def test_size_of_b_at_512_pixels():
    """The authors' abandoned first run of B has these parameters: it was the same network with a larger table."""
    with torch.device("meta"):
        model = create_transformer("DEMO-B/2", sample_size=64)
    assert sum(p.numel() for p in model.parameters()) == 96_672_800


def test_input_shape_and_grid_are_those_of_one_number_or_two():
    for size, shape, grid in ((8, (4, 8, 8), (4, 4)), ((8, 16), (4, 8, 16), (4, 8)), ([16, 8], (4, 16, 8), (8, 4))):
        model = tiny_transformer(sample_size=size)
        assert model.input_shape == shape and model.grid_size == grid


def test_presets_are_listed():
    assert set(SIZES) == set(list_transformers())


def golden_model() -> tuple[DEMOTransformer2DModel, dict[str, torch.Tensor]]:
    weights, data = load_golden("demo_tiny")
    model = DEMOTransformer2DModel(
        sample_size=16, num_layers=2, num_attention_heads=3, attention_head_dim=16, window_size=4, num_classes=10
    )
    state = {}
    for key, value in weights.items():
        for part in ("qk", "v", "conv_local", "proj"):
            if key.startswith("blocks."):
                key = key.replace(f".{part}.", f".mixer.{part}.", 1)
        prefix = next((old for old in GOLDEN_TO_OURS if key.startswith(old)), "")
        state[GOLDEN_TO_OURS.get(prefix, "") + key.removeprefix(prefix)] = value
    model.load_state_dict(state)
    return model.eval(), data


@torch.no_grad()
def test_equals_golden():
    model, data = golden_model()
    output = model(data["hidden_states"], data["timestep"], data["class_labels"]).sample
    torch.testing.assert_close(output, data["output"], atol=1e-5, rtol=0)


def test_position_table_equals_golden():
    weights, _ = load_golden("demo_tiny")
    torch.testing.assert_close(position_table(48, 8, 8), weights["pos_embed"], atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["DEMO-S/2", "DiT-S/2"])
def test_new_model_is_identity_in_its_blocks_and_zero_at_its_end(name):
    model = create_transformer(name, num_layers=2).eval()
    tokens, conditioning = torch.randn(1, 16, 16, 384), torch.randn(1, 384)
    assert torch.equal(model.transformer_blocks[0](tokens, conditioning), tokens)
    assert model(*inputs_for(model)).sample.abs().max() == 0


@pytest.mark.parametrize(
    "config",
    [
        {"sample_size": (8, 16)},
        {"sample_size": 10, "window_size": 4},  # 5×5 tokens: padded
        {"sample_size": (6, 10), "patch_size": 1, "window_size": 4},
        {"patch_size": 4, "in_channels": 3, "out_channels": 3},
        {"num_classes": 1},
        {"attention_mode": "none"},
        {"attention_mode": "remote", "kernel_size": 3},
    ],
)
@torch.no_grad()
def test_any_config(config):
    model = tiny_transformer(**config)
    hidden_states, timestep, labels = inputs_for(model)
    sample, *rest = model(hidden_states, timestep, labels, return_dict=False)
    assert not rest
    assert sample.shape == (2, model.config.out_channels, *hidden_states.shape[2:])
    assert sample.isfinite().all()


@BOTH
def test_out_channels_default_is_saved_in_config(tiny):
    assert tiny(in_channels=3).config.out_channels == 6


@pytest.mark.parametrize(
    "config",
    [{"sample_size": (8, 16)}, {"patch_size": 4, "in_channels": 3, "out_channels": 3}, {"mlp_ratio": 2.5}],
)
@torch.no_grad()
def test_any_dit_config(config):
    model = tiny_dit(**config)
    hidden_states, timestep, labels = inputs_for(model)
    sample = model(hidden_states, timestep, labels).sample
    assert sample.shape == (2, model.config.out_channels, *hidden_states.shape[2:]) and sample.isfinite().all()


@torch.no_grad()
def test_dit_block_equals_its_formula():
    block = randomize(tiny_dit().transformer_blocks[0])
    tokens, conditioning = torch.randn(2, 3, 5, 16), torch.randn(2, 16)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(conditioning)[:, None].chunk(6, dim=-1)
    x = tokens.view(2, 15, 16)

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    q, k, v = block.attention.qkv(norm(x) * (1 + scale1) + shift1).view(2, 15, 3, 2, 8).permute(2, 0, 3, 1, 4)
    attended = torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v
    x = x + gate1 * block.attention.proj(attended.transpose(1, 2).reshape(2, 15, 16))
    hidden = torch.nn.functional.gelu(block.fc1(norm(x) * (1 + scale2) + shift2), approximate="tanh")
    x = x + gate2 * block.fc2(hidden)
    torch.testing.assert_close(block(tokens, conditioning), x.view(2, 3, 5, 16), atol=1e-5, rtol=1e-5)


@BOTH
@torch.no_grad()
def test_time_may_run_the_other_way(tiny):
    forward, backward = tiny(), tiny(reverse_time=True)
    backward.load_state_dict(forward.state_dict())
    hidden_states, _, labels = inputs_for(forward)
    t = torch.tensor([0.25, 1.0])
    assert torch.equal(backward(hidden_states, 1 - t, labels).sample, forward(hidden_states, t, labels).sample)
    assert not torch.equal(backward(hidden_states, t, labels).sample, forward(hidden_states, t, labels).sample)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sample_size": 9}, "sample_size is 9.*patch_size, 2"),
        ({"attention_head_dim": 3}, "multiple of 4"),
        ({"attention_mode": "full"}, "'full'"),
        ({"num_layers": 0}, "num_layers is 0; it must be a whole number in .1, "),
        ({"expansion_ratio": float("nan")}, "expansion_ratio is nan"),
        ({"out_channels": -1}, "out_channels is -1"),
        ({"sample_size": (8, 8, 8)}, r"sample_size is \(8, 8, 8\)"),
        ({"sample_size": 0}, "sample_size is 0"),
        ({"window_position": "absolute"}, "'absolute'; it must be None or one of"),
        ({"window_position": "rotary", "rotary_positions": True}, "turn the same channels"),
        ({"attention_mode": "none", "qk_norm": True}, "need an attention"),
    ],
)
def test_wrong_config_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"norm_eps": -1}, "norm_eps is -1"),
        ({"timestep_frequency_shift": 128}, "timestep_frequency_shift is 128; it must be one of .0, 1"),
        ({"num_attention_heads": -2}, "num_attention_heads is -2"),
        ({"rotary_positions": True, "attention_head_dim": 6}, "6; two-axis rotary positions need a multiple of 4"),
    ],
)
def test_wrong_dit_config_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        tiny_dit(**config)


def test_unknown_preset_and_field_are_named():
    with pytest.raises(ValueError, match="'DEMO-H/2'.*DEMO-XL/2"):
        create_transformer("DEMO-H/2")
    with pytest.raises(ValueError, match=r"\['depth'\].*num_layers"):
        create_transformer("DEMO-S/2", depth=3)


def test_wrong_inputs_are_named():
    model = tiny_transformer()
    hidden_states, timestep, labels = inputs_for(model)
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 6\).*\(B, 4, 8, 8\)"):
        model(hidden_states[..., :6], timestep, labels)
    with pytest.raises(ValueError, match="timestep has shape .1,.; it must be .2."):
        model(hidden_states, timestep[:1], labels)


@pytest.mark.parametrize("max_shard_size", ["10GB", "20KB"])
@BOTH
@torch.no_grad()
def test_save_and_load(tmp_path, max_shard_size, tiny):
    model = tiny(rotary_positions=True, qk_norm=True)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    loaded = type(model).from_pretrained(tmp_path)
    inputs = inputs_for(model)
    assert torch.equal(loaded(*inputs).sample, model(*inputs).sample)
    assert not loaded.pos_embed.requires_grad and not loaded.training


@torch.no_grad()
def test_load_in_bfloat16(tmp_path):
    model = tiny_transformer()
    model.save_pretrained(tmp_path)
    loaded = DEMOTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    hidden_states, timestep, labels = inputs_for(model)
    output = loaded(hidden_states.bfloat16(), timestep, labels).sample
    assert loaded.dtype == output.dtype == torch.bfloat16
    expected = model(hidden_states, timestep, labels).sample
    assert (output - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_norm": False}, {"window_position": "bias"}, {"rotary_positions": True, "qk_norm": True}],
)
@torch.no_grad()
def test_autocast(options):
    model = tiny_transformer(**options)
    inputs = inputs_for(model)
    expected = model(*inputs).sample
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs).sample
    assert not torch.equal(output, expected)
    assert (output - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_fuse_keeps_the_output_and_the_saved_weights(tmp_path):
    model = tiny_transformer()
    inputs, state = inputs_for(model), model.state_dict()
    expected = model(*inputs).sample
    model.fuse()
    fused = model(*inputs).sample
    assert not torch.equal(fused, expected)
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == state.keys()
    model.unfuse()
    assert torch.equal(model(*inputs).sample, expected)


def test_fuse_is_refused_in_training():
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        tiny_transformer().train().fuse()


def gradients_and_statistics(model, checkpointing_func=None):
    model.train().zero_grad()
    if checkpointing_func is not None:
        model.enable_gradient_checkpointing(checkpointing_func)
    torch.manual_seed(1)
    model(*inputs_for(model, batch=4)).sample.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return gradients, {name: b.clone() for name, b in model.named_buffers()}


def test_gradient_checkpointing_equals_none():
    model = tiny_transformer(rotary_positions=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = gradients_and_statistics(model)
    for func, statistics_equal in ((checkpoint_module, True), (plain_checkpoint, False)):
        model.load_state_dict(state)
        gradients, statistics = gradients_and_statistics(model, func)
        torch.testing.assert_close(gradients, expected[0])
        # PyTorch's own function moves BatchNorm's running statistics twice: the comparison can fail.
        name = "transformer_blocks.0.mixer.conv_local.norm.running_mean"
        assert torch.equal(statistics[name], expected[1][name]) == statistics_equal


def plain_checkpoint(module, *args):
    return checkpoint(module, *args, use_reentrant=False)


def test_default_gradient_checkpointing_is_ours():
    model = tiny_transformer()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing and model._gradient_checkpointing_func is checkpoint_module
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize(
    "create",
    [
        tiny_transformer,
        lambda: tiny_transformer(window_position="bias", rotary_positions=True, qk_norm=True),
        lambda: tiny_transformer(window_position="rotary"),
        lambda: tiny_dit(rotary_positions=True, qk_norm=True),
    ],
)
def test_compiles_without_graph_breaks(create):
    model = create()
    inputs = inputs_for(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs).sample, model(*inputs).sample)
    model.train()
    expected, _ = gradients_and_statistics(model)
    model.zero_grad()
    torch.manual_seed(1)
    compiled(*inputs_for(model, batch=4)).sample.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(gradients, expected)


def test_checkpointing_under_compile_moves_statistics_once():
    model = tiny_transformer()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, expected = gradients_and_statistics(model)
    model.load_state_dict(state)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.enable_gradient_checkpointing()
    model.train()
    torch.manual_seed(1)
    compiled(*inputs_for(model, batch=4)).sample.square().mean().backward()
    torch.testing.assert_close(dict(model.named_buffers()), expected)


@BOTH
def test_repeated_blocks_compile(tiny):
    model = tiny()
    inputs = inputs_for(model)
    with torch.no_grad():
        expected = model(*inputs).sample
        model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(*inputs).sample, expected)


@pytest.mark.parametrize(
    "create",
    [
        lambda: tiny_transformer(num_classes=3, window_position="embedding", qk_norm=True),
        lambda: tiny_transformer(num_classes=3, window_position="bias"),
        lambda: tiny_dit(num_classes=3, qk_norm=True, rotary_positions=True),
    ],
)
def test_every_trained_parameter_gets_a_gradient(create):
    model = create().train()
    model(*inputs_for(model, batch=4)).sample.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert not without
