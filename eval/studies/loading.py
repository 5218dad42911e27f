"""How fast do samples come, and how fast does a network take them: `python eval/studies/loading.py LATENTS`.

LATENTS is a folder of train/cache_latents.py whose dataset and autoencoder are still there. Prints samples/s of reading
cached latents, of encoding images on the fly, and of training a network on such latents: measured in turns, medians.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from demo_diffusion import list_transformers
from demo_diffusion.data.autoencoder import draw_latents, encode_moments, load_vae, normalization_of
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.data.latents import LatentTable
from demo_diffusion.eval.speed.workloads import Candidate, Case, make_workload

LOADED_BATCHES, ENCODED_BATCHES, TRAINED_BATCHES = 200, 1, 2
MANY_SAMPLES = 10**9  # more than anyone waits for
PATCH = "/2"  # of the networks that eval/speed knows


def main(arguments: list[str] | None = None) -> None:
    networks = [name for name in list_transformers() if name.endswith(PATCH)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", help="folder of cached latents")
    parser.add_argument("--transformer", choices=networks, default="DEMO-S/2", help="the network that is trained")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    table = LatentTable(options.latents)
    measures = {
        "cached latents, loader": (read_latents(table, options.batch_size), LOADED_BATCHES),
        "images through the autoencoder": (encode_images(table, options.batch_size), ENCODED_BATCHES),
        "training steps": (train_network(table, options.transformer, options.batch_size), TRAINED_BATCHES),
    }
    rates = {name: [] for name in measures}
    for _, (name, (take_batch, count)) in itertools.product(range(options.rounds), measures.items()):
        rates[name].append(samples_per_second(take_batch, count, options.batch_size))
        print(f"{name}: {rates[name][-1]:,.2f} samples/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| what | samples/s | over training |\n|---|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate:,.1f} | {rate / medians['training steps']:,.1f} |")


def read_latents(table: LatentTable, batch_size: int) -> Callable[[], torch.Tensor]:
    """Gives x0 of the next batch of cached latents, in random order and half of them mirrored."""
    normalization, stream = table.statistics, batches(Mirrored(table), batch_size)

    def take_batch() -> torch.Tensor:
        moments, _ = next(stream)
        noise = torch.randn(len(moments), table.channels, table.side, table.side)
        return normalization.apply(draw_latents(moments, noise))

    return take_batch


def encode_images(table: LatentTable, batch_size: int) -> Callable[[], torch.Tensor]:
    """Gives x0 of the next batch of the images that the latents were made from."""
    made_with = table.metadata["settings"]
    source = made_with["dataset"]
    images = load_images(DataConfig(source["name"], source["split"], resolution=made_with["resolution"]))
    vae = load_vae(table.vae_name, images.channels, torch.device("cpu"))
    table.check_vae(vae)
    normalization, stream = normalization_of(vae), batches(images.dataset, batch_size)

    def take_batch() -> torch.Tensor:
        pixels, _ = next(stream)
        noise = torch.randn(len(pixels), table.channels, table.side, table.side)
        return normalization.apply(draw_latents(encode_moments(vae, pixels), noise))

    return take_batch


def train_network(table: LatentTable, transformer: str, batch_size: int) -> Callable[[], object]:
    """Makes one training step on random latents of the table's shape."""
    family, size = transformer.removesuffix(PATCH).split("-")
    shape = {
        "in_channels": table.channels,
        "out_channels": table.channels,
        "sample_size": table.side,
        "num_classes": table.num_classes,
    }
    case = Case("training", size, "training", "fp32", False, batch_size, torch.device("cpu"), overrides=shape)
    return make_workload(Candidate(transformer, family), case).run


class Mirrored(Dataset):
    """Cached latents; half of the reads, at random, take those of the mirrored image."""

    def __init__(self, table: LatentTable):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.table[index, bool(torch.rand(()) < 0.5)]


def batches(dataset: Dataset, batch_size: int) -> Iterator[list[torch.Tensor]]:
    """Batches without end, each sample at random."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=MANY_SAMPLES)
    return iter(DataLoader(dataset, batch_size, sampler=sampler))


def samples_per_second(take_batch: Callable[[], object], count: int, batch_size: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        take_batch()
    return count * batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
