"""Top-1 and top-5 accuracy of a classifier."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import DataLoader, Dataset
from transformers import BaseImageProcessor


def change_crop(processor: BaseImageProcessor, resolution: int | None, crop_pct: float | None) -> None:
    """Has an image processor make crops of another size, or of another share of the picture.

    Raises:
        ValueError: if it does not resize the shorter side and crop the centre.
    """
    if resolution is None and crop_pct is None:
        return
    size, crop = (getattr(processor, name, None) or {} for name in ("size", "crop_size"))
    if not size.get("shortest_edge") or not crop.get("height") or crop["height"] != crop["width"]:
        raise ValueError(
            f"--resolution and --crop_pct change a resize of the shorter side and a square centre crop; this model's "
            f"{type(processor).__name__} works otherwise. Leave them out."
        )
    crop_pct = crop["height"] / size["shortest_edge"] if crop_pct is None else crop_pct
    resolution = crop["height"] if resolution is None else resolution
    processor.size = {"shortest_edge": int(resolution / crop_pct)}
    processor.crop_size = {"height": resolution, "width": resolution}


TOP = (1, 5)


@dataclass
class Accuracy:
    """Shares of `num_images` whose class is the network's first, or among its first five (or all, if fewer).

    `network_images_per_second` counts the network's time alone, `images_per_second` reading and preparing too.
    """

    num_images: int
    top1: float
    top5: float
    images_per_second: float
    network_images_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.num_images:,} images: top-1 {self.top1:.2%}, top-5 {self.top5:.2%}; {self.images_per_second:,.0f} "
            f"images/s, {self.network_images_per_second:,.0f} in the network"
        )


@torch.inference_mode()
def measure_accuracy(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    samples: Dataset,
    state: Accelerator | PartialState,
    batch_size: int,
    num_workers: int = 0,
) -> Accuracy:
    """Every process of `state` measures its share of (pixels, class id); every process gets the whole result."""
    counts = torch.zeros(1 + len(TOP), device=state.device)  # images, then correct ones of each of TOP
    shares = torch.utils.data.Subset(samples, range(state.process_index, len(samples), state.num_processes))
    in_network, start = 0.0, time.perf_counter()
    for images, labels in DataLoader(shares, batch_size, num_workers=num_workers):
        before = time.perf_counter()
        logits = logits_of(images.to(state.device))
        ranked = logits.topk(min(max(TOP), logits.shape[-1]), dim=-1).indices.cpu()  # waits for the network
        in_network += time.perf_counter() - before
        hits = ranked == labels[:, None]
        counts += torch.tensor([len(labels), *(hits[:, :k].sum() for k in TOP)], device=state.device)
    if state.num_processes > 1:
        torch.distributed.all_reduce(counts)
    num_images, top1, top5 = counts.tolist()
    seconds = time.perf_counter() - start
    return Accuracy(
        int(num_images),
        top1 / num_images,
        top5 / num_images,
        num_images / seconds,
        len(shares) / max(in_network, 1e-9) * state.num_processes,
    )
