"""Everything that a training of a segmenter can be told."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.config_file import read_config
from demo_diffusion.cli.options import check_options, option
from demo_diffusion.data.masks import MasksConfig
from demo_diffusion.eval.metrics.segmentation import View
from demo_diffusion.models.segmentation.configuration import UEMOConfig
from demo_diffusion.models.segmentation.presets import segmenter_config
from demo_diffusion.train.classification.config import (
    ClassificationModelConfig,
    ClassificationOptimizationConfig,
    check_length,
)
from demo_diffusion.train.engine.config import RunConfig, check_common

UNETS = {"uemo": "i2rmb", "unet": "conv"}


@dataclass
class SegmentationModelConfig(ClassificationModelConfig):
    """The segmenter: its head, a preset as its backbone and what differs from it."""

    head: Literal["deeplabv3", "pspnet", "fpn", "segformer", "uemo", "unet"] = option(
        "segformer", "head on EMOv2; or U-EMO, or the plain UNet, which have no backbone"
    )
    head_channels: int | None = option(None, "width of the head; None: the paper's", above=0)
    auxiliary: bool | None = option(None, "a second head in training; None: as in the paper")
    unet_widths: list[int] = option([64, 128, 256, 512, 1024], "uemo, unet: width of each level")
    unet_head_dim: int = option(32, "uemo: width of an attention head; it divides unet_widths", above=0)
    backbone_weights: str | None = option(None, "folder or hub id of a classifier to start from; None: new weights")

    def overrides(self) -> dict:
        """Fields of `EMOv2Config` that differ from the preset."""
        names = {field.name for field in dataclasses.fields(ClassificationModelConfig)} - {"model"}
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, [])}

    def segmenter_options(self) -> dict:
        """Arguments of `create_segmenter`, beside the classes and the weights to start from."""
        return {
            "head": self.head,
            "backbone": self.model,
            "head_channels": self.head_channels,
            "auxiliary": self.auxiliary,
            **self.overrides(),
        }

    def unet_options(self) -> dict:
        """Fields of `UEMOConfig`, beside the classes."""
        given = {
            "head_channels": self.head_channels,
            "window_size": self.window_size,
            "layer_scale_init_value": self.layer_scale_init_value,
        }
        return {
            "block": UNETS[self.head],
            "hidden_sizes": self.unet_widths,
            "attention_head_dim": self.unet_head_dim,
            "auxiliary": self.auxiliary is not False,
            **{name: value for name, value in given.items() if value is not None},
        }


@dataclass
class SegmentationDataConfig(MasksConfig):
    """Images with masks to train on, and others to be measured on."""

    val_dataset: str | None = option(None, "folder of images to measure on; None: dataset")
    val_masks: str | None = option(None, "folder of their masks; None: masks")
    num_val_scenes: int = option(100, "scenes to measure on, made of other digits", above=0)

    def validation(self) -> MasksConfig:
        """The images to measure on."""
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(MasksConfig)}
        changed = {"dataset": self.val_dataset or self.dataset, "masks": self.val_masks or self.masks}
        return MasksConfig(**{**same, **changed, "num_scenes": self.num_val_scenes})


@dataclass
class SegmentationAugmentationConfig:
    """Random changes of the training images; every sample is a square crop."""

    crop_size: int = option(512, "side of the crop in pixels", least=16)
    shorter_side: int | None = option(
        None, "images are resized to it before they are scaled; None: they are not", above=0
    )
    min_scale: float = option(1.0, "least factor by which an image is scaled", above=0)
    max_scale: float = option(1.0, "largest factor by which an image is scaled", above=0)
    most_of_a_class: float = option(
        1.0,
        "largest share of a crop that one class may have; crops of one class alone are drawn again",
        above=0,
        most=1,
    )
    flip_probability: float = option(0.5, "share of horizontally mirrored images", least=0, most=1)
    photometric: bool = option(False, "brightness, contrast, saturation and hue")


@dataclass
class SegmentationOptimizationConfig(ClassificationOptimizationConfig):
    """AdamW and its surroundings. The length is given in epochs or in steps."""

    head_lr_factor: float = option(1.0, "learning rate of the decode head over that of the rest", above=0)


@dataclass
class SegmentationRunConfig(RunConfig):
    """Where results go, and how often."""

    output_dir: str = option("runs/segmenter", "folder of this run; an unfinished run in it is resumed")
    eval_every: int = option(0, "steps between measurements of the moving average; 0: only at the end", least=0)
    eval_window: int | None = option(None, "side of the sliding window in pixels; None: the whole image", above=0)
    eval_stride: int | None = option(None, "pixels between windows; None: two thirds of the window", above=0)
    eval_shorter_side: int | None = option(
        None, "images are resized to it before they are measured; None: they are not", above=0
    )

    def view(self) -> View:
        """How the segmenter sees what it is measured on."""
        return View(self.eval_window, self.eval_stride, self.eval_shorter_side)


@dataclass
class SegmentationTrainingConfig:
    """All sections of one run.

    Raises:
        ValueError: if a value is not allowed or two contradict each other.
    """

    model: SegmentationModelConfig
    data: SegmentationDataConfig
    augmentation: SegmentationAugmentationConfig
    optimization: SegmentationOptimizationConfig
    run: SegmentationRunConfig

    def __post_init__(self):
        check_options(self)
        check_common(self.optimization)
        check_length(self.optimization)
        self.run.view()
        if self.model.head in UNETS:
            UEMOConfig(**self.model.unet_options())
        else:
            segmenter_config(**self.model.segmenter_options())
        if self.model.head in UNETS and self.model.backbone_weights is not None:
            raise ValueError(f"backbone_weights is for heads on EMOv2; {self.model.head} has no backbone.")
        if self.augmentation.min_scale > self.augmentation.max_scale:
            raise ValueError(
                f"min_scale is {self.augmentation.min_scale}; it must be at most max_scale, "
                f"{self.augmentation.max_scale}."
            )


def parse_config(arguments: list[str] | None = None) -> SegmentationTrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    return read_config(SegmentationTrainingConfig, arguments)
