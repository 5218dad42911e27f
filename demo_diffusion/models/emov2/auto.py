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

from .configuration import EMOv2Config
from .modeling import EMOv2Backbone, EMOv2ForImageClassification, EMOv2Model


def register_emov2() -> None:
    AutoConfig.register(EMOv2Config.model_type, EMOv2Config, exist_ok=True)
    AutoModel.register(EMOv2Config, EMOv2Model, exist_ok=True)
    AutoModelForImageClassification.register(EMOv2Config, EMOv2ForImageClassification, exist_ok=True)
    AutoBackbone.register(EMOv2Config, EMOv2Backbone, exist_ok=True)
    processors = {"torchvision": BitImageProcessor, "pil": BitImageProcessorPil}
    AutoImageProcessor.register(EMOv2Config, image_processor_classes=processors, exist_ok=True)
