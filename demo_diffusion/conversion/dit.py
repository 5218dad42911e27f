"""The official checkpoints' format of DiT and SiT: a state dict of the authors' networks, in and out."""

import math
from collections.abc import Mapping

import torch

from demo_diffusion.models import ClassConditionalTransformer, DiTModel
from demo_diffusion.models.transformer_dit import DIT_PRESETS

from .state_checks import MAX_LISTED, check_keys, check_shapes, raise_listed

OFFICIAL_HEADS = {
    preset["num_attention_heads"] * preset["attention_head_dim"]: preset["num_attention_heads"]
    for preset in DIT_PRESETS.values()
}
# Official module -> ours; every one has a weight and a bias.
OUTER_MODULES = {
    "x_embedder.proj": "patch_embed",
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "output.modulation",
    "final_layer.linear": "output.proj",
}
BLOCK_MODULES = {
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "adaLN_modulation.1": "modulation",
}
VELOCITY_PARAMETERS = ("output.proj.weight", "output.proj.bias")
TELLING_KEYS = {  # whose shapes tell the config, with their number of dimensions
    "x_embedder.proj.weight": 4,
    "y_embedder.embedding_table.weight": 2,
    "pos_embed": 3,
    "blocks.0.mlp.fc1.weight": 2,
    "final_layer.linear.bias": 1,
}
KIND = "DiT or SiT"
REPA_PROJECTORS = "projectors."


def convert_dit(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None = None) -> DiTModel:
    """A DiT from the official format, in eval mode; it predicts noise (and variance) at timesteps 0 … 999.

    Args:
        state_dict: of facebookresearch/DiT's network.
        num_attention_heads: not in the weights; None: those of the official size of this width.

    Raises:
        ValueError: if keys are unknown, missing or misshapen (all are listed), or the heads cannot be told.
    """
    return _convert(state_dict, num_attention_heads, reverse_time=False)


def convert_sit(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None = None) -> DiTModel:
    """A SiT from the official format, in eval mode; it predicts noise − data at this package's t (0 data, 1 noise).

    SiT itself predicts data − noise at 1 − t. The sign is taken into the last layer, the time is `reverse_time`.

    Args:
        state_dict: of willisma/SiT's network, trained to predict the velocity on the linear path.
        num_attention_heads: not in the weights; None: those of the official size of this width.

    Raises:
        ValueError: if keys are unknown, missing or misshapen (all are listed), or the heads cannot be told.
    """
    return _convert(state_dict, num_attention_heads, reverse_time=True)


def convert_repa(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None = None) -> DiTModel:
    """SiT's network as REPA trains it (sihyun-yu/REPA), in eval mode, without the projectors that only training needs.

    REPA's network predicts noise − data at t, 0 data and 1 noise, as this package's do: unlike SiT's own.

    Args:
        state_dict: of REPA's network, trained to predict the velocity on the linear path.
        num_attention_heads: not in the weights; None: those of the official size of this width.

    Raises:
        ValueError: if keys are unknown, missing or misshapen (all are listed), or the heads cannot be told.
    """
    network = {key: value for key, value in state_dict.items() if not str(key).startswith(REPA_PROJECTORS)}
    return _convert(network, num_attention_heads, reverse_time=False)


def to_official(transformer: ClassConditionalTransformer) -> dict[str, torch.Tensor]:
    """The inverse of `convert_dit` and, for a network with `reverse_time`, of `convert_sit`: bit by bit the same.

    Raises:
        ValueError: if the official code has no such network, or weights are missing.
    """
    if not isinstance(transformer, DiTModel):
        raise ValueError(f"A {type(transformer).__name__} has no official format; only DiT and SiT (DiTModel) have.")
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    allowed = {
        "timestep_scale": [1],
        "timestep_frequency_shift": [0],
        "norm_eps": [1e-6],
        "mlp_norm_eps": [None, 1e-6],
        "qk_norm": [False],
        "rotary_positions": [False],
        "out_channels": [config.in_channels, 2 * config.in_channels],
        "num_attention_heads": [OFFICIAL_HEADS.get(width, config.num_attention_heads)],
    }
    differing = [f"{name}={config[name]}" for name, values in allowed.items() if config[name] not in values]
    if len(set(transformer.grid_size)) > 1:
        differing.append(f"sample_size={config.sample_size}")
    if differing:
        raise ValueError(f"The official code has no network of width {width} with {', '.join(differing)}.")
    ours = transformer.state_dict()
    if missing := [name for name, value in ours.items() if value.is_meta]:
        raise ValueError(f"The network has no weights for {', '.join(missing[:MAX_LISTED])}.")
    if config.reverse_time:
        ours = _negate_velocity(ours)
    return {official: ours[name].clone() for official, name in _key_map(config.num_layers).items()}


def _convert(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None, reverse_time: bool) -> DiTModel:
    key_map = _key_map(_count_blocks(state_dict))
    check_keys(state_dict, key_map, KIND)
    with torch.device("meta"):
        model = DiTModel(**_infer_config(state_dict, num_attention_heads), reverse_time=reverse_time)
    check_shapes(state_dict, {key: model.get_parameter(name).shape for key, name in key_map.items()}, KIND)
    ours = {name: state_dict[official] for official, name in key_map.items()}
    model.to_empty(device="cpu").load_state_dict(_negate_velocity(ours) if reverse_time else ours)
    return model.eval()


def _negate_velocity(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: -value if name in VELOCITY_PARAMETERS else value for name, value in state.items()}


def _key_map(num_layers: int) -> dict[str, str]:
    """Official key -> ours, of the whole network."""
    modules = dict(OUTER_MODULES)
    for i in range(num_layers):
        modules |= {f"blocks.{i}.{old}": f"transformer_blocks.{i}.{new}" for old, new in BLOCK_MODULES.items()}
    parameters = {f"{old}.{kind}": f"{new}.{kind}" for old, new in modules.items() for kind in ("weight", "bias")}
    return {
        "pos_embed": "pos_embed",
        "y_embedder.embedding_table.weight": "label_embedder.weight",
        **parameters,
    }


def _count_blocks(state_dict: Mapping[str, torch.Tensor]) -> int:
    """How many different blocks there are; a gap in their numbers shows as a missing and an unknown block."""
    return max(1, len({key.split(".")[1] for key in state_dict if str(key).startswith("blocks.")}))


def _infer_config(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None) -> dict:
    """The network's config from the weights' shapes."""
    shapes = {key: tuple(state_dict[key].shape) for key in TELLING_KEYS}
    wrong = [
        f"{key} {shapes[key]}" for key, ndim in TELLING_KEYS.items() if len(shapes[key]) != ndim or 0 in shapes[key]
    ]
    raise_listed({"misshapen": wrong}, KIND)
    width, in_channels, patch_size, _ = shapes["x_embedder.proj.weight"]
    grid = math.isqrt(shapes["pos_embed"][1])
    return {
        "sample_size": grid * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "out_channels": max(1, shapes["final_layer.linear.bias"][0] // patch_size**2),
        "num_layers": _count_blocks(state_dict),
        **_heads(width, num_attention_heads),
        "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / width,
        "num_classes": max(1, shapes["y_embedder.embedding_table.weight"][0] - 1),
    }


def _heads(width: int, num_attention_heads: int | None) -> dict[str, int]:
    heads = OFFICIAL_HEADS.get(width) if num_attention_heads is None else num_attention_heads
    if heads is None:
        raise ValueError(
            f"The number of attention heads cannot be told from the width {width} (official: {OFFICIAL_HEADS}); give "
            "num_attention_heads."
        )
    if heads < 1 or width % heads:
        raise ValueError(f"num_attention_heads is {heads}; it must divide the width {width}.")
    return {"num_attention_heads": heads, "attention_head_dim": width // heads}
