"""What the package declares, and what importing it costs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.project import PYPROJECT, ROOT

LIBRARY, COMMANDS = ("demo_diffusion", "pipelines"), ("train", "eval")
OURS = {"demo_diffusion", "tests"}
# Module -> its project, where the names differ; PyTorch brings Triton where there is one.
PROJECTS = {"PIL": "pillow", "sklearn": "scikit-learn", "triton": "torch", "yaml": "pyyaml"}


def imported_projects(text: str) -> Iterator[tuple[str, bool]]:
    """(project, whether a function imports it) of other people's packages that a file imports."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for module in {name.split(".")[0] for name in names} - OURS - set(sys.stdlib_module_names):
            yield normalized(PROJECTS.get(module, module)), node in inside


def normalized(project: str) -> str:
    return re.split(r"[<>=\[ ]", project)[0].replace("_", "-").lower()


def undeclared(sources: dict[str, str]) -> list[str]:
    """Imports of packages that are not declared: those of commands and functions may be extras."""
    project = PYPROJECT["project"]
    needed = {normalized(each) for each in project["dependencies"]}
    extras = {normalized(each) for extra in project["optional-dependencies"].values() for each in extra}
    return [
        f"{path} imports {name}"
        for path, text in sources.items()
        for name, in_function in imported_projects(text)
        if name not in (needed | extras if in_function or path.startswith(COMMANDS) else needed)
    ]


def test_every_imported_package_is_declared():
    files = [path for folder in (*LIBRARY, *COMMANDS) for path in (ROOT / folder).rglob("*.py")]
    assert undeclared({str(path.relative_to(ROOT)): path.read_text() for path in files}) == []


@pytest.mark.parametrize(
    ("path", "text", "is_declared"),
    [
        ("pipelines/new.py", "import scipy.linalg", False),
        ("pipelines/new.py", "import matplotlib", False),
        ("pipelines/new.py", "def plot():\n    from matplotlib import pyplot", True),
        ("eval/new.py", "import matplotlib", True),
        ("eval/new.py", "import pandas", False),
    ],
)
def test_an_undeclared_package_is_found(path, text, is_declared):
    assert (undeclared({path: text}) == []) == is_declared


def test_importing_the_package_loads_no_extra_and_no_data_reader():
    """transformers loads torchvision and the hub's client PyYAML; the rest must wait until it is used."""
    unwanted = ["datasets", "matplotlib", "sklearn", "tensorboard", "timm", "torch_fidelity"]
    unwanted += ["demo_diffusion.data.images", "demo_diffusion.cli.config_file"]
    code = "import sys, demo_diffusion, demo_diffusion.cli.options; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo_diffusion.pipelines" in done.stdout.split()
    assert set(unwanted) & set(done.stdout.split()) == set()
