"""Fused operators of the i2RMB block, chosen automatically where they are faster than the modules that define them.

The definition of every operator is the readable code of `demo_diffusion.models`, whose `operators` chooses; a fused
operator equals it up to rounding. `set_enabled(False)`, or DEMO_KERNELS=0 in the environment, leaves the definitions
alone.
"""

from .cpu.attention import cpu_spanning_attention
from .cpu.attention import supports as cpu_attention_supports
from .cpu.depthwise import cpu_depthwise_conv
from .cpu.depthwise import supports as cpu_depthwise_supports
from .cpu.linear import cpu_linear, is_eager_cpu_inference
from .cpu.linear import supports as cpu_linear_supports
from .cpu.malloc import is_memory_kept, keep_freed_memory
from .cpu.window_order import to_window_order
from .gpu.available import (
    triton_attention_supports,
    triton_conv_norm_silu_add,
    triton_depthwise_supports,
    triton_folded_conv_silu_add,
    triton_spanning_attention,
)
from .switch import disabled, is_enabled, set_enabled

__all__ = [
    "cpu_attention_supports",
    "cpu_depthwise_conv",
    "cpu_depthwise_supports",
    "cpu_linear",
    "cpu_linear_supports",
    "cpu_spanning_attention",
    "disabled",
    "is_eager_cpu_inference",
    "is_enabled",
    "is_memory_kept",
    "keep_freed_memory",
    "set_enabled",
    "to_window_order",
    "triton_attention_supports",
    "triton_conv_norm_silu_add",
    "triton_depthwise_supports",
    "triton_folded_conv_silu_add",
    "triton_spanning_attention",
]
