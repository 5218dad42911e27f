"""U-EMO: a UNet of i2RMB blocks (arXiv 2412.06674, Table XII), and the plain UNet beside it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import Conv2dNormActivation
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from demo_diffusion.models.emov2.modeling import check_pixels
from demo_diffusion.models.layers.checkpointing import checkpoint_module
from demo_diffusion.models.loading import CheckedLoading
from demo_diffusion.models.mobile_block import MobileBlock

from .configuration import UEMOConfig
from .heads import Classifier, DeepLabV3Head, FCNHead, resize
from .losses import check_labels, segmentation_loss


class MobilePair(nn.Module):
    """Two i2RMB blocks, the first of which may change the width: (B, C_in, H, W) -> (B, C, H, W)."""

    def __init__(self, in_channels: int, channels: int, config: UEMOConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            MobileBlock(
                width,
                channels,
                layer_scale_init=config.layer_scale_init_value,
                eps=config.norm_eps,
                expansion_ratio=config.expansion_ratio,
                num_heads=width // config.attention_head_dim,
                window_size=config.window_size,
                conv_layer_norm=True,
            )
            for width in (in_channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.permute(0, 2, 3, 1).contiguous()
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.permute(0, 3, 1, 2)


class ConvPair(nn.Sequential):
    """Two 3×3 convolutions, each with BatchNorm and ReLU: (B, C_in, H, W) -> (B, C, H, W)."""

    def __init__(self, in_channels: int, channels: int, config: UEMOConfig):
        super().__init__(Conv2dNormActivation(in_channels, channels, 3), Conv2dNormActivation(channels, channels, 3))


PAIRS = {"i2rmb": MobilePair, "conv": ConvPair}


class DecoderLevel(nn.Module):
    """The coarser map, doubled and narrowed, joins the encoder's map of this level; then a pair of blocks."""

    def __init__(self, in_channels: int, channels: int, config: UEMOConfig):
        super().__init__()
        self.narrow = Conv2dNormActivation(in_channels, channels, 1)
        self.pair = PAIRS[config.block](2 * channels, channels, config)

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.pair(torch.cat([skip, self.narrow(resize(x, skip.shape[-2:]))], dim=1))


class UNet(nn.Module):
    """(B, num_channels, H, W) -> the decoder's maps, coarse to fine, the last of them (B, hidden_sizes[0], H, W).

    An odd side loses a row or column when it is halved, and gets it back from the encoder's map on the way up.
    """

    def __init__(self, config: UEMOConfig):
        super().__init__()
        widths, pair = list(config.hidden_sizes), PAIRS[config.block]
        self.gradient_checkpointing = False
        self.encoder = nn.ModuleList([ConvPair(config.num_channels, widths[0], config)])
        self.encoder.extend(pair(*neighbours, config) for neighbours in pairwise(widths))
        self.decoder = nn.ModuleList(DecoderLevel(coarse, fine, config) for fine, coarse in pairwise(widths))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        # 1. Down: each level halves the grid.
        x, skips = self.encoder[0](pixels), []
        for level in list(self.encoder)[1:]:
            skips.append(x)
            x = self._run(level, F.max_pool2d(x, 2))
        # 2. Up: each level doubles it and adds what the way down had there.
        maps = [x]
        for level, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            maps.append(self._run(level, skip, maps[-1]))
        return maps

    def _run(self, level: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint_module(level, *inputs)
        return level(*inputs)


class UEMOForSemanticSegmentation(CheckedLoading, PreTrainedModel):
    """A UNet with the DeepLabv3 head on its finest map: logits at the image's size.

    Images of any size from 2^(levels − 1) pixels; `predict_logits` reads large ones through a sliding window.
    """

    config: UEMOConfig
    config_class = UEMOConfig
    base_model_prefix = "unet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["MobilePair", "ConvPair", "DecoderLevel"]

    def __init__(self, config: UEMOConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        widths, dropout = list(config.hidden_sizes), config.head_dropout
        self.unet = UNet(config)
        self.decode_head = DeepLabV3Head(widths[:1], config.head_channels, config.num_labels, dropout)
        self.auxiliary_head = FCNHead(widths[1], 64, config.num_labels, dropout) if config.auxiliary else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Classifier):
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MobileBlock):
            init.constant_(module.gamma, self.config.layer_scale_init_value)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> SemanticSegmenterOutput:
        """Logits (B, labels, H, W) of pixel_values (B, num_channels, H, W); with labels (B, H, W) the loss too.

        Raises:
            ValueError: if images or labels are not as described.
        """
        config, least = self.config, 2 ** (len(self.config.hidden_sizes) - 1)
        check_pixels(pixel_values, config.num_channels, self.decode_head.classifier, least)
        if labels is not None:
            check_labels(labels, pixel_values, config.num_labels, config.semantic_loss_ignore_index)
        maps = self.unet(pixel_values)
        logits = self.decode_head(maps)
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, labels, config.semantic_loss_ignore_index)
            if self.training and self.auxiliary_head is not None:
                auxiliary = segmentation_loss(self.auxiliary_head(maps[-2]), labels, config.semantic_loss_ignore_index)
                loss = loss + config.auxiliary_loss_weight * auxiliary
        return SemanticSegmenterOutput(loss=loss, logits=logits)
