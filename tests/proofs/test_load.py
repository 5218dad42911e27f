"""Large data and long runs: 10,000 classes, a million rows, and memory that does not grow.

`pytest -m proof -s tests/proofs/test_load.py` prints seconds and megabytes. Images are copies of a few small ones.
"""

import gc
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from demo_diffusion import DEMOPipeline
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.objectives import FlowObjective
from demo_diffusion.train.diffusion.trainer import DiffusionTrainer
from tests.support.networks import tiny_transformer
from tests.support.pipelines import quiet
from tests.support.runs import train

pytestmark = pytest.mark.proof

CLASSES, IMAGES_OF_A_CLASS = 10_000, 10
ROWS, ROWS_OF_A_GROUP = 1_000_000, 50_000
STEPS, WARM_UP_STEPS = 3_000, 1_000
CALLS, WARM_UP_CALLS = 200, 50
MAX_GROWTH = 16  # MB after the warm-up; an image of 8 × 8 pixels a step would be 1 MB, a graph kept a step gigabytes


def megabytes() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


@contextmanager
def measured(what: str) -> Iterator[dict[str, float]]:
    """Prints what a block took; the seconds and megabytes are in the dictionary when it has ended."""
    facts, started, before = {}, time.perf_counter(), megabytes()
    yield facts
    facts |= {"seconds": time.perf_counter() - started, "megabytes": megabytes() - before}
    print(f"{what}: {facts['seconds']:.1f} s, {facts['megabytes']:+.0f} MB")


def encoded(grey: int) -> bytes:
    Image.new("L", (8, 8), grey).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def grey_of(pixels: torch.Tensor) -> int:
    return round((pixels.mean().item() + 1) * 127.5)


def test_ten_thousand_class_folders(tmp_path):
    for number in range(CLASSES):
        (tmp_path / f"class {number:05d}").mkdir()
        for i in range(IMAGES_OF_A_CLASS):
            (tmp_path / f"class {number:05d}/{i}.png").write_bytes(encoded(number % 256))
    with measured("100,000 images of 10,000 folders") as facts:
        images = load_images(DataConfig(str(tmp_path), resolution=8))
    assert len(images.dataset) == CLASSES * IMAGES_OF_A_CLASS and images.num_classes == CLASSES
    for index in (0, 12_345, len(images.dataset) - 1):
        pixels, label = images.dataset[index]
        assert label == index // IMAGES_OF_A_CLASS and grey_of(pixels) == label % 256
    assert facts["seconds"] < 60 and facts["megabytes"] < 500


def test_a_million_rows(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    pictures = [{"bytes": encoded(grey), "path": None} for grey in range(256)]
    with pq.ParquetWriter(tmp_path / "train.parquet", schema) as file:
        for first in range(0, ROWS, ROWS_OF_A_GROUP):
            rows = range(first, first + ROWS_OF_A_GROUP)
            images = pa.array([pictures[row % 256] for row in rows], kind)
            file.write_table(pa.table([images, pa.array([row % 1000 for row in rows])], schema))
    config = DataConfig(str(tmp_path / "train.parquet"), image_column="image", label_column="label", resolution=8)
    with measured("a parquet file of a million rows") as facts:
        images = load_images(config)
    assert len(images.dataset) == ROWS and images.num_classes == 1000
    for index in (0, 123_456, ROWS - 1):
        pixels, label = images.dataset[index]
        assert label == index % 1000 and grey_of(pixels) == index % 256
    assert facts["seconds"] < 120 and facts["megabytes"] < 1000


def test_memory_over_training_steps(tmp_path, monkeypatch):
    """The steps draw curves at 2,000, grids and checkpoints all the way, so that each of them is in the warm-up."""
    used = {}

    def look(trainer: DiffusionTrainer, step: int) -> None:
        if step % 500 == 0:
            trainer.plot_losses()
            trainer._save_grid(trainer.pipeline(), step)
            used[step] = megabytes()

    monkeypatch.setattr(DiffusionTrainer, "look", look)
    train(tmp_path / "run", num_steps=STEPS, checkpoint_every=500, log_every=10)
    print("training:", ", ".join(f"{step} steps {value:.0f} MB" for step, value in used.items()))
    assert used[STEPS] - used[WARM_UP_STEPS] < MAX_GROWTH


def test_memory_over_pipeline_calls():
    pipeline, used = (
        quiet(DEMOPipeline(tiny_transformer(in_channels=3, out_channels=3), FlowObjective().scheduler())),
        {},
    )
    for call in range(1, CALLS + 1):
        pipeline([0, 1, 2, 3], num_inference_steps=1 + call % 7, generator=torch.Generator().manual_seed(call))
        if call % WARM_UP_CALLS == 0:
            used[call] = megabytes()
    print("sampling:", ", ".join(f"{call} calls {value:.0f} MB" for call, value in used.items()))
    assert used[CALLS] - used[WARM_UP_CALLS] < MAX_GROWTH
