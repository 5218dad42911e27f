"""mIoU, mDice and accuracies of a segmenter, from one confusion matrix over the whole set."""

from dataclasses import dataclass

from demo_diffusion.cli.command import require_packages

import torch
from accelerate import Accelerator, PartialState
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms.v2.functional import normalize
from torchvision.transforms.v2.functional import resize as resize_picture
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from demo_diffusion.models.segmentation import predict_logits
from demo_diffusion.models.segmentation.configuration import IGNORED
from demo_diffusion.models.segmentation.heads import resize
from demo_diffusion.models.segmentation.sliding_window import window_stride


@dataclass
class View:
    """How a segmenter sees a picture.

    Attributes:
        window, stride: see `predict_logits`.
        shorter_side: the picture is resized to it, and the logits to the picture; None: it is seen as it is.

    Raises:
        ValueError: if the stride is not allowed.
    """

    window: int | None = None
    stride: int | None = None
    shorter_side: int | None = None

    def __post_init__(self):
        if self.stride is not None and self.window is None:
            raise ValueError(f"stride is {self.stride}; it is for a sliding window: give a window too.")
        if self.window is not None:
            window_stride(self.window, self.stride)


@dataclass
class Overlap:
    """Scores over all pixels of a set, as shares; classes that are neither there nor found count in no mean.

    Attributes:
        miou, mdice, macc: means over classes of intersection over union, Dice and the share of its pixels found.
        aacc: share of pixels whose class is right.
        iou: of each class; None where there is no such pixel.
    """

    num_images: int
    miou: float
    aacc: float
    macc: float
    mdice: float
    iou: list[float | None]

    def __str__(self) -> str:
        return (
            f"{self.num_images:,} images: mIoU {self.miou:.2%}, aAcc {self.aacc:.2%}, mAcc {self.macc:.2%}, mDice "
            f"{self.mdice:.2%}"
        )


def overlap_of(confusion: torch.Tensor, num_images: int) -> Overlap:
    """Scores of a confusion matrix (classes, classes): pixels by what is there (rows) and what was found (columns)."""
    confusion = confusion.double()
    right, there, found = confusion.diag(), confusion.sum(1), confusion.sum(0)
    iou = right / (there + found - right)  # 0 / 0 is no number, which the means leave out
    dice, recall = 2 * right / (there + found), right / there
    return Overlap(
        num_images,
        float(iou.nanmean()),
        float(right.sum() / confusion.sum()),
        float(recall.nanmean()),
        float(dice.nanmean()),
        [None if value != value else value for value in iou.tolist()],
    )


@torch.inference_mode()
def measure_overlap(
    network: nn.Module,
    samples: Dataset,
    state: Accelerator | PartialState,
    num_workers: int = 0,
    view: View | None = None,
) -> Overlap:
    """Every process of `state` measures its share of the samples, one at a time; every process gets the whole result.

    Args:
        network: a segmenter in eval mode, on the device.
        samples: (image (3, H, W) uint8, class ids (H, W)), as `load_masks` gives them.
        view: how it sees them; None: whole and as they are.

    Raises:
        ValueError: if no pixel counts.
    """
    require_packages(["torchmetrics"], "segmentation", "Measuring a segmenter")
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric = MulticlassConfusionMatrix(network.config.num_labels, ignore_index=IGNORED, sync_on_compute=False)
    metric = metric.to(state.device)
    share = Subset(samples, range(state.process_index, len(samples), state.num_processes))
    for images, classes in DataLoader(share, 1, num_workers=num_workers):
        metric.update(predict_classes(network, images.to(state.device), view), classes.to(state.device))
    confusion = metric.confmat
    if state.num_processes > 1:
        torch.distributed.all_reduce(confusion)
    if not confusion.any():
        raise ValueError(f"No pixel of the {len(samples):,} images counts: every label is {IGNORED}.")
    return overlap_of(confusion.cpu(), len(samples))


def prepare(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (B, 3, H, W) as the networks expect them: ImageNet's mean and deviation."""
    return normalize(images.float() / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def predict_classes(network: nn.Module, images: torch.Tensor, view: View | None = None) -> torch.Tensor:
    """Class ids (B, H, W) of uint8 images (B, 3, H, W) on the network's device."""
    view, size = view or View(), images.shape[-2:]
    if view.shorter_side is not None:
        factor = view.shorter_side / min(size)
        images = resize_picture(images, [max(1, round(side * factor)) for side in size])
    return resize(predict_logits(network, prepare(images), view.window, view.stride), size).argmax(1)
