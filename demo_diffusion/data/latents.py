"""Opens what `train/cache_latents.py` wrote: moments of images and their mirror images, by random access."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.data import Dataset

from demo_diffusion.records.files import read_json
from demo_diffusion.records.hashes import settings_of, weights_hash

from .autoencoder import Autoencoder, LatentNormalization
from .latent_shards import FORMAT_VERSION, METADATA_FILE, SETTINGS_FILE, LatentShards, read_shard


class LatentTable(Dataset):
    """A finished folder of latents: `table[index, flipped]` -> (moments (M, h, w), class id).

    The moments are a posterior's mean and log variance (M = 2C), for `draw_latents`, or a deterministic autoencoder's
    latents (M = C), neither of them normalised, in the cache's dtype. Shards are memory-mapped when they are first
    needed, in each process.

    Attributes:
        id2label: {class id: name}.
        channels: C.
        shape: (M, h, w).
        metadata: all of latents.json.

    Raises:
        ValueError: if the folder is missing, unfinished, of another format, or a shard is missing or truncated.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.metadata = _read_metadata(self.folder)
        self.id2label = {int(key): name for key, name in self.metadata["id2label"].items()}
        self.channels, self.shape = self.metadata["channels"], tuple(self.metadata["shape"])
        self._paths = [self.folder / "shards" / shard["file"] for shard in self.metadata["shards"]]
        self._ends = list(accumulate(shard["images"] for shard in self.metadata["shards"]))
        self._opened: dict[int, tuple[torch.Tensor, list[int]]] = {}
        self._check_sizes()

    @property
    def side(self) -> int:
        """h = w, in latent pixels."""
        return self.shape[-1]

    @property
    def num_classes(self) -> int:
        return len(self.id2label)

    @property
    def statistics(self) -> LatentNormalization:
        """Mean and standard deviation of each channel of the latents, over images, directions and positions.

        Raises:
            ValueError: if a channel is the same everywhere.
        """
        return LatentNormalization(self.metadata["latents_mean"], self.metadata["latents_std"])

    @property
    def vae_name(self) -> str:
        """Folder or hub id of the autoencoder."""
        return self.metadata["settings"]["vae"]["name"]

    def check_vae(self, vae: Autoencoder) -> None:
        """Raises a ValueError if the latents were made by another autoencoder."""
        made_by, given = self.metadata["settings"]["vae"], describe_vae(vae)
        if any(made_by[name] != value for name, value in given.items()):
            raise ValueError(
                f"The latents in {self.folder} were made by another autoencoder than the one given: by "
                f"{made_by['name']} with weights {made_by['weights']:.12}…, given are {given['weights']:.12}…."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, key: tuple[int, bool]) -> tuple[torch.Tensor, int]:
        index, flipped = key
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; it must be in 0 … {len(self) - 1}.")
        shard = bisect_right(self._ends, index)
        moments, labels = self._opened.get(shard) or self._open(shard)
        row = index - (self._ends[shard - 1] if shard else 0)
        return moments[row, int(flipped)].clone(), labels[row]  # a view would keep and pickle the whole shard

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}}  # a worker maps the files itself

    def _open(self, shard: int) -> tuple[torch.Tensor, list[int]]:
        content = read_shard(self._paths[shard])
        self._opened[shard] = content.moments, content.labels.tolist()
        return self._opened[shard]

    def _check_sizes(self) -> None:
        for path, shard in zip(self._paths, self.metadata["shards"], strict=True):
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {shard['bytes']:,}"
                raise ValueError(
                    f"The shard {path} {state}. This makes it again: {self.metadata['settings']['command']}"
                )


def describe_vae(vae: Autoencoder) -> dict:
    """What an autoencoder is, by the hash of its weights and its config, as JSON holds them."""
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in settings_of(vae).items()}
    return {"weights": weights_hash(vae), "config": config}


def _read_metadata(folder: Path) -> dict:
    settings, metadata = read_json(folder / SETTINGS_FILE), read_json(folder / METADATA_FILE)
    if settings is None:
        state = "holds no latents" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {state}; train/cache_latents.py --out {folder} makes them.")
    if settings.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} holds latents of format {settings.get('format_version')}; this version reads format "
            f"{FORMAT_VERSION}. Make them again with train/cache_latents.py."
        )
    if metadata is None:
        shards = LatentShards(folder, settings["dataset"]["num_images"], settings["shard_size"])
        there = len(shards) - len(shards.missing())
        raise ValueError(
            f"The latents in {folder} are not finished: {there} of {len(shards)} shards are there. This continues: "
            f"{settings['command']}"
        )
    return metadata
