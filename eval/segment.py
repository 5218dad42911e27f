"""Measures a segmenter: `python eval/segment.py --model FOLDER --dataset IMAGES --masks MASKS --out FILE`.

Or colours one picture: `python eval/segment.py --model FOLDER --picture photo.jpg --drawing colours.png`.

The model is a folder that a training or save_pretrained wrote, or a hub id. `torchrun --nproc_per_node N
eval/segment.py …` shares the images among N processes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demo_diffusion.cli.command import one_line_for_mistakes

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from demo_diffusion.cli.options import OptionParser, check_options, option
from demo_diffusion.data.masks import MasksConfig, load_masks
from demo_diffusion.data.preparation import read_rgb
from demo_diffusion.eval.features.extractors import full_precision
from demo_diffusion.eval.metrics.segmentation import View, measure_overlap, predict_classes
from demo_diffusion.eval.reports.overlays import overlay, save_overlays
from demo_diffusion.eval.reports.result_files import check_result_files
from demo_diffusion.models.classifiers import check_classes
from demo_diffusion.records.files import write_json, write_whole
from demo_diffusion.records.folder_lock import hold_target
from demo_diffusion.records.hashes import state_hash
from demo_diffusion.records.printable import printable
from demo_diffusion.records.provenance import provenance


@dataclass
class SegmentConfig:
    """One measurement, or one picture."""

    model: str = option("", "folder or hub id of a segmenter", required=True)
    dataset: str | None = option(None, "'digit_scenes' or 'thin_strokes' (of the test digits), or a folder of images")
    masks: str | None = option(None, "folder of their masks")
    kind: Literal["ids", "ade20k", "hrf"] = option("ids", "what a mask holds")
    num_scenes: int = option(100, "scenes", above=0)
    side: int = option(96, "side of a scene in pixels", above=0)
    picture: str | None = option(None, "picture file to colour, in place of a dataset")
    drawing: str | None = option(None, "picture file to write: what was found, for a dataset beside what is there")
    window: int | None = option(None, "side of the sliding window in pixels; None: the whole image", above=0)
    stride: int | None = option(None, "pixels between windows; None: two thirds of the window", above=0)
    shorter_side: int | None = option(None, "images are resized to it (ADE20K: 512); None: they are not", above=0)
    num_workers: int = option(0, "processes that read images", least=0)
    out: str | None = option(None, "JSON file to write")

    def view(self) -> View:
        return View(self.window, self.stride, self.shorter_side)

    def check(self) -> None:
        """Raises ValueError if an option is missing or out of range."""
        check_options(self, "--")
        if bool(self.dataset) == bool(self.picture):
            raise ValueError(f"Give exactly one of --dataset and --picture; got {self.dataset!r} and {self.picture!r}.")
        self.view()
        if self.picture and self.masks:
            raise ValueError(f"--masks is {self.masks}; it is for a dataset, not for --picture.")
        names = ("model", "dataset", "masks", "picture")
        check_result_files(self.out, self.drawing, {f"--{name}": getattr(self, name) for name in names})


def load_segmenter(name: str) -> nn.Module:
    """A segmenter in eval mode; raises ValueError with one line if it cannot be loaded."""
    try:
        return AutoModelForSemanticSegmentation.from_pretrained(name).eval().requires_grad_(False)
    except OSError as error:
        raise ValueError(f"The segmenter {name} cannot be loaded: {' '.join(str(error).split())}") from error


def measure(config: SegmentConfig, segmenter: nn.Module, state: PartialState) -> dict:
    """The overlap on a dataset and what made it; writes the drawing."""
    num_labels = segmenter.config.num_labels
    data = MasksConfig(config.dataset, config.masks, config.kind, num_labels, config.num_scenes, config.side)
    pixels = load_masks(data, is_training=False)
    check_classes(config.model, segmenter, pixels.id2label)
    overlap = measure_overlap(segmenter, pixels.dataset, state, config.num_workers, config.view())
    if state.is_main_process:
        print(overlap)
        if config.drawing is not None:
            save_overlays(Path(config.drawing), segmenter, pixels.dataset, state.device, config.view())
    return dataclasses.asdict(overlap)


@torch.inference_mode()
def color(config: SegmentConfig, segmenter: nn.Module, state: PartialState) -> dict:
    """The share of each class in one picture; writes the drawing."""
    image = torch.from_numpy(np.array(read_rgb(Path(config.picture)))).permute(2, 0, 1)
    classes = predict_classes(segmenter, image[None].to(state.device), config.view())[0].cpu()
    labels, counts = classes.unique(return_counts=True)
    names = segmenter.config.id2label
    shares = {names[int(i)]: int(n) / classes.numel() for i, n in zip(labels, counts, strict=True)}
    print("\n".join(f"{printable(name)} {share:.2%}" for name, share in shares.items()))
    if config.drawing is not None:
        write_whole(Path(config.drawing), overlay(image, classes).save)
    return {"shares": shares}


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(SegmentConfig, description=__doc__).read(arguments)
    config.check()
    state = PartialState(cpu=not torch.cuda.is_available())
    segmenter = load_segmenter(config.model)
    facts = {"parameters": sum(p.numel() for p in segmenter.parameters()), "weights_sha256": state_hash(segmenter)}
    with hold_target(config.out), hold_target(config.drawing), full_precision(state.device):
        results = (color if config.picture else measure)(config, segmenter.to(state.device), state)
        if state.is_main_process and config.out is not None:
            write_json(Path(config.out), {**results, **dataclasses.asdict(config), **facts, **provenance(state)})


if __name__ == "__main__":
    main()
