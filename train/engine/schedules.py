"""The learning rate over the steps of a run."""

import math

from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .config import OptimizationConfig


def create_lr_scheduler(config: OptimizationConfig, optimizer: Optimizer, num_steps: int) -> LRScheduler:
    """The schedule of a config: diffusers', or `flat_cosine`."""
    if config.lr_schedule == "flat_cosine":
        return LambdaLR(
            optimizer, lambda step: flat_cosine(step, num_steps, config.warmup_steps, config.lr_stairs or num_steps)
        )
    return get_scheduler(
        config.lr_schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_steps
    )


# arXiv 2412.06674, detection and segmentation: warm-up, constant until half of the run, then cosine to 0
def flat_cosine(step: int, num_steps: int, warmup_steps: int, stairs: int) -> float:
    """Factor of the learning rate at a step.

    Args:
        stairs: number of equal parts of the run (epochs) in each of which the cosine is constant.
    """
    if step < warmup_steps:
        return step / warmup_steps
    done = step * stairs // num_steps / stairs  # share of the run, at the beginning of this stair
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * min(done, 1.0) - 1)))
