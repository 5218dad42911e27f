"""Trains segmenters on EMOv2 or EMOv1, U-EMO and the plain UNet."""

import dataclasses
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import SegformerImageProcessor

from demo_diffusion.data.masks import describe_masks, load_masks
from demo_diffusion.eval.metrics.segmentation import Overlap, measure_overlap
from demo_diffusion.eval.reports.overlays import save_overlays
from demo_diffusion.models.segmentation import UEMOConfig, UEMOForSemanticSegmentation, create_segmenter
from demo_diffusion.records.run_records import SCORES
from demo_diffusion.train.engine.hub import check_hub_access
from demo_diffusion.train.engine.measured_trainer import MeasuredTrainer

from .config import UNETS, SegmentationTrainingConfig
from .data import AugmentedPixels
from .model_card import write_segmentation_card


class SegmentationTrainer(MeasuredTrainer):
    """Trains a segmenter and leaves a folder that AutoModelForSemanticSegmentation loads.

    Attributes:
        pixels, val_pixels: images with masks to learn and to measure.

    Raises:
        ValueError: if a package, the hub, data or an option does not allow the run.
    """

    kind = "overlap"

    def __init__(self, config: SegmentationTrainingConfig):
        require_packages(("torchmetrics", "matplotlib", "tensorboard"), "segmentation", "Training a segmenter")
        if config.run.push_to_hub is not None:
            check_hub_access()
        self.pixels = load_masks(config.data, is_training=True)
        self.val_pixels = load_masks(config.data.validation(), is_training=False)
        length = config.optimization.in_steps(len(self.pixels.dataset))
        super().__init__(dataclasses.replace(config, optimization=length))

    def data_facts(self) -> dict:
        return describe_masks(self.pixels)

    def load_data(self) -> Dataset:
        config = self.config
        self.accelerator.print(
            f"{len(self.pixels.dataset):,} images with {len(self.pixels.id2label):,} classes, "
            f"{len(self.val_pixels.dataset):,} to measure on; {self.num_steps:,} steps of "
            f"{config.optimization.batch_size}"
        )
        return AugmentedPixels(self.pixels.dataset, config.augmentation, config.optimization.seed)

    def set_up(self) -> None:
        """Checks how many images a forward pass gets."""
        images = self.batch_order(first_step=0).part_size
        if images < 2:
            raise ValueError(
                f"BatchNorm needs at least two images in each forward pass; batch_size "
                f"{self.config.optimization.batch_size} gives {images}."
            )

    def create_network(self) -> nn.Module:
        model, names = self.config.model, self.pixels.id2label
        if model.head in UNETS:
            labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
            return UEMOForSemanticSegmentation(UEMOConfig(**model.unet_options(), **labels)).train()
        options = model.segmenter_options()
        return create_segmenter(backbone_weights=model.backbone_weights, id2label=names, **options).train()

    def checkpoint_activations(self, network: nn.Module) -> None:
        network.gradient_checkpointing_enable()

    def parameter_groups(self, network: nn.Module) -> list:
        """As the authors': no weight decay for the norms of backbone or UNet; a factor for the decode head's rate."""
        optimization = self.config.optimization
        head = list(network.decode_head.parameters())
        if self.config.model.head == "fpn":  # the pyramid is not the head's
            head = [p for name, p in network.decode_head.named_parameters() if not name.startswith("pyramid.")]
        in_head = {id(p) for p in head}
        rest = [(name, p) for name, p in network.named_parameters() if id(p) not in in_head]
        is_norm = {name: "norm" in name and name.startswith(("backbone.", "unet.")) for name, _ in rest}
        return [
            {"params": [p for name, p in rest if not is_norm[name]]},
            {"params": [p for name, p in rest if is_norm[name]], "weight_decay": 0.0},
            {"params": head, "lr": optimization.learning_rate * optimization.head_lr_factor},
        ]

    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.network(pixel_values=batch[0], labels=batch[1]).loss

    def scores(self, measured: Overlap) -> dict[str, float | None]:
        return {name: getattr(measured, name) for name in SCORES[self.kind]}

    def result(self) -> dict:
        return {"dataset": self.config.data.validation().dataset}

    def save(self, network: nn.Module, path: Path, results: dict) -> None:
        view, samples = self.config.run.view(), self.val_pixels.dataset
        save_overlays(self.folder.path / "overlays.png", network, samples, self.accelerator.device, view)
        network.save_pretrained(path)
        SegformerImageProcessor(do_resize=False).save_pretrained(path)
        write_segmentation_card(self.folder.path, path, self.config, results)

    def measure(self) -> Overlap:
        """The overlap of the moving average on the validation images. Every process must call it."""
        run, workers = self.config.run, self.config.data.num_workers
        samples = self.val_pixels.dataset
        return measure_overlap(self.average_network(), samples, self.accelerator, workers, run.view())
