"""The options of a latent cache."""

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.options import check_options, option


@dataclass
class CacheConfig:
    """One cache of latents."""

    dataset: str = option("", "folder of class folders, .parquet file or hub id", required=True)
    vae: str = option("", "folder or hub id of a diffusers autoencoder", required=True)
    out: str = option("", "folder of the latents", required=True)
    split: str = option("train", "split of the dataset")
    image_column: str | None = option(None, "column of the images; default: the only one of that type")
    label_column: str | None = option(None, "column of the class labels; default: the only one of that type")
    resolution: int = option(256, "side in pixels; images are resized and centre-cropped to it", least=1, most=2**14)
    dtype: Literal["fp16", "bf16"] = option("fp16", "of the stored moments; they are computed in float32")
    batch_size: int = option(32, "images encoded at once on a process", least=1, most=2**20)
    num_workers: int = option(4, "processes that decode images for each process", least=0, most=1000)
    shard_size: int = option(256, "images in a file, the unit of resuming", least=1)
    strict: bool = option(False, "stop at an image that cannot be read instead of listing it")

    def check(self) -> None:
        """Raises ValueError if an option is missing or out of range."""
        check_options(self, "--")

    def command(self, num_processes: int) -> str:
        """What continues this cache."""
        given = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        options = [word for f in given for word in (f"--{f.name}", str(getattr(self, f.name)))]
        return shlex.join(["torchrun", "--nproc_per_node", str(num_processes), "train/cache_latents.py", *options])
