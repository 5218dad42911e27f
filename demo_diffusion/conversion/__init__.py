"""Official checkpoints in, our folders out, and back: `python -m demo_diffusion.conversion SOURCE TARGET`.

Read `__main__` (which source is what), `pipeline_folders`, then a format: `dit`, `diffusers_dit`, `emov2`, `taef2`.
"""

from .diffusers_dit import convert_diffusers_dit
from .dit import convert_dit, convert_repa, convert_sit, to_official
from .emov2 import convert_emov2

__all__ = ["convert_diffusers_dit", "convert_dit", "convert_emov2", "convert_repa", "convert_sit", "to_official"]
