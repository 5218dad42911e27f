"""Makes docs/reference/options.md from the config classes: `python docs/make_options.py`."""

import inspect
from pathlib import Path

from demo_diffusion.cli.options import Option, options_of
from demo_diffusion.eval.classify import ClassifyConfig
from demo_diffusion.eval.detect import DetectConfig
from demo_diffusion.eval.evaluate import EvaluationConfig
from demo_diffusion.eval.segment import SegmentConfig
from demo_diffusion.train.classification.config import ClassificationTrainingConfig
from demo_diffusion.train.detection.config import DetectionTrainingConfig
from demo_diffusion.train.diffusion.config import DiffusionTrainingConfig
from demo_diffusion.train.latents.config import CacheConfig
from demo_diffusion.train.segmentation.config import SegmentationTrainingConfig

TARGET = Path(__file__).parent / "reference/options.md"
COMMANDS = {
    "train/train_demo.py": DiffusionTrainingConfig,
    "train/train_emov2.py": ClassificationTrainingConfig,
    "train/train_detection.py": DetectionTrainingConfig,
    "train/train_segmentation.py": SegmentationTrainingConfig,
    "train/cache_latents.py": CacheConfig,
    "eval/evaluate.py": EvaluationConfig,
    "eval/classify.py": ClassifyConfig,
    "eval/detect.py": DetectConfig,
    "eval/segment.py": SegmentConfig,
}
INTRODUCTION = """# Options

Made from the code by `python docs/make_options.py`. The trainings take `--config FILE.yaml`, with the sections
below, and every field as an option (`--num_steps 500`). In `model` a field without a default keeps the preset's value.
`none` undoes what a file sets, where that is allowed (`--vae none`). `--help` of the other commands prints theirs.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([INTRODUCTION, *(chapter(command, config) for command, config in COMMANDS.items())])


def chapter(command: str, config: type) -> str:
    sections: dict[str, list[Option]] = {}
    for each in options_of(config):
        sections.setdefault(each.section, []).append(each)
    lines = [f"## {command}", "", summary(config), ""]
    for section, options in sections.items():
        lines += [f"### {section} of {command}", ""] if section else []
        lines += ["| option | type | default | range | what |", "|---|---|---|---|---|", *map(row, options), ""]
    return "\n".join(lines)


def summary(config: type) -> str:
    return inspect.getdoc(config).splitlines()[0]


def row(each: Option) -> str:
    kind = " \\| ".join(f"`{choice}`" for choice in each.choices) or each.type.__name__
    kind = f"list of {kind}" if each.is_list else kind
    default = "required" if each.is_required else format_default(each.default)
    cells = (f"`{each.name}`", kind, default, "" if each.allowed is None else str(each.allowed), each.help)
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def format_default(value: object) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    TARGET.write_text(page())
