"""The sections that every training shares: optimization and run."""

from dataclasses import dataclass
from typing import Literal

from demo_diffusion.cli.options import option


@dataclass
class OptimizationConfig:
    """AdamW and its surroundings."""

    num_steps: int = option(400_000, "optimizer steps", above=0)
    batch_size: int = option(256, "samples a step, over all processes and accumulation steps", above=0)
    gradient_accumulation_steps: int = option(1, "parts in which a process computes its share of a batch", above=0)
    learning_rate: float = option(1e-4, "peak learning rate", above=0)
    lr_schedule: Literal["constant", "constant_with_warmup", "linear", "cosine", "flat_cosine"] = option(
        "constant", "after warm-up; flat_cosine is constant for the first half of the run"
    )
    lr_stairs: int = option(
        0, "flat_cosine changes the rate so many times in a run, as once an epoch; 0: every step", least=0
    )
    warmup_steps: int = option(0, "steps of linear warm-up (not with 'constant')", least=0)
    weight_decay: float = option(0.0, "AdamW's weight decay", least=0)
    max_grad_norm: float | None = option(None, "clip the gradient to this norm; None: do not", above=0)
    max_skipped_steps: int = option(
        10, "stop after so many steps in a row whose loss or gradient is not finite", above=0
    )
    ema_decay: float = option(
        0.9999, "decay of the moving average of weights and BatchNorm statistics", least=0, below=1
    )
    more_ema_decays: list[float] = option([], "decays of further moving averages, kept and exported beside it")
    sync_batch_norm: bool = option(False, "BatchNorm over all processes' parts of a batch (GPUs)")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "autocast type")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass")
    compile: bool = option(False, "torch.compile the blocks")
    seed: int = option(0, "of initial weights, data order and noise", least=0)

    @property
    def ema_decays(self) -> list[float]:
        """All of them; the first is what is sampled from."""
        return [self.ema_decay, *self.more_ema_decays]


@dataclass
class RunConfig:
    """Where results go, and how often."""

    output_dir: str = option("runs/demo", "folder of this run; an unfinished run in it is resumed")
    log_every: int = option(100, "steps between logged losses", above=0)
    checkpoint_every: int = option(10_000, "steps between checkpoints", above=0)
    keep_checkpoints: int = option(2, "newest checkpoints that are kept", above=0)
    push_to_hub: str | None = option(None, "hub id to which the result and its model card are uploaded at the end")


def check_common(optimization: OptimizationConfig) -> None:
    """Raises ValueError if two fields contradict each other."""
    decays = optimization.ema_decays
    if len(set(decays)) < len(decays) or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f"The decays of the moving averages are {decays}; they must be different and in [0, 1).")
    if optimization.lr_stairs and optimization.lr_schedule != "flat_cosine":
        raise ValueError(f"lr_stairs is {optimization.lr_stairs}; it is for lr_schedule 'flat_cosine' alone.")
    if optimization.warmup_steps and optimization.lr_schedule == "constant":
        raise ValueError("lr_schedule 'constant' has no warm-up; use 'constant_with_warmup' or warmup_steps 0.")
