"""An official EMOv2 or EMOv1 checkpoint as a transformers folder: config, weights and image processor."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from demo_diffusion.models import EMOv2ForImageClassification
from demo_diffusion.models.emov2_auto import emov2_image_processor

from .emov2 import convert_emov2

WINDOW_SIZES = {224: 7, 256: 8, 512: 8}  # by the image size that the official weights were trained at


def classifier_from_official(
    state_dict: Mapping[str, torch.Tensor],
    path: Path,
    image_size: int | None,
    window_size: int | None,
    attention_mode: str | None,
    label_names: Mapping[int, list[str]],
) -> EMOv2ForImageClassification:
    """The classifier of an official state dict that was read from `path`.

    Args:
        image_size: None: a size in the file's name, as the official files have it (EMOv2_5M_512.pth), or 224.
        window_size: None: the official one of the image size.
        attention_mode: None: the release's, see `convert_emov2`.
        label_names: by their number, names of the classes.

    Raises:
        ValueError: if the weights are not of the official format or the window size cannot be told.
    """
    if image_size is None:
        found = re.findall(r"(?<!\d)(224|256|512)(?!\d)", path.stem)
        image_size = int(found[-1]) if found else 224
    if window_size is None and image_size not in WINDOW_SIZES:
        raise ValueError(f"There is no official window size for {image_size} pixels ({WINDOW_SIZES}); give one.")
    window_size = WINDOW_SIZES[image_size] if window_size is None else window_size
    model = convert_emov2(state_dict, window_size, attention_mode, image_size=image_size)
    if names := label_names.get(model.config.num_labels):
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def save_classifier(model: EMOv2ForImageClassification, folder: Path) -> None:
    model.save_pretrained(folder)
    emov2_image_processor(model.config.image_size).save_pretrained(folder)
