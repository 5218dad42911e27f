"""What a diffusion network learns: pixels, latents made on the fly, or cached latents, behind one interface."""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from demo_diffusion.data.autoencoder import (
    Autoencoder,
    LatentNormalization,
    draw_latents,
    encode_moments,
    latent_shape,
    load_vae,
    normalization_of,
)
from demo_diffusion.data.facts import describe_images
from demo_diffusion.data.images import LabelledImages, load_images
from demo_diffusion.data.latents import LatentTable
from demo_diffusion.data.listing import ClassOrder
from demo_diffusion.train.engine.batch_order import coin

from .config import DiffusionDataConfig


@dataclass
class DiffusionData:
    """A dataset of samples, and how a sample becomes x0.

    Attributes:
        dataset, vae_name: where images and autoencoder come from; vae_name None: x0 is pixels.
        samples: dataset of (image in [−1, 1] or moments of a posterior, class id), whose keys are (index, epoch).
        channels, side: x0 has shape (channels, side, side).
        id2label: {class id: name}.
        vae: autoencoder that makes the latents; None: x0 is pixels.
        normalization: how latents are normalised; None: x0 is pixels.
        pipeline_statistics: `latents_mean` and `latents_std`, if they are not the autoencoder's own.
        images: the images; None if latents come from a cache.
        made_of: by what the images are recognised that cached latents were made of.
    """

    dataset: str
    vae_name: str | None
    samples: Dataset
    channels: int
    side: int
    id2label: dict[int, str]
    vae: Autoencoder | None = None
    normalization: LatentNormalization | None = None
    pipeline_statistics: dict[str, list[float]] = field(default_factory=dict)
    images: LabelledImages | None = None
    made_of: dict = field(default_factory=dict)

    @property
    def facts(self) -> dict:
        """By what the images are recognised, as `describe_images`."""
        return self.made_of if self.images is None else describe_images(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.id2label)

    def x0(self, batch: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x0 (B, channels, side, side) of a batch of samples: pixels, or normalised latents.

        Args:
            batch: images (B, image channels, H, W) or moments (B, M, side, side).
            noise: standard normal (B, channels, side, side), which draws latents from their posterior.
        """
        if self.normalization is None:
            return batch
        moments = batch if self.images is None else encode_moments(self.vae, batch)
        return self.normalization.apply(draw_latents(moments, noise))


def open_training_data(
    config: DiffusionDataConfig, seed: int, device: torch.device, class_order: ClassOrder
) -> DiffusionData:
    """Opens the images and the autoencoder of a config, or its latent cache.

    Args:
        seed: seed of the random flips.
        device: device of the autoencoder.
        class_order: how classes of images are numbered that have only names; a cache has numbered them.

    Raises:
        ValueError: if one of them cannot be read, or they do not fit together.
    """
    if config.latents is not None:
        return _from_cache(config, seed, device)
    return _from_images(config, seed, device, class_order)


def _from_images(
    config: DiffusionDataConfig, seed: int, device: torch.device, class_order: ClassOrder
) -> DiffusionData:
    images = load_images(config, class_order=class_order)
    samples = Flipped(images.dataset, config.random_flip, seed)
    vae, source = load_vae(config.vae, images.channels, device), (config.dataset, config.vae)
    if vae is None:
        return DiffusionData(*source, samples, images.channels, config.resolution, images.id2label, images=images)
    channels, side = latent_shape(vae, config.resolution)
    return DiffusionData(*source, samples, channels, side, images.id2label, vae, normalization_of(vae), images=images)


def _from_cache(config: DiffusionDataConfig, seed: int, device: torch.device) -> DiffusionData:
    table = LatentTable(config.latents)
    made_with = table.metadata["settings"]
    if config.resolution != made_with["resolution"]:
        raise ValueError(
            f"resolution is {config.resolution}; the latents in {config.latents} are of images of "
            f"{made_with['resolution']} pixels."
        )
    vae = load_vae(config.vae or table.vae_name, made_with["vae"]["config"]["in_channels"], device)
    table.check_vae(vae)
    normalization, statistics = normalization_of(vae), {}
    if config.latent_normalization == "channels":
        normalization = table.statistics
        statistics = {"latents_mean": list(normalization.mean), "latents_std": list(normalization.std)}
    samples = FlippedLatents(table, config.random_flip, seed)
    source = (made_with["dataset"]["name"], table.vae_name)
    return DiffusionData(
        *source, samples, table.channels, table.side, table.id2label, vae, normalization, statistics,
        made_of={name: made_with["dataset"][name] for name in ("num_images", "id2label", "pixels")},
    )  # fmt: skip


class Flipped(Dataset):
    """Images and class ids, with keys (index, epoch); `random_flip` mirrors a new half of the images in every epoch."""

    def __init__(self, dataset: Dataset, random_flip: bool, seed: int):
        self.dataset, self.random_flip, self.seed = dataset, random_flip, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, epoch = key
        return self.read(index, self.random_flip and coin(self.seed, epoch, index))

    def read(self, index: int, flipped: bool) -> tuple[torch.Tensor, int]:
        image, label = self.dataset[index]
        return image.flip(-1) if flipped else image, label


class FlippedLatents(Flipped):
    """The same for cached latents, which hold the latents of the mirrored images too."""

    def read(self, index: int, flipped: bool) -> tuple[torch.Tensor, int]:
        return self.dataset[index, flipped]
