"""The files of a latent cache: settings, shards that memory-map, and the metadata that marks it finished.

settings.json           what decides the latents; written first
shards/000000.safetensors …   images i · shard_size …, those that can be read
skipped.json            the images that cannot
latents.json            everything a reader needs; written last
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from demo_diffusion.records.hashes import tensor_hash
from demo_diffusion.records.shards import Shards, read_tensors

FORMAT_VERSION = 1
SETTINGS_FILE, METADATA_FILE, SKIPPED_FILE = "settings.json", "latents.json", "skipped.json"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Skipped(NamedTuple):
    """An image that cannot be read."""

    index: int
    error: str


@dataclass
class ShardContent:
    """One shard.

    Attributes:
        moments: (n, 2, M, h, w): of each image and its mirror image, mean and log variance (M = 2C) or latents (M = C).
        labels: (n,) int64.
        indices: (n,) int64, the images' places in the dataset.
        latent_sum, latent_square_sum: (C,) float64, expected sums over all positions of all 2n latents.
        skipped: images of the shard's span that cannot be read.
    """

    moments: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    latent_sum: torch.Tensor
    latent_square_sum: torch.Tensor
    skipped: list[Skipped]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value.contiguous() for name, value in vars(self).items() if name != "skipped"}


class LatentShards(Shards):
    """The shards of the latent cache in a folder."""

    def __init__(self, folder: Path, num_images: int, shard_size: int):
        super().__init__(folder / "shards", num_images, shard_size)

    def write(self, shard: int, content: ShardContent) -> None:
        tensors, skipped = content.tensors(), json.dumps(content.skipped)
        facts = {"sha256": _hash(tensors, skipped), "skipped": skipped}
        self.write_tensors(shard, tensors, {"facts": json.dumps(facts)})

    def is_as_written(self, shard: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bool:
        facts = json.loads(metadata["facts"])
        images = len(tensors["indices"]) + len(json.loads(facts["skipped"]))
        is_intact = facts["sha256"] == _hash(tensors, facts["skipped"])
        return is_intact and images == len(self.span(shard))

    def read(self, shard: int) -> ShardContent:
        """Its tensors are views of the memory-mapped file.

        Raises:
            ValueError: if it is damaged in its form.
        """
        return read_shard(self.path(shard))


def read_shard(path: Path, sha256: str | None = None) -> ShardContent:
    """One shard, whose tensors are views of the memory-mapped file.

    Args:
        sha256: None: contents are not compared with their hash, and not read before they are needed.

    Raises:
        ValueError: if the file is missing, damaged in its form, or its contents have not this hash.
    """
    try:
        tensors, metadata = read_tensors(path)
        facts = json.loads(metadata["facts"])
        content = ShardContent(**tensors, skipped=[Skipped(*each) for each in json.loads(facts["skipped"])])
        if sha256 is not None and _hash(tensors, facts["skipped"]) != sha256:
            raise ValueError("its contents changed since it was written")
        return content
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The shard {path} is missing or damaged: {error}.") from error


def saved_hash(path: Path) -> str:
    """The hash that a shard says its contents have.

    Raises:
        ValueError: if it says none.
    """
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["facts"])["sha256"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The shard {path} is missing or damaged: {error}.") from error


def _hash(tensors: dict[str, torch.Tensor], skipped: str) -> str:
    return tensor_hash(tensors, prefix=skipped)
