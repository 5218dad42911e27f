"""What samples are measured against: the statistics of real images, in one file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all.

        Raises:
            ValueError: if there is something in it that `load` would refuse.
        """
        self.check(path)
        facts = {name: getattr(self, name) for name in ("num_images", "extractor", "extractor_fingerprint", "source")}
        path.parent.mkdir(parents=True, exist_ok=True)
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
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: its facts are not those of a reference: {error}") from error
        reference.check(path)
        return reference

    def check(self, path: Path) -> None:
        """Raises a ValueError if the arrays do not fit together or are not finite."""
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
            if array.dtype != (np.uint8 if name == "images" else array.dtype) or array.dtype.kind not in "fu":
                raise ValueError(f"{path}: {name} is {array.dtype}; features must be floating point, images uint8.")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{path}: {name} has values that are not finite.")
        if not len(self.features):
            raise ValueError(f"{path} has the features of no image.")

    def check_extractor(self, path: Path, name: str, fingerprint: str) -> None:
        """Raises a ValueError unless the reference was made with this extractor."""
        if (self.extractor, self.extractor_fingerprint) != (name, fingerprint):
            raise ValueError(
                f"{path} was made with {self.extractor} (weights {self.extractor_fingerprint[:12]}), but the samples "
                f"are measured with {name} (weights {fingerprint[:12]}). Distances between different features mean "
                f"nothing: use --extractor {self.extractor} with the same weights, or make another reference."
            )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing in it is executed.

    Raises:
        ValueError: if it is missing, damaged or holds something but arrays.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except Exception as error:  # a damaged file makes NumPy raise almost anything
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}") from error


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes a file of arrays, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)
