"""A quick check for small images: does a nearest-neighbour classifier of the real images know the samples?"""

from dataclasses import asdict, dataclass
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import torch
from torch.utils.data import Dataset

from demo_diffusion.pipelines import DEMOPipeline
from demo_diffusion.records.files import write_json

NUM_NEIGHBORS = 3
BATCH_SIZE = 100


@dataclass
class NearestNeighborReport:
    """Accuracies are the share of samples whose nearest real images have the class that was asked for.

    Attributes:
        accuracy: {guidance scale: share}.
        sample_mean, sample_std: {guidance scale: of the pixels in [−1, 1]}.
        real_mean, real_std: of the real pixels.
    """

    num_samples: int
    num_inference_steps: int
    accuracy: dict[float, float]
    sample_mean: dict[float, float]
    sample_std: dict[float, float]
    real_mean: float
    real_std: float

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    def __str__(self) -> str:
        lines = [f"real images: pixel mean {self.real_mean:+.3f}, spread {self.real_std:.3f}"]
        for scale, accuracy in self.accuracy.items():
            lines.append(
                f"{self.num_samples} samples at guidance scale {scale:g}: {accuracy:.1%} have their class by "
                f"{NUM_NEIGHBORS} nearest neighbours; pixel mean {self.sample_mean[scale]:+.3f}, "
                f"spread {self.sample_std[scale]:.3f}"
            )
        return "\n".join(lines)


def nearest_neighbor_report(
    pipeline: DEMOPipeline,
    real_images: Dataset,
    num_samples: int,
    guidance_scales: list[float],
    num_inference_steps: int,
    seed: int = 0,
) -> NearestNeighborReport:
    """Fits the classifier on the pixels of all `real_images` and asks it for the class of balanced samples.

    Args:
        real_images: gives (image (C, H, W) in [−1, 1], class id), in the size of the samples.
    """
    require_packages(["sklearn"], "train", "The nearest-neighbour check")
    from sklearn.neighbors import KNeighborsClassifier

    images, labels = zip(*(real_images[i] for i in range(len(real_images))), strict=True)
    images = torch.stack(images)
    classifier = KNeighborsClassifier(NUM_NEIGHBORS).fit(images.flatten(1).numpy(), [int(label) for label in labels])
    classes = [i % pipeline.transformer.config.num_classes for i in range(num_samples)]
    report = NearestNeighborReport(
        num_samples, num_inference_steps, {}, {}, {}, images.mean().item(), images.std().item()
    )
    for scale in guidance_scales:
        samples = sample_images(pipeline, classes, scale, num_inference_steps, seed)
        predicted = classifier.predict(samples.flatten(1).numpy())
        report.accuracy[scale] = float((predicted == classes).mean())
        report.sample_mean[scale] = samples.mean().item()
        report.sample_std[scale] = samples.std().item()
    return report


def sample_images(
    pipeline: DEMOPipeline, classes: list[int], guidance_scale: float, num_inference_steps: int, seed: int
) -> torch.Tensor:
    """Samples (B, C, H, W) in [−1, 1], one a class id."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        pipeline(
            classes[i : i + BATCH_SIZE],
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type="pt",
        ).images
        for i in range(0, len(classes), BATCH_SIZE)
    ]
    return torch.cat(batches).cpu() * 2 - 1
