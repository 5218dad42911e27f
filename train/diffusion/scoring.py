"""Scores of the moving average's samples while it is trained, by the code of eval/evaluate.py."""

import shutil
from pathlib import Path

import torch
from accelerate import PartialState

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.features.extraction import extract_features
from demo_diffusion.eval.features.extractors import create_extractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.reports.contact_sheet import SHEET_SAMPLES
from demo_diffusion.eval.reports.fingerprint import describe_pipeline, differences, start_folder
from demo_diffusion.eval.reports.results import format_metrics, write_results
from demo_diffusion.eval.samples.generated import GeneratedSamples, SamplingPlan
from demo_diffusion.records.hashes import file_hash

from .config import DiffusionRunConfig

BATCH_SIZE, SHARD_SIZE = 50, 100


class Scoring:
    """Draws and scores samples on all processes, in RUN/evaluation/step-N.

    Raises:
        ValueError: if the reference or its extractor cannot be had.
    """

    def __init__(self, config: DiffusionRunConfig, run: Path, device: torch.device):
        reference = Path(config.eval_reference)
        self.config, self.folder, self.reference = config, run / "evaluation", Reference.load(reference)
        self.extractor = create_extractor(self.reference.extractor, config.inception_weights, device)
        self.reference.check_extractor(reference, self.extractor.name, self.extractor.fingerprint)
        self.reference_hash = file_hash(reference)

    def is_due(self, step: int) -> bool:
        """Whether step has a score that is not there, maybe because it was interrupted."""
        return (
            step > 0 and step % self.config.eval_every == 0 and not (self._folder_of(step) / "results.json").is_file()
        )

    def score(self, pipeline: DEMOPipeline, step: int) -> dict[str, float]:
        """Writes results.json and contact_sheet.png; returns the metrics on rank 0, else nothing.

        Every process must call it.
        """
        state, out = PartialState(), self._folder_of(step)
        plan = SamplingPlan(self.config.eval_samples, self.config.num_inference_steps)
        if state.is_main_process:
            fingerprint = self._fingerprint(pipeline, plan, step)
            if differences(out, fingerprint):  # left by an interrupted score of other weights or settings
                shutil.rmtree(out)
            start_folder(out, fingerprint)
        state.wait_for_everyone()
        samples, shards = GeneratedSamples(pipeline, plan), FeatureShards(out / "shards", plan.num_samples, SHARD_SIZE)
        extract_features(samples, self.extractor, shards, BATCH_SIZE, state, SHEET_SAMPLES)
        if not state.is_main_process:
            return {}
        facts = {"source": f"step {step}", "fingerprint": fingerprint}
        metrics = write_results(out, shards, self.reference, self.extractor, samples, facts)
        shutil.rmtree(shards.folder)
        print(f"Step {step}: {format_metrics(metrics)}")
        return {f"eval/{name}": value for name, value in metrics.items() if value is not None}

    def _folder_of(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _fingerprint(self, pipeline: DEMOPipeline, plan: SamplingPlan, step: int) -> dict:
        return {
            "step": step,
            **describe_pipeline(pipeline),
            **vars(plan),
            "dtype": "float32",
            "extractor": self.extractor.name,
            "extractor_weights": self.extractor.fingerprint,
            "reference": self.reference.source,
            "reference_sha256": self.reference_hash,
        }
