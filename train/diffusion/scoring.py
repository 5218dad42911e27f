"""Scores of the moving average's samples while it is trained, by the code of eval/evaluate.py."""

import shutil
from pathlib import Path

import torch
from accelerate import PartialState

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.features.extractors import create_extractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.reports.results import RESULTS_FILE, Evaluation, format_metrics
from demo_diffusion.eval.samples.fingerprint import describe_pipeline
from demo_diffusion.eval.samples.generated import GeneratedSamples, SamplingPlan

from .config import DiffusionRunConfig

BATCH_SIZE, SHARD_SIZE = 50, 100


class Scoring:
    """Draws and scores samples on all processes, in RUN/evaluation/step-N.

    Raises:
        ValueError: if the reference or its extractor cannot be had, or its images have another resolution.
    """

    def __init__(self, config: DiffusionRunConfig, run: Path, resolution: int, device: torch.device):
        reference = Path(config.eval_reference)
        self.config, self.folder, self.reference = config, run / "evaluation", Reference.load(reference)
        self.reference.check_size((resolution, resolution))
        self.extractor = create_extractor(self.reference.extractor, config.inception_weights, device)
        self.reference.check_extractor(reference, self.extractor.name, self.extractor.fingerprint)

    def is_due(self, step: int) -> bool:
        """Whether step has a score that is not there, maybe because it was interrupted."""
        is_scored = (self._folder_of(step) / RESULTS_FILE).is_file()
        return step > 0 and step % self.config.eval_every == 0 and not is_scored

    def score(self, pipeline: DEMOPipeline, step: int) -> dict[str, float]:
        """Writes results.json and contact_sheet.png; returns the metrics on rank 0, else nothing.

        Every process must call it.
        """
        plan = SamplingPlan(self.config.eval_samples, self.config.num_inference_steps)
        facts = {"step": step, **describe_pipeline(pipeline), **vars(plan), "dtype": "float32"}
        evaluation = Evaluation(
            self._folder_of(step), f"step {step}", GeneratedSamples(pipeline, plan), self.extractor, self.reference,
            facts, plan.num_samples, BATCH_SIZE, SHARD_SIZE,
        )  # fmt: skip
        metrics = evaluation.run(PartialState(), replace=True)  # what an interrupted score of other weights left
        if metrics is None:
            return {}
        shutil.rmtree(evaluation.shards.folder)
        print(f"Step {step}: {format_metrics(metrics)}")
        return {f"eval/{name}": value for name, value in metrics.items() if value is not None}

    def _folder_of(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"
