"""The configuration of EMOv2 and EMOv1 (arXiv 2412.06674, Table IV, and 2301.01146)."""

import functools
from collections.abc import Mapping

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from demo_diffusion.checks import LARGEST, check_number, check_whole, is_whole, shown

NUM_STAGES = 4
DEEPEST = 1024  # blocks of a stage
LONGEST_MESSAGE = 200  # characters of what `strict` says
PER_STAGE = (
    "hidden_sizes",
    "depths",
    "expansion_ratios",
    "attention_head_dims",
    "attention_modes",
    "kernel_sizes",
    "norms",
    "activations",
)


def with_value_errors(config_class: type) -> type:
    """Makes a ValueError of one line of what `strict` raises, so that all bad settings raise one kind of error."""
    validated = config_class.__init__

    @functools.wraps(validated)
    def __init__(self, *args, **kwargs):
        try:
            validated(self, *args, **kwargs)
        except StrictDataclassError as error:
            text = " ".join(str(error.__cause__ or error).split())
            raise ValueError(text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…") from error

    config_class.__init__ = __init__
    return config_class


def checked_names(id2label: object, first: int = 0, distinct: bool = True) -> dict[int, str]:
    """The names of the classes with whole numbers as ids, which are texts in a JSON file.

    Args:
        first: id of the first class; the others follow it without a gap.
        distinct: whether each name must be one class's alone.

    Raises:
        ValueError: if ids or names are not as described.
    """
    if not isinstance(id2label, Mapping) or not all(isinstance(name, str) for name in id2label.values()):
        raise ValueError(f"id2label is {shown(id2label)}; it must be a dict {{class id: name of the class}}.")
    names = {int(key): name for key, name in id2label.items() if is_whole(key) or _is_digits(key)}
    if not names or len(names) < len(id2label) or sorted(names) != list(range(first, first + len(names))):
        raise ValueError(
            f"id2label has the ids {shown(list(id2label))}; they must be the whole numbers from {first} on, each once."
        )
    if distinct and len(set(names.values())) < len(names):
        raise ValueError(f"id2label is {shown(id2label)}; the names of the classes must differ.")
    return names


def _is_digits(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10


def check_classes(
    config: PreTrainedConfig, fields: Mapping[str, object], first: int = 0, distinct: bool = True
) -> None:
    """Checks how many classes a new configuration has and what they are called, before that many names are made.

    Args:
        fields: those beside the dataclass's own, of which `num_labels` is read.
        first, distinct: see `checked_names`.

    Raises:
        ValueError: if the number or a name is not allowed, or the one contradicts the others.
    """
    count = fields.get("num_labels")
    if "num_labels" in fields:
        check_whole("num_labels", count)
    if config.id2label is None:
        return
    config.id2label = checked_names(config.id2label, first, distinct)
    if count is not None and count != len(config.id2label):
        raise ValueError(f"num_labels is {count}; id2label names {len(config.id2label)} classes.")


@with_value_errors
@strict
class EMOv2Config(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of `EMOv2ForImageClassification` and `EMOv2Backbone`. The defaults are EMOv2-5M.

    The fields from `hidden_sizes` to `activations` have four entries, one a stage (strides 4, 8, 16 and 32).

    Args:
        num_channels: of the image.
        image_size: height and width that the weights were trained at; any other size works too.
        hidden_sizes: width of each stage.
        depths: blocks of each stage, the first of which halves the grid.
        expansion_ratios: width of a block's value over its input; a stage's first block has twice its stage's.
        attention_head_dims: width of a head's queries and keys.
        attention_modes: "none", "neighborhood", "remote" or "spanning"; a stage's first block has none.
        kernel_sizes: odd side of the depthwise convolutions.
        norms: "batch" or "layer", before a block.
        activations: "silu" or "gelu", of a block's value.
        window_size: side of the attention windows in tokens: 7 at 224 pixels, 8 at 256 and 512.
        attend_before_value: EMOv1's attention, over a block's input before its expansion.
        layer_scale_init_value: of each block's LayerScale; None: there is none.
        drop_path_rate: of the last block; it rises linearly from 0 at the first.
        stem_width: channels of the stem, stride 2; None: half the first stage's.
        stem_activation: after the stem's first convolution: "silu", "gelu" or None.
        stem_squeeze_excitation: in the stem (EMOv1).
        norm_eps: of BatchNorm and LayerNorm.
        initializer_range: standard deviation of the classifier's initial weights.
        out_features, out_indices: stages that a backbone returns, of "stem", "stage1", … "stage4"; by default the last.

    Raises:
        ValueError: if a field has another number of entries than there are stages, or a head dim divides no width.
    """

    model_type = "emov2"

    num_channels: int = 3
    image_size: int = 224
    hidden_sizes: list[int] | tuple[int, ...] = (48, 72, 160, 288)
    depths: list[int] | tuple[int, ...] = (3, 3, 9, 3)
    expansion_ratios: list[int | float] | tuple[int | float, ...] = (2.0, 3.0, 4.0, 4.0)
    attention_head_dims: list[int] | tuple[int, ...] = (16, 24, 32, 32)
    attention_modes: list[str] | tuple[str, ...] = ("none", "none", "spanning", "spanning")
    kernel_sizes: list[int] | tuple[int, ...] = (5, 5, 5, 5)
    norms: list[str] | tuple[str, ...] = ("batch", "batch", "layer", "layer")
    activations: list[str] | tuple[str, ...] = ("silu", "silu", "gelu", "gelu")
    window_size: int = 7
    attend_before_value: bool = False
    layer_scale_init_value: float | None = 1e-6
    drop_path_rate: float | int = 0.05
    stem_width: int | None = None
    stem_activation: str | None = "silu"
    stem_squeeze_excitation: bool = False
    norm_eps: float = 1e-6
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        for name in PER_STAGE:
            if len(getattr(self, name)) != NUM_STAGES:
                raise ValueError(f"{name} is {getattr(self, name)}; it must have {NUM_STAGES} entries, one a stage.")
            for value in getattr(self, name):
                _check_entry(name, value)
        if self.stem_width is None:
            self.stem_width = self.hidden_sizes[0] // 2
        self._check_scalars()
        check_classes(self, kwargs, distinct=False)  # ImageNet has two cranes and two maillots
        self._check_heads()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, NUM_STAGES + 1)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def _check_scalars(self) -> None:
        for name in ("stem_width", "window_size", "num_channels", "image_size"):
            check_whole(name, getattr(self, name))
        if self.layer_scale_init_value is not None:
            check_number("layer_scale_init_value", self.layer_scale_init_value)
        check_number("drop_path_rate", self.drop_path_rate, least=0, below=1)
        check_number("norm_eps", self.norm_eps, above=0)
        check_number("initializer_range", self.initializer_range, least=0)

    def _check_heads(self) -> None:
        stages = zip(self.hidden_sizes, self.attention_head_dims, self.attention_modes, strict=True)
        for width, head_dim, mode in stages:
            if mode != "none" and (head_dim < 1 or width % head_dim):
                raise ValueError(
                    f"attention_head_dims has {head_dim} for a stage of width {width}; it must divide the width."
                )


def _check_entry(name: str, value: object) -> None:
    if name == "expansion_ratios":
        check_number(name, value, above=0, below=LARGEST)
    elif not isinstance(value, str):
        check_whole(name, value, most=DEEPEST if name == "depths" else LARGEST)


def as_emov2_config(backbone: object) -> EMOv2Config:
    """The configuration of a backbone, given as such, as its fields or as None for the defaults.

    Raises:
        ValueError: if it is something else, or a field is not allowed.
    """
    if isinstance(backbone, EMOv2Config):
        return backbone
    fields = {} if backbone is None else backbone
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise ValueError(f"backbone_config is {shown(backbone)}; it must be an EMOv2Config or a dict of its fields.")
    return EMOv2Config(**fields)
