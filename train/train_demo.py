"""Trains D-EMO, DiT or SiT: `accelerate launch train/train_demo.py --config configs/diffusion/NAME.yaml`.

The same command on an unfinished run resumes it.
"""

from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.trainer import DiffusionTrainer
from demo_diffusion.train.engine.launch import run_training


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(lambda: DiffusionTrainer(config))


if __name__ == "__main__":
    main()
