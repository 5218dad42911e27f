"""The names of ImageNet's classes."""

from torchvision.models import ResNet50_Weights


def imagenet_names(num_classes: int) -> dict[int, str] | None:
    """{class id: name} of ImageNet's classes; None for another number of classes than its 1,000."""
    return dict(enumerate(ResNet50_Weights.DEFAULT.meta["categories"])) if num_classes == 1000 else None
