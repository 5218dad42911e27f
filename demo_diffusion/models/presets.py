"""The named sizes, and how to create a network from a name."""

import inspect

from demo_diffusion.checks import shown

from .class_conditional import ClassConditionalTransformer
from .transformer_demo import DEMO_PRESETS, DEMOTransformer2DModel
from .transformer_dit import DIT_PRESETS, SIT_PRESETS, DiTModel

PRESETS = {
    **{name: (DEMOTransformer2DModel, config) for name, config in DEMO_PRESETS.items()},
    **{name: (DiTModel, config) for name, config in {**DIT_PRESETS, **SIT_PRESETS}.items()},
}


def list_transformers() -> list[str]:
    """Names that `create_transformer` knows."""
    return list(PRESETS)


def network_classes() -> dict[str, type[ClassConditionalTransformer]]:
    """Family, as the presets' names begin with it -> its class."""
    return {name.split("-")[0]: model_class for name, (model_class, _) in PRESETS.items()}


def preset_of(name: str) -> dict:
    """Config fields of a preset that differ from its class's defaults."""
    return PRESETS[name][1]


def create_transformer(name: str, **overrides) -> ClassConditionalTransformer:
    """A network with newly initialised weights.

    Args:
        name: one of `list_transformers()`, such as "DEMO-S/2".
        overrides: config fields that differ from the preset, e.g. `num_classes=10, in_channels=3`.

    Raises:
        ValueError: if the name or a field is unknown.
    """
    check_fields(name, overrides)
    model_class, config = PRESETS[name]
    return model_class(**{**config, **overrides})


def check_fields(name: str, overrides: dict) -> None:
    """Raises a ValueError if the name of a transformer or of one of its config fields is unknown."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"Unknown transformer {shown(name)}; known are {', '.join(PRESETS)}.")
    fields = set(inspect.signature(PRESETS[name][0].__init__).parameters) - {"self"}
    if unknown := set(overrides) - fields:
        raise ValueError(f"{name} has no config field {sorted(unknown)}; its fields are {sorted(fields)}.")
