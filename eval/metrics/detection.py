"""Average precision of a detector, as COCO defines it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from demo_diffusion.cli.command import require_packages

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset, Subset

from demo_diffusion.models.detection import EMOv2Detector

# Our names -> torchmetrics' endings. AP is the mean over IoU 0.50, 0.55, … 0.95 and over classes; s, m and l are
# objects of less than 32², of 32² to 96² and of more pixels.
NAMES = {"AP": "map", "AP50": "map_50", "AP75": "map_75", "APs": "map_small", "APm": "map_medium", "APl": "map_large"}
IOU_THRESHOLDS, RECALL_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
MASK_THRESHOLD = 0.5  # from this probability on a pixel is the object's
Found = dict[str, torch.Tensor]


@dataclass
class Precision:
    """Average precision of boxes, and of masks if the detector has them: {name: share}, None without such objects.

    `network_images_per_second` counts the detector's time alone, `images_per_second` reading and measuring too.
    """

    num_images: int
    box: dict[str, float | None]
    mask: dict[str, float | None] | None
    images_per_second: float
    network_images_per_second: float

    def __str__(self) -> str:
        kinds = [f"box {_in_words(self.box)}", *([f"mask {_in_words(self.mask)}"] if self.mask else [])]
        return (
            f"{self.num_images:,} images: {'; '.join(kinds)}; {self.images_per_second:,.1f} images/s, "
            f"{self.network_images_per_second:,.1f} in the network"
        )


def _in_words(scores: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'–' if value is None else f'{100 * value:.1f}'}" for name, value in scores.items())


class AveragePrecision:
    """Collects detections and truth of images, on any number of processes.

    Args:
        masks: measures masks beside boxes.

    Raises:
        ValueError: if a package is missing.
    """

    def __init__(self, masks: bool):
        require_packages(["torchmetrics", "faster_coco_eval", "pycocotools"], "detection", "Average precision")
        from torchmetrics.detection import MeanAveragePrecision

        kinds = ("bbox", "segm") if masks else "bbox"
        self.masks = masks
        self.metric = MeanAveragePrecision(
            iou_type=kinds,
            backend="faster_coco_eval",
            sync_on_compute=False,
            iou_thresholds=IOU_THRESHOLDS,  # in float64, as COCO's; torchmetrics' own are rounded to float32
            rec_thresholds=RECALL_THRESHOLDS,
        )
        self.metric.warn_on_many_detections = False  # COCO counts the best 100; SSDLite gives 200

    def update(self, found: Sequence[Found], truth: Sequence[Found]) -> None:
        """Adds images.

        Args:
            found: what a detector gives for each: "boxes" (M, 4), "scores", "labels" and "masks" (M, 1, H, W).
            truth: "boxes" (N, 4), "labels", and if wanted "masks" (N, H, W), "iscrowd" and "area". A detection of a
                crowd counts neither for nor against; without areas, those of boxes or masks are taken.
        """
        self.metric.update([self._prepare(each) for each in found], [self._prepare(each) for each in truth])

    def _prepare(self, each: Found) -> Found:
        each = {name: value.detach().cpu().as_subclass(torch.Tensor) for name, value in each.items()}
        if "masks" in each and not self.masks:
            del each["masks"]
        if "masks" in each:
            masks = each["masks"] if each["masks"].dtype == torch.bool else each["masks"] > MASK_THRESHOLD
            each["masks"] = masks.squeeze(1) if masks.ndim == 4 else masks
        return each

    def compute(self) -> tuple[dict[str, float | None], dict[str, float | None] | None]:
        """(scores of boxes, scores of masks or None) over the images of all processes, each of which must call it.

        The images count in the order in which processes took turns, so that ties of scores do not depend on how many
        there were.
        """
        if PartialState().num_processes > 1:
            shares = gather_object([self.metric.metric_state])
            for name in shares[0]:
                setattr(self.metric, name, list(_take_turns([share[name] for share in shares])))
        results = self.metric.compute()
        box = _scores(results, "bbox_" if self.masks else "")
        return box, _scores(results, "segm_") if self.masks else None


def _take_turns(shares: list[list]):
    for position in range(max(map(len, shares))):
        yield from (share[position] for share in shares if position < len(share))


def _scores(results: dict[str, torch.Tensor], prefix: str) -> dict[str, float | None]:
    values = {name: float(results[prefix + ending]) for name, ending in NAMES.items()}
    return {name: None if value < 0 else value for name, value in values.items()}  # -1: there is no such object


@torch.inference_mode()
def measure_precision(
    detector: EMOv2Detector,
    samples: Dataset,
    state: Accelerator | PartialState,
    batch_size: int,
    num_workers: int = 0,
) -> Precision:
    """Every process of `state` measures its share of the samples; every process gets the whole result.

    Args:
        detector: in eval mode, on the device.
        samples: (image (3, H, W) uint8, target) with class ids from 0, as `load_objects` gives them.
    """
    precision = AveragePrecision(masks=detector.config.detector == "MaskRCNN")
    share = Subset(samples, range(state.process_index, len(samples), state.num_processes))
    in_network, start = 0.0, time.perf_counter()
    for images, targets in DataLoader(share, batch_size, num_workers=num_workers, collate_fn=as_lists):
        before = time.perf_counter()
        found = detect(detector, images, state.device)
        in_network += time.perf_counter() - before
        precision.update(found, targets)
    box, mask = precision.compute()
    seconds = time.perf_counter() - start
    return Precision(
        len(samples),
        box,
        mask,
        len(samples) / seconds,
        len(share) / max(in_network, 1e-9) * state.num_processes,
    )


def as_lists(samples: Sequence[tuple]) -> list[list]:
    """A batch of samples whose parts have different sizes: a list of each part."""
    return [list(part) for part in zip(*samples, strict=True)]


@torch.inference_mode()
def detect(detector: EMOv2Detector, images: Sequence[torch.Tensor], device: torch.device) -> list[Found]:
    """Detections of uint8 images (3, H, W), on the CPU, with class ids from 0 as labels.

    RetinaNet and Mask R-CNN see the images one by one: in a batch they are padded to the largest, which would change
    what is found by the company that an image has.
    """
    pixels = [image.as_subclass(torch.Tensor).to(device).float() / 255 for image in images]
    batches = [pixels] if detector.config.detector == "SSDLite" else [[image] for image in pixels]
    found = [each for batch in batches for each in detector(batch)]
    first = detector.config.first_label
    return [{**{k: v.cpu() for k, v in each.items()}, "labels": each["labels"].cpu() - first} for each in found]
