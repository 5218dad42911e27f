"""Images, references and weights that the tests of the evaluation share."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as inception_module
from PIL import Image

from demo_diffusion.eval.reference import main as make_reference

LITE = ["--extractor", "efficientnet_lite0"]


def untrained_inception(path: Path) -> Path:
    """Writes weights of an untrained Inception in torch-fidelity's format, such that features of images differ."""

    class Untrained(inception_module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    download, inception_module.load_state_dict_from_url = inception_module.load_state_dict_from_url, lambda *_, **__: 0
    torch.manual_seed(0)
    try:
        network = Untrained("untrained", ["2048"])
    finally:
        inception_module.load_state_dict_from_url = download
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.nn.init.normal_(network.fc.weight, std=0.1)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory) -> Path:
    return untrained_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


def pictures(folder: Path, count: int, seed: int = 0, size: int = 32, noise: float = 0) -> Path:
    """Smooth coloured blobs as .png files."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
        pixels = (pixels + noise * generator.normal(size=pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="session")
def two_sets(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("images")
    return pictures(root / "samples", 40, seed=1, noise=20), pictures(root / "real", 40, seed=2)


def reference_of(images: Path, resolution: int, folder: Path) -> Path:
    path = folder / "reference.npz"
    make_reference(["--images", str(images), "--resolution", str(resolution), "--out", str(path), *LITE])
    return path


@pytest.fixture(scope="session")
def lite_reference(two_sets, tmp_path_factory) -> Path:
    return reference_of(two_sets[1], 32, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def small_reference(two_sets, tmp_path_factory) -> Path:
    """For samples of 8 pixels."""
    return reference_of(two_sets[1], 8, tmp_path_factory.mktemp("small_reference"))
