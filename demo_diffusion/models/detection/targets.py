"""Checks what a detector is given: images of any size, and the boxes, labels and masks to be learned."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from demo_diffusion.checks import shown
from demo_diffusion.models.input_checks import check_computable

Target = Mapping[str, torch.Tensor]
DARKEST, BRIGHTEST = -0.5, 2.0  # of images in [0, 1], which augmentations may leave a little; 0 … 255 is far above


def check_images(images: Sequence[torch.Tensor], layer: nn.Module, longest: int | None = None) -> None:
    """Checks the images of a batch, of any size each.

    Args:
        layer: one of the network's, whose weight's type the images must have.
        longest: pixels to which a longer side is shrunk; None: images are made square.

    Raises:
        ValueError: if one is no tensor (3, H, W) of that type, is not in [0, 1], or too long and narrow.
    """
    if isinstance(images, torch.Tensor) and images.ndim != 4:
        raise ValueError(f"images is a tensor of shape {tuple(images.shape)}; give a list of tensors (3, H, W).")
    if not isinstance(images, (Sequence, torch.Tensor)) or isinstance(images, str):
        raise ValueError(f"images is {shown(images)}; give a list of at least one tensor (3, H, W).")
    if len(images) == 0:
        raise ValueError("There are no images; give a list of at least one tensor (3, H, W).")
    for number, image in enumerate(images):
        if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.shape[0] != 3:
            shape = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise ValueError(f"Image {number} is {shape}; it must be a tensor (3, H, W), RGB in [0, 1].")
        if not image.is_floating_point():
            raise ValueError(f"Image {number} holds {image.dtype}; it must be {layer.weight.dtype}, RGB in [0, 1].")
        check_computable(f"Image {number}", image, layer)
        shorter, longer = sorted(image.shape[1:])
        if shorter == 0 or (longest is not None and shorter * longest < longer):
            raise ValueError(f"Image {number} has {image.shape[2]} × {image.shape[1]} pixels; it is too narrow.")
        _check_brightness(number, image)


def _check_brightness(number: int, image: torch.Tensor) -> None:
    """On the CPU alone, where looking at values waits for nothing."""
    if image.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
        darkest, brightest = map(float, torch.aminmax(image.detach()))
        if not (darkest >= DARKEST and brightest <= BRIGHTEST):  # NaN is neither
            hint = " Divide by 255?" if BRIGHTEST < brightest < 256 else ""
            values = f"up to {brightest:g}" if hint else f"from {darkest:g} to {brightest:g}"
            raise ValueError(f"Image {number} has values {values}; they must be in [0, 1].{hint}")


def check_targets(
    images: Sequence[torch.Tensor], targets: Sequence[Target] | None, labels: range, needs_masks: bool
) -> None:
    """Checks the targets of a batch.

    Args:
        images: (3, H, W) each.
        targets: for each image "boxes" (N, 4) as x1, y1, x2, y2 in pixels, "labels" (N,) and, if needed, "masks"
            (N, H, W). N may be 0.
        labels: those allowed.

    Raises:
        ValueError: if something is missing, empty, outside its image or out of range.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str) or len(targets) != len(images):
        given = "none" if targets is None else len(targets) if isinstance(targets, Sequence) else shown(targets)
        raise ValueError(f"There are {len(images)} images and {given} targets; training needs one for each image.")
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        if problem := _find_problem(target, image, labels, needs_masks):
            raise ValueError(f"The target of image {number} is not right: {problem}")


def _find_problem(target: Target, image: torch.Tensor, labels: range, needs_masks: bool) -> str | None:
    """What is wrong with the target of an image (3, height, width), as a sentence; None if nothing."""
    if not isinstance(target, Mapping):
        return f"it is {shown(target)}; it must be a dict of boxes and labels."
    needed = ("boxes", "labels", "masks") if needs_masks else ("boxes", "labels")
    if missing := [name for name in needed if name not in target]:
        return f"it has no {', '.join(missing)}; it has {', '.join(map(str, target)) or 'nothing'}."
    for name in needed:
        if not isinstance(target[name], torch.Tensor):
            return f"its {name} are {shown(target[name])}; they must be a tensor."
        if target[name].layout != torch.strided or target[name].device != image.device:
            return f"its {name} must be a dense tensor on the image's device, {image.device}."
    size = tuple(image.shape[-2:])
    return (
        _find_wrong_box(target["boxes"], size)
        or _find_wrong_label(target["labels"], len(target["boxes"]), labels)
        or (_find_wrong_masks(target["masks"], len(target["boxes"]), size) if needs_masks else None)
    )


def _find_wrong_box(boxes: torch.Tensor, size: tuple[int, int]) -> str | None:
    """What is wrong with boxes (N, 4) in an image of this (height, width); None if nothing."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return f"its boxes have the shape {tuple(boxes.shape)}; it must be (N, 4), (0, 4) without objects."
    if boxes.is_complex() or boxes.dtype == torch.bool:
        return f"its boxes are {boxes.dtype}; they must be real numbers (float32)."
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    is_outside = (boxes < 0) | (boxes > limits) | ~boxes.isfinite()
    is_wrong = is_outside.any(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if not is_wrong.any():
        return None
    index = int(is_wrong.nonzero()[0])
    what = "lies outside its image" if is_outside[index].any() else "is empty"
    box = ", ".join(f"{value:g}" for value in boxes[index].tolist())
    return f"box {index}, ({box}), {what}; x1 < x2 must be in 0 … {width} and y1 < y2 in 0 … {height}."


def _find_wrong_label(labels: torch.Tensor, count: int, allowed: range) -> str | None:
    if labels.shape != (count,):
        return f"its labels have the shape {tuple(labels.shape)} for {count} boxes; it must be ({count},)."
    if labels.dtype != torch.int64:
        return f"its labels are {labels.dtype}; they must be whole numbers (int64)."
    is_wrong = (labels < allowed[0]) | (labels > allowed[-1])
    if not is_wrong.any():
        return None
    wrong = int(labels[is_wrong][0])
    hint = ""
    if wrong == allowed[-1] + 1:
        hint = f" Do yours count from {allowed[0] + 1}? Subtract 1."
    elif wrong == allowed[0] - 1:
        hint = f" Do yours count from {wrong}? Add 1: {wrong} is the background." if wrong == 0 else ""
    return f"it has the label {wrong}; labels must be in {allowed[0]} … {allowed[-1]}.{hint}"


def _find_wrong_masks(masks: torch.Tensor, count: int, size: tuple[int, int]) -> str | None:
    if masks.shape != (count, *size):
        return f"its masks have the shape {tuple(masks.shape)}; it must be {(count, *size)}: (boxes, height, width)."
    if masks.is_complex():
        return f"its masks are {masks.dtype}; they must be 0 and 1."
    if masks.dtype != torch.bool and ((masks != 0) & (masks != 1)).any():
        return f"its masks have values from {masks.amin():g} to {masks.amax():g}; they must be 0 and 1."
    return None
