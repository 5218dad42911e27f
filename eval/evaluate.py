"""Measures a generator: `torchrun --nproc_per_node N eval/evaluate.py --pipeline FOLDER --reference ref.npz --out RUN`.

Samples, extracts features and scores; or scores images that something else made (--images, --npz). The same command,
with any number of processes, continues an interrupted evaluation and ends with the same features, bit for bit.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demo_diffusion.cli.command import one_line_for_mistakes

import torch
from accelerate import PartialState

from demo_diffusion.cli.options import OptionParser, check_options, option
from demo_diffusion.eval.features.extractors import EXTRACTORS, create_extractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.reports.results import Evaluation, format_metrics
from demo_diffusion.eval.samples.generated import SamplingPlan, open_pipeline
from demo_diffusion.eval.samples.image_sources import ImageSource, SampleArray, SampleFolder
from demo_diffusion.pipelines.samplers import describe_samplers
from demo_diffusion.records.folder_lock import hold_folder
from demo_diffusion.records.hashes import file_hash
from demo_diffusion.records.provenance import provenance


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
    batch_size: int = option(50, "samples at once on a process", least=1, most=2**20)
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


def open_samples(config: EvaluationConfig, device: torch.device) -> tuple[ImageSource, dict]:
    """The images and what makes them what they are; raises ValueError if they cannot be read."""
    if config.images is not None:
        source = SampleFolder(Path(config.images))
        return source, {"images_sha256": file_hash(*source.files)}
    if config.npz is not None:
        source = SampleArray(Path(config.npz), config.imagenet_labels)
        return source, {"npz_sha256": file_hash(Path(config.npz)), "imagenet_labels": config.imagenet_labels}
    plan = SamplingPlan(
        50_000 if config.num_samples is None else config.num_samples, config.num_inference_steps, config.guidance_scale,
        (config.guidance_low, config.guidance_high), config.guidance_channels, config.labels, config.seed,
    )  # fmt: skip
    return open_pipeline(config.pipeline, config.sampler, plan, config.dtype, device)


def evaluate(config: EvaluationConfig) -> None:
    """Evaluates; rank 0 writes and prints the results. Raises ValueError if something that was given is not fit."""
    config.check()
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        extractor = create_extractor(config.extractor, config.inception_weights, state.device)
    reference = Reference.load_for(Path(config.reference), extractor) if state.is_main_process else None
    source, facts = open_samples(config, state.device)
    num_samples = len(source) if config.num_samples is None else config.num_samples
    facts |= {"batch_size": config.batch_size, "shard_size": config.shard_size, "export": config.export}
    evaluation = Evaluation(
        Path(config.out), config.pipeline or config.images or config.npz, source, extractor, reference, facts,
        num_samples, config.batch_size, config.shard_size, keep_all=config.export,
    )  # fmt: skip
    metrics = evaluation.run(state, provenance(state) if state.is_main_process else None)
    if metrics is not None:
        print(f"{num_samples:,} samples: {format_metrics(metrics)}")
        if config.export:
            evaluation.export(Path(config.out) / "samples.npz")


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(EvaluationConfig, description=__doc__).read(arguments)
    with hold_folder(config.out):
        evaluate(config)


if __name__ == "__main__":
    main()
