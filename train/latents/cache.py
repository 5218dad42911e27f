"""Encodes a dataset into a latent cache, on any number of processes, shard by shard."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from demo_diffusion.data.autoencoder import LOG_VARIANCE_RANGE, encode_moments, latent_shape, load_vae, moments_shape
from demo_diffusion.data.facts import describe_images
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.data.latent_shards import (
    DTYPES,
    FORMAT_VERSION,
    METADATA_FILE,
    SETTINGS_FILE,
    SKIPPED_FILE,
    LatentShards,
    ShardContent,
    Skipped,
    saved_hash,
)
from demo_diffusion.data.latents import class_order_in, describe_vae, read_metadata, restore_settings
from demo_diffusion.records.files import read_json, write_json
from demo_diffusion.records.folder_claim import claim_folder
from demo_diffusion.records.hashes import sealed
from demo_diffusion.records.printable import printable, printable_lines
from demo_diffusion.records.provenance import provenance
from demo_diffusion.records.shards import make_missing, remove_unfit

from .config import CacheConfig

SHOWN_SKIPPED = 20


class Batch(NamedTuple):
    """Images (n, C, H, W) that could be read, None if there is none, with class ids (n,) and places (n,)."""

    images: torch.Tensor | None
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: list[Skipped]


class ReadableImages(Dataset):
    """(index, image, class id) of a dataset, or (index, None, why it cannot be read)."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None, int | str]:
        try:
            return index, *self.dataset[index]
        except ValueError as error:  # names the file
            return index, None, str(error)
        except Exception as error:  # image decoders raise almost anything on a damaged file
            return index, None, f"Row {index} cannot be read as an image: {error!r}"


def collate(rows: list[tuple[int, torch.Tensor | None, int | str]]) -> Batch:
    """Puts the readable rows together and lists the others."""
    read = [row for row in rows if row[1] is not None]
    return Batch(
        torch.stack([image for _, image, _ in read]) if read else None,
        torch.tensor([int(label) for *_, label in read], dtype=torch.int64),
        torch.tensor([index for index, *_ in read], dtype=torch.int64),
        [Skipped(index, error) for index, image, error in rows if image is None],
    )


class LatentCache:
    """Makes the missing shards of one folder, on every process, and the metadata of all at the end.

    Raises:
        ValueError: if the options, the autoencoder or the dataset are not fit, or the folder holds other latents.
    """

    def __init__(self, config: CacheConfig, state: PartialState):
        config.check()
        self.config, self.state, self.out = config, state, Path(config.out)
        data = DataConfig(
            dataset=config.dataset,
            split=config.split,
            image_column=config.image_column,
            label_column=config.label_column,
            resolution=config.resolution,
        )
        self.images = load_images(data, class_order=class_order_in(self.out))
        self.vae = load_vae(config.vae, self.images.channels, state.device)
        self.channels, _ = latent_shape(self.vae, config.resolution)
        self.shape = moments_shape(self.vae, config.resolution)
        self.shards = LatentShards(self.out, len(self.images.dataset), config.shard_size)
        self.settings = self._describe() if state.is_main_process else None

    def _describe(self) -> dict:
        config = self.config
        return {
            "format_version": FORMAT_VERSION,
            "dataset": {"name": _resolved(config.dataset), "split": config.split, **describe_images(self.images)},
            "vae": {"name": _resolved(config.vae), **describe_vae(self.vae)},
            "resolution": config.resolution,
            "dtype": config.dtype,
            "shard_size": config.shard_size,
            "command": config.command(self.state.num_processes),
        }

    def run(self) -> None:
        """Raises a ValueError if an image cannot be read and --strict is given, or the latents are not finite."""
        if self.state.is_main_process:
            restore_settings(self.out)
            claim_folder(self.out / SETTINGS_FILE, self.settings, "latents", compare_settings)
        remove_unfit(self.shards, self.state)
        if self.state.is_main_process:
            if self.config.strict:
                self._refuse_skipped()
            self._announce(self.shards.missing())
        images_per_second = make_missing(self.shards, self.state, self._make)
        if self.state.is_main_process:
            self._finish(images_per_second)

    def _refuse_skipped(self) -> None:
        for shard in sorted(set(range(len(self.shards))) - set(self.shards.missing())):
            if skipped := self.shards.read(shard).skipped:
                raise ValueError(
                    f"{self.out} has been made without --strict and lacks this image: {skipped[0].error} Repair the "
                    "dataset and choose another --out, or leave --strict out."
                )

    def _announce(self, missing: list[int]) -> None:
        there = len(self.shards) - len(missing)
        if missing:
            (self.out / METADATA_FILE).unlink(missing_ok=True)
            of_all = f"{len(missing)} of {len(self.shards)} shards ({self.shards.num_items:,} images)"
            print(f"{'Continuing' if there else 'Starting'} {printable(self.out)}: {of_all} to make.")
        elif (self.out / METADATA_FILE).is_file():
            print(f"{printable(self.out)} is finished already: all {there} shards are there and whole.")

    def _make(self, mine: list[int]) -> None:
        size = self.config.batch_size
        plan = [(shard, list(rows)) for shard in mine for rows in _batched(self.shards.span(shard), size)]
        loader = DataLoader(
            ReadableImages(self.images.dataset),
            batch_sampler=[rows for _, rows in plan],
            num_workers=self.config.num_workers,
            collate_fn=collate,
            pin_memory=self.state.device.type == "cuda",
        )
        progress = tqdm(
            total=sum(len(rows) for _, rows in plan), unit="image", dynamic_ncols=True,
            desc=f"encoding (1 of {self.state.num_processes} processes)",
            disable=not (mine and self.state.is_main_process),
        )  # fmt: skip
        with progress:
            batches = zip((shard for shard, _ in plan), loader, strict=True)
            for shard, group in itertools.groupby(batches, key=lambda pair: pair[0]):
                parts = []
                for _, batch in group:
                    parts.append(self._encode(batch))
                    progress.update(len(batch.labels) + len(batch.skipped))
                self.shards.write(shard, _joined(parts))

    @torch.no_grad()
    def _encode(self, batch: Batch) -> ShardContent:
        if batch.skipped and self.config.strict:
            raise ValueError(f"{batch.skipped[0].error} Without --strict it is skipped and listed.")
        dtype = DTYPES[self.config.dtype]
        if batch.images is None:
            moments = torch.empty(0, 2, *self.shape, dtype=dtype)
        else:
            images = batch.images.to(self.state.device, non_blocking=True)
            both = [encode_moments(self.vae, each).to(dtype) for each in (images, images.flip(-1))]
            moments = torch.stack(both, dim=1)
        if not moments.isfinite().all():
            raise ValueError(
                f"The autoencoder gives values that {self.config.dtype} cannot hold, among images "
                f"{batch.indices[0]} … {batch.indices[-1]}; use --dtype bf16, or another autoencoder if it says so too."
            )
        moments = moments.cpu()
        return ShardContent(moments, batch.labels, batch.indices, *latent_sums(moments, self.channels), batch.skipped)

    def _finish(self, images_per_second: float | None) -> None:
        """Collects what the shards say and writes it; nothing changes where the folder is finished."""
        previous = None
        try:
            previous = read_metadata(self.out)
        except ValueError as error:
            print(f"{printable_lines(error)} It is written again.")
        contents = [self.shards.read(shard) for shard in range(len(self.shards))]
        skipped = [each for content in contents for each in content.skipped]
        write_json(self.out / SKIPPED_FILE, [each._asdict() for each in skipped])
        _print_skipped(skipped, self.out / SKIPPED_FILE)
        if previous is not None:
            return
        metadata = self._metadata(contents)
        rate = {"images_per_second": images_per_second}
        write_json(self.out / METADATA_FILE, sealed({**metadata, **rate, **provenance(self.state)}))
        speed = "" if images_per_second is None else f", {images_per_second:.1f} images/s"
        print(f"{printable(self.out)} is finished: {metadata['num_images']:,} images, each in both directions{speed}.")

    def _metadata(self, contents: list[ShardContent]) -> dict:
        num_images = sum(len(content.indices) for content in contents)
        if not num_images:
            raise ValueError(f"None of the {self.shards.num_items} images can be read; {self.out} stays unfinished.")
        shape = list(contents[0].moments.shape[2:])
        count = num_images * 2 * shape[1] * shape[2]
        mean = sum(content.latent_sum for content in contents) / count
        variance = sum(content.latent_square_sum for content in contents) / count - mean**2
        return {
            "settings": read_json(self.out / SETTINGS_FILE),
            "num_images": num_images,
            "num_skipped": self.shards.num_items - num_images,
            "channels": self.channels,
            "shape": shape,
            "latents_mean": mean.tolist(),
            "latents_std": variance.clamp(min=0).sqrt().tolist(),
            "id2label": self.images.id2label,
            "shards": [
                {
                    "file": self.shards.path(shard).name,
                    "images": len(content.indices),
                    "bytes": self.shards.path(shard).stat().st_size,
                    "sha256": saved_hash(self.shards.path(shard)),
                }
                for shard, content in enumerate(contents)
            ],
        }


def compare_settings(saved: dict, now: dict) -> list[str]:
    """What makes them other latents, as texts. Names do not: a moved dataset or autoencoder is the same."""
    same_resolution = saved.get("resolution") == now["resolution"]
    changed = []
    for name in ("format_version", "resolution", "dtype", "shard_size"):
        if saved.get(name) != now[name]:
            changed.append(f"{name} (was {saved.get(name)}, now {now[name]})")
    for name in ("vae", "dataset"):
        before, after = saved.get(name, {}), now[name]
        # Images of another resolution are other pixels of, maybe, the same dataset.
        not_compared = {"name"} if same_resolution else {"name", "pixels"}
        if parts := [part for part in after if part not in not_compared and before.get(part) != after[part]]:
            changed.append(f"{name} (was {before.get('name')}, now {after['name']}: other {', '.join(parts)})")
    return changed


def latent_sums(moments: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected sums of the latents and of their squares, each (C,) float64, of moments (n, 2, M, h, w)."""
    moments = moments.double()
    mean, log_variance = moments[:, :, :channels], moments[:, :, channels:]
    square = mean**2
    if log_variance.shape[2]:
        square = square + log_variance.clamp(*LOG_VARIANCE_RANGE).exp()
    return mean.sum(dim=(0, 1, 3, 4)), square.sum(dim=(0, 1, 3, 4))


def _joined(parts: list[ShardContent]) -> ShardContent:
    return ShardContent(
        moments=torch.cat([part.moments for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        indices=torch.cat([part.indices for part in parts]),
        latent_sum=sum(part.latent_sum for part in parts),
        latent_square_sum=sum(part.latent_square_sum for part in parts),
        skipped=[each for part in parts for each in part.skipped],
    )


def _batched(rows: range, size: int) -> Iterator[range]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _resolved(name: str) -> str:
    """A folder's full path, which is right from everywhere; a hub id stays."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _print_skipped(skipped: list[Skipped], path: Path) -> None:
    if skipped:
        print(f"{len(skipped)} images cannot be read and were skipped (all are in {printable(path)}):")
        for each in skipped[:SHOWN_SKIPPED]:
            print(f"  {printable(each.error)}")
        if len(skipped) > SHOWN_SKIPPED:
            print(f"  … and {len(skipped) - SHOWN_SKIPPED} more")
