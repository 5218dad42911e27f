"""Trains detectors on EMOv2 or EMOv1."""

import dataclasses

from demo_diffusion.cli.command import require_packages

import torch
from torch import nn
from torch.utils.data import Dataset

from demo_diffusion.data.objects import describe_objects, load_objects
from demo_diffusion.eval.metrics.detection import Precision, as_lists, measure_precision
from demo_diffusion.eval.reports.detections import save_comparison
from demo_diffusion.models.detection import EMOv2Detector, create_detector
from demo_diffusion.models.detection.configuration import FIRST_LABEL
from demo_diffusion.records.figures import save_loss_curves
from demo_diffusion.records.files import write_json, write_whole
from demo_diffusion.records.provenance import provenance
from demo_diffusion.records.run_records import add_scores, read_scores
from demo_diffusion.train.engine.hub import check_hub_access, upload
from demo_diffusion.train.engine.trainer import Trainer

from .config import DetectionTrainingConfig
from .data import AugmentedObjects, load_validation_objects
from .model_card import write_detection_card


class DetectionTrainer(Trainer):
    """Trains a detector and leaves a folder that `EMOv2Detector.from_pretrained` loads.

    Attributes:
        objects, val_objects: images with boxes to learn and to measure.
        precision: the last measurement.

    Raises:
        ValueError: if a package, the hub, data or an option does not allow the run.
    """

    collate = staticmethod(as_lists)

    def __init__(self, config: DetectionTrainingConfig):
        packages = ("torchmetrics", "faster_coco_eval", "pycocotools", "matplotlib", "tensorboard")
        require_packages(packages, "detection", "Training a detector")
        if config.run.push_to_hub is not None:
            check_hub_access()
        masks = config.model.detector == "MaskRCNN"
        self.objects = load_objects(config.data, is_training=True, masks=masks)
        self.val_objects = load_validation_objects(config.data, self.objects, masks)
        self.precision: Precision | None = None
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

    def look(self, step: int) -> None:
        """Measures the moving average if that is due and was not done before an interruption."""
        every = self.config.run.eval_every
        is_due = step == self.num_steps or (every and step > 0 and step % every == 0)
        if not is_due or any(row["step"] == step for row in read_scores(self.folder.path, "precision")):
            return
        self.precision = self.measure()
        box = self.precision.box
        self.accelerator.log({f"val/{name}": value for name, value in box.items() if value is not None}, step=step)
        self.accelerator.print(f"step {step:,}: {self.precision}")
        if self.accelerator.is_main_process and box["AP"] is not None:
            add_scores(self.folder.path, "precision", step, {name: box[name] for name in ("AP", "AP50")})
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Writes the moving average as a model folder, detections beside the truth, and results.json."""
        if self.precision is None:  # it was measured before an interruption
            self.precision = self.measure()
        network = self.average_network()
        if not self.accelerator.is_main_process:
            return
        folder, model_folder = self.folder.path, self.folder.path / "model"
        if self.rows:
            save_loss_curves(folder / "loss.png", {folder.name: self.rows})
        save_comparison(folder / "detections.png", network, self.val_objects, self.accelerator.device)
        results = {
            **dataclasses.asdict(self.precision),
            "step": self.num_steps,
            "dataset": self.config.data.val_annotations or self.config.data.dataset,
            "parameters": sum(p.numel() for p in network.parameters()),
            **provenance(self.accelerator),
        }
        write_json(folder / "results.json", results)

        def write(path):
            network.save_pretrained(path)
            write_detection_card(folder, path, self.config, results)

        write_whole(model_folder, write)
        print(f"{self.precision}; model, detections.png and loss.png: {folder}.")
        if self.config.run.push_to_hub is not None:
            upload(model_folder, self.config.run.push_to_hub)

    def measure(self) -> Precision:
        """The precision of the moving average on the validation images. Every process must call it."""
        run, workers = self.config.run, self.config.data.num_workers
        return measure_precision(
            self.average_network(), self.val_objects.dataset, self.accelerator, run.eval_batch_size, workers
        )
