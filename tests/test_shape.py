"""The shape of the house: imports point down, commands are doors, every room is packaged; each rule can fail."""

import ast
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_diffusion import DEMOPipeline, FlowMatchDopri5Scheduler, FlowMatchSDEScheduler
from demo_diffusion.models import AutoencoderTAEF2
from tests.support.goldens import GOLDENS
from tests.support.networks import tiny_dit, tiny_transformer
from tests.support.project import PYPROJECT, ROOT

# Where the modules of the package lie: package -> folder.
FOLDERS = {
    "demo_diffusion.pipelines": "pipelines",
    "demo_diffusion.train": "train",
    "demo_diffusion.eval": "eval",
    "demo_diffusion": "demo_diffusion",
}
FLOORS = (
    ("checks", "kernels", "records", "cli", "_version", "_start"),
    ("models", "objectives", "schedulers", "flops"),
    ("data",),
    ("pipelines",),
    ("conversion",),
    ("eval",),
    ("train",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MAX_LINES = {"train": 80, "eval": 120}
LONGER_DOORS = {"eval/benchmark.py": 170}


def read_sources() -> dict[str, str]:
    """Path in the repository -> text, of the package's files."""
    files = [file for folder in FOLDERS.values() for file in sorted((ROOT / folder).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def module_of(path: str) -> str:
    package, folder = next(pair for pair in FOLDERS.items() if path.split("/")[0] == pair[1])
    parts = list(Path(path).relative_to(folder).with_suffix("").parts)
    return ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def imports_of(path: str, text: str) -> Iterator[tuple[str, str]]:
    """(module, name) of what a file imports from this package, at any depth; relative ones resolved."""
    module = module_of(path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("demo_diffusion"))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            if source.split(".")[0] == "demo_diffusion":
                yield from ((source, alias.name) for alias in node.names)


def exports(sources: dict[str, str]) -> dict[str, str]:
    """Name that `demo_diffusion` itself exports -> module that it comes from."""
    return {
        name: module for module, name in imports_of("demo_diffusion/__init__.py", sources["demo_diffusion/__init__.py"])
    }


def room_of(module: str, name: str, exported: dict[str, str]) -> str:
    if module == "demo_diffusion":
        module = exported.get(name, f"demo_diffusion.{name}")
    return module.split(".")[1] if "." in module else "_version"


def broken_rules(sources: dict[str, str]) -> list[str]:
    """Imports that point up, that take something from a command, or that bring kernels into a model."""
    exported, broken = exports(sources), []
    commands = {module_of(path) for path in sources if is_door(path)}
    for path, text in sources.items():
        if path == "demo_diffusion/__init__.py":
            continue
        room = module_of(path).split(".")[1]
        for module, name in imports_of(path, text):
            target = room_of(module, name, exported)
            if FLOOR_OF[target] > FLOOR_OF[room]:
                broken.append(f"{path} imports up, from {module}.{name}")
            if {module, f"{module}.{name}"} & commands:
                broken.append(f"{path} imports from the command {module}")
            if room == "models" and target == "kernels" and path != "demo_diffusion/models/operators.py":
                broken.append(f"{path} imports kernels")
    return broken


def is_door(path: str) -> bool:
    folder, _, name = path.partition("/")
    return folder in MAX_LINES and "/" not in name and name != "__init__.py"


def broken_doors(sources: dict[str, str]) -> list[str]:
    """Commands that are too long, have no `main`, or do not run as a script."""
    broken = []
    for path, text in sources.items():
        if not is_door(path):
            continue
        lines, most = len(text.splitlines()), LONGER_DOORS.get(path, MAX_LINES[path.split("/")[0]])
        if lines > most:
            broken.append(f"{path} has {lines} lines of at most {most}")
        if "\ndef main(" not in text or '\nif __name__ == "__main__":\n' not in text:
            broken.append(f"{path} has no main")
    return broken


def test_imports_point_down():
    assert broken_rules(read_sources()) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("eval/metrics/scores.py", "from demo_diffusion.train.engine.config import RunConfig"),
        ("eval/metrics/scores.py", "def f():\n    from demo_diffusion.train import engine"),
        ("demo_diffusion/data/images.py", "from demo_diffusion import DEMOPipeline"),
        ("demo_diffusion/records/files.py", "import demo_diffusion.models"),
        ("demo_diffusion/models/mobile_block.py", "from demo_diffusion import kernels"),
        ("demo_diffusion/models/layers/folding.py", "from demo_diffusion.kernels import linear"),
        ("train/diffusion/trainer.py", "from demo_diffusion.eval.evaluate import main"),
        ("train/diffusion/trainer.py", "from demo_diffusion.train import train_demo"),
        ("eval/speed/report.py", "from ..benchmark import main"),
    ],
)
def test_the_rules_of_imports_can_be_broken(path, line):
    sources = read_sources()
    sources[path] = f"{line}\n{sources[path]}"
    assert any(rule.startswith(path) for rule in broken_rules(sources))


def test_commands_are_short_and_have_a_main():
    assert broken_doors(read_sources()) == []


@pytest.mark.parametrize("text", ["x = 1\n" * 121, "def main(): ...\n" * 50, ""])
def test_the_rules_of_doors_can_be_broken(text):
    assert broken_doors({**read_sources(), "eval/new.py": text})


def test_every_folder_is_packaged():
    settings = PYPROJECT["tool"]["setuptools"]
    folders = {module_of(path) for path in read_sources() if path.endswith("__init__.py")}
    assert sorted(settings["packages"]) == sorted(folders)
    without = [folder for folder in folders_with_code() if not (folder / "__init__.py").is_file()]
    assert without == []
    for package, patterns in settings["package-data"].items():
        folder = next(
            ROOT / FOLDERS[p] / package[len(p) + 1 :].replace(".", "/") for p in FOLDERS if package.startswith(p)
        )
        assert all(list(folder.glob(pattern)) for pattern in patterns)


def folders_with_code() -> set[Path]:
    return {(ROOT / path).parent for path in read_sources()}


def test_no_folder_beside_a_command_shadows_a_package():
    inside = [path for folder in ("train", "eval") for path in (ROOT / folder).iterdir() if path.suffix in ("", ".py")]
    names = {path.stem for path in inside if not path.stem.startswith("_")}
    assert {name for name in names if importlib.util.find_spec(name) is not None} == set()


def test_rooms_say_what_they_are_for():
    for path, text in read_sources().items():
        if path.endswith("__init__.py") and path.count("/") >= 1 and path != "demo_diffusion/__init__.py":
            assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


@pytest.mark.parametrize("name", ["demo_sde", "sit_dopri5"])
def test_addresses_that_saved_pipelines_name_stay(name, tmp_path):
    """The index is a saved one of an earlier version; the parts beside it are made here."""
    index = json.loads((GOLDENS / f"pipelines/{name}/model_index.json").read_text())
    if name == "demo_sde":
        vae = AutoencoderTAEF2(latent_channels=4, width=8, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
        pipeline = DEMOPipeline(tiny_transformer(out_channels=4), FlowMatchSDEScheduler(), vae)
    else:
        pipeline = DEMOPipeline(tiny_dit(out_channels=4, reverse_time=True), FlowMatchDopri5Scheduler())
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = DEMOPipeline.from_pretrained(tmp_path)
    parts = {part: value for part, value in index.items() if isinstance(value, list) and value[0]}
    assert len(parts) >= 2
    for part, (module, class_name) in parts.items():
        assert module.startswith("demo_diffusion.")
        assert type(getattr(loaded, part)) is getattr(importlib.import_module(module), class_name)
