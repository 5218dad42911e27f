"""The configurations of the segmenters: a head on EMOv2, and U-EMO."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from demo_diffusion.checks import LARGEST, check_number, check_whole, shown
from demo_diffusion.models.emov2.configuration import EMOv2Config, as_emov2_config, check_classes, with_value_errors

HEADS = ("deeplabv3", "pspnet", "fpn", "segformer")
WITH_AUXILIARY = ("deeplabv3", "pspnet")  # those that the paper trains with a second head
STAGES = ["stage1", "stage2", "stage3", "stage4"]
IGNORED = 255  # label of pixels that neither loss nor metrics count
MOST_LEVELS = 16  # of a UNet: its coarsest grid is 2^15 times smaller than the image


@with_value_errors
@strict
class EMOv2SegmenterConfig(PreTrainedConfig):
    """Configuration of `EMOv2ForSemanticSegmentation`. The defaults are the SegFormer head on EMOv2-5M.

    Args:
        head: "deeplabv3", "pspnet", "fpn" or "segformer".
        backbone_config: an `EMOv2Config` or its fields; all four stages are read.
        head_channels: width of the head; for "fpn" that of its pyramid is twice as large.
        auxiliary: a second head on stage 3, for training alone.
        auxiliary_loss_weight: of its loss.
        head_dropout: probability of zeroing a channel before the last convolution.
        semantic_loss_ignore_index: label of pixels that do not count.

    Raises:
        ValueError: if a field is not allowed.
    """

    model_type = "emov2_segmenter"
    sub_configs = {"backbone_config": EMOv2Config}

    head: str = "segformer"
    backbone_config: dict | EMOv2Config | None = None
    head_channels: int = 288
    auxiliary: bool = False
    auxiliary_loss_weight: float = 0.4
    head_dropout: float | int = 0.1
    semantic_loss_ignore_index: int = IGNORED

    def __post_init__(self, **kwargs):
        if self.head not in HEADS:
            raise ValueError(f"Unknown head {self.head!r}; known are {', '.join(HEADS)}.")
        _check_common(self, kwargs)
        self.backbone_config = as_emov2_config(self.backbone_config)
        self.backbone_config.set_output_features_output_indices(out_features=STAGES, out_indices=None)
        super().__post_init__(**kwargs)


@with_value_errors
@strict
class UEMOConfig(PreTrainedConfig):
    """Configuration of `UEMOForSemanticSegmentation`. The defaults are the paper's U-EMO.

    Args:
        num_channels: of the image.
        hidden_sizes: width of each level; the grid halves from level to level.
        block: "i2rmb", or "conv" for the plain UNet.
        expansion_ratio: width of a block's value over its input.
        attention_head_dim: width of a head's queries and keys.
        window_size: side of the attention windows in tokens.
        layer_scale_init_value: of each block's LayerScale.
        head_channels: width of the DeepLabv3 head.
        auxiliary, auxiliary_loss_weight, head_dropout, semantic_loss_ignore_index: see `EMOv2SegmenterConfig`; the
            second head reads the decoder's map of stride 2.

    Raises:
        ValueError: if a field is not allowed.
    """

    model_type = "uemo"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024)
    block: str = "i2rmb"
    expansion_ratio: float | int = 2
    attention_head_dim: int = 32
    window_size: int = 8
    layer_scale_init_value: float = 1e-6
    norm_eps: float = 1e-6
    head_channels: int = 16
    auxiliary: bool = False
    auxiliary_loss_weight: float = 0.4
    head_dropout: float | int = 0.1
    semantic_loss_ignore_index: int = IGNORED

    def __post_init__(self, **kwargs):
        if self.block not in ("i2rmb", "conv"):
            raise ValueError(f"Unknown block {self.block!r}; known are i2rmb and conv.")
        if not 2 <= len(self.hidden_sizes) <= MOST_LEVELS:
            raise ValueError(f"hidden_sizes is {shown(self.hidden_sizes)}; it must have 2 to {MOST_LEVELS} entries.")
        for width in self.hidden_sizes:
            check_whole("hidden_sizes", width)
        for name in ("num_channels", "attention_head_dim", "window_size"):
            check_whole(name, getattr(self, name))
        check_number("expansion_ratio", self.expansion_ratio, above=0, below=LARGEST)
        check_number("layer_scale_init_value", self.layer_scale_init_value)
        check_number("norm_eps", self.norm_eps, above=0)
        if self.block == "i2rmb" and any(width % self.attention_head_dim for width in self.hidden_sizes):
            raise ValueError(
                f"attention_head_dim is {self.attention_head_dim}; it must divide the widths {self.hidden_sizes}."
            )
        _check_common(self, kwargs)
        super().__post_init__(**kwargs)


def _check_common(config: PreTrainedConfig, fields: dict) -> None:
    """What both configurations have: the head, its loss and the classes."""
    check_whole("head_channels", config.head_channels)
    check_number("head_dropout", config.head_dropout, least=0, below=1)
    check_number("auxiliary_loss_weight", config.auxiliary_loss_weight, least=0)
    check_whole("semantic_loss_ignore_index", config.semantic_loss_ignore_index, least=-LARGEST)
    check_classes(config, fields)
