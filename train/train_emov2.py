"""Trains EMOv2 or EMOv1: `accelerate launch train/train_emov2.py --config configs/classification/NAME.yaml`.

The same command on an unfinished run resumes it.
"""

from demo_diffusion.train.classification.config import parse_config
from demo_diffusion.train.classification.trainer import ClassificationTrainer
from demo_diffusion.train.engine.launch import run_training


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(lambda: ClassificationTrainer(config))


if __name__ == "__main__":
    main()
