"""An evaluation from the claim on its folder to results.json and the contact sheet."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import PartialState

from demo_diffusion.eval.features.extraction import extract_features
from demo_diffusion.eval.features.extractors import FeatureExtractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.metrics.scores import SampleFeatures, Scores, score
from demo_diffusion.eval.samples.image_sources import ImageSource
from demo_diffusion.records.files import read_json, write_json, write_npz, write_whole
from demo_diffusion.records.folder_claim import claim_folder, differences

from .contact_sheet import SHEET_SAMPLES, contact_sheet

FINGERPRINT_FILE, RESULTS_FILE = "fingerprint.json", "results.json"


@dataclass
class Evaluation:
    """Measures the first images of a source against a reference, in one folder.

    Attributes:
        out: the folder.
        name: what the source is called.
        reference: needed on rank 0 alone.
        facts: what decides the numbers, beside extractor and reference.
        num_samples: how many images of the source are measured.
        batch_size: images at once on a process.
        shard_size: images in a file of features.
        keep_all: whether all images are kept beside the features, not only those of the contact sheet.
        shards: the features.

    Raises:
        ValueError: if the source has not so many images, they are fewer than two, or of another size than the
            reference's.
    """

    out: Path
    name: str
    source: ImageSource
    extractor: FeatureExtractor
    reference: Reference | None
    facts: dict
    num_samples: int
    batch_size: int
    shard_size: int
    keep_all: bool = False
    shards: FeatureShards = field(init=False)

    def __post_init__(self):
        if not 2 <= self.num_samples <= len(self.source):
            raise ValueError(
                f"--num_samples is {self.num_samples}; there are {len(self.source)} images, and at least 2 are needed."
            )
        if self.reference is not None:
            self.reference.check_size(self.source.size)
        self.shards = FeatureShards(self.out / "shards", self.num_samples, self.shard_size)

    @property
    def labels(self) -> list[int] | None:
        """Classes of the samples, if they are known."""
        return None if self.source.labels is None else self.source.labels[: self.num_samples]

    def export(self, path: Path) -> None:
        """Writes the kept images in ADM's layout."""
        images = self.shards.read("images").permute(0, 2, 3, 1).numpy()
        labels = {} if self.labels is None else {"arr_1": np.array(self.labels)}
        write_npz(path, arr_0=images, **labels)

    def run(self, state: PartialState, made_by: dict | None = None, replace: bool = False) -> Scores | None:
        """Claims the folder, extracts the missing features, scores and writes; returns the metrics on rank 0.

        Every process must call it.

        Args:
            made_by: what else results.json says.
            replace: whether an unfinished evaluation of other facts in the folder is removed, not refused.

        Raises:
            ValueError: if the folder holds something else, or an image is not fit.
        """
        fingerprint = self._claim(replace) if state.is_main_process else None
        state.wait_for_everyone()
        keep = self.num_samples if self.keep_all else SHEET_SAMPLES
        speed = extract_features(self.source, self.extractor, self.shards, self.batch_size, state, keep)
        if not state.is_main_process:
            return None
        if speed is None:  # results that are written again keep the speed at which the features were made
            speed = (read_json(self.out / RESULTS_FILE) or {}).get("images_per_second")
        record = {"source": self.name, "fingerprint": fingerprint, "images_per_second": speed}
        return self._write({**record, **(made_by or {})})

    def _claim(self, replace: bool) -> dict:
        fingerprint = {
            **self.facts,
            "num_samples": self.num_samples,
            "extractor": self.extractor.name,
            "extractor_weights": self.extractor.fingerprint,
            "reference": self.reference.source,
            "reference_sha256": self.reference.sha256,
        }
        file = self.out / FINGERPRINT_FILE
        if replace and differences(file, fingerprint):
            shutil.rmtree(self.out)
        claim_folder(file, fingerprint, "an evaluation")
        return fingerprint

    def _write(self, record: dict) -> Scores:
        imagenet_labels = self.labels if self.source.labels_are_imagenet else None
        metrics = score(SampleFeatures(self.shards, self.extractor, imagenet_labels), self.reference)
        sheet = contact_sheet(self.shards, self.reference, self.labels)
        write_whole(self.out / "contact_sheet.png", sheet.save)
        write_json(self.out / RESULTS_FILE, {"num_samples": self.num_samples, "metrics": metrics, **record})
        return metrics


def format_metrics(metrics: Scores) -> str:
    """The metrics in one line."""
    return ", ".join(f"{name} {'unavailable' if value is None else f'{value:.4g}'}" for name, value in metrics.items())
