"""The loss of segmenters, and what is checked of their labels."""

import torch
import torch.nn.functional as F

from .heads import resize


def check_labels(labels: torch.Tensor, pixel_values: torch.Tensor, num_labels: int, ignored: int) -> None:
    """Raises ValueError unless labels are (B, H, W) of the images' size, whole numbers, each a class or the ignored."""
    shape = (len(pixel_values), *pixel_values.shape[-2:])
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; for these images it must be {shape}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels has the type {labels.dtype}; it must hold class ids, whole numbers.")
    if torch.compiler.is_compiling() or labels.device.type not in ("cpu", "cuda"):
        return
    wrong = labels[(labels != ignored) & ((labels < 0) | (labels >= num_labels))]
    if len(wrong):
        raise ValueError(
            f"labels has class {int(wrong[0])}; the classes are 0 to {num_labels - 1}, and {ignored} is ignored."
        )


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignored: int) -> torch.Tensor:
    """Cross-entropy of logits resized to the labels, divided by the number of all pixels, ignored ones too.

    Args:
        logits: (B, labels, h, w).
        labels: (B, H, W) class ids.
    """
    logits = resize(logits.float(), labels.shape[-2:])
    return F.cross_entropy(logits, labels.long(), ignore_index=ignored, reduction="none").mean()
