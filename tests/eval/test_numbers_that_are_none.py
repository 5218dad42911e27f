"""Input that has no right score is refused, and a number that cannot be computed is null: never a wrong one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.features.extractors import Features
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.metrics import distances
from demo_diffusion.eval.table import main as print_table
from demo_diffusion.objectives import FlowObjective
from demo_diffusion.records.files import write_json
from tests.support.evaluation import LITE
from tests.support.networks import tiny_transformer


def strict_json(path: Path) -> dict:
    """The content, read as by a parser that knows no NaN."""

    def refuse(word: str):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def save_images(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


NOISE = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
DEGENERATE = {
    "two images": NOISE[:2],
    "equal images": NOISE[[0] * 6],
    "all but one equal": NOISE[[0] * 5 + [1]],
    "black": np.zeros_like(NOISE),
    "white": np.full_like(NOISE, 255),
    "three images": NOISE[:3],
    "four images": NOISE[:4],
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_samples_have_results_that_are_json(name, tmp_path, lite_reference):
    images = save_images(tmp_path / "images", DEGENERATE[name])
    evaluate(["--images", str(images), "--reference", str(lite_reference), "--out", str(tmp_path / "run"), *LITE])
    metrics = strict_json(tmp_path / "run/results.json")["metrics"]
    assert metrics["fd_efficientnet_lite0"] > 0 and metrics["kd_std_efficientnet_lite0"] is None
    has_neighbours = len(DEGENERATE[name]) > distances.NEIGHBORS
    assert (metrics["precision_efficientnet_lite0"] is not None) == has_neighbours


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_file_holds_a_number_that_json_lacks(value, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"metrics": {"fid": value}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "null"])
def test_older_results_with_no_number_are_unavailable(value, tmp_path, capsys):
    (tmp_path / "results.json").write_text(f'{{"metrics": {{"fid": {value}}}, "fingerprint": {{}}}}')
    print_table([str(tmp_path)])
    assert "| unavailable |" in capsys.readouterr().out.splitlines()[-1]


def changed(path: Path, target: Path, **changes) -> Path:
    with np.load(path) as file:
        content = {**file, **changes}
    np.savez(target, **content)
    return target


def asymmetric(matrix: np.ndarray) -> np.ndarray:
    """Half of it: what is left of a file of a triangle."""
    return np.triu(matrix)


def one_entry(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.copy()
    matrix[0, 1] += np.trace(matrix) / len(matrix)
    return matrix


def indefinite(matrix: np.ndarray) -> np.ndarray:
    return matrix - 0.1 * np.abs(np.diag(matrix)).max() * np.eye(len(matrix))


NOT_COVARIANCES = {
    "half": (asymmetric, "not symmetric"),
    "one entry": (one_entry, "not symmetric"),
    "negative": (np.negative, "negative eigenvalues"),
    "indefinite": (indefinite, "negative eigenvalues"),
    "not finite": (lambda m: m * np.nan, "not finite"),
    "of another shape": (lambda m: m[:-1], "has shape"),
    "whole numbers": (lambda m: m.astype(int), "must be floating point"),
    "complex": (lambda m: m.astype(complex), "must be floating point"),
}


@pytest.mark.parametrize("array", ["covariance", "spatial_covariance"])
@pytest.mark.parametrize("change", NOT_COVARIANCES)
def test_what_is_no_covariance_is_refused(array, change, tmp_path, lite_reference):
    make, message = NOT_COVARIANCES[change]
    with np.load(lite_reference) as file:
        spoilt = make(file[array])
    path = changed(lite_reference, tmp_path / "spoilt.npz", **{array: spoilt})
    with pytest.raises(ValueError, match=rf"spoilt.npz.*{array}.*{message}"):
        Reference.load(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_covariance_of_few_images_and_in_float32_is_one(dtype, tmp_path, lite_reference):
    with np.load(lite_reference) as file:
        rounded = {name: file[name].astype(dtype) for name in ("covariance", "spatial_covariance")}
    Reference.load(changed(lite_reference, tmp_path / "rounded.npz", **rounded))


@pytest.mark.parametrize("count", [2, 5, 50, 500])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_distance_of_a_set_to_itself_is_not_negative(count, scale):
    x = np.random.default_rng(count).normal(size=(count, 64)) * scale + scale
    mean, covariance = x.mean(0), np.cov(x, rowvar=False)
    distance = distances.frechet_distance(mean, covariance, mean, covariance)
    assert 0 <= distance < 1e-5 * np.trace(covariance)


def test_a_distance_below_zero_beyond_rounding_is_refused():
    with pytest.raises(ValueError, match="one of the covariances is none"):
        distances.frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), -3 * np.eye(2))


@pytest.mark.parametrize(
    ("samples", "reference", "has_std"), [(2, 2, False), (100, 100, False), (1000, 1500, False), (1200, 1100, True)]
)
def test_equal_subsets_have_no_standard_deviation(samples, reference, has_std):
    x, y = torch.randn(samples, 4), torch.randn(reference, 4)
    assert (distances.kernel_distance(x, y)[1] is not None) == has_std


@pytest.mark.parametrize("count", [2, 5000, 5001, 10_000])
def test_one_split_has_no_standard_deviation(count):
    assert (distances.inception_score(torch.randn(count, 3))[1] is not None) == (count > 5000)


def sources(folder: Path, side: int) -> dict[str, list[str]]:
    """Four samples of a side as each kind of source."""
    images = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", arr_0=images)
    transformer = tiny_transformer(in_channels=3, out_channels=3, sample_size=side)
    DEMOPipeline(transformer, FlowObjective().scheduler()).save_pretrained(folder / "pipeline")
    return {
        "images": ["--images", str(save_images(folder / "images", images))],
        "npz": ["--npz", str(folder / "samples.npz")],
        "pipeline": ["--pipeline", str(folder / "pipeline"), "--num_samples", "4", "--num_inference_steps", "2"],
    }


@pytest.mark.parametrize("kind", ["images", "npz", "pipeline"])
@pytest.mark.parametrize("side", [8, 16])
def test_samples_of_another_size_than_the_reference_s_are_refused(kind, side, tmp_path, lite_reference):
    source = sources(tmp_path, side)[kind]
    with pytest.raises(SystemExit) as stop:
        evaluate([*source, "--reference", str(lite_reference), "--out", str(tmp_path / "run"), *LITE])
    assert re.search(rf"error: The samples are {side} × {side} pixels, the reference's images 32 × 32", str(stop.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", range(20))
def test_a_flipped_bit_of_a_reference_changes_no_score(number, tmp_path, lite_reference):
    """It is refused, or lies where nothing is read from."""
    path, rng = tmp_path / "flipped.npz", np.random.default_rng(number)
    content = bytearray(lite_reference.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    try:
        read = Reference.load(path)
    except ValueError as error:
        assert "flipped.npz" in str(error)
        return
    expected = Reference.load(lite_reference)
    for name in ("mean", "covariance", "spatial_mean", "spatial_covariance", "features", "images"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))


@pytest.mark.parametrize("number", range(20))
def test_a_flipped_bit_of_a_feature_shard_is_noticed(number, tmp_path):
    shards, rng = FeatureShards(tmp_path, 4, 4), np.random.default_rng(number)
    shards.write(0, Features(torch.randn(4, 8), torch.randn(4, 6), torch.randn(4, 3)), torch.zeros(1, 3, 2, 2).byte())
    assert shards.is_whole(0)
    content = bytearray(shards.path(0).read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    shards.path(0).write_bytes(content)
    assert not shards.is_whole(0)
