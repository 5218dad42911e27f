"""Runs a training or a latent cache that kills itself: `kill_worker.py PLACE COUNT DELAY RANK PROGRAM ARGUMENTS…`.

DELAY seconds after PLACE (step, checkpoint or latents) begins for the COUNTth time on process RANK, it gets SIGKILL.
"""

import os
import signal
import sys
import threading

from demo_diffusion.data.latent_shards import LatentShards
from demo_diffusion.train import cache_latents, train_demo
from demo_diffusion.train.engine.checkpoints import Checkpoints
from demo_diffusion.train.engine.trainer import Trainer

PLACES = {
    "step": (Trainer, "accumulate_gradients"),
    "checkpoint": (Checkpoints, "save"),
    "latents": (LatentShards, "write"),
}
PROGRAMS = {"train_demo": train_demo.main, "cache_latents": cache_latents.main}


def kill_at(place: str, count: int, delay: float) -> None:
    owner, name = PLACES[place]
    method, calls = getattr(owner, name), iter(range(1, sys.maxsize))

    def counted(*arguments, **options):
        if next(calls) == count:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return method(*arguments, **options)

    setattr(owner, name, counted)


if __name__ == "__main__":
    place, count, delay, rank, program, *arguments = sys.argv[1:]
    if os.environ.get("RANK", "0") == rank:
        kill_at(place, int(count), float(delay))
    PROGRAMS[program](arguments)
