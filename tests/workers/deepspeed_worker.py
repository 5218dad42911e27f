"""A training under DeepSpeed's ZeRO-2 on CPUs, for tests: accelerate has it on GPUs alone, so it is set by hand."""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

from accelerate import Accelerator, DeepSpeedPlugin, PartialState

from demo_diffusion.train.engine import trainer
from demo_diffusion.train.train_demo import main


def create_deepspeed_accelerator(config, output_dir):
    PartialState(cpu=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    return Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(zero_stage=2, gradient_clipping=1.0),
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
        log_with="tensorboard",
        project_dir=output_dir,
    )


if __name__ == "__main__":
    trainer.create_accelerator = create_deepspeed_accelerator
    main(sys.argv[1:])
