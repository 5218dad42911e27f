"""Started twice by `test_trainer.test_two_processes`: one short run, after which both ranks compare what they have."""

import torch
from accelerate.utils import gather_object

from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.trainer import DiffusionTrainer
from demo_diffusion.train.engine.launch import run_training


class ComparingTrainer(DiffusionTrainer):
    def finish(self) -> None:
        assert self.accelerator.num_processes == 2
        seen = gather_object([i for batch in self.order for i in batch])
        assert len(seen) == len(set(seen)) == 6 * 8, "the ranks must share the batches"
        for name, value in [*self.network.state_dict().items(), *self.averages.full_state(0.99).items()]:
            first, second = self.accelerator.gather(value.detach()[None])
            assert torch.equal(first, second), f"{name} differs between the ranks"
        super().finish()


if __name__ == "__main__":
    run_training(lambda: ComparingTrainer(parse_config()))
