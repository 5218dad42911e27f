from .diffusers_dit import convert_diffusers_dit
from .dit import convert_dit, convert_sit, to_official
from .emov2 import convert_emov2

__all__ = ["convert_diffusers_dit", "convert_dit", "convert_emov2", "convert_sit", "to_official"]
