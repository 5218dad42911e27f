"""Is an evaluation as fast as torch-fidelity's Inception score alone: `python eval/studies/evaluation_speed.py FOLDER`.

Times both on the same folder of .png files with the same weights, in turns, and prints the ratio of the medians. Exits
with 1 if the evaluation is slower, although it computes all metrics.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch_fidelity
from accelerate import PartialState

from demo_diffusion.eval.features.extractors import InceptionExtractor
from demo_diffusion.eval.features.reference import Reference, reference_of
from demo_diffusion.eval.reports.results import Evaluation
from demo_diffusion.eval.samples.image_sources import SampleFolder

BATCH_SIZE, SHARD_SIZE = 50, 500


def inception_score(folder: str, weights: str | None) -> None:
    torch_fidelity.calculate_metrics(
        input1=folder, isc=True, cuda=False, cache=False, verbose=False, batch_size=BATCH_SIZE,
        feature_extractor_weights_path=weights,
    )  # fmt: skip


def evaluate(folder: str, weights: str | None, reference: Reference, out: Path) -> None:
    extractor, source = InceptionExtractor(weights), SampleFolder(Path(folder))
    Evaluation(out, folder, source, extractor, reference, {}, len(source), BATCH_SIZE, SHARD_SIZE).run(PartialState())


def seconds(call, *arguments) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of .png files")
    parser.add_argument("--inception_weights", help="state dict in torch-fidelity's format; default: it downloads one")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    PartialState(cpu=True)
    weights, source = options.inception_weights, SampleFolder(Path(options.folder))
    times = {"torch-fidelity": [], "evaluation": []}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "reference.npz"
        reference_of(source, InceptionExtractor(weights), options.folder, BATCH_SIZE).save(file)
        reference = Reference.load(file)
        for i in range(options.rounds):
            times["torch-fidelity"].append(seconds(inception_score, options.folder, weights))
            out = Path(temporary) / f"run{i}"
            times["evaluation"].append(seconds(evaluate, options.folder, weights, reference, out))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print("| what | images/s |\n|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {len(source) / median:.1f} |")
    ratio = medians["torch-fidelity"] / medians["evaluation"]
    print(f"The evaluation is {ratio:.2f} times as fast.")
    if ratio < 1:
        sys.exit(1)


if __name__ == "__main__":
    main()
