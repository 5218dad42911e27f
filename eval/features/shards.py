"""Features of many images in files of a few hundred, so that an interrupted evaluation goes on where it stopped."""

import torch
from safetensors import safe_open

from demo_diffusion.records.hashes import tensor_hash
from demo_diffusion.records.shards import Shards

from .extractors import Features
from .moments import Moments


class FeatureShards(Shards):
    """The features of each shard's images, and the first of these images."""

    def write(self, shard: int, features: Features, images: torch.Tensor) -> None:
        """`images` (n, 3, H, W) are the first n of the shard, kept for a look or an export; n may be 0."""
        tensors = {**features._asdict(), "images": images.contiguous()}
        self.write_tensors(shard, tensors, {"sha256": tensor_hash(tensors)})

    def is_as_written(self, shard: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bool:
        return metadata["sha256"] == tensor_hash(tensors) and len(tensors["pooled"]) == len(self.span(shard))

    def read(self, name: str) -> torch.Tensor:
        """One kind of features, or the kept images, of all shards."""
        return torch.cat([self.read_shard(shard, name) for shard in range(len(self))])

    def read_shard(self, shard: int, name: str) -> torch.Tensor:
        with safe_open(self.path(shard), "pt") as file:
            return file.get_tensor(name)

    def first(self, name: str, count: int) -> torch.Tensor:
        """At most `count` rows of one kind of features, or of the kept images, from index 0."""
        rows, shard = self.read_shard(0, name)[:count], 1
        while len(rows) < count and shard < len(self):
            rows = torch.cat([rows, self.read_shard(shard, name)[: count - len(rows)]])
            shard += 1
        return rows

    def moments(self, name: str) -> Moments:
        """Of one kind of features, a shard at a time."""
        total = Moments.of(self.read_shard(0, name))
        for shard in range(1, len(self)):
            total = total + Moments.of(self.read_shard(shard, name))
        return total
