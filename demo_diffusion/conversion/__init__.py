from .diffusers_dit import convert_diffusers_dit
from .official import convert_dit, convert_sit, to_official

__all__ = ["convert_diffusers_dit", "convert_dit", "convert_sit", "to_official"]
