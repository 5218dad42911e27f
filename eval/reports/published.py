"""Table XIV of the EMOv2 paper (arXiv 2412.06674): ImageNet 256, 400K steps, FID-50K, no guidance."""

from typing import NamedTuple


class PublishedRow(NamedTuple):
    """Parameters in millions, GMACs as printed (for DiT and SiT without the attention products)."""

    model: str
    parameters_m: float
    gmacs: float
    fid: float


TABLE_XIV = (
    PublishedRow("DiT-S/2", 33.0, 5.5, 68.4),
    PublishedRow("SiT-S/2", 33.0, 5.5, 57.6),
    PublishedRow("DEMO-S/2", 24.6, 5.4, 46.3),
    PublishedRow("DiT-B/2", 130.5, 21.8, 43.5),
    PublishedRow("SiT-B/2", 130.5, 21.8, 33.5),
    PublishedRow("DEMO-B/2", 96.1, 19.9, 24.8),
    PublishedRow("DiT-L/2", 458.1, 77.5, 23.3),
    PublishedRow("SiT-L/2", 458.1, 77.5, 18.8),
    PublishedRow("DEMO-L/2", 334.8, 69.3, 11.2),
    PublishedRow("DiT-XL/2", 675.1, 114.5, 19.5),
    PublishedRow("SiT-XL/2", 675.1, 114.5, 17.2),
    PublishedRow("DEMO-XL/2", 492.7, 101.5, 9.6),
)

# The settings of those numbers that an evaluation here can differ in.
PROTOCOL = {
    "num_samples": 50_000,
    "num_inference_steps": 250,
    "guidance_scale": 1.0,
    "labels": "random",
    "dtype": "float32",
    "extractor": "inception",
}
