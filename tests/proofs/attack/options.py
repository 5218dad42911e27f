"""Bad options of every command: each is refused in one line, or the command's result is whole."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from demo_diffusion.cli.options import Option, options_of
from demo_diffusion.eval.benchmark import main as benchmark
from demo_diffusion.eval.classify import ClassifyConfig
from demo_diffusion.eval.detect import DetectConfig
from demo_diffusion.eval.evaluate import EvaluationConfig
from demo_diffusion.eval.segment import SegmentConfig
from demo_diffusion.eval.table import main as table
from demo_diffusion.train.classification.config import ClassificationTrainingConfig
from demo_diffusion.train.detection.config import DetectionTrainingConfig
from demo_diffusion.train.diffusion.config import DiffusionTrainingConfig
from demo_diffusion.train.latents.config import CacheConfig
from demo_diffusion.train.segmentation.config import SegmentationTrainingConfig
from tests.support.commands import COMMANDS, make_ground

from .judging import judge_command
from .runner import Case, Wrong

KIND = "command options"
CONFIGS = {
    "train_demo": DiffusionTrainingConfig,
    "train_emov2": ClassificationTrainingConfig,
    "cache_latents": CacheConfig,
    "train_detection": DetectionTrainingConfig,
    "train_segmentation": SegmentationTrainingConfig,
    "evaluate": EvaluationConfig,
    "classify": ClassifyConfig,
    "detect": DetectConfig,
    "segment": SegmentConfig,
}
NO_NUMBERS = ("four", "", "nan", "inf", "1e400", "0x10", "1,5", "[1]", "\x1b[31m4")
HUGE = "1" + "0" * 20
EDGES = ("-1", "0", "1.5", HUGE, "1" + "0" * 400)
BAD_TEXTS = ("/nowhere/at/all", "\x1b[31mred\n", "a\0b", "x" * 5000, "../../../..", "~nobody")
# Options whose value is any text or the name of something new, which nothing can be wrong with.
FREE_TEXTS = {"output_dir", "out", "push_to_hub"}
LETTERS = list(pairwise("abcdefghij"))
YAMLS = {
    "a list": "[1, 2]",
    "a text": "train",
    "a number": "7",
    "nothing": "",
    "not YAML": "a: [",
    "unknown section": "nonsense: {a: 1}",
    "unknown field": "data: {no_such: 1}",
    "a section that is a list": "data: [1]",
    "a section that is nothing": "data:",
    "a text for a number": "optimization: {num_steps: many}",
    "a huge number": f"optimization: {{num_steps: {HUGE}}}",
    "a list for a number": "optimization: {num_steps: [1]}",
    "not a number": "optimization: {learning_rate: .nan}",
    "infinity": "optimization: {learning_rate: .inf}",
    "a date": "optimization: {num_steps: 2001-01-01}",
    "Python": "!!python/object/apply:os.system ['touch CODE_RAN']",
    "nested deeply": "a: " + "[" * 5000,
    "laughs": "a: &a [1,1,1,1,1,1,1,1]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 8}]\n" for i in range(9)),
    "binary": "\x00\x01",
    "escapes": 'data: {dataset: "\\e[31mred"}',
}


def prepare(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    make_ground(root)


def cases(root: Path) -> Iterator[Case]:
    for name, config in CONFIGS.items():
        for option in options_of(config):
            for value in values_for(option):
                yield _case(root, name, [f"--{option.name}={value}"])
    for name in COMMANDS:
        for extra in (["--no_such_option=1"], ["--out"], ["--config", "/nowhere.yaml"], ["a", "b", "c"], ["--", "x"]):
            yield _case(root, name, extra, must_be_refused=True)
        yield _case(root, name, [], out="a file")
        yield _case(root, name, [], out="below a file")
    for command in ("train_demo", "train_emov2", "train_detection", "train_segmentation"):
        for wrong, text in YAMLS.items():
            yield _yaml_case(root, command, wrong, text)
    for words in (["block", "--threads=0"], ["block", "--threads=x"], ["nothing"], [], ["block", f"--threads={HUGE}"]):
        yield Case(KIND, f"benchmark {words}", lambda folder, words=words: judge_command(benchmark, words))
    for words in (["/nowhere"], [str(root / "images")], ["a\x1b[31m"]):
        yield Case(KIND, f"table {words}", lambda folder, words=words: judge_command(table, words))


def values_for(option: Option) -> Iterator[str]:
    if option.choices or option.type is bool:
        yield from ("unknown", "2", "", "\x1b[31m")
    elif option.type in (int, float):
        # An empty text undoes an option that may be left out, so the command does what it would without.
        yield from (each for each in (*NO_NUMBERS, *EDGES) if each or not option.is_optional)
    elif option.name not in FREE_TEXTS:
        yield from BAD_TEXTS


def _case(root: Path, name: str, extra: list[str], out: str = "", must_be_refused: bool = False) -> Case:
    command = COMMANDS[name]

    def run(folder: Path) -> str:
        target = folder / "out"
        if out:
            target.write_text("a file of the user")
            target = target / "x" if out == "below a file" else target
        elif not command.makes_folder:
            target.mkdir()

        def check() -> None:
            if must_be_refused or is_nonsense(extra):
                raise Wrong("it was accepted")
            command.check(target, variant_of(extra))

        verdict = judge_command(command.main, [*command.arguments(root, target, 0), *extra], check)
        if out and (folder / "out").read_text() != "a file of the user":
            raise Wrong("the user's file is gone")
        return verdict

    words = " ".join(extra) + (f", out is {out}" if out else "")
    return Case(KIND, f"{name} {words!r:.120}", run)


def is_nonsense(extra: list[str]) -> bool:
    """Whether no command may accept an option."""
    value = extra[0].partition("=")[2] if extra else None
    return value in (*NO_NUMBERS[:1], *NO_NUMBERS[2:], *EDGES[3:], "unknown")


def variant_of(extra: list[str]) -> int:
    return int(extra[0].partition("=")[2]) if extra and extra[0].startswith("--seed=") else 0


def _yaml_case(root: Path, name: str, wrong: str, text: str) -> Case:
    def run(folder: Path) -> str:
        file = folder / "config.yaml"
        file.write_bytes(text.encode())
        given = COMMANDS[name].arguments(root, folder / "out", 0)
        words = [f"--config={file}" if word.startswith("--config=") else word for word in given]
        return judge_command(COMMANDS[name].main, words, lambda: COMMANDS[name].check(folder / "out", 0))

    return Case(KIND, f"{name} --config with {wrong}", run)
