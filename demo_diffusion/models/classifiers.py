"""Any image classifier that transformers loads, timm's included, by name."""

import warnings
from collections.abc import Sequence

from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, BitImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from demo_diffusion.checks import shown

from .loading import check_loaded


def image_processor(
    resolution: int = 224,
    crop_pct: float = 0.875,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> BitImageProcessor:
    """The preprocessing of EMOv2's and EMOv1's official evaluation: resize (bicubic), centre crop, normalise.

    Args:
        resolution: side of the crop in pixels.
        crop_pct: share of the shorter side that the crop keeps.
        image_mean, image_std: of each channel of the pixels in [0, 1].
    """
    return BitImageProcessor(
        size={"shortest_edge": int(resolution / crop_pct)},
        crop_size={"height": resolution, "width": resolution},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def load_classifier(name: str) -> tuple[nn.Module, BaseImageProcessor]:
    """A classifier in eval mode and its image processor, from a folder or the hub (timm's models as timm/NAME).

    Raises:
        ValueError: if one of them cannot be loaded, or not all of its weights are there.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True)
        check_loaded(name, model, info)
        processor = AutoImageProcessor.from_pretrained(name)
        _check_parts(model, processor)
        return model.eval().requires_grad_(False), processor
    except Exception as error:  # of the hub, of safetensors, of timm, …
        raise ValueError(
            f"The classifier {name} cannot be loaded: {error} Give a folder that save_pretrained wrote, or a hub id "
            "such as timm/resnet50.a1_in1k (timm's need the package timm)."
        ) from error


def _check_parts(model: nn.Module, processor: BaseImageProcessor) -> None:
    """Raises an error unless the classes have names and a picture can be prepared."""
    if not all(isinstance(label, str) for label in model.config.id2label.values()):
        raise ValueError(f"id2label is {shown(model.config.id2label)}; every class must have a name.")
    pixels = processor(Image.new("RGB", (20, 12), "red"), return_tensors="pt")["pixel_values"]
    if pixels.ndim != 4 or not pixels.isfinite().all():
        raise ValueError(f"its image processor makes {shown(pixels)} of a picture, or values that are not finite.")


def expected_input(processor: BaseImageProcessor) -> tuple[tuple[int, int], list[float], list[float]]:
    """((height, width), mean, standard deviation) of the RGB pixels that an image processor makes.

    Raises:
        ValueError: if it does not say, or makes something else.
    """
    if config := getattr(processor, "data_config", None):  # timm's
        return tuple(config["input_size"][-2:]), list(config["mean"]), list(config["std"])
    size = getattr(processor, "crop_size", None) or getattr(processor, "size", None) or {}
    sides = [size.get(name) or size.get("shortest_edge") for name in ("height", "width")]
    if None in sides or getattr(processor, "do_flip_channel_order", False):
        raise ValueError(f"Only teachers of RGB images of one size are supported; this one has {processor}.")
    if not processor.do_normalize:
        return tuple(sides), [0.0] * 3, [1.0] * 3
    return tuple(sides), list(processor.image_mean), list(processor.image_std)


def check_classes(name: str, model: nn.Module, id2label: dict[int, str]) -> None:
    """Checks that a model's classes are the data's. It warns of names that the model does not have.

    Raises:
        ValueError: if there is another number of classes, or one is at another place.
    """
    labels = {int(index): label for index, label in model.config.id2label.items()}
    if len(labels) != len(id2label):
        raise ValueError(f"{name} has {len(labels)} classes, the data {len(id2label)}; they must be the same.")
    places = {label: index for index, label in labels.items()}
    for index, label in id2label.items():
        if label not in places and label.isdecimal() and int(label) != index:
            raise ValueError(
                f"The data's class {label!r} has the number {index}, and {name} knows its classes by other names. Name "
                f"the folders as {name} does, or by all its numbers."
            )
        if places.get(label, index) != index:
            raise ValueError(
                f"{name} has the class {label!r} at {places[label]}, the data at {index}; the order must be the same."
            )
    if unknown := [label for label in id2label.values() if label not in places]:
        warnings.warn(
            f"{name} does not name {len(unknown)} of the data's {len(id2label)} classes, {unknown[0]!r} for one. "
            "Classes are taken by their numbers: their order must be the same.",
            stacklevel=2,
        )
