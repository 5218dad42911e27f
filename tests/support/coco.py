"""A folder of pictures with a COCO JSON file."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]


def annotation(number: int, image: int = 1, **changes) -> dict:
    """A square of 20 pixels at (10, 5) with its polygon."""
    polygon = [[10, 5, 30, 5, 30, 25, 10, 25]]
    fields = {"id": number, "image_id": image, "category_id": 13, "bbox": [10, 5, 20, 20], "area": 400.0, "iscrowd": 0}
    return {**fields, "segmentation": polygon, **changes}


def coco_content() -> dict:
    """Four pictures: two objects, a crowd with an object, nothing, a tiny one."""
    sizes = [(60, 40), (50, 70), (64, 64), (20, 90)]
    images = [
        {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes, start=1)
    ]
    counts = [0, 100, 700, 20, 2680]  # of a mask of 70 × 50, column by column
    crowd = {"size": [70, 50], "counts": counts}
    annotations = [
        annotation(1),
        annotation(2, bbox=[0, 0, 60.5, 40], area=2400.0, category_id=90, segmentation=[[0, 0, 60, 0, 60, 40, 0, 40]]),
        annotation(3, image=2, iscrowd=1, segmentation=crowd),
        annotation(4, image=2, category_id=1),
        annotation(5, image=4, bbox=[0, 5, 20, 20]),
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def coco_folder(path: Path, content: dict | None = None) -> tuple[str, str]:
    """(folder of pictures, JSON file); the pictures have the sizes that `coco_content` says."""
    folder, file = path / "pictures", path / "objects.json"
    folder.mkdir(parents=True, exist_ok=True)
    for each in coco_content()["images"]:
        noise = np.random.default_rng(each["id"]).integers(0, 255, (each["height"], each["width"], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / each["file_name"])
    file.write_text(json.dumps(coco_content() if content is None else content))
    return str(folder), str(file)
