"""The named detectors, and how to create one."""

from pathlib import Path

from demo_diffusion.checks import shown
from demo_diffusion.models.emov2.presets import PRESETS, emov2_config

from .configuration import STAGES, EMOv2DetectorConfig
from .modeling import EMOv2Detector

IMAGE_SIZES = {"SSDLite": 320, "RetinaNet": 800, "MaskRCNN": 800}
FREEZES_FIRST_STAGE = {"SSDLite": False, "RetinaNet": True, "MaskRCNN": True}
OWN_FIELDS = (  # of the detector, not of its backbone
    *("num_classes", "scaled_anchors", "box_batch_size_per_image"),
    *("freeze_first_stage", "freeze_batch_norm"),
)
WINDOW_SIZE = 10  # of the paper's detectors, at any image size


def list_detectors() -> list[str]:
    """Names that `create_detector` knows; each goes with every name of `list_emov2()`."""
    return list(STAGES)


def detector_config(
    name: str,
    backbone: str = "EMOv2-5M",
    *,
    image_size: int | None = None,
    id2label: dict[int, str] | None = None,
    **options,
) -> EMOv2DetectorConfig:
    """The configuration of a named detector; arguments and errors are those of `create_detector`."""
    if not isinstance(name, str) or name not in STAGES:
        raise ValueError(f"Unknown detector {shown(name)}; known are {', '.join(STAGES)}.")
    if not isinstance(backbone, str) or backbone not in PRESETS:
        raise ValueError(f"Unknown backbone {shown(backbone)}; known are {', '.join(PRESETS)}.")
    own = {field: options.pop(field) for field in OWN_FIELDS if field in options}
    return EMOv2DetectorConfig(
        detector=name,
        backbone_config=emov2_config(backbone, **{"window_size": WINDOW_SIZE, **options}),
        image_size=IMAGE_SIZES[name] if image_size is None else image_size,
        id2label=id2label,
        **own,
    )


def create_detector(
    name: str,
    backbone: str = "EMOv2-5M",
    *,
    backbone_weights: str | Path | None = None,
    freeze_first_stage: bool | None = None,
    freeze_batch_norm: bool | None = None,
    **options,
) -> EMOv2Detector:
    """A detector with newly initialised weights, or on a trained classifier's.

    Args:
        name: one of `list_detectors()`.
        backbone: one of `list_emov2()`.
        backbone_weights: folder or hub id of a classifier to start from.
        freeze_first_stage, freeze_batch_norm: see `EMOv2DetectorConfig`. None: as in the paper if there are
            `backbone_weights`, else False, because new weights must be trained.
        options: `num_classes` (80) without the background; `image_size` in pixels (320 for SSDLite, 800 for the
            others); `id2label`, {label: name of the class}, whose labels begin at 0 for RetinaNet and at 1 for the
            others; `scaled_anchors` and `box_batch_size_per_image`, see `EMOv2DetectorConfig`; and fields of
            `EMOv2Config` that differ from the preset, e.g. `window_size=7` (10 by default).

    Raises:
        ValueError: if a name, a field or the weights are not fit.
    """
    is_pretrained = backbone_weights is not None
    if not is_pretrained and (freeze_first_stage or freeze_batch_norm):
        raise ValueError(
            "freeze_first_stage and freeze_batch_norm keep what a classifier has learned; give its folder as "
            "backbone_weights, or set both to False."
        )
    if freeze_first_stage is None:
        freeze_first_stage = is_pretrained and isinstance(name, str) and FREEZES_FIRST_STAGE.get(name, False)
    freeze = {
        "freeze_first_stage": freeze_first_stage,
        "freeze_batch_norm": is_pretrained if freeze_batch_norm is None else freeze_batch_norm,
    }
    detector = EMOv2Detector(detector_config(name, backbone, **freeze, **options))
    if is_pretrained:
        detector.detector.backbone.body.load_classifier(backbone_weights)
    return detector
