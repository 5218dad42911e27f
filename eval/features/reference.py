"""What samples are measured against: the statistics of real images, in one file."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from demo_diffusion.checks import check_whole, shown
from demo_diffusion.eval.samples.image_sources import ImageSource, SampleArray
from demo_diffusion.records.files import read_npz, write_npz
from demo_diffusion.records.hashes import file_hash

from .extractors import FeatureExtractor
from .moments import Moments, check_covariance

MAX_KEPT = 10_000  # images whose features serve precision, recall and KID, as many as in ADM's file
ARRAYS = ("mean", "covariance", "spatial_mean", "spatial_covariance", "features", "images")


@dataclass
class Reference:
    """Statistics of real images.

    Attributes:
        mean, covariance: (D,), (D, D) of the pooled features of all images, float64.
        spatial_mean, spatial_covariance: the same of the spatial features.
        features: (n, D) float32, pooled features of at most `MAX_KEPT` images.
        images: (n, H, W, 3) uint8, those images.
        num_images: how many images the moments are over; None: not known (ADM's file does not say).
        extractor, extractor_fingerprint: name and weights' hash of the network that made the features.
        source: what it was made from.
        sha256: of the file that it was read from; None: it was not read.
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray
    spatial_covariance: np.ndarray
    features: np.ndarray
    images: np.ndarray
    num_images: int | None
    extractor: str
    extractor_fingerprint: str
    source: str
    sha256: str | None = None

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all.

        Raises:
            ValueError: if there is something in it that `load` would refuse.
        """
        self.check(path)
        facts = {name: getattr(self, name) for name in ("num_images", "extractor", "extractor_fingerprint", "source")}
        write_npz(path, facts=np.array(json.dumps(facts)), **{name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file is missing or something else.
        """
        content = read_npz(path)
        if missing := [name for name in ("facts", *ARRAYS) if name not in content]:
            hint = " It is ADM's own file: make a reference of it with --adm." if "mu" in content else ""
            raise ValueError(f"{path} is not a reference made by eval/reference.py; it lacks {missing}.{hint}")
        try:
            reference = cls(**{name: content[name] for name in ARRAYS}, **json.loads(str(content["facts"])))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: its facts are not those of a reference: {error}") from error
        reference.check(path)
        reference._take_own_types(path)
        reference.sha256 = file_hash(path)
        return reference

    @classmethod
    def load_for(cls, path: Path, extractor: FeatureExtractor) -> "Reference":
        """The same; raises ValueError too if it was made with another extractor."""
        reference = cls.load(path)
        reference.check_extractor(path, extractor.name, extractor.fingerprint)
        return reference

    def check(self, path: Path) -> None:
        """Raises a ValueError if the arrays do not fit together, are not finite, or a covariance or a fact is none."""
        for name in ("extractor", "extractor_fingerprint", "source"):
            if not isinstance(text := getattr(self, name), str):
                raise ValueError(f"{path}: {name} is {shown(text)}; it must be a text.")
        if self.num_images is not None:
            check_whole(f"{path}: num_images", self.num_images, most=2**53)
        width, spatial = self.mean.shape[-1:], self.spatial_mean.shape[-1:]
        expected = {
            "mean": width,
            "covariance": width * 2,
            "spatial_mean": spatial,
            "spatial_covariance": spatial * 2,
            "features": (len(self.features), *width),
            "images": (len(self.features), *self.images.shape[1:3], 3),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{path}: {name} has shape {array.shape}; it must be {shape}.")
            if array.dtype != np.uint8 if name == "images" else array.dtype.kind != "f":
                raise ValueError(f"{path}: {name} is {array.dtype}; features must be floating point, images uint8.")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{path}: {name} has values that are not finite.")
        if not len(self.features):
            raise ValueError(f"{path} has the features of no image.")
        for name in ("covariance", "spatial_covariance"):
            check_covariance(f"{path}: {name}", getattr(self, name))

    def _take_own_types(self, path: Path) -> None:
        """Features become float32 and moments float64, whatever precision the file has.

        Raises:
            ValueError: if a feature is too large for it.
        """
        for name in ARRAYS[:4]:
            setattr(self, name, getattr(self, name).astype(np.float64))
        with np.errstate(over="ignore"):
            self.features = self.features.astype(np.float32)
        if not np.isfinite(self.features).all():
            raise ValueError(f"{path}: features has values that are not finite as float32.")

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises a ValueError unless its images have the size (height, width) of the samples."""
        if size != (ours := tuple(self.images.shape[1:3])):
            raise ValueError(
                f"The samples are {size[1]} × {size[0]} pixels, the reference's images {ours[1]} × {ours[0]}. A "
                "distance between them would measure the resizing; make a reference with eval/reference.py "
                f"--resolution {size[0]}, or bring the samples to its size first."
            )

    def check_extractor(self, path: Path, name: str, fingerprint: str) -> None:
        """Raises a ValueError unless the reference was made with this extractor."""
        if (self.extractor, self.extractor_fingerprint) != (name, fingerprint):
            raise ValueError(
                f"{path} was made with {self.extractor} (weights {self.extractor_fingerprint[:12]}), but the samples "
                f"are measured with {name} (weights {fingerprint[:12]}). Distances between different features mean "
                f"nothing: use --extractor {self.extractor} with the same weights, or make another reference."
            )


MOMENTS_AT_ONCE = 500
ADM_ARRAYS = {"mu": 2048, "sigma": 2048, "mu_s": 2023, "sigma_s": 2023}


def reference_of(source: ImageSource, extractor: FeatureExtractor, name: str, batch_size: int) -> Reference:
    """Statistics over all images of a source; features and pixels of at most `MAX_KEPT`, evenly spaced, are kept.

    Raises:
        ValueError: if there are fewer than two images, or one is not fit.
    """
    if len(source) < 2:
        raise ValueError(f"{name} has {len(source)} image; statistics need at least 2.")
    pooled, spatial = [], []  # features not yet in the moments
    moments = [None, None]
    kept = set(np.linspace(0, len(source) - 1, min(len(source), MAX_KEPT)).round().astype(int).tolist())
    features, images, first = [], [], 0
    for batch in tqdm(source.batches(0, len(source), batch_size), total=-(-len(source) // batch_size), unit="batch"):
        made = extractor(batch)
        chosen = [i for i in range(len(batch)) if first + i in kept]
        features.append(made.pooled[chosen])
        images.append(batch[chosen].permute(0, 2, 3, 1))
        pooled.append(made.pooled)
        spatial.append(made.spatial)
        first += len(batch)
        if len(pooled) * batch_size >= MOMENTS_AT_ONCE or first == len(source):
            moments = [add(total, parts) for total, parts in zip(moments, (pooled, spatial), strict=True)]
            pooled, spatial = [], []
    return Reference(
        moments[0].mean, moments[0].covariance, moments[1].mean, moments[1].covariance, torch.cat(features).numpy(),
        torch.cat(images).numpy(), len(source), extractor.name, extractor.fingerprint, name,
    )  # fmt: skip


def add(total: Moments | None, parts: list[torch.Tensor]) -> Moments:
    new = Moments.of(torch.cat(parts))
    return new if total is None else total + new


def reference_of_adm(path: Path, extractor: FeatureExtractor, batch_size: int) -> Reference:
    """ADM's file: its moments, which are over the whole training set, and the features of its 10,000 images.

    Raises:
        ValueError: if it is something else, or the extractor is not Inception, whose moments these are.
    """
    if extractor.name != "inception":
        raise ValueError(f"The moments in {path} are Inception's; they do not serve {extractor.name}. Use --dataset.")
    content = read_npz(path)
    for name, width in ADM_ARRAYS.items():
        shape = (width,) * (2 if name.startswith("sigma") else 1)
        if name not in content or content[name].shape != shape:
            found = content[name].shape if name in content else "not there"
            raise ValueError(f"{path} is not ADM's reference file: {name} is {found}, expected {shape}.")
    reference = reference_of(SampleArray(path), extractor, str(path), batch_size)
    reference.mean, reference.covariance = content["mu"].astype(np.float64), content["sigma"].astype(np.float64)
    reference.spatial_mean = content["mu_s"].astype(np.float64)
    reference.spatial_covariance = content["sigma_s"].astype(np.float64)
    reference.num_images = None
    return reference
