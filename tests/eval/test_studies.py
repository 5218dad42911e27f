"""Each study runs on its smallest input."""

import contextlib

import pytest
import torch

from demo_diffusion.data.latents import LatentTable
from demo_diffusion.eval.studies import (
    evaluation_speed,
    latent_stores,
    loading,
    metric_sensitivity,
    pipeline_overhead,
    ssd_anchor_precision,
    ssd_anchors,
)
from demo_diffusion.train.cache_latents import main as cache_latents
from tests.support.detectors import TINY, small_detector
from tests.support.evaluation import pictures
from tests.support.images import image_folder
from tests.support.pipelines import tiny_vae


def rows_of(table: str) -> dict[str, list[float]]:
    """First column -> the numbers of the others, of a markdown table."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {name: [float(value.split()[0].replace(",", "")) for value in values] for name, *values in rows[1:]}


def test_loading(tmp_path, capsys, monkeypatch):
    tiny_vae().save_pretrained(tmp_path / "vae")
    cache = {"dataset": image_folder(tmp_path / "images"), "vae": tmp_path / "vae", "out": tmp_path / "latents"}
    cache_latents([f"--{name}={value}" for name, value in {**cache, "resolution": 32, "num_workers": 0}.items()])
    capsys.readouterr()
    monkeypatch.setattr(loading, "LOADED_BATCHES", 2)
    loading.main([str(tmp_path / "latents"), "--batch_size=2", "--rounds=1"])
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ["cached latents, loader", "images through the autoencoder", "training steps"]
    assert all(rate > 0 for rate, _ in rows.values()) and rows["training steps"][1] == 1
    table = LatentTable(tmp_path / "latents")
    for read in (loading.read_latents, loading.encode_images):
        x0 = read(table, 3)()
        assert x0.shape == (3, 4, 16, 16) and x0.isfinite().all()


def test_latent_stores(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        latent_stores.main([str(tmp_path / "stores"), "--images=2", "--shape", *"244", "--rounds=1", "--seconds=0.01"])
    finally:
        torch.set_num_threads(threads)
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == list(latent_stores.STORES) and all(min(rates) > 0 for rates in rows.values())


def test_pipeline_overhead(capsys):
    threads = torch.get_num_threads()
    try:
        pipeline_overhead.main(["--rounds=1"])
    finally:
        torch.set_num_threads(threads)
    assert list(rows_of(capsys.readouterr().out)) == list(pipeline_overhead.samplers())


def test_metric_sensitivity(tmp_path, capsys):
    pictures(tmp_path / "data/one", 6)
    pictures(tmp_path / "data/two", 6, seed=1)
    with contextlib.suppress(SystemExit):  # so few images need not be in order
        metric_sensitivity.main([str(tmp_path / "data"), "--half=6"])
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == list(metric_sensitivity.DAMAGES) and all(frechet > 0 for frechet, _ in rows.values())
    assert rows["noise 40"][0] > rows["noise 5"][0]


def test_metric_sensitivity_fails_where_the_order_is_wrong(tmp_path, monkeypatch):
    pictures(tmp_path / "data/one", 2)
    wrong = dict.fromkeys(metric_sensitivity.DAMAGES, (1.0, 0.0))
    monkeypatch.setattr(metric_sensitivity, "distances", lambda images: wrong)
    with pytest.raises(SystemExit, match="not in the order of the damage"):
        metric_sensitivity.main([str(tmp_path / "data"), "--half=1"])


def test_evaluation_speed(two_sets, random_inception, capsys):
    with contextlib.suppress(SystemExit):  # of so few images the features are not what takes the time
        evaluation_speed.main([str(two_sets[0]), f"--inception_weights={random_inception}", "--rounds=1"])
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == ["torch-fidelity", "evaluation"] and all(rate > 0 for (rate,) in rows.values())


def test_scaled_anchors_fit_large_objects_and_the_authors_small_ones(capsys):
    ssd_anchors.main(["--count=300"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    shares = {side: (int(theirs[:-1]), int(scaled[:-1])) for side, _, theirs, _, scaled in rows}
    assert shares["320–480"][0] < 50 and shares["320–480"][1] == 100
    assert shares["32–96"][0] > shares["32–96"][1]


def test_both_settings_of_anchors_are_trained_and_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ssd_anchor_precision, "NUM_TEST_SCENES", 1)
    small_detector("SSDLite", num_classes=10, **TINY).save_pretrained(tmp_path / "start")
    ssd_anchor_precision.main([f"--start={tmp_path / 'start'}", "--steps=1", "--batch_size=2"])
    _, _, *lines = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == ["64–96", "96–192", "192–320", "320–480"]
    assert all(0 <= float(score) <= 100 for row in rows for score in row[1:])
