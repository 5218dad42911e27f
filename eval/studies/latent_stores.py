"""Which store gives latents fastest at random: `python eval/studies/latent_stores.py FOLDER`.

Writes the same random fp16 moments into each store. Then reads single samples, and batches of 64, in the same random
order, each into memory of its own, on one core, from files that are in the page cache. Prints samples/s: measured in
turns, medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from safetensors import safe_open

from demo_diffusion.data.latent_shards import FORMAT_VERSION, METADATA_FILE, SETTINGS_FILE, LatentShards, ShardContent
from demo_diffusion.data.latents import LatentTable
from demo_diffusion.records.files import write_json

SHARD_SIZE, BATCH_SIZE = 256, 64


class Store(NamedTuple):
    """An opened store: one(sample) and many(samples) give tensors, where a sample is 2 · image + flipped."""

    one: Callable[[int], torch.Tensor]
    many: Callable[[list[int]], torch.Tensor]


def stacked(one: Callable[[int], torch.Tensor]) -> Store:
    return Store(one, lambda samples: torch.stack([one(sample) for sample in samples]))


def write_shards(folder: Path, moments: torch.Tensor) -> None:
    """The package's own format."""
    shards = LatentShards(folder, len(moments), SHARD_SIZE)
    described = []
    for shard in range(len(shards)):
        span = shards.span(shard)
        part, places = moments[span.start : span.stop], torch.tensor(span)
        sums = torch.zeros(2, moments.shape[2], dtype=torch.float64)
        shards.write(shard, ShardContent(part, places, places.clone(), sums[0], sums[1].clone(), []))
        path = shards.path(shard)
        described.append({"file": path.name, "images": len(span), "bytes": path.stat().st_size})
    write_json(folder / SETTINGS_FILE, {"format_version": FORMAT_VERSION})
    statistics = {"latents_mean": [0.0], "latents_std": [1.0], "id2label": {}}
    shape = {"channels": moments.shape[2], "shape": list(moments.shape[2:])}
    write_json(folder / METADATA_FILE, {**statistics, **shape, "shards": described})


def open_table(folder: Path, shape: tuple[int, ...]) -> Store:
    table = LatentTable(folder)
    return stacked(lambda sample: table[sample // 2, sample % 2][0])


def open_slices(folder: Path, shape: tuple[int, ...]) -> Store:
    paths = sorted((folder / "shards").glob("*.safetensors"))
    files = [safe_open(path, "pt").__enter__() for path in paths]
    slices = [file.get_slice("moments") for file in files]

    def one(sample: int) -> torch.Tensor:
        image = sample // 2
        return slices[image // SHARD_SIZE][image % SHARD_SIZE, sample % 2]

    return stacked(one)


def write_arrow(folder: Path, moments: torch.Tensor, feature: object, convert: Callable) -> None:
    rows = ({"moments": convert(sample.numpy())} for image in moments for sample in image)
    features = datasets.Features({"moments": feature})
    cache = str(folder / "generated")
    table = datasets.Dataset.from_generator(lambda: rows, features=features, cache_dir=cache, fingerprint="proof")
    table.save_to_disk(folder / "arrow")


def write_arrow_arrays(folder: Path, moments: torch.Tensor) -> None:
    write_arrow(folder, moments, datasets.Array3D(tuple(moments.shape[2:]), "float16"), lambda sample: sample)


def open_arrow_arrays(folder: Path, shape: tuple[int, ...]) -> Store:
    table = datasets.load_from_disk(folder / "arrow").with_format("torch")
    return Store(lambda sample: table[sample]["moments"], lambda samples: table[samples]["moments"])


def write_arrow_lists(folder: Path, moments: torch.Tensor) -> None:
    length = moments[0, 0].numel()
    write_arrow(folder, moments, datasets.List(datasets.Value("float16"), length=length), lambda x: x.ravel())


def open_arrow_lists(folder: Path, shape: tuple[int, ...]) -> Store:
    table = datasets.load_from_disk(folder / "arrow").with_format("torch")
    return Store(
        lambda sample: table[sample]["moments"].view(shape),
        lambda samples: table[samples]["moments"].view(len(samples), *shape),
    )


def write_arrow_bytes(folder: Path, moments: torch.Tensor) -> None:
    write_arrow(folder, moments, datasets.Value("binary"), lambda sample: sample.tobytes())


def open_arrow_bytes(folder: Path, shape: tuple[int, ...]) -> Store:
    table = datasets.load_from_disk(folder / "arrow")

    def tensor(data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.float16).view(shape)

    return Store(
        lambda sample: tensor(table[sample]["moments"]),
        lambda samples: torch.stack([tensor(data) for data in table[samples]["moments"]]),
    )


def write_numpy(folder: Path, moments: torch.Tensor) -> None:
    np.save(folder / "moments.npy", moments.flatten(0, 1).numpy())


def open_numpy(folder: Path, shape: tuple[int, ...]) -> Store:
    mapped = np.load(folder / "moments.npy", mmap_mode="r")
    return Store(
        lambda sample: torch.from_numpy(mapped[sample].copy()), lambda samples: torch.from_numpy(mapped[samples])
    )


STORES = {
    "safetensors shards, mapped (LatentTable)": (write_shards, open_table),
    "safetensors shards, get_slice": (write_shards, open_slices),
    "Arrow (datasets), Array3D, torch format": (write_arrow_arrays, open_arrow_arrays),
    "Arrow (datasets), fixed-size list, torch format": (write_arrow_lists, open_arrow_lists),
    "Arrow (datasets), binary": (write_arrow_bytes, open_arrow_bytes),
    "one .npy, numpy.memmap": (write_numpy, open_numpy),
}


def rate(read: Callable[[], int], seconds: float) -> float:
    """Samples a second over at least `seconds`."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += read()
    return count / (time.perf_counter() - start)


def measure(folder: Path, open_store: Callable, moments: torch.Tensor, seconds: float) -> tuple[float, float]:
    """Samples/s, one at a time and in batches."""
    generator = np.random.default_rng(0)
    order = iter(generator.integers(2 * len(moments), size=10_000_000).tolist())
    store = open_store(folder, tuple(moments.shape[2:]))
    sample = next(order)
    assert torch.equal(store.one(sample), moments[sample // 2, sample % 2])
    assert torch.equal(store.many([sample])[0], moments[sample // 2, sample % 2])

    def read_one() -> int:
        store.one(next(order))
        return 1

    def read_many() -> int:
        return len(store.many([next(order) for _ in range(BATCH_SIZE)]))

    for first in range(0, 2 * len(moments), BATCH_SIZE):  # the whole store into the page cache
        store.many(list(range(first, min(first + BATCH_SIZE, 2 * len(moments)))))
    return rate(read_one, seconds), rate(read_many, seconds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the stores are written; must be empty or new")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--shape", type=int, nargs=3, default=[8, 32, 32], help="of one image's moments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of each measurement")
    options = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    moments = torch.randn(options.images, 2, *options.shape, generator=torch.Generator().manual_seed(0)).half()
    for number, (write, _) in enumerate(STORES.values()):
        folder = options.folder / str(number)
        folder.mkdir(parents=True)
        write(folder, moments)
    results = {name: [] for name in STORES}
    for _ in range(options.rounds):
        for number, (name, (_, open_store)) in enumerate(STORES.items()):
            results[name].append(measure(options.folder / str(number), open_store, moments, options.seconds))
    print("| store | one at a time | in batches of 64 |\n|---|---|---|")
    for name, rounds in results.items():
        medians = [f"{statistics.median(column):,.0f}" for column in zip(*rounds, strict=True)]
        print(f"| {name} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
