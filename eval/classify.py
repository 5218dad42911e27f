"""Measures an image classifier: `python eval/classify.py --model FOLDER --dataset DATA --split test --out FILE`.

With --npz in place of --dataset it measures generated images, which eval/evaluate.py exports with the classes that they
were asked for: the share of samples that the classifier calls by their class.

The model is a folder or hub id that transformers loads (timm's models as timm/NAME); images are prepared as its image
processor says. `torchrun --nproc_per_node N eval/classify.py …` shares the images among N processes.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from demo_diffusion.cli.options import OptionParser, check_options, option
from demo_diffusion.data.images import DataConfig, LabelledImages, load_images
from demo_diffusion.data.raw_images import ProcessedImages, RawImages
from demo_diffusion.eval.features.extractors import full_precision
from demo_diffusion.eval.metrics.accuracy import Accuracy, change_crop, measure_accuracy
from demo_diffusion.eval.samples.image_sources import RawSamples
from demo_diffusion.models.classifiers import check_classes, load_classifier
from demo_diffusion.records.files import replace_text
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
    batch_size: int = option(64, "images at once on a process", least=1)
    num_workers: int = option(0, "processes that read images", least=0)
    out: str | None = option(None, "JSON file to write")

    def check(self) -> None:
        """Raises ValueError if an option is missing or out of range."""
        check_options(self, "--")
        if bool(self.dataset) == bool(self.npz):
            raise ValueError(f"Give exactly one of --dataset and --npz; got {self.dataset!r} and {self.npz!r}.")
        if self.out is not None and (Path(self.out).is_dir() or not Path(self.out).absolute().parent.is_dir()):
            raise ValueError(f"--out is {self.out}; it must be a file in a folder there is.")


def open_data(config: ClassifyConfig) -> LabelledImages | RawSamples:
    """Raises a ValueError if it cannot be read."""
    if config.npz:
        return RawSamples(Path(config.npz))
    data = DataConfig(config.dataset, config.split, config.image_column, config.label_column)
    return load_images(dataclasses.replace(data, resolution=8) if config.dataset == "digits" else data)


def pictures_of(data: LabelledImages | RawSamples, name: str, model: PreTrainedModel) -> Dataset:
    """Raises a ValueError if the data has other classes than the model."""
    if isinstance(data, LabelledImages):
        check_classes(name, model, data.id2label)
        return RawImages(data)
    least, greatest, last = min(data.samples.labels), max(data.samples.labels), model.config.num_labels - 1
    if least < 0 or greatest > last:
        raise ValueError(f"The samples have classes {least} … {greatest}, {name} has 0 … {last}.")
    return data


def classify(config: ClassifyConfig, state: PartialState) -> dict:
    """The measurement and what made it.

    Raises:
        ValueError: if an option is not fit, or model and dataset cannot be read or do not fit together.
    """
    config.check()
    data = open_data(config)
    model, processor = load_classifier(config.model)
    pictures = pictures_of(data, config.model, model)
    change_crop(processor, config.resolution, config.crop_pct)
    fingerprint = state_hash(model)
    model.to(state.device)
    samples = ProcessedImages(pictures, processor)
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


def run(config: ClassifyConfig) -> None:
    """Measures; rank 0 prints and writes the result."""
    state = PartialState(cpu=not torch.cuda.is_available())
    results = classify(config, state)
    if state.is_main_process:
        print(Accuracy(**{each.name: results[each.name] for each in dataclasses.fields(Accuracy)}))
        if config.out is not None:
            replace_text(Path(config.out), json.dumps(results, indent=1))


def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(ClassifyConfig, description=__doc__).read(arguments)
    try:
        run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
