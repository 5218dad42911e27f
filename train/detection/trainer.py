"""Trains detectors on EMOv2 or EMOv1."""

import dataclasses
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import torch
from torch import nn
from torch.utils.data import Dataset

from demo_diffusion.data.objects import describe_objects, load_objects
from demo_diffusion.eval.metrics.detection import Precision, as_lists, measure_precision
from demo_diffusion.eval.reports.detections import save_comparison
from demo_diffusion.models.detection import EMOv2Detector, create_detector
from demo_diffusion.models.detection.configuration import FIRST_LABEL
from demo_diffusion.train.engine.hub import check_hub_access
from demo_diffusion.train.engine.measured_trainer import MeasuredTrainer

from .config import DetectionTrainingConfig
from .data import AugmentedObjects, load_validation_objects
from .model_card import write_detection_card


class DetectionTrainer(MeasuredTrainer):
    """Trains a detector and leaves a folder that `EMOv2Detector.from_pretrained` loads.

    Attributes:
        objects, val_objects: images with boxes to learn and to measure.

    Raises:
        ValueError: if a package, the hub, data or an option does not allow the run.
    """

    kind = "precision"
    collate = staticmethod(as_lists)

    def __init__(self, config: DetectionTrainingConfig):
        packages = ("torchmetrics", "faster_coco_eval", "pycocotools", "matplotlib", "tensorboard")
        require_packages(packages, "detection", "Training a detector")
        if config.run.push_to_hub is not None:
            check_hub_access()
        masks = config.model.detector == "MaskRCNN"
        self.objects = load_objects(config.data, is_training=True, masks=masks)
        self.val_objects = load_validation_objects(config.data, self.objects, masks)
        length = config.optimization.in_steps(len(self.objects.dataset))
        super().__init__(dataclasses.replace(config, optimization=length))

    def data_facts(self) -> dict:
        return describe_objects(self.objects)

    def load_data(self) -> Dataset:
        config = self.config
        self.accelerator.print(
            f"{len(self.objects.dataset):,} images with objects of {self.objects.num_classes:,} classes, "
            f"{len(self.val_objects.dataset):,} to measure on; {self.num_steps:,} steps of "
            f"{config.optimization.batch_size}"
        )
        return AugmentedObjects(self.objects.dataset, config.augmentation, config.optimization.seed)

    def set_up(self) -> None:
        """Checks how many images a forward pass gets."""
        images = self.batch_order(first_step=0).part_size
        if self.config.model.detector == "SSDLite" and images < 2:
            raise ValueError(
                "SSDLite's BatchNorm needs at least two images in each forward pass; batch_size "
                f"{self.config.optimization.batch_size} gives {images}."
            )

    def create_network(self) -> EMOv2Detector:
        model, names = self.config.model, self.objects.id2label
        options = {"num_classes": len(names), **model.detector_options()}
        options["id2label"] = {FIRST_LABEL[model.detector] + number: name for number, name in names.items()}
        return create_detector(backbone_weights=model.backbone_weights, **options).train()

    def checkpoint_activations(self, network: EMOv2Detector) -> None:
        network.gradient_checkpointing_enable()

    def compile(self, network: EMOv2Detector) -> None:
        """Compiles the backbone in place; the heads depend on what is found."""
        network.detector.backbone.body.compile()

    def parameter_groups(self, network: nn.Module) -> list:
        """As the authors': no weight decay for what has "norm" in its name, the backbone's norms."""
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        norms = [p for name, p in trained if "norm" in name]
        others = [p for name, p in trained if "norm" not in name]
        return [{"params": others}, {"params": norms, "weight_decay": 0.0}]

    def loss(self, batch: list, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        images, targets = batch
        first_label = self.plain_network.config.first_label
        images = [image.float() / 255 for image in images]
        targets = [{**target, "labels": target["labels"] + first_label} for target in targets]
        return sum(self.network(images, targets).values())

    def scores(self, measured: Precision) -> dict[str, float | None]:
        return measured.box

    def result(self) -> dict:
        return {"dataset": self.config.data.val_annotations or self.config.data.dataset}

    def save(self, network: EMOv2Detector, path: Path, results: dict) -> None:
        save_comparison(self.folder.path / "detections.png", network, self.val_objects, self.accelerator.device)
        network.save_pretrained(path)
        write_detection_card(self.folder.path, path, self.config, results)

    def measure(self) -> Precision:
        """The precision of the moving average on the validation images. Every process must call it."""
        run, workers = self.config.run, self.config.data.num_workers
        return measure_precision(
            self.average_network(), self.val_objects.dataset, self.accelerator, run.eval_batch_size, workers
        )
