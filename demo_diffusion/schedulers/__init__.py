"""The samplers that diffusers lacks: SiT's SDE and its adaptive ODE solver."""

from .flow_match_dopri5 import FlowMatchDopri5Scheduler
from .flow_match_sde import FlowMatchSDEScheduler

__all__ = ["FlowMatchDopri5Scheduler", "FlowMatchSDEScheduler"]
