"""Object detectors on EMOv2 and EMOv1 (arXiv 2412.06674, Tables VIII to X), with the heads of torchvision.

Read `configuration`, `modeling`, then `backbones` (what the heads get), `anchors`, `targets` (what they are taught) and
`presets` (the named detectors). `drawing` paints what they find.
"""

from .configuration import EMOv2DetectorConfig
from .modeling import EMOv2Detector, load_detector
from .presets import create_detector, list_detectors

__all__ = ["EMOv2Detector", "EMOv2DetectorConfig", "create_detector", "list_detectors", "load_detector"]
