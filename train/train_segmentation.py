"""Trains a segmenter: `accelerate launch train/train_segmentation.py --config configs/segmentation/NAME.yaml`.

The same command on an unfinished run resumes it.
"""

from demo_diffusion.train.engine.launch import run_training
from demo_diffusion.train.segmentation.config import parse_config
from demo_diffusion.train.segmentation.trainer import SegmentationTrainer


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(lambda: SegmentationTrainer(config))


if __name__ == "__main__":
    main()
