"""Fused operators of the i2RMB block, chosen automatically where they are faster than the modules that define them.

The definition of every operator is the readable code of `demo_diffusion.models`; a fused operator equals it up to
rounding. `set_enabled(False)`, or DEMO_KERNELS=0 in the environment, leaves the definitions alone.
"""

from .switch import disabled, is_enabled, set_enabled

__all__ = ["disabled", "is_enabled", "set_enabled"]
