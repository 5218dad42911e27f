"""A training under FSDP2 on CPUs, for tests: accelerate itself shards on GPUs alone, so its state is set by hand."""

import sys

from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType

from demo_diffusion.train.engine import trainer
from demo_diffusion.train.train_demo import main

create_accelerator = trainer.create_accelerator


def create_sharding_accelerator(config, output_dir):
    accelerator = create_accelerator(config, output_dir)
    for shared in (PartialState._shared_state, accelerator.state.__dict__):
        shared["distributed_type"] = DistributedType.FSDP
    accelerator.state.__dict__["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["DEMOBlock"],
        state_dict_type="SHARDED_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    return accelerator


if __name__ == "__main__":
    trainer.create_accelerator = create_sharding_accelerator
    main(sys.argv[1:])
