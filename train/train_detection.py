"""Trains a detector: `accelerate launch train/train_detection.py --config configs/detection/NAME.yaml`.

The same command on an unfinished run resumes it.
"""

from demo_diffusion.train.detection.config import parse_config
from demo_diffusion.train.detection.trainer import DetectionTrainer
from demo_diffusion.train.engine.launch import run_training


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(lambda: DetectionTrainer(config))


if __name__ == "__main__":
    main()
