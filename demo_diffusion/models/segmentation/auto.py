"""Makes transformers' Auto classes know the segmenters."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor

from .configuration import EMOv2SegmenterConfig, UEMOConfig
from .modeling import EMOv2ForSemanticSegmentation
from .unet import UEMOForSemanticSegmentation


def register_segmenters() -> None:
    models = {EMOv2SegmenterConfig: EMOv2ForSemanticSegmentation, UEMOConfig: UEMOForSemanticSegmentation}
    for config, model in models.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForSemanticSegmentation.register(config, model, exist_ok=True)
        processors = {"torchvision": SegformerImageProcessor}
        AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
