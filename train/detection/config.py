"""Everything that a training of a detector can be told."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.config_file import read_config
from demo_diffusion.cli.options import check_options, option
from demo_diffusion.data.objects import SCENES, ObjectsConfig
from demo_diffusion.models.detection.presets import WINDOW_SIZE, detector_config
from demo_diffusion.train.classification.config import (
    ClassificationModelConfig,
    ClassificationOptimizationConfig,
    check_length,
)
from demo_diffusion.train.engine.config import RunConfig, check_common


@dataclass
class DetectionModelConfig(ClassificationModelConfig):
    """The detector: its head, a preset as its backbone and what differs from it."""

    window_size: int | None = option(WINDOW_SIZE, "side of the attention windows in tokens", above=0)
    detector: Literal["SSDLite", "RetinaNet", "MaskRCNN"] = option("SSDLite", "head")
    image_size: int | None = option(
        None, "SSDLite: side of the square; else the shorter side, in pixels; None: 320 and 800", least=32
    )
    scaled_anchors: bool = option(False, "SSDLite: anchors that grow with image_size, unlike the authors'")
    box_batch_size_per_image: int = option(512, "MaskRCNN: proposals of an image that its heads learn from", above=0)
    backbone_weights: str | None = option(None, "folder or hub id of a classifier to start from; None: new weights")
    freeze_first_stage: bool | None = option(
        None, "stem and first stage are not trained; None: as in the paper if there are backbone_weights"
    )
    freeze_batch_norm: bool | None = option(
        None, "the backbone's BatchNorms keep their statistics; None: as in the paper if there are backbone_weights"
    )

    def overrides(self) -> dict:
        """Fields of `EMOv2Config` that differ from the preset."""
        names = {field.name for field in dataclasses.fields(ClassificationModelConfig)} - {"model"}
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, [])}

    def detector_options(self) -> dict:
        """Arguments of `create_detector`, beside the number of classes and the weights to start from."""
        names = ("image_size", "scaled_anchors", "box_batch_size_per_image")
        freeze = {name: getattr(self, name) for name in ("freeze_first_stage", "freeze_batch_norm")}
        return {
            "name": self.detector,
            "backbone": self.model,
            **{name: getattr(self, name) for name in names},
            **{name: value for name, value in freeze.items() if value is not None},
            **self.overrides(),
        }


@dataclass
class DetectionDataConfig(ObjectsConfig):
    """Images with boxes to train on, and others to be measured on."""

    val_dataset: str | None = option(None, "folder of images that precision is measured on; None: dataset")
    val_annotations: str | None = option(None, "their COCO JSON file")
    num_val_scenes: int = option(200, "digit scenes to measure on, made of other digits", above=0)

    def validation(self) -> ObjectsConfig:
        """The images to measure on."""
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(ObjectsConfig)}
        return ObjectsConfig(
            **{
                **same,
                "dataset": self.val_dataset or self.dataset,
                "annotations": self.val_annotations,
                "num_scenes": self.num_val_scenes,
            }
        )


@dataclass
class DetectionAugmentationConfig:
    """Random changes of the training images; torchvision makes them."""

    flip_probability: float = option(0.5, "share of horizontally mirrored images", least=0, most=1)
    zoom_out_probability: float = option(
        0.0, "share of images put on a canvas of 1 to 4 times their side", least=0, most=1
    )
    iou_crop: bool = option(False, "crops that keep enough of an object (SSD's)")
    photometric: bool = option(False, "brightness, contrast, saturation, hue and order of the channels")


@dataclass
class DetectionRunConfig(RunConfig):
    """Where results go, and how often."""

    output_dir: str = option("runs/detector", "folder of this run; an unfinished run in it is resumed")
    eval_every: int = option(0, "steps between measurements of the moving average; 0: only at the end", least=0)
    eval_batch_size: int = option(8, "measured images at once on a process", above=0)


@dataclass
class DetectionTrainingConfig:
    """All sections of one run.

    Raises:
        ValueError: if a value is not allowed or two contradict each other.
    """

    model: DetectionModelConfig
    data: DetectionDataConfig
    augmentation: DetectionAugmentationConfig
    optimization: ClassificationOptimizationConfig
    run: DetectionRunConfig

    def __post_init__(self):
        check_options(self)
        check_common(self.optimization)
        check_length(self.optimization)
        detector_config(**self.model.detector_options())
        self._check_data()
        if self.model.backbone_weights is None and (self.model.freeze_first_stage or self.model.freeze_batch_norm):
            raise ValueError(
                "freeze_first_stage and freeze_batch_norm keep what a classifier has learned; give its folder as "
                "--backbone_weights, or set both to false."
            )

    def _check_data(self) -> None:
        """Raises ValueError if files to measure on are missing, or have nothing to describe."""
        data = self.data
        if data.dataset != SCENES and data.annotations and not data.val_annotations and data.val_dataset != SCENES:
            raise ValueError(
                f"{data.dataset} is to be trained on, but nothing to measure on is given: --val_annotations, the COCO "
                "JSON file, and --val_dataset, the folder of its images if it is another one."
            )
        if data.val_annotations and (data.val_dataset or data.dataset) == SCENES:
            raise ValueError(f"--val_annotations is {data.val_annotations}; give its folder, --val_dataset.")


def parse_config(arguments: list[str] | None = None) -> DetectionTrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    return read_config(DetectionTrainingConfig, arguments)
