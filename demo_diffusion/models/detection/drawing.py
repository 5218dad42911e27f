"""Draws what was found onto a picture."""

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_segmentation_masks

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#000075", "#d81b9a")


def draw_objects(
    image: torch.Tensor, objects: Mapping[str, torch.Tensor], names: Mapping[int, str], threshold: float = 0.5
) -> Image.Image:
    """The picture with boxes, names, scores and, where there are, masks; a colour for each class.

    Args:
        image: (3, H, W) uint8.
        objects: "boxes" (N, 4) in pixels, "labels" (N,) and, if known, "scores" (N,) and "masks": (N, 1, H, W)
            probabilities or (N, H, W) bool.
        names: {label: name}.
        threshold: objects of lower scores are left out.
    """
    scores = objects.get("scores")
    kept = range(len(objects["boxes"])) if scores is None else (scores >= threshold).nonzero().flatten().tolist()
    colors = [COLORS[int(objects["labels"][i]) % len(COLORS)] for i in kept]
    if "masks" in objects and len(colors):
        masks = objects["masks"][list(kept)]
        masks = masks.flatten(0, 1) > 0.5 if masks.ndim == 4 else masks.bool()
        image = draw_segmentation_masks(image, masks, alpha=0.5, colors=colors)
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(10, min(picture.size) // 40))
    for i, color in zip(kept, colors, strict=True):
        left, top, right, bottom = objects["boxes"][i].tolist()
        label = names[int(objects["labels"][i])] + ("" if scores is None else f" {scores[i]:.2f}")
        draw.rectangle((left, top, right, bottom), outline=color, width=max(1, min(picture.size) // 200))
        place = draw.textbbox((left, top), label, font=font, anchor="lb" if top > font.size else "lt")
        draw.rectangle(place, fill=color)
        draw.text(place[:2], label, fill="white", font=font, anchor="lt")
    return picture
