"""Soft distillation from any classifier."""

import torch
import torch.nn.functional as F
from torch import nn

from demo_diffusion.models.classifiers import check_classes, expected_input, load_classifier


class Teacher(nn.Module):
    """A frozen classifier, which gets the student's images in its own size and normalisation.

    Args:
        name: folder or hub id.
        id2label: the student's classes, {class id: name}.
        image_mean, image_std: normalisation of the student's images, one number a channel.

    Raises:
        ValueError: if it cannot be loaded, or its classes are not the student's.
    """

    def __init__(self, name: str, id2label: dict[int, str], image_mean: list[float], image_std: list[float]):
        super().__init__()
        self.model, processor = load_classifier(name)
        check_classes(f"The teacher {name}", self.model, id2label)
        self.size, mean, std = expected_input(processor)
        ours, theirs = torch.tensor([image_mean, image_std]), torch.tensor([mean, std])
        self.register_buffer("scale", (ours[1] / theirs[1])[:, None, None])
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1])[:, None, None])

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) for the student's normalised images (B, 3, H, W)."""
        images = images * self.scale + self.shift
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(images).logits


# DeiT's soft distillation (arXiv 2012.12877, eq. 2); the mean over images and classes, as in its code and in EMOv2's
def soft_distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence from student to teacher, logits (B, classes): the mean over both dimensions, times T²."""
    student, teacher = (F.log_softmax(x.float() / temperature, dim=-1) for x in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2 / logits.numel()
