"""The files of a latent cache: settings, shards that memory-map, and the metadata that marks it finished.

settings.json           what decides the latents; written first
shards/000000.safetensors …   images i · shard_size …, those that can be read
skipped.json            the images that cannot
latents.json            everything a reader needs; written last
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

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


class LatentShards:
    """Shard i holds images i · shard_size … in one safetensors file, written whole or not at all."""

    def __init__(self, folder: Path, num_images: int, shard_size: int):
        self.folder, self.num_images, self.shard_size = folder / "shards", num_images, shard_size

    def __len__(self) -> int:
        return -(-self.num_images // self.shard_size)

    def span(self, shard: int) -> range:
        """Places in the dataset."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def missing(self) -> list[int]:
        """Shards that are not there."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        return [shard for shard in range(len(self)) if self.path(shard).name not in there]

    def remove_leftovers(self) -> None:
        """Removes what killed processes were writing. Only before any process writes."""
        for leftover in self.folder.glob("*.partial"):
            leftover.unlink()

    def write(self, shard: int, content: ShardContent) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors, skipped = content.tensors(), json.dumps(content.skipped)
        partial = self.path(shard).with_suffix(f".{os.getpid()}.partial")
        facts = json.dumps({"sha256": _hash(tensors, skipped), "skipped": skipped})
        partial.write_bytes(save(tensors, {"facts": facts}))  # one entry: safetensors writes several in any order
        os.replace(partial, self.path(shard))

    def is_whole(self, shard: int) -> bool:
        """Reads and hashes all of it."""
        try:
            with safe_open(self.path(shard), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = json.loads(file.metadata()["facts"])
            images = len(tensors["indices"]) + len(json.loads(facts["skipped"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return False
        return facts["sha256"] == _hash(tensors, facts["skipped"]) and images == len(self.span(shard))

    def read(self, shard: int) -> ShardContent:
        """Its tensors are views of the memory-mapped file.

        Raises:
            ValueError: if it is damaged in its form.
        """
        return read_shard(self.path(shard))


def read_shard(path: Path) -> ShardContent:
    """Raises a ValueError if the file is missing or damaged in its form (a hash of the contents is not computed)."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
        skipped = [Skipped(*each) for each in json.loads(facts["skipped"])]
        return ShardContent(**tensors, skipped=skipped)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The shard {path} is missing or damaged: {error}") from error


def _hash(tensors: dict[str, torch.Tensor], skipped: str) -> str:
    digest = hashlib.sha256(skipped.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
