"""Checks a finished quickstart run, and that the check can fail: `python tests/quickstart_proof.py runs/digits`.

Prints the class accuracy of 500 samples with the run's moving average, and with the average of the parameters alone
(BatchNorm's statistics as they were before training), and writes a grid of the latter beside the run's samples.png.
Exits with 1 unless the first passes and the second fails.
"""

import sys
from pathlib import Path

import torch

from demo_diffusion import DEMOPipeline
from demo_diffusion.data.images import load_images
from demo_diffusion.eval.metrics.nearest_neighbor import NearestNeighborReport, nearest_neighbor_report
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.sample_grid import sample_grid

GUIDANCE_SCALE = 1.5
MIN_GUIDED, MIN_UNGUIDED, MAX_SPREAD_ERROR = 0.97, 0.85, 0.10


def report(pipeline: DEMOPipeline, run: Path) -> NearestNeighborReport:
    config = parse_config(["--config", str(run / "config.yaml")])
    digits = load_images(config.data).dataset
    return nearest_neighbor_report(pipeline, digits, 500, [1.0, GUIDANCE_SCALE], config.run.num_inference_steps)


def passes(result: NearestNeighborReport) -> bool:
    unguided, guided = result.accuracy[1.0], result.accuracy[GUIDANCE_SCALE]
    spread_errors = [abs(std / result.real_std - 1) for std in result.sample_std.values()]
    return guided >= MIN_GUIDED and unguided >= MIN_UNGUIDED and max(spread_errors) <= MAX_SPREAD_ERROR


def main(run: Path) -> int:
    pipeline = DEMOPipeline.from_pretrained(run / "pipeline")
    whole = report(pipeline, run)
    print(f"Moving average of parameters and statistics: passes is {passes(whole)}\n{whole}\n")
    for module in pipeline.transformer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    parameters_alone = report(pipeline, run)
    sample_grid(pipeline, parse_config(["--config", str(run / "config.yaml")]).run).save(run / "without_statistics.png")
    print(f"Moving average of parameters alone: passes is {passes(parameters_alone)}\n{parameters_alone}")
    return 0 if passes(whole) and not passes(parameters_alone) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
