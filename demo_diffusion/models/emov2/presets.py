"""The named sizes of EMOv2 and EMOv1, and how to create a classifier from a name."""

import dataclasses

from demo_diffusion.checks import shown

from .configuration import EMOv2Config
from .modeling import EMOv2ForImageClassification

EMOV1_STYLE = {
    "kernel_sizes": (3, 3, 5, 5),
    "attention_modes": ("none", "none", "remote", "remote"),
    "attend_before_value": True,
    "layer_scale_init_value": None,
    "stem_width": 24,
    "stem_activation": None,
    "stem_squeeze_excitation": True,
}
# iRMB, one attention and smaller kernels, in the skeleton of EMOv2: overrides of an EMOv2 preset.
IRMB_IN_EMOV2 = {name: EMOV1_STYLE[name] for name in ("kernel_sizes", "attention_modes")}


def _preset(widths, depths, ratios, head_dims, drop_path, **style) -> dict:
    return {
        "hidden_sizes": widths,
        "depths": depths,
        "expansion_ratios": ratios,
        "attention_head_dims": head_dims,
        "drop_path_rate": drop_path,
        **style,
    }


_SMALL, _LARGE = (2.0, 2.5, 3.0, 3.5), (2.0, 3.0, 4.0, 4.0)
EMOV2_PRESETS = {  # arXiv 2412.06674, Table IV
    "EMOv2-1M": _preset((32, 48, 80, 180), (2, 2, 8, 3), _SMALL, (16, 16, 20, 20), 0.04036),
    "EMOv2-2M": _preset((32, 48, 120, 200), (3, 3, 9, 3), _SMALL, (16, 16, 20, 20), 0.05),
    "EMOv2-5M": _preset((48, 72, 160, 288), (3, 3, 9, 3), _LARGE, (16, 24, 32, 32), 0.05),
    "EMOv2-20M": _preset((64, 128, 320, 448), (3, 3, 13, 3), _LARGE, (16, 32, 32, 32), 0.1),
    "EMOv2-50M": _preset((64, 128, 384, 512), (5, 8, 20, 7), _LARGE, (16, 32, 32, 32), 0.2),
}
EMOV1_PRESETS = {  # the release of arXiv 2301.01146 (ICCV'23)
    "EMOv1-1M": _preset((32, 48, 80, 168), (2, 2, 8, 3), _SMALL, (16, 16, 20, 21), 0.04036, **EMOV1_STYLE),
    "EMOv1-2M": _preset((32, 48, 120, 200), (3, 3, 9, 3), _SMALL, (16, 16, 20, 20), 0.05, **EMOV1_STYLE),
    "EMOv1-5M": _preset((48, 72, 160, 288), (3, 3, 9, 3), _LARGE, (24, 24, 32, 32), 0.05, **EMOV1_STYLE),
}
PRESETS = {**EMOV2_PRESETS, **EMOV1_PRESETS}


def list_emov2() -> list[str]:
    """Names that `create_emov2` knows."""
    return list(PRESETS)


def emov2_config(name: str, **overrides) -> EMOv2Config:
    """The configuration of a named size.

    Args:
        name: one of `list_emov2()`, such as "EMOv2-5M".
        overrides: config fields that differ from the preset, e.g. `num_labels=10, window_size=8`.

    Raises:
        ValueError: if the name or a field is unknown.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"Unknown EMOv2 size {shown(name)}; known are {', '.join(PRESETS)}.")
    fields = {field.name for field in dataclasses.fields(EMOv2Config) if not field.name.startswith("_")}
    fields |= {"num_labels", "out_features", "out_indices"}
    if unknown := set(overrides) - fields:
        raise ValueError(f"{name} has no config field {sorted(unknown)}; its fields are {sorted(fields)}.")
    return EMOv2Config(**{**PRESETS[name], **overrides})


def create_emov2(name: str, **overrides) -> EMOv2ForImageClassification:
    """A classifier with newly initialised weights; arguments and errors are those of `emov2_config`."""
    return EMOv2ForImageClassification(emov2_config(name, **overrides))
