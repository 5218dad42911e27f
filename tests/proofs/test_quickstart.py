"""The quickstart's training through its command, and that the checks of it can fail: `pytest -m proof -s tests/proofs`.

Prints the class accuracy of 500 samples with the run's moving average, and with the average of the parameters alone
(BatchNorm's statistics as they were before training), and writes a grid of the latter beside the run's samples.png.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_diffusion import DEMOPipeline
from demo_diffusion.data.images import load_images
from demo_diffusion.eval.metrics.nearest_neighbor import NearestNeighborReport, nearest_neighbor_report
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.sample_grid import sample_grid
from tests.support.runs import ROOT

COMMAND = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "2"]
CONFIG = ROOT / "configs/diffusion/digits/demo.yaml"
GRID = ROOT / "docs/images/digits_samples.png"
GUIDANCE_SCALE = 1.5
MIN_GUIDED, MIN_UNGUIDED, MAX_SPREAD_ERROR = 0.97, 0.85, 0.10


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "digits"
    options = ["--config", str(CONFIG), "--output_dir", str(folder)]
    subprocess.run([*COMMAND, str(ROOT / "train/train_demo.py"), *options], check=True)
    return folder


def report(pipeline: DEMOPipeline, run: Path) -> NearestNeighborReport:
    config = parse_config(["--config", str(run / "config.yaml")])
    digits = load_images(config.data).dataset
    return nearest_neighbor_report(pipeline, digits, 500, [1.0, GUIDANCE_SCALE], config.run.num_inference_steps)


def passes(result: NearestNeighborReport) -> bool:
    unguided, guided = result.accuracy[1.0], result.accuracy[GUIDANCE_SCALE]
    spread_errors = [abs(std / result.real_std - 1) for std in result.sample_std.values()]
    return guided >= MIN_GUIDED and unguided >= MIN_UNGUIDED and max(spread_errors) <= MAX_SPREAD_ERROR


@pytest.mark.proof
def test_the_samples_are_recognised_and_without_the_statistics_they_are_not(run):
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    whole = report(pipeline, run)
    print(f"Moving average of parameters and statistics: passes is {passes(whole)}\n{whole}\n")
    for module in pipeline.transformer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    parameters_alone = report(pipeline, run)
    sample_grid(pipeline, parse_config(["--config", str(run / "config.yaml")]).run).save(run / "without_statistics.png")
    print(f"Moving average of parameters alone: passes is {passes(parameters_alone)}\n{parameters_alone}")
    assert passes(whole) and not passes(parameters_alone)


@pytest.mark.proof
def test_the_grid_is_the_one_in_the_docs(run):
    difference = grid_difference(run / "samples.png", GRID)
    assert difference is None, difference


def grid_difference(first: Path, second: Path) -> str | None:
    """How two pictures differ, in words; None if all pixels are equal."""
    pixels, expected = (np.asarray(Image.open(file), dtype=np.int16) for file in (first, second))
    if pixels.shape != expected.shape:
        return f"{first} has shape {pixels.shape}, {second} {expected.shape}."
    away = np.abs(pixels - expected)
    if not away.any():
        return None
    return f"{np.count_nonzero(away)} of {away.size} values of {first} differ from {second}, by at most {away.max()}."


def test_a_difference_of_grids_is_told(tmp_path):
    picture = np.asarray(Image.open(GRID)).copy()
    Image.fromarray(picture).save(tmp_path / "same.png")
    assert grid_difference(tmp_path / "same.png", GRID) is None
    picture.flat[0] ^= 4
    Image.fromarray(picture).save(tmp_path / "other.png")
    assert f"1 of {picture.size} values" in grid_difference(tmp_path / "other.png", GRID)
    Image.fromarray(picture[1:]).save(tmp_path / "smaller.png")
    assert "has shape" in grid_difference(tmp_path / "smaller.png", GRID)


def test_the_check_of_the_samples_can_fail():
    good = {1.0: 0.9, GUIDANCE_SCALE: 0.98}
    assert passes(summary(good))
    assert not passes(summary({**good, 1.0: 0.84})) and not passes(summary({**good, GUIDANCE_SCALE: 0.96}))
    assert not passes(summary(good, spread=0.6))


def summary(accuracy: dict[float, float], spread: float = 0.75) -> NearestNeighborReport:
    of_scales = dict.fromkeys(accuracy, 0.0), dict.fromkeys(accuracy, spread)
    return NearestNeighborReport(500, 25, accuracy, *of_scales, real_mean=0.0, real_std=0.75)
