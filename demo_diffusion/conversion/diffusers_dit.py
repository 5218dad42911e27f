"""diffusers' own DiT (`facebook/DiT-XL-2-256`) in: it holds the same network, with the embedders in every block."""

import torch
from diffusers import DiTTransformer2DModel

from demo_diffusion.models import DiTModel

REQUIRED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
OUTER_MODULES = {"pos_embed.proj": "patch_embed", "proj_out_1": "output.modulation", "proj_out_2": "output.proj"}
BLOCK_MODULES = {
    "norm1.linear": "modulation",
    "attn1.to_out.0": "attention.proj",
    "ff.net.0.proj": "fc1",
    "ff.net.2": "fc2",
}
EMBEDDERS = {
    "timestep_embedder.linear_1.weight": "timestep_embedder.linear_1.weight",
    "timestep_embedder.linear_1.bias": "timestep_embedder.linear_1.bias",
    "timestep_embedder.linear_2.weight": "timestep_embedder.linear_2.weight",
    "timestep_embedder.linear_2.bias": "timestep_embedder.linear_2.bias",
    "class_embedder.embedding_table.weight": "label_embedder.weight",
}


def convert_diffusers_dit(transformer: DiTTransformer2DModel, as_official: bool = False) -> DiTModel:
    """diffusers' DiT as ours, in eval mode, with the same output.

    Args:
        as_official: compute as the official code does, which is right for weights that it trained, such as
            `facebook/DiT-XL-2-256`: timestep frequencies 10000^(−i / 128) and LayerNorm's eps 1e-6. diffusers' DiT has
            10000^(−i / 127), and its config's norm_eps before the MLP.

    Raises:
        ValueError: if it has settings that DiT does not have, missing weights, or embedders that differ from block to
            block.
    """
    if not isinstance(transformer, DiTTransformer2DModel):
        raise ValueError(f"The network is a {type(transformer).__name__}; it must be diffusers' DiTTransformer2DModel.")
    if missing := [name for name, value in transformer.state_dict().items() if value.is_meta]:
        raise ValueError(f"The DiTTransformer2DModel has no weights for {', '.join(missing)}.")
    config = transformer.config
    if differing := [f"{name}={config[name]}" for name, value in REQUIRED.items() if config[name] != value]:
        raise ValueError(f"This DiTTransformer2DModel is not DiT's network: it has {', '.join(differing)}.")
    model = DiTModel(
        sample_size=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=transformer.out_channels,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        num_classes=config.num_embeds_ada_norm,
        timestep_frequency_shift=0 if as_official else 1,
        mlp_norm_eps=None if as_official else config.norm_eps,
    )
    model.load_state_dict(_convert_state(transformer))
    return model.eval()


def _convert_state(transformer: DiTTransformer2DModel) -> dict[str, torch.Tensor]:
    theirs, num_layers = transformer.state_dict(), transformer.config.num_layers
    modules = dict(OUTER_MODULES)
    ours = {"pos_embed": transformer.pos_embed.pos_embed}
    for i in range(num_layers):
        block = f"transformer_blocks.{i}"
        modules |= {f"{block}.{old}": f"{block}.{new}" for old, new in BLOCK_MODULES.items()}
        for kind in ("weight", "bias"):
            ours[f"{block}.attention.qkv.{kind}"] = torch.cat([theirs[f"{block}.attn1.to_{x}.{kind}"] for x in "qkv"])
    ours |= {f"{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in modules.items() for kind in ("weight", "bias")}
    for old, new in EMBEDDERS.items():
        each = [theirs[f"transformer_blocks.{i}.norm1.emb.{old}"] for i in range(num_layers)]
        if not all(torch.equal(each[0], other) for other in each):
            raise ValueError(f"The blocks have different {old}; a network whose blocks share one cannot hold them.")
        ours[new] = each[0]
    return ours
