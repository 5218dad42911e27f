"""What a network learns to predict.

Read `flow` (velocity on the linear path), then `ddpm` (noise and learned variance); `common` has what they share.
"""

from .ddpm import DDPMObjective
from .flow import FlowObjective

__all__ = ["DDPMObjective", "FlowObjective"]
