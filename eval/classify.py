"""Measures an image classifier: `python eval/classify.py --model FOLDER --dataset DATA --split test --out FILE`.

With --npz in place of --dataset it measures generated images, which eval/evaluate.py exports with the classes that they
were asked for: the share of samples that the classifier calls by their class.

The model is a folder or hub id that transformers loads (timm's models as timm/NAME); images are prepared as its image
processor says. `torchrun --nproc_per_node N eval/classify.py …` shares the images among N processes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from demo_diffusion.cli.options import OptionParser, check_options, option
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.data.listing import known_order
from demo_diffusion.data.raw_images import ProcessedImages, RawImages
from demo_diffusion.eval.features.extractors import full_precision
from demo_diffusion.eval.metrics.accuracy import Accuracy, change_crop, measure_accuracy
from demo_diffusion.eval.samples.image_sources import RawSamples
from demo_diffusion.models.classifiers import check_classes, load_classifier
from demo_diffusion.records.files import check_output_file, write_json
from demo_diffusion.records.folder_lock import hold_target
from demo_diffusion.records.hashes import file_hash, state_hash
from demo_diffusion.records.provenance import provenance


@dataclass
class ClassifyConfig:
    """One measurement."""

    model: str = option("", "folder or hub id of a classifier, timm's models as timm/NAME", required=True)
    dataset: str | None = option(None, "as in training: folder of class folders, .parquet file or hub id")
    npz: str | None = option(
        None, "samples in place of a dataset: arr_0 (N, H, W, 3) uint8, arr_1 class ids of the model"
    )
    split: str = option("validation", "split of the dataset")
    image_column: str | None = option(None, "column of the images; default: the only one of that type")
    label_column: str | None = option(None, "column of the class labels; default: the only one of that type")
    resolution: int | None = option(None, "side of the centre crop in pixels; default: the image processor's", least=1)
    crop_pct: float | None = option(
        None, "share of the shorter side that the crop keeps; default: the processor's", above=0, most=1
    )
    batch_size: int = option(64, "images at once on a process", least=1, most=2**20)
    num_workers: int = option(0, "processes that read images", least=0, most=1000)
    out: str | None = option(None, "JSON file to write")

    def check(self) -> None:
        """Raises ValueError if an option is missing or out of range."""
        check_options(self, "--")
        if bool(self.dataset) == bool(self.npz):
            raise ValueError(f"Give exactly one of --dataset and --npz; got {self.dataset!r} and {self.npz!r}.")
        if self.out is not None:
            inputs = {"--model": self.model, "--dataset": self.dataset, "--npz": self.npz}
            check_output_file(Path(self.out), inputs=inputs)


def open_samples(config: ClassifyConfig, model: PreTrainedModel) -> Dataset:
    """(RGB image, class id); raises ValueError if they cannot be read or have other classes than the model."""
    if config.npz:
        samples = RawSamples(Path(config.npz))
        samples.check_classes(config.model, model.config.num_labels)
        return samples
    data = DataConfig(config.dataset, config.split, config.image_column, config.label_column)
    images = load_images(data, own_size=True, class_order=known_order(model.config.id2label))
    check_classes(config.model, model, images.id2label)
    return RawImages(images)


def classify(config: ClassifyConfig, state: PartialState) -> dict:
    """The measurement and what made it.

    Raises:
        ValueError: if model and dataset cannot be read or do not fit together.
    """
    model, processor = load_classifier(config.model)
    images = open_samples(config, model)
    change_crop(processor, config.resolution, config.crop_pct)
    fingerprint = state_hash(model)
    model.to(state.device)
    samples = ProcessedImages(images, processor)
    with full_precision(state.device):
        accuracy = measure_accuracy(lambda x: model(x).logits, samples, state, config.batch_size, config.num_workers)
    return {
        **dataclasses.asdict(accuracy),
        **dataclasses.asdict(config),
        "input": list(samples[0][0].shape),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": fingerprint,
        **({"npz_sha256": file_hash(Path(config.npz))} if config.npz else {}),
        **provenance(state),
    }


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(ClassifyConfig, description=__doc__).read(arguments)
    config.check()
    state = PartialState(cpu=not torch.cuda.is_available())
    with hold_target(config.out):
        results = classify(config, state)
        if state.is_main_process:
            print(Accuracy(**{each.name: results[each.name] for each in dataclasses.fields(Accuracy)}))
            if config.out is not None:
                write_json(Path(config.out), results)


if __name__ == "__main__":
    main()
