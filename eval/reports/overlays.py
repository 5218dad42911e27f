"""Classes of pixels as colours over the picture."""

import colorsys
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from demo_diffusion.eval.metrics.segmentation import View, predict_classes
from demo_diffusion.models.segmentation.configuration import IGNORED
from demo_diffusion.records.figures import labelled_grid
from demo_diffusion.records.files import write_whole

NUM_IMAGES = 6
CELL = 192  # pixels


def color_of(label: int) -> list[int]:
    """A colour for each class; neighbours differ in hue. Class 0 and ignored pixels have none of their own."""
    return [round(255 * x) for x in colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 0.95 if label % 2 else 0.7)]


def overlay(image: torch.Tensor, classes: torch.Tensor) -> Image.Image:
    """The picture (3, H, W) uint8 with its classes (H, W), all but class 0 and the ignored, in colour."""
    pixels = image.permute(1, 2, 0).float().clone()
    for label in classes.unique().tolist():
        if label not in (0, IGNORED):
            where = classes == label
            pixels[where] = 0.4 * pixels[where] + 0.6 * torch.tensor(color_of(label)).float()
    return Image.fromarray(pixels.byte().cpu().numpy())


@torch.inference_mode()
def save_overlays(path: Path, network: nn.Module, samples: Dataset, device: torch.device, view: View) -> None:
    """Writes a picture with the first images: what is there above, what was found below."""
    there, found = [], []
    for index in range(min(NUM_IMAGES, len(samples))):
        image, classes = samples[index]
        guess = predict_classes(network, image[None].to(device), view)[0].cpu()
        for row, labels in ((there, classes), (found, guess)):
            picture = overlay(image, labels)
            scale = CELL / max(picture.size)
            picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.NEAREST)
            cell = Image.new("RGB", (CELL, CELL), "white")
            cell.paste(picture)
            row.append(cell)
    write_whole(path, labelled_grid([there, found], ["there", "found"]).save)
