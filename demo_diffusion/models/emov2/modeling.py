"""EMOv2 and EMOv1: four stages of Meta Mobile Blocks, as classifier and as backbone (arXiv 2412.06674, Sec. 3)."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import can_return_tuple

from demo_diffusion.checks import check_tensor, check_values, shown
from demo_diffusion.models.input_checks import check_computable
from demo_diffusion.models.layers.checkpointing import checkpoint_module
from demo_diffusion.models.layers.conv_norm import ConvNorm, DepthwiseConvNorm
from demo_diffusion.models.layers.folding import Foldable, Linear
from demo_diffusion.models.layers.squeeze_excitation import SqueezeExcitation
from demo_diffusion.models.loading import CheckedLoading
from demo_diffusion.models.mobile_block import MobileBlock
from demo_diffusion.models.operators import ACTIVATIONS, in_parts, silu

from .configuration import EMOv2Config


class StemMixer(nn.Module):
    """Linear(SqueezeExcitation(SiLU(BatchNorm(DepthwiseConv(x))))), the excitation in EMOv1 alone.

    Shapes: (B, H, W, width) -> (B, H, W, width).
    """

    def __init__(self, width: int, eps: float, squeeze_excitation: bool):
        super().__init__()
        self.hidden_channels = width
        self.conv_local = DepthwiseConvNorm(width, kernel_size=3, eps=eps)
        self.squeeze_excitation = SqueezeExcitation(width) if squeeze_excitation else nn.Identity()
        self.proj = Linear(width, width, bias=False)

    @in_parts
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.proj(self.squeeze_excitation(silu(self.conv_local(tokens))))


class EMOv2Stem(nn.Module):
    """A convolution of stride 2 and a depthwise one: (B, H, W, C) -> (B, ⌈H / 2⌉, ⌈W / 2⌉, stem_width)."""

    def __init__(self, config: EMOv2Config):
        super().__init__()
        width, activation = config.stem_width, config.stem_activation
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"stem_activation is {activation!r}; it must be None or one of {sorted(ACTIVATIONS)}.")
        self.conv = ConvNorm(config.num_channels, width, 3, stride=2, bias=True, eps=config.norm_eps)
        self.activation = ACTIVATIONS.get(activation, nn.Identity())
        self.mixer = StemMixer(width, config.norm_eps, config.stem_squeeze_excitation)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.mixer(self.activation(self.conv(pixels)))


def check_pixels(pixels: object, channels: int, layer: nn.Module, least: int = 1) -> None:
    """Checks the images that a network is given.

    Args:
        layer: one of the network's, whose weight's type the images must have.
        least: pixels of a side.

    Raises:
        ValueError: if they are no tensor (batch, channels, height, width) of the network's type with so many pixels.
    """
    check_tensor("pixel_values", pixels, ("batch", channels, "height", "width"), floating=True)
    if min(pixels.shape[2:]) < least:
        sides = "one pixel" if least == 1 else f"{least} pixels"
        raise ValueError(
            f"pixel_values has shape {tuple(pixels.shape)}; it must be (batch, {channels}, height, width) with sides "
            f"of at least {sides}."
        )
    check_computable("pixel_values", pixels, layer)


class EMOv2PreTrainedModel(CheckedLoading, PreTrainedModel):
    """Initialisation as the official code's, gradient checkpointing, and folding for inference."""

    config: EMOv2Config
    config_class = EMOv2Config
    base_model_prefix = "emov2"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MobileBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # PyTorch's default, as in the official code
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, MobileBlock):
            if module.gamma is not None:
                init.constant_(module.gamma, self.config.layer_scale_init_value)
        else:
            super()._init_weights(module)

    def fuse(self) -> None:
        """Folds every BatchNorm and LayerScale that can be into a neighbour. Saving still writes the original weights.

        Raises:
            RuntimeError: if the model is in training mode, where BatchNorm normalises by the batch.
        """
        if self.training:
            raise RuntimeError("fuse() is for inference: call eval() first. train() undoes it.")
        for module in self.modules():
            if isinstance(module, (ConvNorm, MobileBlock)):
                module.fuse()

    def unfuse(self) -> None:
        """Undoes `fuse`."""
        for module in self.modules():
            if isinstance(module, Foldable):
                module.unfuse()


class EMOv2Model(EMOv2PreTrainedModel):
    """Stem and stages, without final norm and classifier.

    Maps pixel_values (B, num_channels, H, W) of any size to (B, C, ⌈H/32⌉, ⌈W/32⌉); `hidden_states` are the outputs of
    the stem (stride 2) and of the stages (strides 4, 8, 16, 32).
    """

    _keys_to_ignore_on_load_unexpected = [r"^norm\.", r"^classifier\."]

    def __init__(self, config: EMOv2Config):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.stem = EMOv2Stem(config)
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in _make_stages(config))
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithNoAttention:
        feature_maps = self.feature_maps(pixel_values)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithNoAttention(
            last_hidden_state=feature_maps[-1], hidden_states=feature_maps if wanted else None
        )

    def feature_maps(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of the stem and the four stages, each (B, C, ⌈H / stride⌉, ⌈W / stride⌉).

        Raises:
            ValueError: if `pixel_values` is not (B, num_channels, H, W) of the network's type.
        """
        check_pixels(pixel_values, self.config.num_channels, self.stem.conv.conv)
        tokens = self.stem(pixel_values.permute(0, 2, 3, 1).contiguous())
        outputs = [tokens]
        for blocks in self.stages:
            for block in blocks:
                if self.gradient_checkpointing and self.training:
                    tokens = checkpoint_module(block, tokens)
                else:
                    tokens = block(tokens)
            outputs.append(tokens)
        return tuple(tokens.permute(0, 3, 1, 2) for tokens in outputs)


class EMOv2ForImageClassification(EMOv2PreTrainedModel):
    """EMOv2 with LayerNorm, mean over positions and a linear classifier. Use `create_emov2` for the named sizes."""

    accepts_loss_kwargs = False
    new_layers = ("norm.", "classifier.")

    def __init__(self, config: EMOv2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.emov2 = EMOv2Model(config)
        self.norm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.norm_eps)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits (B, num_labels) of pixel_values (B, num_channels, H, W); with labels (B,) the loss too."""
        outputs = self.emov2(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(self.norm(outputs.last_hidden_state.permute(0, 2, 3, 1)).mean((1, 2)))
        loss = None
        if labels is not None:
            _check_labels(labels, logits)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


def _check_labels(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """Class ids (B,), or numbers (B, num_labels) of several classes at once or of a regression."""
    if isinstance(labels, torch.Tensor) and labels.is_floating_point():
        check_tensor("labels", labels, labels.shape[:1] if logits.shape[1] == 1 else logits.shape, floating=True)
    else:
        check_tensor("labels", labels, logits.shape[:1], floating=False)
        check_values("labels", labels, 0, logits.shape[1] - 1)


class EMOv2Backbone(BackboneMixin, EMOv2Model):
    """EMOv2 as a backbone: feature maps (B, C, ⌈H / stride⌉, ⌈W / stride⌉) of the stages in `out_features`.

    Strides: "stem" 2, "stage1" 4, "stage2" 8, "stage3" 16, "stage4" 32. Reads the weights of a classifier too.
    """

    has_attentions = False

    def __init__(self, config: EMOv2Config):
        super().__init__(config)
        self.num_features = [config.stem_width, *config.hidden_sizes]

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        outputs = self.feature_maps(pixel_values)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BackboneOutput(
            feature_maps=tuple(outputs[self.stage_names.index(name)] for name in self.out_features),
            hidden_states=outputs if wanted else None,
        )

    def load_classifier(self, name_or_path: str | Path) -> None:
        """Takes the weights of a classifier's folder or hub id; attention windows may have another size.

        Raises:
            ValueError: if it cannot be loaded, its network has another structure, or its weights are not whole.
        """
        theirs = load_network(EMOv2Backbone, "classifier", name_or_path)
        fields = {name: (getattr(theirs.config, name), getattr(self.config, name)) for name in STRUCTURE}
        if different := [f"{name} {a} (ours {b})" for name, (a, b) in fields.items() if _plain(a) != _plain(b)]:
            raise ValueError(f"{name_or_path} is another network than this backbone: {'; '.join(different)}.")
        self.load_state_dict(theirs.state_dict())


# What a classifier and a backbone must share for its weights to fit and to mean the same; windows may differ.
STRUCTURE = (
    "hidden_sizes",
    "depths",
    "expansion_ratios",
    "attention_head_dims",
    "attention_modes",
    "kernel_sizes",
    "norms",
    "activations",
    "attend_before_value",
    "stem_width",
    "stem_activation",
    "stem_squeeze_excitation",
)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value


def load_network(model_class: type[PreTrainedModel], kind: str, name_or_path: str | Path) -> PreTrainedModel:
    """`model_class.from_pretrained`, all of whose errors are a ValueError of one line.

    Args:
        kind: "classifier" or another word for what is loaded.
    """
    if not isinstance(name_or_path, str | Path):
        raise ValueError(f"The {kind} to load is {shown(name_or_path)}; give a folder or a hub id.")
    try:
        return model_class.from_pretrained(name_or_path)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The {kind} {name_or_path} cannot be loaded: {reason} Give a folder that save_pretrained wrote, or a hub "
            "id."
        ) from error


def _make_stages(config: EMOv2Config) -> Iterator[Iterator[MobileBlock]]:
    """The blocks of each stage; a stage opens with stride 2, twice its expansion and no attention."""
    num_blocks = sum(config.depths)
    drop_paths = iter(config.drop_path_rate * i / max(1, num_blocks - 1) for i in range(num_blocks))
    in_channels = config.stem_width
    for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        yield [
            _make_block(config, stage, width if i else in_channels, opens=i == 0, drop_path=next(drop_paths))
            for i in range(depth)
        ]
        in_channels = width


def _make_block(config: EMOv2Config, stage: int, in_channels: int, opens: bool, drop_path: float) -> MobileBlock:
    width = config.hidden_sizes[stage]
    return MobileBlock(
        in_channels,
        width,
        norm=config.norms[stage],
        layer_scale_init=config.layer_scale_init_value,
        eps=config.norm_eps,
        stride=2 if opens else 1,
        drop_path=drop_path,
        expansion_ratio=config.expansion_ratios[stage] * (2 if opens else 1),
        num_heads=1 if opens else max(1, width // config.attention_head_dims[stage]),
        attention_mode="none" if opens else config.attention_modes[stage],
        window_size=config.window_size,
        kernel_size=config.kernel_sizes[stage],
        activation=config.activations[stage],
        attend_before_value=config.attend_before_value,
    )
