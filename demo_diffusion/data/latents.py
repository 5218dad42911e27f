"""Opens what `train/cache_latents.py` wrote: moments of images and their mirror images, by random access."""

import json
import shlex
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.data import Dataset

from demo_diffusion.records.files import write_json
from demo_diffusion.records.hashes import is_sealed, settings_of, weights_hash
from demo_diffusion.records.reading import read_parsed

from .autoencoder import Autoencoder, LatentNormalization
from .latent_shards import FORMAT_VERSION, METADATA_FILE, SETTINGS_FILE, LatentShards, read_shard, saved_hash
from .listing import ClassOrder, known_order, natural_order


class LatentTable(Dataset):
    """A finished folder of latents: `table[index, flipped]` -> (moments (M, h, w), class id).

    The moments are a posterior's mean and log variance (M = 2C), for `draw_latents`, or a deterministic autoencoder's
    latents (M = C), neither of them normalised, in the cache's dtype. Shards are memory-mapped when they are first
    needed, in each process, and their hashes are checked then.

    Attributes:
        id2label: {class id: name}.
        channels: C.
        shape: (M, h, w).
        metadata: all of latents.json.

    Raises:
        ValueError: if the folder is missing, unfinished, damaged or of another format, or a shard is missing or
            truncated; of a sample: if its shard is damaged.
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
        path = self._paths[shard]
        try:
            content = read_shard(path, self.metadata["shards"][shard].get("sha256") or saved_hash(path))
        except ValueError as error:
            raise ValueError(f"{error} {_remedy(self.folder, self.metadata.get('settings'))}") from error
        self._opened[shard] = content.moments, content.labels.tolist()
        return self._opened[shard]

    def _check_sizes(self) -> None:
        for path, shard in zip(self._paths, self.metadata["shards"], strict=True):
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size:,} bytes instead of {shard['bytes']:,}"
                raise ValueError(f"The shard {path} {state}. {_remedy(self.folder, self.metadata.get('settings'))}")


def describe_vae(vae: Autoencoder) -> dict:
    """What an autoencoder is, by the hash of its weights and its config, as JSON holds them."""
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in settings_of(vae).items()}
    return {"weights": weights_hash(vae), "config": config}


def class_order_in(folder: Path) -> ClassOrder:
    """How a cache that is there numbers classes that have only names; natural order if there is none."""
    for read in (_read_settings, lambda folder: read_metadata(folder)["settings"]):  # one may be missing or damaged
        try:
            return known_order(read(folder)["dataset"]["id2label"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return natural_order


def cache_command(folder: Path, settings: object) -> str:
    """The command that makes a cache of these settings; without those that are damaged.

    It is built from the settings, and not their own text of a command, which whoever made the folder has chosen.
    """
    settings = settings if isinstance(settings, dict) else {}
    parts = {name: settings[name] for name in ("dataset", "vae") if isinstance(settings.get(name), dict)}
    dataset = parts.get("dataset", {})
    options = {
        "dataset": dataset.get("name"),
        "vae": parts.get("vae", {}).get("name"),
        "split": dataset.get("split"),
        **{name: settings.get(name) for name in ("resolution", "dtype", "shard_size")},
        "out": str(folder),
    }
    given = {name: value for name, value in options.items() if isinstance(value, str | int)}
    words = [f"--{name}={value}" for name, value in given.items()]
    return shlex.join(["torchrun", "--nproc_per_node=1", "train/cache_latents.py", *words])


def read_metadata(folder: Path) -> dict | None:
    """What latents.json holds; None if there is none.

    Raises:
        ValueError: if it is damaged.
    """
    file = folder / METADATA_FILE
    return read_parsed(file, _checked_metadata, "") if file.exists() or file.is_symlink() else None


def restore_settings(folder: Path) -> None:
    """Writes settings.json again if it is not what a finished cache was made with; latents.json has a copy of it."""
    try:
        metadata = read_metadata(folder)
        if metadata is None or not is_sealed(metadata):
            return
    except ValueError:
        return
    try:
        is_right = _read_settings(folder) == metadata["settings"]
    except ValueError:
        is_right = False
    if not is_right:
        write_json(folder / SETTINGS_FILE, metadata["settings"])


def _checked_metadata(text: str) -> dict:
    metadata = json.loads(text)
    seal = is_sealed(metadata)
    # Files without a seal are of the versions before; those did not write the shards' hashes either.
    if seal is False or (seal is None and any("sha256" in shard for shard in metadata["shards"])):
        raise ValueError("its hash is not that of its content")
    shards = [(str(shard["file"]), int(shard["images"]), int(shard["bytes"])) for shard in metadata["shards"]]
    if not shards or any(Path(name).name != name for name, *_ in shards):
        raise ValueError("it does not list the shards")
    numbers = [metadata["channels"], *metadata["shape"], *metadata["latents_mean"], *metadata["latents_std"]]
    if not all(isinstance(number, int | float) for number in [*numbers, *map(int, metadata["id2label"])]):
        raise ValueError("its numbers are not what they should be")
    return metadata


def _read_settings(folder: Path) -> dict:
    return read_parsed(folder / SETTINGS_FILE, lambda text: dict(json.loads(text).items()), "")


def _remedy(folder: Path, settings: object) -> str:
    return (
        f"This makes it again: {cache_command(folder, settings)} (with the other options that the cache was begun "
        "with, if there were any)."
    )


def _read_metadata(folder: Path) -> dict:
    if not (folder / SETTINGS_FILE).exists():
        state = "holds no latents" if folder.is_dir() else "does not exist"
        raise ValueError(f"{folder} {state}; train/cache_latents.py --out {folder} makes them.")
    settings = {}
    try:
        settings = _read_settings(folder)
        _check_version(folder, settings)
        metadata = read_metadata(folder)
    except ValueError as error:
        raise ValueError(f"{error} {_remedy(folder, settings)}") from error
    if metadata is None:
        raise ValueError(
            f"The latents in {folder} are not finished{_progress(folder, settings)}. This continues: "
            f"{cache_command(folder, settings)}"
        )
    if is_sealed(metadata) and metadata["settings"] != settings:
        raise ValueError(
            f"{folder / SETTINGS_FILE} changed since the latents were made. {_remedy(folder, metadata['settings'])}"
        )
    return metadata


def _check_version(folder: Path, settings: dict) -> None:
    if settings.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} holds latents of format {settings.get('format_version')}; this version reads format "
            f"{FORMAT_VERSION}."
        )


def _progress(folder: Path, settings: dict) -> str:
    try:
        shards = LatentShards(folder, settings["dataset"]["num_images"], settings["shard_size"])
        return f": {len(shards) - len(shards.missing())} of {len(shards)} shards are there"
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return ""
