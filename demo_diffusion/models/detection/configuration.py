"""The configuration of a detector: which head, on which backbone, for which classes and sizes."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from demo_diffusion.checks import check_whole
from demo_diffusion.models.emov2.configuration import EMOv2Config, as_emov2_config, check_classes, with_value_errors

# Stages of the backbone that each detector reads.
STAGES = {
    "SSDLite": ("stage3", "stage4"),
    "RetinaNet": ("stage2", "stage3", "stage4"),
    "MaskRCNN": ("stage1", "stage2", "stage3", "stage4"),
}
# Label of the first class, as torchvision has it: 0 is the background of SSD and Mask R-CNN; RetinaNet has none.
FIRST_LABEL = {"SSDLite": 1, "RetinaNet": 0, "MaskRCNN": 1}
LEAST_SIDE = 32  # of an image in pixels: the stride of the backbone
LONGEST_SIDE = 1333 / 800  # over the shorter side of an image, at most


@with_value_errors
@strict
class EMOv2DetectorConfig(PreTrainedConfig):
    """Configuration of `EMOv2Detector`. The defaults are SSDLite at 320 pixels on EMOv2-5M.

    Args:
        detector: "SSDLite", "RetinaNet" or "MaskRCNN".
        backbone_config: an `EMOv2Config` or its fields; `out_features` follow from the detector.
        num_classes: number of classes without the background.
        image_size: SSDLite: the side of the square to which images are squashed; else their shorter side, if the longer
            one is no more than 1333 / 800 of that then, which it is shrunk to.
        scaled_anchors: SSDLite alone. False: the authors' anchors of 48 to 304 pixels at any image size; True: anchors
            that grow with the image size. At 320 pixels both are the same.
        box_batch_size_per_image: Mask R-CNN alone: proposals of an image that its heads learn from, by torchvision's
            name. A quarter at most are objects, whose masks take most of a step's time.
        freeze_first_stage: the stem and the first stage stay as they are, in eval mode.
        freeze_batch_norm: the backbone's BatchNorms normalise by their running statistics in training too, and these
            stay. Their scale and shift are trained.

    Raises:
        ValueError: if a field is not allowed.
    """

    model_type = "emov2_detector"
    sub_configs = {"backbone_config": EMOv2Config}

    detector: str = "SSDLite"
    backbone_config: dict | EMOv2Config | None = None
    num_classes: int = 80
    image_size: int = 320
    scaled_anchors: bool = False
    box_batch_size_per_image: int = 512
    freeze_first_stage: bool = False
    freeze_batch_norm: bool = False

    def __post_init__(self, **kwargs):
        if self.detector not in STAGES:
            raise ValueError(f"Unknown detector {self.detector!r}; known are {', '.join(STAGES)}.")
        check_whole("num_classes", self.num_classes)
        check_whole("image_size", self.image_size, LEAST_SIDE)
        check_whole("box_batch_size_per_image", self.box_batch_size_per_image)
        if self.scaled_anchors and self.detector != "SSDLite":
            raise ValueError(f"scaled_anchors is for SSDLite; {self.detector} has the same anchors at any size.")
        self.backbone_config = as_emov2_config(self.backbone_config)
        self.backbone_config.set_output_features_output_indices(
            out_features=list(STAGES[self.detector]), out_indices=None
        )
        if self.id2label is None or self.id2label == {}:
            self.id2label = {label: f"class {label - self.first_label}" for label in self.labels}
        check_classes(self, kwargs, self.first_label)
        self.label2id = {name: label for label, name in self.id2label.items()}
        if len(self.id2label) != self.num_classes:
            raise ValueError(
                f"id2label has the labels {sorted(self.id2label)}; {self.detector} with {self.num_classes} classes has "
                f"{self.first_label} … {self.labels[-1]}."
            )
        super().__post_init__(**kwargs)

    @property
    def first_label(self) -> int:
        """Label of the first class: 1 where 0 is the background, 0 for RetinaNet, which has none."""
        return FIRST_LABEL[self.detector]

    @property
    def labels(self) -> range:
        """All labels that a target may have and that are detected."""
        return range(self.first_label, self.first_label + self.num_classes)
