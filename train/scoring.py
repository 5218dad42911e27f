"""Scores of the moving average's samples while it is trained, by the code of eval/evaluate.py."""

import shutil
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.evaluation import check_fingerprint, extract_features, in_words, write_results
from demo_diffusion.eval.extractors import create_extractor
from demo_diffusion.eval.feature_shards import FeatureShards
from demo_diffusion.eval.generated_samples import GeneratedSamples, SamplingPlan
from demo_diffusion.eval.reference_statistics import Reference, file_hash
from demo_diffusion.train.configuration import RunConfig

BATCH_SIZE, SHARD_SIZE, SHEET_SAMPLES = 50, 100, 16


class Scoring:
    """Draws and scores samples on all processes.

    Raises:
        ValueError: if the reference or its extractor cannot be had.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.reference_file = config, Path(config.eval_reference)
        self.reference = Reference.load(self.reference_file)
        self.extractor = create_extractor(self.reference.extractor, config.inception_weights, device)
        self.reference.check_extractor(self.reference_file, self.extractor.name, self.extractor.fingerprint)

    def score(self, ema: torch.nn.Module, pipeline: DEMOPipeline, run: Path, step: int) -> dict[str, float]:
        """Writes RUN/evaluation/step-N/{results.json, contact_sheet.png}; returns the metrics on rank 0, else nothing.

        Every process must call it.
        """
        state, out = PartialState(), run / "evaluation" / f"step-{step:09d}"
        if state.num_processes > 1:
            with torch.no_grad():
                broadcast([*ema.parameters(), *ema.buffers()])  # BatchNorm's statistics are each process's own
        plan = SamplingPlan(self.config.eval_samples, self.config.num_inference_steps)
        fingerprint = {
            "step": step,
            "num_samples": plan.num_samples,
            "num_inference_steps": plan.num_inference_steps,
            "guidance_scale": plan.guidance_scale,
            "labels": plan.labels,
            "sampler": type(pipeline.scheduler).__name__,
            "extractor": self.extractor.name,
            "extractor_weights": self.extractor.fingerprint,
            "reference": self.reference.source,
            "reference_sha256": file_hash(self.reference_file),
        }
        if state.is_main_process:
            check_fingerprint(out, fingerprint)
        state.wait_for_everyone()
        samples, shards = GeneratedSamples(pipeline, plan), FeatureShards(out / "shards", plan.num_samples, SHARD_SIZE)
        extract_features(samples, self.extractor, shards, BATCH_SIZE, state, SHEET_SAMPLES)
        if not state.is_main_process:
            return {}
        facts = {"fingerprint": fingerprint}
        metrics = write_results(out, shards, self.reference, samples.labels, self.extractor, facts)
        shutil.rmtree(shards.folder)
        print(f"Step {step}: {in_words(metrics)}")
        return {f"eval/{name}": value for name, value in metrics.items() if value is not None}
