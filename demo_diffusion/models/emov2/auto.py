"""Makes transformers' Auto classes know EMOv2."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessor,
    BitImageProcessorPil,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration import EMOv2Config
from .modeling import EMOv2Backbone, EMOv2ForImageClassification, EMOv2Model

CROP_FRACTION = 0.875  # official: centre crop of this part of the shorter side, resized by bicubic interpolation


def register_emov2() -> None:
    AutoConfig.register(EMOv2Config.model_type, EMOv2Config, exist_ok=True)
    AutoModel.register(EMOv2Config, EMOv2Model, exist_ok=True)
    AutoModelForImageClassification.register(EMOv2Config, EMOv2ForImageClassification, exist_ok=True)
    AutoBackbone.register(EMOv2Config, EMOv2Backbone, exist_ok=True)
    processors = {"torchvision": BitImageProcessor, "pil": BitImageProcessorPil}
    AutoImageProcessor.register(EMOv2Config, image_processor_classes=processors, exist_ok=True)


def emov2_image_processor(image_size: int = 224) -> BitImageProcessor:
    """The official evaluation's preprocessing: resize the shorter side, centre crop, ImageNet mean and deviation."""
    return BitImageProcessor(
        size={"shortest_edge": int(image_size / CROP_FRACTION)},
        crop_size={"height": image_size, "width": image_size},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
