"""Everything that a training of EMOv2 or EMOv1 can be told."""

import dataclasses
from dataclasses import dataclass

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from demo_diffusion.cli.config_file import read_config
from demo_diffusion.cli.options import check_options, option
from demo_diffusion.data.images import DataConfig
from demo_diffusion.models.emov2.presets import emov2_config
from demo_diffusion.models.spanning_attention import ATTENTION_MODES
from demo_diffusion.train.engine.config import OptimizationConfig, RunConfig, check_common


@dataclass
class ClassificationModelConfig:
    """The network: a preset and what differs from it. None or an empty list keeps the preset's value."""

    model: str = option("EMOv2-5M", "preset, one of demo_diffusion.list_emov2()")
    hidden_sizes: list[int] = option([], "width of each of the four stages")
    depths: list[int] = option([], "blocks of each stage")
    expansion_ratios: list[float] = option([], "width of a block's value over its input, for each stage")
    attention_head_dims: list[int] = option([], "width of a head's queries and keys in each stage")
    attention_modes: list[str] = option(
        [], f"windows that the tokens of each stage attend to: {', '.join(ATTENTION_MODES)}"
    )
    kernel_sizes: list[int] = option([], "odd side of the depthwise convolutions of each stage")
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

    resolution: int = option(224, "side in pixels that the network sees", above=0)
    val_dataset: str | None = option(None, "images that accuracy is measured on; None: another split of the dataset")
    val_split: str = option("validation", "split of them")
    crop_pct: float = option(
        0.875, "share of the shorter side that the centre crop of the measured images keeps", above=0, most=1
    )
    image_mean: list[float] = option(list(IMAGENET_DEFAULT_MEAN), "of each channel, subtracted")
    image_std: list[float] = option(list(IMAGENET_DEFAULT_STD), "of each channel, divided by")


@dataclass
class AugmentationConfig:
    """Random changes of the training images; timm makes them."""

    min_crop_area: float = option(
        0.08, "least share of an image's area in a random crop, whose sides are 3:4 to 4:3", above=0, most=1
    )
    flip_probability: float = option(0.5, "share of horizontally mirrored images", least=0, most=1)
    auto_augment: str | None = option(None, "timm's policy, such as rand-m9-mstd0.5-inc1; None: none")
    random_erasing: float = option(0.0, "share of images with a rectangle of noise", least=0, below=1)
    mixup: float = option(0.0, "alpha of mixup; 0: none. With cutmix too, each step takes one of them", least=0)
    cutmix: float = option(0.0, "alpha of cutmix; 0: none", least=0)
    multi_scale: list[int] = option([], "sides in pixels, one of which each step draws; empty: always resolution")

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass
class ClassificationObjectiveConfig:
    """Cross-entropy, and the likeness to a teacher."""

    label_smoothing: float = option(0.1, "share of the target that is spread over all classes", least=0, below=1)
    teacher: str | None = option(None, "folder or hub id (timm/… too) of a classifier to distil; None: none")
    distillation_weight: float = option(5.0, "of the teacher's term, beside 1 for the labels'", least=0)
    distillation_temperature: float = option(1.0, "both networks' logits are divided by it", above=0)


@dataclass
class ClassificationOptimizationConfig(OptimizationConfig):
    """AdamW and its surroundings. The length is given in epochs or in steps."""

    epochs: float | None = option(None, "passes over the data, instead of num_steps", above=0)
    warmup_epochs: float | None = option(None, "epochs of linear warm-up, instead of warmup_steps", least=0)
    num_steps: int | None = option(None, "optimizer steps", above=0)

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
    eval_every: int = option(0, "steps between measurements of the moving average; 0: only at the end", least=0)
    eval_batch_size: int = option(128, "measured images at once on a process", above=0)


@dataclass
class ClassificationTrainingConfig:
    """All sections of one run.

    Raises:
        ValueError: if a value is not allowed or two contradict each other.
    """

    model: ClassificationModelConfig
    data: ClassificationDataConfig
    augmentation: AugmentationConfig
    objective: ClassificationObjectiveConfig
    optimization: ClassificationOptimizationConfig
    run: ClassificationRunConfig

    def __post_init__(self):
        check_options(self)
        check_common(self.optimization)
        emov2_config(self.model.model, **self.model.overrides())
        check_length(self.optimization)
        _check_images(self.data, self.augmentation)


def parse_config(arguments: list[str] | None = None) -> ClassificationTrainingConfig:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    return read_config(ClassificationTrainingConfig, arguments)


def check_length(config: ClassificationOptimizationConfig) -> None:
    """Raises ValueError unless the length is given once, in epochs or in steps, and the warm-up fits."""
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
    if min(augmentation.multi_scale, default=1) < 1:
        raise ValueError(f"multi_scale is {augmentation.multi_scale}; it must hold positive sides in pixels.")
