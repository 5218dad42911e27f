"""What decides the numbers of an evaluation, and whether a folder holds the same one."""

import json
from pathlib import Path

import torch

from demo_diffusion.flops import count_macs
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.records.files import replace_text
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


def differences(folder: Path, fingerprint: dict) -> list[str]:
    """What an evaluation in `folder` was made with differently; empty if there is none yet."""
    path = folder / "fingerprint.json"
    if not path.is_file() or not any(folder.glob("shards/*.safetensors")):
        return []
    try:
        saved = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Choose another --out.") from error
    now = json.loads(json.dumps(fingerprint))
    names = dict.fromkeys([*saved, *now])
    return [
        f"{name} (was {saved.get(name)}, now {now.get(name)})" for name in names if saved.get(name) != now.get(name)
    ]


def start_folder(folder: Path, fingerprint: dict) -> None:
    """Writes the fingerprint into a new folder, or finds it again in one whose evaluation goes on.

    Raises:
        ValueError: if the folder holds an evaluation of something else, or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Choose another --out.")
    if changed := differences(folder, fingerprint):
        raise ValueError(f"{folder} holds another evaluation: {', '.join(changed)}. Choose another --out.")
    if folder.exists() and any(folder.iterdir()) and not (folder / "fingerprint.json").is_file():
        raise ValueError(f"{folder} is not empty and holds no evaluation. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "fingerprint.json", json.dumps(fingerprint, indent=1))
