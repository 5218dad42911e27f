"""EMOv2 with a head that gives each pixel a class."""

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from demo_diffusion.models.emov2.modeling import EMOv2Backbone, EMOv2PreTrainedModel, check_pixels

from .configuration import EMOv2SegmenterConfig
from .heads import HEAD_CLASSES, FCNHead
from .losses import check_labels, segmentation_loss


class EMOv2ForSemanticSegmentation(EMOv2PreTrainedModel):
    """EMOv2 or EMOv1 with one of four heads. Use `create_segmenter` for the paper's."""

    config: EMOv2SegmenterConfig
    config_class = EMOv2SegmenterConfig
    base_model_prefix = "backbone"

    def __init__(self, config: EMOv2SegmenterConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        widths = list(config.backbone_config.hidden_sizes)
        settings = config.head_channels, config.num_labels, config.head_dropout
        self.backbone = EMOv2Backbone(config.backbone_config)
        self.decode_head = HEAD_CLASSES[config.head](widths, *settings)
        self.auxiliary_head = FCNHead(widths[2], *settings) if config.auxiliary else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        """Logits of each class on the head's grid, which the image processor or `resize` brings to the image's size.

        Args:
            pixel_values: (B, num_channels, H, W).
            labels: (B, H, W) class ids; with them there is a loss, in training mode also of the auxiliary head.

        Returns:
            logits (B, labels, ⌈H / s⌉, ⌈W / s⌉), s = 32 for "deeplabv3" and "pspnet", 4 for "fpn" and "segformer".

        Raises:
            ValueError: if images or labels are not as described.
        """
        config = self.config
        check_pixels(pixel_values, config.backbone_config.num_channels, self.decode_head.classifier)
        if labels is not None:
            check_labels(labels, pixel_values, config.num_labels, config.semantic_loss_ignore_index)
        maps = self.backbone(pixel_values, return_dict=True).feature_maps
        logits = self.decode_head(maps)
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, labels, config.semantic_loss_ignore_index)
            if self.training and self.auxiliary_head is not None:
                auxiliary = segmentation_loss(self.auxiliary_head(maps[2]), labels, config.semantic_loss_ignore_index)
                loss = loss + config.auxiliary_loss_weight * auxiliary
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=maps if output_hidden_states else None)
