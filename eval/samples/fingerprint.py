"""What decides the samples of a pipeline."""

import torch

from demo_diffusion.flops import count_macs
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.records.hashes import settings_of, weights_hash


def describe_pipeline(pipeline: DEMOPipeline) -> dict:
    """What decides its samples (weights by hash, settings of network, autoencoder and sampler), and its size."""
    return {
        "network": type(pipeline.transformer).__name__,
        **network_size(pipeline.transformer),
        "weights": weights_hash(pipeline.transformer),
        "network_settings": settings_of(pipeline.transformer),
        "objective": pipeline.config.objective,
        "vae": None if pipeline.vae is None else weights_hash(pipeline.vae),
        "vae_settings": None if pipeline.vae is None else settings_of(pipeline.vae),
        "latents_mean": pipeline.config.latents_mean,
        "latents_std": pipeline.config.latents_std,
        "sampler": type(pipeline.scheduler).__name__,
        "sampler_settings": settings_of(pipeline.scheduler),
    }


def network_size(transformer: ClassConditionalTransformer) -> dict:
    """Parameters, the fixed position table included, and GMACs of one evaluation."""
    with torch.device("meta"):
        network = type(transformer).from_config(transformer.config)
        inputs = torch.zeros(1, *network.input_shape), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        macs = count_macs(network, *inputs)
    return {"parameters": sum(p.numel() for p in transformer.parameters()), "gmacs": macs / 1e9}
