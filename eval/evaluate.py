"""Measures a generator: `torchrun --nproc_per_node N eval/evaluate.py --pipeline FOLDER --reference ref.npz --out RUN`.

Samples, extracts features and scores; or scores images that something else made (--images, --npz). The same command,
with any number of processes, continues an interrupted evaluation and ends with the same features, bit for bit.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState

from demo_diffusion import DEMOPipeline
from demo_diffusion.cli.options import OptionParser, check_options, option
from demo_diffusion.eval.features.extraction import extract_features
from demo_diffusion.eval.features.extractors import EXTRACTORS, create_extractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.reports.contact_sheet import SHEET_SAMPLES
from demo_diffusion.eval.reports.fingerprint import describe_pipeline, start_folder
from demo_diffusion.eval.reports.results import format_metrics, write_results
from demo_diffusion.eval.samples.generated import GeneratedSamples, SamplingPlan
from demo_diffusion.eval.samples.image_sources import ImageSource, SampleArray, SampleFolder
from demo_diffusion.pipelines.samplers import create_sampler, describe_samplers
from demo_diffusion.records.files import write_npz
from demo_diffusion.records.hashes import file_hash
from demo_diffusion.records.provenance import provenance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class EvaluationConfig:
    """One evaluation. Exactly one of pipeline, images and npz."""

    out: str = option("", "folder of this evaluation", required=True)
    reference: str = option("", "statistics of real images, made by eval/reference.py", required=True)
    pipeline: str | None = option(None, "pipeline folder or hub id to sample from")
    images: str | None = option(None, "folder of .png samples")
    npz: str | None = option(None, "samples in ADM's layout: arr_0 (N, H, W, 3) uint8, maybe arr_1 labels")
    num_samples: int | None = option(None, "default: 50,000 from a pipeline, all there are otherwise", least=2)
    sampler: str | None = option(None, f"{describe_samplers()}; default: the pipeline's own")
    num_inference_steps: int = option(250, "steps of the sampler", least=1)
    guidance_scale: float = option(1.0, "classifier-free guidance; 1: none")
    guidance_low: float = option(0.0, "guidance acts from this t on, 0 data …")
    guidance_high: float = option(1.0, "… to this, 1 noise")
    guidance_channels: int | None = option(None, "guide the first n channels; DiT's and SiT's published numbers: 3")
    labels: Literal["balanced", "random"] = option("balanced", "index mod classes, or drawn")
    seed: int = option(0, "of noise and drawn labels", least=0)
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "of the network and the autoencoder")
    batch_size: int = option(50, "samples at once on a process", least=1)
    shard_size: int = option(500, "samples in a file of features, the unit of resuming", least=1)
    extractor: str = option("inception", f"one of {', '.join(EXTRACTORS)}")
    inception_weights: str | None = option(None, "its state dict; default: torch-fidelity downloads it")
    imagenet_labels: bool = option(False, "the labels in --npz are ImageNet's 1,000 classes")
    export: bool = option(False, "write the samples as samples.npz, as ADM's evaluator takes them")

    def check(self) -> None:
        """Raises ValueError if an option is missing or out of range, or options do not fit together."""
        sources = {name: getattr(self, name) for name in ("pipeline", "images", "npz")}
        if sum(value is not None for value in sources.values()) != 1:
            raise ValueError(f"Give exactly one of --pipeline, --images and --npz; got {sources}.")
        if self.pipeline is None and (given := [name for name in SAMPLING if getattr(self, name) != DEFAULTS[name]]):
            raise ValueError(f"--{', --'.join(given)} is for sampling from a --pipeline; leave it out.")
        check_options(self, "--")
        if self.extractor not in EXTRACTORS:
            raise ValueError(f"--extractor is {self.extractor!r}; it must be one of {list(EXTRACTORS)}.")


DEFAULTS = {each.name: each.default for each in dataclasses.fields(EvaluationConfig)}
SAMPLING = (
    "sampler", "num_inference_steps", "guidance_scale", "guidance_low", "guidance_high", "guidance_channels", "labels",
    "seed", "dtype",
)  # fmt: skip


def open_source(config: EvaluationConfig, device: torch.device) -> tuple[ImageSource, dict]:
    """The images and what makes them what they are.

    Raises:
        ValueError: if they cannot be read.
    """
    if config.images is not None:
        source = SampleFolder(Path(config.images))
        return source, {"images_sha256": file_hash(*source.files)}
    if config.npz is not None:
        path = Path(config.npz)
        return SampleArray(path, config.imagenet_labels), {
            "npz_sha256": file_hash(path),
            "imagenet_labels": config.imagenet_labels,
        }
    pipeline = load_pipeline(config)
    plan = SamplingPlan(
        50_000 if config.num_samples is None else config.num_samples,
        config.num_inference_steps,
        config.guidance_scale,
        (config.guidance_low, config.guidance_high),
        config.guidance_channels,
        config.labels,
        config.seed,
    )
    facts = {**describe_pipeline(pipeline), **dataclasses.asdict(plan), "dtype": config.dtype}
    return GeneratedSamples(pipeline.to(device, DTYPES[config.dtype]), plan), facts


def load_pipeline(config: EvaluationConfig) -> DEMOPipeline:
    """Raises a ValueError if it cannot be read whole, or has no such sampler."""
    try:
        pipeline = DEMOPipeline.from_pretrained(config.pipeline)
    except Exception as error:  # diffusers raises almost anything on a damaged folder
        raise ValueError(f"The pipeline {config.pipeline} cannot be read: {error!r}") from error
    if missing := [name for name, p in pipeline.transformer.named_parameters() if p.is_meta]:
        raise ValueError(f"The pipeline {config.pipeline} has no weights for {', '.join(missing)}.")
    pipeline.scheduler = create_sampler(pipeline.scheduler, config.sampler)
    return pipeline


def run(config: EvaluationConfig) -> None:
    """Evaluates; rank 0 writes and prints the results.

    Raises:
        ValueError: if something that was given is not fit.
    """
    config.check()
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        extractor = create_extractor(config.extractor, config.inception_weights, state.device)
    out, reference = Path(config.out), None
    if state.is_main_process:
        reference = Reference.load(Path(config.reference))
        reference.check_extractor(Path(config.reference), extractor.name, extractor.fingerprint)
    source, facts = open_source(config, state.device)
    num_samples = len(source) if config.num_samples is None else config.num_samples
    if not 2 <= num_samples <= len(source):
        raise ValueError(f"--num_samples is {num_samples}; there are {len(source)} images, and at least 2 are needed.")
    fingerprint = {
        **facts,
        "num_samples": num_samples,
        "batch_size": config.batch_size,
        "shard_size": config.shard_size,
        "extractor": extractor.name,
        "extractor_weights": extractor.fingerprint,
        "export": config.export,
    }
    if state.is_main_process:
        fingerprint["reference"] = reference.source
        fingerprint["reference_sha256"] = file_hash(Path(config.reference))
        start_folder(out, fingerprint)
    state.wait_for_everyone()
    shards = FeatureShards(out / "shards", num_samples, config.shard_size)
    keep_images = num_samples if config.export else SHEET_SAMPLES
    speed = extract_features(source, extractor, shards, config.batch_size, state, keep_images)
    if state.is_main_process:
        record = {
            "source": config.pipeline or config.images or config.npz,
            "fingerprint": fingerprint,
            "images_per_second": speed or previous_speed(out),
            **provenance(state),
        }
        metrics = write_results(out, shards, reference, extractor, source, record)
        print(f"{num_samples:,} samples: {format_metrics(metrics)}")
        if config.export:
            labels = {} if source.labels is None else {"arr_1": np.array(source.labels[:num_samples])}
            write_npz(out / "samples.npz", arr_0=shards.read("images").permute(0, 2, 3, 1).numpy(), **labels)


def previous_speed(out: Path) -> float | None:
    """That of a finished evaluation whose results are written again."""
    path = out / "results.json"
    return json.loads(path.read_text()).get("images_per_second") if path.is_file() else None


def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(EvaluationConfig, description=__doc__).read(arguments)
    try:
        run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
