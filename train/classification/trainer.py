"""Trains EMOv2 or EMOv1 to classify images."""

import dataclasses
from pathlib import Path

from demo_diffusion.cli.command import require_packages

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from demo_diffusion import EMOv2ForImageClassification, create_emov2
from demo_diffusion.data.facts import describe_images
from demo_diffusion.data.images import load_images
from demo_diffusion.data.raw_images import ProcessedImages, RawImages
from demo_diffusion.eval.metrics.accuracy import Accuracy, measure_accuracy
from demo_diffusion.models.classifiers import image_processor
from demo_diffusion.records.figures import save_accuracy_curves
from demo_diffusion.records.run_records import read_scores
from demo_diffusion.train.engine.hub import check_hub_access
from demo_diffusion.train.engine.measured_trainer import MeasuredTrainer
from demo_diffusion.train.engine.run_folder import RunFolder

from .config import ClassificationTrainingConfig
from .data import AugmentedImages, load_validation_images
from .distillation import Teacher, soft_distillation_loss
from .model_card import write_classification_card


class ClassificationTrainer(MeasuredTrainer):
    """Trains EMOv2 or EMOv1 and leaves a folder that AutoModelForImageClassification loads.

    Attributes:
        images, val_images: labelled images to learn and to measure.
        processor: prepares an image for the trained network.
        val_samples: the prepared validation images.
        mixup: timm's mixup and cutmix; None: neither.
        teacher: classifier to distil; None: none.

    Raises:
        ValueError: if a package, the hub, data or an option does not allow the run.
    """

    kind = "accuracy"

    def __init__(self, config: ClassificationTrainingConfig):
        require_packages(("timm", "matplotlib", "tensorboard"), "train", "Training")
        if config.run.push_to_hub is not None:
            check_hub_access()
        order = RunFolder(config.run.output_dir).class_order()
        self.images = load_images(config.data, own_size=True, class_order=order)
        self.val_images = load_validation_images(config.data, self.images)
        length = config.optimization.in_steps(len(self.images.dataset))
        super().__init__(dataclasses.replace(config, optimization=length))

    def data_facts(self) -> dict:
        return describe_images(self.images)

    def load_data(self) -> Dataset:
        config, data = self.config, self.config.data
        self.accelerator.print(
            f"{len(self.images.dataset):,} images of {self.images.num_classes:,} classes, "
            f"{len(self.val_images.dataset):,} to measure on; {self.num_steps:,} steps of "
            f"{config.optimization.batch_size}"
        )
        self.processor = image_processor(data.resolution, data.crop_pct, data.image_mean, data.image_std)
        self.val_samples = ProcessedImages(RawImages(self.val_images), self.processor)
        return AugmentedImages(RawImages(self.images), config.data, config.augmentation, config.optimization.seed)

    def set_up(self) -> None:
        """Creates mixup and the teacher, and checks how many images a forward pass gets."""
        config = self.config
        self._check_images_of_a_pass()
        self.mixup = self._create_mixup() if config.augmentation.mixes else None
        self.teacher = None
        if config.objective.teacher is not None:
            data = config.data
            teacher = Teacher(config.objective.teacher, self.images.id2label, data.image_mean, data.image_std)
            self.teacher = teacher.to(self.accelerator.device)

    def create_network(self) -> EMOv2ForImageClassification:
        config = self.config
        network = create_emov2(
            config.model.model,
            num_labels=self.images.num_classes,
            image_size=config.data.resolution,
            **config.model.overrides(),
        )
        network.config.id2label = dict(self.images.id2label)
        network.config.label2id = {name: index for index, name in self.images.id2label.items()}
        return network

    def checkpoint_activations(self, network: EMOv2ForImageClassification) -> None:
        network.gradient_checkpointing_enable()

    def parameter_groups(self, network: nn.Module) -> list:
        """As in timm: matrices and kernels with weight decay, everything of one dimension without."""
        from timm.optim import param_groups_weight_decay

        return param_groups_weight_decay(network, self.config.optimization.weight_decay)

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """With `multi_scale`, the side in pixels that all images of a step are resized to."""
        sides = torch.tensor(self.config.augmentation.multi_scale, device=generator.device)
        if not len(sides):
            return {}
        drawn = torch.randint(len(sides), (1,), generator=generator, device=generator.device)
        return {"side": sides[drawn].expand(self.config.optimization.batch_size)}

    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        images, targets = batch
        objective, smoothing = self.config.objective, self.config.objective.label_smoothing
        # Change the batch as a whole: one size for all, mixed pairs.
        if "side" in draws:
            images = F.interpolate(images, int(draws["side"][0]), mode="bicubic", antialias=True)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
            smoothing = 0.0  # mixed targets are smooth already
        # Cross-entropy with the labels.
        logits = self.network(images).logits
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        if self.teacher is None:
            return loss
        # Distillation: be like the teacher on the same images.
        with self.accelerator.autocast():
            teacher_logits = self.teacher(images)
        likeness = soft_distillation_loss(logits, teacher_logits, objective.distillation_temperature)
        return loss + objective.distillation_weight * likeness

    def scores(self, measured: Accuracy) -> dict[str, float | None]:
        return {"top1": measured.top1, "top5": measured.top5}

    def measurement(self) -> dict:
        """From accuracy.csv, so that a finished run is not measured again."""
        return {**read_scores(self.folder.path, self.kind)[-1], "num_images": len(self.val_samples)}

    def result(self) -> dict:
        data = self.config.data
        return {"dataset": data.val_dataset or data.dataset, "split": data.val_split}

    def save(self, network: nn.Module, path: Path, results: dict) -> None:
        network.save_pretrained(path)
        self.processor.save_pretrained(path)
        write_classification_card(self.folder.path, path, self.config, results)

    def measure(self) -> Accuracy:
        """The accuracy of the moving average on the validation images. Every process must call it."""
        network = self.average_network()
        batch_size, workers = self.config.run.eval_batch_size, self.config.data.num_workers
        return measure_accuracy(lambda x: network(x).logits, self.val_samples, self.accelerator, batch_size, workers)

    def plot(self) -> None:
        """Writes accuracy.png and loss.png."""
        super().plot()
        scores = {self.folder.path.name: read_scores(self.folder.path, self.kind)}
        save_accuracy_curves(self.folder.path / "accuracy.png", scores)

    def _check_images_of_a_pass(self) -> None:
        optimization, augmentation = self.config.optimization, self.config.augmentation
        parts = optimization.gradient_accumulation_steps * self.accelerator.num_processes
        images = optimization.batch_size // parts
        given = f"batch_size {optimization.batch_size} over {parts} parts gives {images}."
        if augmentation.mixes and images % 2:
            raise ValueError(f"mixup and cutmix need an even number of images in each forward pass; {given}")
        if images < 2:
            raise ValueError(f"BatchNorm needs at least two images in each forward pass; {given}")

    def _create_mixup(self):
        from timm.data import Mixup

        augmentation = self.config.augmentation
        return Mixup(
            mixup_alpha=augmentation.mixup,
            cutmix_alpha=augmentation.cutmix,
            label_smoothing=self.config.objective.label_smoothing,
            num_classes=self.images.num_classes,
        )
