"""What an evaluation writes: results.json and the contact sheet."""

from pathlib import Path

from demo_diffusion.eval.features.extractors import FeatureExtractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.metrics.scores import score
from demo_diffusion.eval.samples.image_sources import ImageSource
from demo_diffusion.records.files import write_json

from .contact_sheet import contact_sheet


def write_results(
    out: Path,
    shards: FeatureShards,
    reference: Reference,
    extractor: FeatureExtractor,
    source: ImageSource,
    facts: dict,
) -> dict[str, float | None]:
    """Scores, and writes contact_sheet.png and results.json."""
    labels = None if source.labels is None else source.labels[: shards.num_images]
    metrics = score(shards, reference, extractor, labels if source.labels_are_imagenet else None)
    contact_sheet(shards, reference, labels).save(out / "contact_sheet.png")
    results = {"num_samples": shards.num_images, "metrics": metrics, **facts}
    write_json(out / "results.json", results)
    return metrics


def format_metrics(metrics: dict[str, float | None]) -> str:
    """The metrics in one line."""
    return ", ".join(f"{name} {'unavailable' if value is None else f'{value:.4g}'}" for name, value in metrics.items())
