"""Small detectors, images of mixed size and what is to be found on them."""

import torch

from demo_diffusion.models.detection import EMOv2Detector, create_detector

DETECTORS = ("SSDLite", "RetinaNet", "MaskRCNN")
BACKBONES = ("EMOv2-1M", "EMOv1-1M")
SIZES = ((60, 80), (96, 64), (90, 90))  # (height, width)
TINY = {
    "hidden_sizes": (8, 12, 16, 24),
    "depths": (1, 1, 2, 2),
    "attention_head_dims": (8, 12, 8, 8),
    "window_size": 3,
    "drop_path_rate": 0.0,
}


def small_detector(name: str, backbone: str = "EMOv2-1M", **options) -> EMOv2Detector:
    """A detector of five classes for small images; the paper's network but for the options."""
    small = {"num_classes": 5, "image_size": 96, "box_batch_size_per_image": 16}
    return create_detector(name, backbone, **{**small, **options})


def confident(detector: EMOv2Detector) -> EMOv2Detector:
    """With weights and statistics from which it finds many different things."""
    generator = torch.Generator().manual_seed(1)
    scale = 1.5 if detector.config.detector == "SSDLite" else 0.9
    for key, value in detector.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * scale / value[0].numel() ** 0.5)
        elif key.endswith("gamma"):
            value.fill_(1.0)
        elif key.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif key.endswith("bias"):
            value.zero_()
    return detector.eval()


def images_and_targets(first_label: int, masks: bool = True) -> tuple[list[torch.Tensor], list[dict]]:
    """Three images of other sizes each, the last one without objects."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES]
    boxes = [[[5.0, 5, 40, 50], [30, 10, 60, 40]], [[0, 0, 64, 96]], []]
    targets = []
    for image, of_image in zip(images, boxes, strict=True):
        target = {"boxes": torch.tensor(of_image).reshape(-1, 4), "labels": first_label + torch.arange(len(of_image))}
        if masks:
            target["masks"] = torch.zeros(len(of_image), *image.shape[-2:], dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
        targets.append(target)
    return images, targets
