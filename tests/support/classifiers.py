"""A tiny EMOv2."""

import pytest

from demo_diffusion import EMOv2ForImageClassification, create_emov2
from tests.support.networks import randomize

TINY = {
    "hidden_sizes": (8, 12, 16, 24),
    "depths": (2, 1, 2, 2),
    "attention_head_dims": (8, 12, 8, 8),
    "window_size": 2,
    "num_labels": 5,
    "drop_path_rate": 0.0,
}
STYLES = pytest.mark.parametrize("name", ["EMOv2-5M", "EMOv1-5M"])


def tiny_emov2(name: str = "EMOv2-5M", **overrides) -> EMOv2ForImageClassification:
    return randomize(create_emov2(name, **{**TINY, **overrides})).eval()
