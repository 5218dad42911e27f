"""What a detector found beside what is there."""

from pathlib import Path

import torch
from PIL import Image

from demo_diffusion.data.objects import LabelledObjects
from demo_diffusion.eval.metrics.detection import detect
from demo_diffusion.models.detection import EMOv2Detector
from demo_diffusion.models.detection.drawing import draw_objects
from demo_diffusion.records.figures import labelled_grid
from demo_diffusion.records.files import write_whole

NUM_IMAGES = 6
CELL = 240  # pixels


def class_names(detector: EMOv2Detector) -> dict[int, str]:
    """{class id from 0: name} of a detector, whose labels may begin at 1."""
    return {label - detector.config.first_label: name for label, name in detector.config.id2label.items()}


def check_same_classes(name: str, detector: EMOv2Detector, id2label: dict[int, str]) -> None:
    """Raises ValueError if a detector's classes are not the data's."""
    ours = class_names(detector)
    if ours == id2label:
        return
    first = min(i for i in ours.keys() | id2label.keys() if ours.get(i) != id2label.get(i))
    raise ValueError(
        f"{name} has {len(ours)} classes and the data {len(id2label)}; class {first} is {ours.get(first)!r} there and "
        f"{id2label.get(first)!r} in the data. They must be the same."
    )


def save_comparison(
    path: Path, detector: EMOv2Detector, objects: LabelledObjects, device: torch.device, threshold: float = 0.5
) -> None:
    """Writes a picture with the first images: what is there above, what the detector found from a score on below."""
    samples = [objects.dataset[i] for i in range(min(NUM_IMAGES, len(objects.dataset)))]
    found = detect(detector, [image for image, _ in samples], device)
    rows = [
        [_cell(draw_objects(image, target, objects.id2label)) for image, target in samples],
        [
            _cell(draw_objects(image, each, objects.id2label, threshold))
            for (image, _), each in zip(samples, found, strict=True)
        ],
    ]
    grid = labelled_grid(rows, ["there", "found"])
    write_whole(path, grid.save)


def _cell(picture: Image.Image) -> Image.Image:
    """On a square canvas, as large as it can be."""
    scale = CELL / max(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (CELL, CELL), "white")
    canvas.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return canvas
