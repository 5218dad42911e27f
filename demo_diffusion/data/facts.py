"""By what a dataset is recognised when work on it goes on."""

from collections.abc import Mapping

import numpy as np
import torch

from demo_diffusion.records.hashes import tensor_hash

from .images import LabelledImages

COMPARED_IMAGES = 16  # evenly spaced
MAX_LISTED = 3


def describe_images(images: LabelledImages) -> dict:
    """The dataset's size, its class names, and some of its images and labels by hash.

    Where it lies is none of them: a dataset that was moved is the same.
    """
    count, compared = len(images.dataset), {}
    for index in np.unique(np.linspace(0, count - 1, COMPARED_IMAGES).astype(int)).tolist():
        try:
            image, label = images.dataset[index]
        except Exception:  # image decoders raise almost anything on a damaged file
            image, label = torch.empty(0), "unreadable"
        compared[f"{index} {label}"] = image
    pixels = tensor_hash(compared, is_sorted=False)
    return {"num_images": count, "id2label": images.id2label, "pixels": pixels}


def checked_facts(facts: object) -> dict:
    """What JSON holds of a description by `describe_images`; raises ValueError or TypeError if it is none."""
    if not isinstance(facts, dict) or not isinstance(facts["num_images"], int) or not isinstance(facts["pixels"], str):
        raise ValueError("it does not describe images")
    names = {int(i): name for i, name in facts["id2label"].items()}
    if sorted(names) != list(range(len(names))) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError("its id2label does not name the classes 0 … n − 1")
    return facts


def changed_data(saved: Mapping, now: Mapping) -> list[str]:
    """What differs between two descriptions by `describe_images`, one read from JSON, as texts."""
    before, after = ({int(i): name for i, name in facts["id2label"].items()} for facts in (saved, now))
    changed = []
    if saved["num_images"] != now["num_images"]:
        changed.append(f"{now['num_images']:,} images instead of {saved['num_images']:,}")
    if len(before) != len(after):
        changed.append(f"{len(after):,} classes instead of {len(before):,}")
    renamed = [i for i in sorted(before.keys() & after.keys()) if before[i] != after[i]]
    changed += [f"class {i} is {after[i]!r} instead of {before[i]!r}" for i in renamed[:MAX_LISTED]]
    if not changed and saved["pixels"] != now["pixels"]:
        changed.append("other images, or in another order")
    return changed
