"""Encodes a dataset once: `torchrun --nproc_per_node N train/cache_latents.py --dataset … --vae … --out DIR`.

Every image is cropped, and it and its mirror image are encoded; the posterior's moments are kept, so that training can
draw from it anew in each epoch. The same command, with any number of processes, continues an interrupted cache and ends
with the same latents, bit for bit.
"""

from demo_diffusion.cli.command import one_line_for_mistakes

import torch
from accelerate import PartialState

from demo_diffusion.cli.options import OptionParser
from demo_diffusion.records.folder_lock import hold_folder
from demo_diffusion.train.latents.cache import LatentCache
from demo_diffusion.train.latents.config import CacheConfig


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(CacheConfig, description=__doc__).read(arguments)
    try:
        with hold_folder(config.out):
            # On CPUs processes find each other only if it is said that there is no accelerator.
            LatentCache(config, PartialState(cpu=not torch.accelerator.is_available())).run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"The same command continues from what is in {config.out}.") from None


if __name__ == "__main__":
    main()
