"""Features of many images in files of a few hundred, so that an interrupted evaluation goes on where it stopped."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .extractors import Features


class FeatureShards:
    """Shard i holds the features of images i · shard_size … in one safetensors file, written whole or not at all."""

    def __init__(self, folder: Path, num_images: int, shard_size: int):
        self.folder, self.num_images, self.shard_size = folder, num_images, shard_size

    def __len__(self) -> int:
        return -(-self.num_images // self.shard_size)

    def span(self, shard: int) -> tuple[int, int]:
        """First index and the one after the last."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images)

    def clean(self) -> None:
        """Removes damaged shards and what killed processes left. Only before any process writes."""
        for leftover in self.folder.glob("*.partial"):
            leftover.unlink()
        for shard in range(len(self)):
            if self._path(shard).exists() and not self._is_whole(shard):
                self._path(shard).unlink()

    def missing(self) -> list[int]:
        """Shards that are not there."""
        return [shard for shard in range(len(self)) if not self._path(shard).exists()]

    def write(self, shard: int, features: Features, images: torch.Tensor) -> None:
        """`images` (n, 3, H, W) are the first n of the shard, kept for a look or an export; n may be 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, tensors = self._path(shard), {**features._asdict(), "images": images.contiguous()}
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, partial, metadata={"sha256": _hash(tensors)})
        os.replace(partial, path)

    def read(self, name: str) -> torch.Tensor:
        """One kind of features, or the kept images, of all shards."""
        return torch.cat([self.read_shard(shard, name) for shard in range(len(self))])

    def read_shard(self, shard: int, name: str) -> torch.Tensor:
        with safe_open(self._path(shard), "pt") as file:
            return file.get_tensor(name)

    def first(self, name: str, count: int) -> torch.Tensor:
        """At most `count` rows of one kind of features, or of the kept images, from index 0."""
        rows, shard = self.read_shard(0, name)[:count], 1
        while len(rows) < count and shard < len(self):
            rows = torch.cat([rows, self.read_shard(shard, name)[: count - len(rows)]])
            shard += 1
        return rows

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def _is_whole(self, shard: int) -> bool:
        first, end = self.span(shard)
        try:
            with safe_open(self._path(shard), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                recorded = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return False
        return recorded == _hash(tensors) and len(tensors["pooled"]) == end - first


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
