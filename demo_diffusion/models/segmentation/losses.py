"""The loss of segmenters, and what is checked of their labels."""

import torch
import torch.nn.functional as F

from demo_diffusion.checks import check_tensor

from .heads import resize

COMPARED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # types that PyTorch compares in place


def check_labels(labels: torch.Tensor, pixel_values: torch.Tensor, num_labels: int, ignored: int) -> None:
    """Raises ValueError unless labels are (B, H, W) of the images' size, whole numbers, each a class or the ignored."""
    check_tensor("labels", labels, (len(pixel_values), *pixel_values.shape[-2:]), floating=False)
    if labels.layout != torch.strided or labels.device != pixel_values.device:
        kind = f"on {labels.device}" if labels.layout == torch.strided else labels.layout
        raise ValueError(f"labels is {kind}; it must be a dense tensor on the images' device, {pixel_values.device}.")
    labels = labels if labels.dtype in COMPARED else labels.long()
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
