"""The options of a latent cache."""

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.options import option


@dataclass
class CacheConfig:
    """One cache of latents."""

    dataset: str = option("", "folder of class folders, .parquet file or hub id")
    vae: str = option("", "folder or hub id of a diffusers autoencoder")
    out: str = option("", "folder of the latents")
    split: str = option("train", "split of the dataset")
    image_column: str | None = option(None, "column of the images; default: the only one of that type")
    label_column: str | None = option(None, "column of the class labels; default: the only one of that type")
    resolution: int = option(256, "side in pixels; images are resized and centre-cropped to it")
    dtype: Literal["fp16", "bf16"] = option("fp16", "of the stored moments; they are computed in float32")
    batch_size: int = option(32, "images encoded at once on a process")
    num_workers: int = option(4, "processes that decode images for each process")
    shard_size: int = option(256, "images in a file, the unit of resuming")
    strict: bool = option(False, "stop at an image that cannot be read instead of listing it")

    def check(self) -> None:
        """Raises a ValueError if an option is missing or out of range."""
        for name in ("dataset", "vae", "out"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing.")
        for name, least in (("resolution", 1), ("batch_size", 1), ("num_workers", 0), ("shard_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least {least}.")

    def command(self, num_processes: int) -> str:
        """What continues this cache."""
        given = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        options = [word for f in given for word in (f"--{f.name}", str(getattr(self, f.name)))]
        return shlex.join(["torchrun", "--nproc_per_node", str(num_processes), "train/cache_latents.py", *options])
