"""accelerate's `Accelerator` for a training, and its DeepSpeed config."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from .config import OptimizationConfig


def create_accelerator(config: OptimizationConfig, output_dir: str) -> Accelerator:
    """Creates the accelerator, with TensorBoard as its tracker.

    Raises:
        ValueError: if the machine does not support the requested settings.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and config.mixed_precision == "fp16":
        raise ValueError("mixed_precision is fp16, which needs a GPU; on a CPU use 'bf16' or 'no'.")
    if on_cpu and config.sync_batch_norm:
        raise ValueError("sync_batch_norm needs GPUs: PyTorch's SyncBatchNorm does not run on a CPU; leave it out.")
    return Accelerator(
        cpu=on_cpu,  # without it, processes on CPUs do not find each other
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
        log_with="tensorboard",
        project_dir=output_dir,
    )


AUTOCAST_TYPES = {"bf16": "bfloat16", "fp16": "float16"}


def configure_deepspeed(accelerator: Accelerator, samples_per_pass: int, mixed_precision: str) -> None:
    """Completes DeepSpeed's config before `prepare`; does nothing without DeepSpeed.

    Weights stay in float32 under autocast, as everywhere else in this package. DeepSpeed's own "bf16" would round the
    weights, and with them the moving averages.

    Args:
        samples_per_pass: samples of one forward pass on one process.
        mixed_precision: "no", "bf16" or "fp16".
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    config = accelerator.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = samples_per_pass
    for name in AUTOCAST_TYPES:
        config.pop(name, None)
    if mixed_precision != "no":
        config["torch_autocast"] = {"enabled": True, "dtype": AUTOCAST_TYPES[mixed_precision]}
