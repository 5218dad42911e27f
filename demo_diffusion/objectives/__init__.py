from .ddpm import DDPMObjective
from .flow import FlowObjective

__all__ = ["DDPMObjective", "FlowObjective"]
