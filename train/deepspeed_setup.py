"""What DeepSpeed must be told, where accelerate runs it."""

from accelerate import Accelerator
from accelerate.utils import DistributedType

AUTOCAST_TYPES = {"bf16": "bfloat16", "fp16": "float16"}


def configure_deepspeed(accelerator: Accelerator, samples_per_pass: int, mixed_precision: str) -> None:
    """Completes DeepSpeed's config before `prepare`; does nothing without DeepSpeed.

    Weights stay in float32 under autocast, as everywhere else in this package: DeepSpeed's own "bf16" would round the
    network's weights, and so the moving averages of them.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    config = accelerator.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = samples_per_pass
    for name in AUTOCAST_TYPES:
        config.pop(name, None)
    if mixed_precision != "no":
        config["torch_autocast"] = {"enabled": True, "dtype": AUTOCAST_TYPES[mixed_precision]}
