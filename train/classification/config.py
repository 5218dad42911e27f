"""Everything that a training of EMOv2 or EMOv1 can be told."""

import dataclasses
from dataclasses import dataclass, field

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from demo_diffusion.cli.config_file import read_config
from demo_diffusion.cli.options import check_ranges, option
from demo_diffusion.data.images import DataConfig
from demo_diffusion.models.emov2.presets import emov2_config
from demo_diffusion.train.engine.config import OptimizationConfig, RunConfig, check_common


@dataclass
class EMOv2ModelConfig:
    """The network: a preset and what differs from it. None or an empty list keeps the preset's value."""

    _argument_group_name = "model"

    model: str = option("EMOv2-5M", "preset, one of demo_diffusion.list_emov2()")
    hidden_sizes: list[int] = field(default_factory=list, metadata={"help": "width of each of the four stages"})
    depths: list[int] = field(default_factory=list, metadata={"help": "blocks of each stage"})
    expansion_ratios: list[float] = field(
        default_factory=list, metadata={"help": "width of a block's value over its input, for each stage"}
    )
    attention_head_dims: list[int] = field(
        default_factory=list, metadata={"help": "width of a head's queries and keys in each stage"}
    )
    attention_modes: list[str] = field(
        default_factory=list, metadata={"help": "none, neighborhood, remote or spanning for each stage"}
    )
    kernel_sizes: list[int] = field(
        default_factory=list, metadata={"help": "odd side of the depthwise convolutions of each stage"}
    )
    window_size: int | None = option(None, "side of the attention windows in tokens")
    drop_path_rate: float | None = option(None, "stochastic depth of the last block; it rises linearly from 0")
    layer_scale_init_value: float | None = option(None, "of each block's LayerScale")

    def overrides(self) -> dict:
        """Fields of `EMOv2Config` that differ from the preset."""
        fields = dataclasses.asdict(self)
        del fields["model"]
        return {name: value for name, value in fields.items() if value not in (None, [])}


@dataclass
class ClassificationDataConfig(DataConfig):
    """Labelled images to train on, and others to be measured on."""

    resolution: int = option(224, "side in pixels that the network sees")
    val_dataset: str | None = option(None, "images that accuracy is measured on; None: another split of the dataset")
    val_split: str = option("validation", "split of them")
    crop_pct: float = option(0.875, "share of the shorter side that the centre crop of the measured images keeps")
    image_mean: list[float] = field(
        default_factory=lambda: list(IMAGENET_DEFAULT_MEAN), metadata={"help": "of each channel, subtracted"}
    )
    image_std: list[float] = field(
        default_factory=lambda: list(IMAGENET_DEFAULT_STD), metadata={"help": "of each channel, divided by"}
    )


@dataclass
class AugmentationConfig:
    """Random changes of the training images; timm makes them."""

    _argument_group_name = "augmentation"

    min_crop_area: float = option(0.08, "least share of an image's area in a random crop, whose sides are 3:4 to 4:3")
    flip_probability: float = option(0.5, "share of horizontally mirrored images")
    auto_augment: str | None = option(None, "timm's policy, such as rand-m9-mstd0.5-inc1; None: none")
    random_erasing: float = option(0.0, "share of images with a rectangle of noise")
    mixup: float = option(0.0, "alpha of mixup; 0: none. With cutmix too, each step takes one of them")
    cutmix: float = option(0.0, "alpha of cutmix; 0: none")
    multi_scale: list[int] = field(
        default_factory=list,
        metadata={"help": "sides in pixels, one of which each step draws; empty: always resolution"},
    )

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass
class ClassificationObjectiveConfig:
    """Cross-entropy, and the likeness to a teacher."""

    _argument_group_name = "objective"

    label_smoothing: float = option(0.1, "share of the target that is spread over all classes")
    teacher: str | None = option(None, "folder or hub id (timm/… too) of a classifier to distil; None: none")
    distillation_weight: float = option(5.0, "of the teacher's term, beside 1 for the labels'")
    distillation_temperature: float = option(1.0, "both networks' logits are divided by it")


@dataclass
class ClassificationOptimizationConfig(OptimizationConfig):
    """AdamW and its surroundings. The length is given in epochs or in steps."""

    epochs: float | None = option(None, "passes over the data, instead of num_steps")
    warmup_epochs: float | None = option(None, "epochs of linear warm-up, instead of warmup_steps")
    num_steps: int | None = option(None, "optimizer steps")

    def in_steps(self, num_samples: int) -> "ClassificationOptimizationConfig":
        """The same with lengths in steps."""
        steps_an_epoch = num_samples / self.batch_size
        changes = {"epochs": None, "warmup_epochs": None}
        if self.epochs is not None:
            changes["num_steps"] = max(1, round(self.epochs * steps_an_epoch))
        if self.warmup_epochs is not None:
            changes["warmup_steps"] = round(self.warmup_epochs * steps_an_epoch)
        return dataclasses.replace(self, **changes)


@dataclass
class ClassificationRunConfig(RunConfig):
    """Where results go, and how often."""

    output_dir: str = option("runs/emov2", "folder of this run; an unfinished run in it is resumed")
    eval_every: int = option(0, "steps between measurements of the moving average; 0: only at the end")
    eval_batch_size: int = option(128, "measured images at once on a process")


@dataclass
class ClassificationTrainingConfig:
    """All sections of one run.

    Raises:
        ValueError: if a value is not allowed or two contradict each other.
    """

    model: EMOv2ModelConfig
    data: ClassificationDataConfig
    augmentation: AugmentationConfig
    objective: ClassificationObjectiveConfig
    optimization: ClassificationOptimizationConfig
    run: ClassificationRunConfig

    def __post_init__(self):
        check_common(self.data, self.optimization, self.run)
        values = {name: value for section in vars(self).values() for name, value in vars(section).items()}
        check_ranges(
            values,
            positive=("epochs", "distillation_temperature", "eval_batch_size", "crop_pct", "min_crop_area"),
            not_negative=("warmup_epochs", "eval_every", "mixup", "cutmix", "distillation_weight"),
            shares=("label_smoothing", "random_erasing"),
        )
        emov2_config(self.model.model, **self.model.overrides())
        _check_length(self.optimization)
        _check_images(self.data, self.augmentation)


def parse_config(arguments: list[str] | None = None) -> ClassificationTrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    return read_config(ClassificationTrainingConfig, arguments)


def _check_length(config: ClassificationOptimizationConfig) -> None:
    if (config.epochs is None) == (config.num_steps is None):
        raise ValueError(
            f"epochs is {config.epochs} and num_steps is {config.num_steps}; give exactly one of them (--epochs none "
            "undoes a file's)."
        )
    if config.warmup_epochs and config.warmup_steps:
        raise ValueError("Both warmup_epochs and warmup_steps were given; give one of them.")
    if config.warmup_epochs and config.lr_schedule == "constant":
        raise ValueError("lr_schedule 'constant' has no warm-up; use 'constant_with_warmup' or --warmup_epochs none.")
    if config.epochs is not None and (config.warmup_epochs or 0) > config.epochs:
        raise ValueError(f"warmup_epochs is {config.warmup_epochs}, more than the {config.epochs} epochs of the run.")


def _check_images(data: ClassificationDataConfig, augmentation: AugmentationConfig) -> None:
    for name in ("image_mean", "image_std"):
        if len(getattr(data, name)) != 3:
            raise ValueError(f"{name} is {getattr(data, name)}; it must have three numbers, for red, green and blue.")
    if min(data.image_std) <= 0:
        raise ValueError(f"image_std is {data.image_std}; its numbers must be positive.")
    for name, value in (("crop_pct", data.crop_pct), ("min_crop_area", augmentation.min_crop_area)):
        if value > 1:
            raise ValueError(f"{name} is {value}; it must be at most 1.")
    if not 0 <= augmentation.flip_probability <= 1:
        raise ValueError(f"flip_probability is {augmentation.flip_probability}; it must be in [0, 1].")
    if min(augmentation.multi_scale, default=1) < 1:
        raise ValueError(f"multi_scale is {augmentation.multi_scale}; it must hold positive sides in pixels.")
