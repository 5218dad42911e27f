"""Measures a detector: `python eval/detect.py --model FOLDER --dataset IMAGES --annotations FILE.json --out FILE`.

Or finds the objects of one picture: `python eval/detect.py --model FOLDER --picture photo.jpg --drawing found.png`.

The model is a folder that a training or save_pretrained wrote, or a hub id. `torchrun --nproc_per_node N
eval/detect.py …` shares the images among N processes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

import torch
from accelerate import PartialState
from torchvision.transforms.v2.functional import pil_to_tensor

from demo_diffusion.cli.options import OptionParser, check_options, option
from demo_diffusion.data.objects import LabelledObjects, ObjectsConfig, load_objects
from demo_diffusion.data.preparation import read_rgb
from demo_diffusion.eval.features.extractors import full_precision
from demo_diffusion.eval.metrics.detection import detect, measure_precision
from demo_diffusion.eval.reports.detections import check_same_classes, class_names, save_comparison
from demo_diffusion.eval.reports.result_files import check_result_files
from demo_diffusion.models.detection import EMOv2Detector, load_detector
from demo_diffusion.models.detection.drawing import draw_objects
from demo_diffusion.records.files import write_json, write_whole
from demo_diffusion.records.folder_lock import hold_target
from demo_diffusion.records.hashes import state_hash
from demo_diffusion.records.printable import printable
from demo_diffusion.records.provenance import provenance


@dataclass
class DetectConfig:
    """One measurement, or one picture."""

    model: str = option("", "folder or hub id of a detector", required=True)
    dataset: str | None = option(None, "'digit_scenes' (of the test digits), or a folder of images")
    annotations: str | None = option(None, "COCO JSON file of these images")
    skip_bad_boxes: bool = option(False, "leave out objects whose box is empty or outside its image")
    num_scenes: int = option(200, "digit scenes", above=0)
    min_side: int = option(128, "least width and height of a digit scene in pixels", above=0)
    max_side: int = option(160, "largest width and height of a digit scene in pixels", above=0)
    picture: str | None = option(None, "picture file to find objects in, in place of a dataset")
    drawing: str | None = option(None, "picture file to write: what was found, for a dataset beside what is there")
    threshold: float = option(0.5, "objects of lower scores are not drawn", least=0, most=1)
    batch_size: int = option(8, "images at once on a process", least=1)
    num_workers: int = option(0, "processes that read images", least=0)
    out: str | None = option(None, "JSON file to write")

    def check(self) -> None:
        """Raises ValueError if an option is missing or out of range."""
        check_options(self, "--")
        if bool(self.dataset) == bool(self.picture):
            raise ValueError(f"Give exactly one of --dataset and --picture; got {self.dataset!r} and {self.picture!r}.")
        if self.picture and self.annotations:
            raise ValueError(f"--annotations is {self.annotations}; it is for a dataset, not for --picture.")
        names = ("model", "dataset", "annotations", "picture")
        check_result_files(self.out, self.drawing, {f"--{name}": getattr(self, name) for name in names})


def open_objects(config: DetectConfig, detector: EMOv2Detector) -> LabelledObjects:
    """Images with truth; raises ValueError if they cannot be read or have other classes than the detector."""
    same = ("dataset", "annotations", "skip_bad_boxes", "num_scenes", "min_side", "max_side")
    data = ObjectsConfig(**{name: getattr(config, name) for name in same})
    objects = load_objects(data, is_training=False, masks=detector.config.detector == "MaskRCNN")
    check_same_classes(config.model, detector, objects.id2label)
    return objects


def measure(config: DetectConfig, detector: EMOv2Detector, state: PartialState) -> dict:
    """The precision on a dataset and what made it; writes the drawing."""
    objects = open_objects(config, detector)
    precision = measure_precision(detector, objects.dataset, state, config.batch_size, config.num_workers)
    if state.is_main_process:
        print(precision)
        if config.drawing is not None:
            save_comparison(Path(config.drawing), detector, objects, state.device, config.threshold)
    return dataclasses.asdict(precision)


def find(config: DetectConfig, detector: EMOv2Detector, state: PartialState) -> dict:
    """The objects of one picture; writes the drawing."""
    image = pil_to_tensor(read_rgb(Path(config.picture)))
    (found,), names = detect(detector, [image], state.device), class_names(detector)
    objects = [
        {"class": names[label], "score": score, "box": box}
        for label, score, box in zip(*(found[name].tolist() for name in ("labels", "scores", "boxes")), strict=True)
        if score >= config.threshold
    ]
    print(
        "\n".join(
            f"{printable(each['class'])} {each['score']:.2f} {[round(x, 1) for x in each['box']]}" for each in objects
        )
    )
    if config.drawing is not None:
        write_whole(Path(config.drawing), draw_objects(image, found, names, config.threshold).save)
    return {"objects": objects}


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    config = OptionParser(DetectConfig, description=__doc__).read(arguments)
    config.check()
    state = PartialState(cpu=not torch.cuda.is_available())
    detector = load_detector(config.model)
    facts = {"parameters": sum(p.numel() for p in detector.parameters()), "weights_sha256": state_hash(detector)}
    with hold_target(config.out), hold_target(config.drawing), full_precision(state.device):
        results = (find if config.picture else measure)(config, detector.to(state.device), state)
        if state.is_main_process and config.out is not None:
            write_json(Path(config.out), {**results, **dataclasses.asdict(config), **facts, **provenance(state)})


if __name__ == "__main__":
    main()
