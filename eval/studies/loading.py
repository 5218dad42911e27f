"""Measures how fast samples come and how fast a network takes them: `python -m tests.loader_proof CONFIG LATENTS`.

CONFIG names the network, LATENTS is a folder of train/cache_latents.py whose dataset and autoencoder are still there.
Samples/s of the loader of cached latents, of images through the autoencoder on the fly, and of training, in turns,
medians.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time

import torch

from demo_diffusion.data.latents import LatentTable
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.data import DiffusionData, open_data
from demo_diffusion.train.diffusion.trainer import DiffusionTrainer
from demo_diffusion.train.engine.batch_order import batches
from demo_diffusion.train.engine.checkpoints import Progress

LOADED_BATCHES, ENCODED_BATCHES, TRAINED_BATCHES = 200, 1, 2


def samples_per_second(take_batch, count: int, batch_size: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        take_batch()
    return count * batch_size / (time.perf_counter() - start)


def x0_of_next(data: DiffusionData, iterator) -> torch.Tensor:
    samples, _ = next(iterator)
    return data.x0(samples, torch.randn(len(samples), data.channels, data.side, data.side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", help="YAML file of the network")
    parser.add_argument("latents", help="folder of cached latents")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options, rest = parser.parse_known_args()
    made_with = LatentTable(options.latents).metadata["settings"]
    images = [f"--dataset={made_with['dataset']['name']}", f"--split={made_with['dataset']['split']}"]
    common = ["--config", options.config, "--batch_size", str(options.batch_size), "--random_flip", "true", *rest]
    common += ["--resolution", str(made_with["resolution"]), "--output_dir", tempfile.mkdtemp(), "--knn_samples", "0"]
    common += ["--vae", made_with["vae"]["name"]]
    cached = parse_config([*common, "--latents", options.latents])
    on_the_fly = parse_config([*common, *images, "--latents=", "--latent_normalization", "autoencoder"])
    trainer = DiffusionTrainer(cached)
    order, progress = trainer.batch_order(first_step=0), Progress()
    endless = itertools.chain.from_iterable(batches(trainer.samples, order, 0) for _ in itertools.count())
    encoded = open_data(on_the_fly.data, 0, torch.device("cpu"))
    images_iterator = iter(batches(encoded.samples, order, 0))
    measures = {
        "cached latents, loader": (lambda: x0_of_next(trainer.data, endless), LOADED_BATCHES),
        "images through the autoencoder": (lambda: x0_of_next(encoded, images_iterator), ENCODED_BATCHES),
        "training steps": (lambda: trainer.train_step(endless, order, progress), TRAINED_BATCHES),
    }
    rates = {name: [] for name in measures}
    for _, (name, (take_batch, count)) in itertools.product(range(options.rounds), measures.items()):
        rates[name].append(samples_per_second(take_batch, count, options.batch_size))
        print(f"{name}: {rates[name][-1]:,.2f} samples/s", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| what | samples/s | over training |\n|---|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate:,.1f} | {rate / medians['training steps']:,.1f} |")


if __name__ == "__main__":
    main()
