"""The sections that every training shares: optimization and run."""

from dataclasses import dataclass, field
from typing import Literal

from demo_diffusion.cli.options import check_ranges, option
from demo_diffusion.data.images import DataConfig


@dataclass
class OptimizationConfig:
    """AdamW and its surroundings."""

    _argument_group_name = "optimization"

    num_steps: int = option(400_000, "optimizer steps")
    batch_size: int = option(256, "samples a step, over all processes and accumulation steps")
    gradient_accumulation_steps: int = option(1, "parts in which a process computes its share of a batch")
    learning_rate: float = option(1e-4, "peak learning rate")
    lr_schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = option("constant", "after warm-up")
    warmup_steps: int = option(0, "steps of linear warm-up (not with 'constant')")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    max_grad_norm: float | None = option(None, "clip the gradient to this norm; None: do not")
    max_skipped_steps: int = option(10, "stop after so many steps in a row whose loss or gradient is not finite")
    ema_decay: float = option(0.9999, "decay of the moving average of weights and BatchNorm statistics")
    more_ema_decays: list[float] = field(
        default_factory=list, metadata={"help": "decays of further moving averages, kept and exported beside it"}
    )
    sync_batch_norm: bool = option(False, "BatchNorm over all processes' parts of a batch (GPUs)")
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "autocast type")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass")
    compile: bool = option(False, "torch.compile the blocks")
    seed: int = option(0, "of initial weights, data order and noise")

    @property
    def ema_decays(self) -> list[float]:
        """All of them; the first is what is sampled from."""
        return [self.ema_decay, *self.more_ema_decays]


@dataclass
class RunConfig:
    """Where results go, and how often."""

    _argument_group_name = "run"

    output_dir: str = option("runs/demo", "folder of this run; an unfinished run in it is resumed")
    log_every: int = option(100, "steps between logged losses")
    checkpoint_every: int = option(10_000, "steps between checkpoints")
    keep_checkpoints: int = option(2, "newest checkpoints that are kept")
    push_to_hub: str | None = option(None, "hub id to which the result and its model card are uploaded at the end")


def check_common(data: DataConfig, optimization: OptimizationConfig, run: RunConfig) -> None:
    """Raises a ValueError if a number is outside its range or two fields contradict each other."""
    check_ranges(
        {**vars(data), **vars(optimization), **vars(run)},
        positive=(
            "resolution",
            "num_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "max_grad_norm",
            "max_skipped_steps",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ),
        not_negative=("num_workers", "warmup_steps", "weight_decay", "seed"),
        shares=("ema_decay",),
    )
    decays = optimization.ema_decays
    if len(set(decays)) < len(decays) or not all(0 <= decay < 1 for decay in decays):
        raise ValueError(f"The decays of the moving averages are {decays}; they must be different and in [0, 1).")
    if optimization.warmup_steps and optimization.lr_schedule == "constant":
        raise ValueError("lr_schedule 'constant' has no warm-up; use 'constant_with_warmup' or warmup_steps 0.")
