"""The paper's segmenters, and how to create one."""

from pathlib import Path

from demo_diffusion.checks import check_whole, shown
from demo_diffusion.models.emov2.configuration import checked_names
from demo_diffusion.models.emov2.presets import PRESETS, emov2_config

from .configuration import HEADS, WITH_AUXILIARY, EMOv2SegmenterConfig
from .modeling import EMOv2ForSemanticSegmentation

HEAD_CHANNELS = {"deeplabv3": 256, "pspnet": 256, "fpn": 128, "segformer": 288}
WINDOW_SIZES = {"EMOv2": 10, "EMOv1": 16}  # of the paper's segmenters, at any image size


def list_heads() -> list[str]:
    """Heads that `create_segmenter` knows; each goes with every name of `list_emov2()`."""
    return list(HEADS)


def segmenter_config(
    head: str,
    backbone: str = "EMOv2-5M",
    *,
    num_labels: int = 150,
    id2label: dict[int, str] | None = None,
    head_channels: int | None = None,
    auxiliary: bool | None = None,
    **backbone_overrides,
) -> EMOv2SegmenterConfig:
    """The configuration of a named segmenter; arguments and errors are those of `create_segmenter`."""
    if not isinstance(head, str) or head not in HEADS:
        raise ValueError(f"Unknown head {shown(head)}; known are {', '.join(HEADS)}.")
    if not isinstance(backbone, str) or backbone not in PRESETS:
        raise ValueError(f"Unknown backbone {shown(backbone)}; known are {', '.join(PRESETS)}.")
    check_whole("num_labels", num_labels)
    if head_channels is None:
        head_channels = 180 if (head, backbone[-3:]) == ("segformer", "-1M") else HEAD_CHANNELS[head]
    id2label = None if id2label is None or id2label == {} else checked_names(id2label)
    names = {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}} if id2label else {}
    return EMOv2SegmenterConfig(
        head=head,
        backbone_config=emov2_config(
            backbone, **{"window_size": WINDOW_SIZES[backbone.split("-")[0]], **backbone_overrides}
        ),
        head_channels=head_channels,
        auxiliary=head in WITH_AUXILIARY if auxiliary is None else auxiliary,
        **(names or {"num_labels": num_labels}),
    )


def create_segmenter(
    head: str, backbone: str = "EMOv2-5M", *, backbone_weights: str | Path | None = None, **options
) -> EMOv2ForSemanticSegmentation:
    """A segmenter with newly initialised weights, or on a trained classifier's.

    Args:
        head: one of `list_heads()`.
        backbone: one of `list_emov2()`.
        backbone_weights: folder or hub id of a classifier to start from.
        options: `num_labels` (150) or `id2label` ({class id: name}); `head_channels` (the paper's width); `auxiliary`
            (a second head for training; by default for "deeplabv3" and "pspnet"); and fields of `EMOv2Config` that
            differ from the preset, e.g. `window_size=8` (10 by default, 16 for EMOv1).

    Raises:
        ValueError: if a name, a field or the weights are not fit.
    """
    segmenter = EMOv2ForSemanticSegmentation(segmenter_config(head, backbone, **options))
    if backbone_weights is not None:
        segmenter.backbone.load_classifier(backbone_weights)
    return segmenter
