"""Started twice by `test_training.test_two_processes`: one short run, after which both ranks compare what they have."""

import torch
from accelerate.utils import gather_object

from demo_diffusion.train.configuration import parse_config
from demo_diffusion.train.train_demo import Trainer


class ComparingTrainer(Trainer):
    def train(self, first_step: int) -> None:
        assert self.accelerator.num_processes == 2
        seen = gather_object([i for batch in self._batch_order(first_step) for i in batch])
        assert len(seen) == len(set(seen)) == 4 * 8, "the ranks must share the batches"
        super().train(first_step)
        for name, parameter in self.transformer.named_parameters():
            first, second = self.accelerator.gather(parameter.detach()[None])
            assert torch.equal(first, second), f"{name} differs between the ranks"


if __name__ == "__main__":
    ComparingTrainer(parse_config()).run()
