"""README and docs agree with the code: Python blocks, commands and their options, links, paths, and lengths."""

import argparse
import ast
import builtins
import functools
import glob
import importlib
import importlib.util
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed.run
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_GUIDE_LINES, MAX_README_LINES, MAX_README_WORDS, MAX_WIDTH = 120, 150, 900, 120

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FOLDERS = "configs|demo_diffusion|docs|eval|pipelines|tests|train"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./{{}},*$-]*")
PROGRAM = re.compile(rf"(?:{FOLDERS})/\S+\.py\b")
PLACEHOLDER = re.compile(r"NAME|…|\.\.\.")
OUTPUTS = ("docs/images/",)  # what documented commands write


def blocks(text: str, *languages: str) -> list[str]:
    found = [match for match in FENCE.finditer(text) if match[2] in languages]
    return [re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE) for match in found]


def prose(text: str) -> str:
    return FENCE.sub("", text)


# Python blocks


def broken_python(text: str) -> list[str]:
    """Blocks that do not parse, imports that do not resolve, and names that no block up to there defines."""
    broken, known = [], set(dir(builtins))
    for block in blocks(text, "python"):
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            broken.append(f"does not parse: {error}")
            continue
        broken += [f"{name} cannot be imported" for name in imports_of(tree) if not resolves(name)]
        known |= set(defined_names(tree))
        used = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        broken += [f"{name} is not defined" for name in dict.fromkeys(used) if name not in known]
    return broken


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}:{alias.name}" for alias in node.names)


def resolves(name: str) -> bool:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    return not attribute or hasattr(found, attribute)


def defined_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]


# Commands


def commands(text: str) -> Iterator[list[str]]:
    """Command lines of bash blocks and of code inside sentences, as words, without what only a shell sees."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(span.split()) for span in INLINE.findall(prose(text))]
    lines += [f"python {span}" if PROGRAM.match(span) else span for span in inline]
    variables: dict[str, list[str]] = {}
    for line in lines:
        for words in split_line(line):
            while words and (words[0] in ("do", "{") or re.match(r"\w+=", words[0])):
                name, _, value = words.pop(0).partition("=")
                variables[f"${name}"] = value.split()
            if words and words[0] in ("python", "accelerate", "torchrun"):
                yield list(itertools.chain.from_iterable(variables.get(word, [word]) for word in words))


def split_line(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe in what is no command
        return
    for is_separator, group in itertools.groupby(words, lambda word: set(word) <= set(";&|")):
        if not is_separator:
            yield list(group)


def broken_commands(text: str) -> list[str]:
    """Commands that name a program, a module, a test or an option that does not exist; hyphens are only aliases."""
    return [problem for words in commands(text) for problem in broken_command(words)]


def broken_command(words: list[str]) -> Iterator[str]:
    words = [word for word in words if not PLACEHOLDER.fullmatch(word)]
    try:
        program, options = launched(words)
    except SystemExit:
        yield f"{words[0]} cannot read {' '.join(words[1:])}"
        return
    if program is None or PLACEHOLDER.search(program):
        return
    if program == "pytest":
        yield from broken_selection(options)
    elif not (module := module_of(program)):
        yield f"there is no program {program}"
    elif given := [word.partition("=")[0] for word in options if word.startswith("--")]:
        known = options_of(module, *options[:1])
        yield from (f"{program} has no option {option}" for option in given if option not in known or "-" in option[2:])


def launched(words: list[str]) -> tuple[str | None, list[str]]:
    """The program of a command line, None if it is none of ours, and what it is given.

    Raises:
        SystemExit: if the launcher does not know an option.
    """
    if not any(word == "-m" or word.endswith(".py") for word in words):
        return None, []
    if words[0] == "accelerate":
        launch = launch_command_parser().parse_args(words[2:])
        return launch.training_script, launch.training_script_args
    if words[0] == "torchrun":
        launch = torch.distributed.run.get_args_parser().parse_args(words[1:])
        return launch.training_script, launch.training_script_args
    if words[1] == "-m":
        return (None, []) if words[2] in ("venv", "timeit") else (words[2], words[3:])
    return words[1], words[2:]


def module_of(program: str) -> str | None:
    """The module of a script or of `python -m`; None: there is none."""
    if not program.endswith(".py"):
        return next((name for name in (f"{program}.__main__", program) if resolves(name)), None)
    if not (ROOT / program).is_file():
        return None
    return program.removesuffix(".py").replace("/", ".")


@functools.cache
def options_of(module: str, first: str = "") -> frozenset[str]:
    """The options that `--help` of a program, or of its subcommand `first`, lists."""
    parsers: list[argparse.ArgumentParser] = []
    main = program_of(module).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", lambda self, file=None: parsers.append(self))
        for arguments in (["--help"], [first, "--help"]):
            patch.setattr(sys, "argv", [module, *arguments])
            if not parsers or first in subcommands(parsers[0]):
                with pytest.raises(SystemExit):
                    main()
    return frozenset(name for action in parsers[-1]._actions for name in action.option_strings)


def program_of(module: str):
    inside = module if module.startswith("demo_diffusion.") else f"demo_diffusion.{module}"
    return importlib.import_module(inside)


def subcommands(parser: argparse.ArgumentParser) -> list[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [name for group in groups for name in group.choices]


def broken_selection(words: list[str]) -> Iterator[str]:
    """Paths of tests that do not exist, and `-k` words that select none of them."""
    paths = [ROOT / word for word in words if word.startswith("tests")] or [ROOT / "tests"]
    yield from (f"there is no {path.relative_to(ROOT)}" for path in paths if not path.exists())
    files = [
        file for path in paths for file in (path.rglob("test_*.py") if path.is_dir() else [path]) if file.is_file()
    ]
    names = re.findall(r"def (test_\w+)", "".join(file.read_text() for file in files))
    if "-k" in words:
        for word in re.findall(r"\w+", words[words.index("-k") + 1]):
            if word not in ("and", "or", "not") and not any(word in name for name in names):
                yield f"-k {word} selects no test"


# Paths, links, lengths


def broken_paths(text: str) -> list[str]:
    """Files and folders of the repository that are named and do not exist; `*`, `$name` and `{a,b}` stand for names."""
    code = [*blocks(text, "bash"), *(" ".join(span.split()) for span in INLINE.findall(prose(text)))]
    named = dict.fromkeys(path.rstrip(".,") for span in code for path in PATH.findall(span))
    expanded = [each for path in named if not PLACEHOLDER.search(path) for each in expand_braces(path)]
    return [f"there is no {path}" for path in expanded if not exists(path)]


def exists(path: str) -> bool:
    return path.startswith(OUTPUTS) or bool(glob.glob(str(ROOT / re.sub(r"\$\w+", "*", path))))


def expand_braces(path: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", path)
    if match is None:
        yield path
        return
    for name in match[1].split(","):
        yield from expand_braces(path[: match.start()] + name + path[match.end() :])


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links and images without a file, or without the heading that they name."""
    broken = []
    for target in LINK.findall(prose(text)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            broken.append(f"there is no {target}")
        elif anchor and anchor not in anchors(text if file == page else file.read_text()):
            broken.append(f"{target} has no such heading")
    return broken


def anchors(text: str) -> set[str]:
    """Headings as GitHub makes them into anchors."""
    headings = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(text))]
    return {heading.strip().replace(" ", "-") for heading in headings}


def too_wide(text: str) -> list[str]:
    """Lines of prose, which are wrapped; tables, code and links cannot be."""
    return [
        line for line in prose(text).splitlines() if len(line) > MAX_WIDTH and not line.lstrip().startswith(("|", "!["))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_agrees_with_the_code(page):
    text = page.read_text()
    checks = (broken_python(text), broken_commands(text), broken_paths(text), broken_links(page, text), too_wide(text))
    assert [problem for check in checks for problem in check] == []


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("x = (1", "does not parse"),
        ("import demo_diffusion.nothing", "cannot be imported"),
        ("from demo_diffusion import nothing", "cannot be imported"),
        ("torch.randn(2)", "torch is not defined"),
        ("def f(a):\n    return a + b", "b is not defined"),
    ],
)
def test_python_blocks_can_be_wrong(block, problem):
    (found,) = broken_python(f"```python\n{block}\n```\n")
    assert problem in found


def test_python_blocks_build_on_those_before():
    first, second = "```python\nimport torch\n```\n", "```python\nx = torch.ones(1)\nprint(x)\n```\n"
    assert broken_python(first + second) == []
    assert broken_python(second + first) != []


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python eval/nothing.py", "no program eval/nothing.py"),
        ("python -m demo_diffusion.nothing SOURCE", "no program demo_diffusion.nothing"),
        ("python -m demo_diffusion.conversion SOURCE TARGET --nothing", "no option --nothing"),
        ("python eval/benchmark.py block --sizes S --nothing=1", "no option --nothing"),
        ("python eval/benchmark.py profile --no_such", "no option --no_such"),
        ("accelerate launch train/train_demo.py --config FILE --epochs 3", "no option --epochs"),
        ("accelerate launch --no_such train/train_demo.py --config FILE", "accelerate cannot read"),
        ("torchrun --no_such 2 train/train_demo.py", "torchrun cannot read"),
        ("X=1 torchrun --nproc_per_node 2 train/train_demo.py \\\n  --learning-rate 1", "no option --learning-rate"),
        ('options="--no_such 3"\npython eval/table.py $options', "no option --no_such"),
        ("for a in 1 2; do\n  python eval/table.py --no_such $a\ndone", "no option --no_such"),
        ("python -m pytest tests/test_nothing.py", "no tests/test_nothing.py"),
        ('python -m pytest tests/test_shape.py -k "imports or nothing"', "-k nothing"),
    ],
)
def test_commands_can_be_wrong(command, problem):
    (found,) = broken_commands(f"```bash\n{command}\n```\n")
    assert problem in found


def test_commands_in_sentences_can_be_wrong():
    assert broken_commands("Call `python eval/table.py\n--no_such` or `eval/table.py --nor_this`.") != []


@pytest.mark.parametrize(
    "path", ["configs/nothing.yaml", "configs/{diffusion,nothing}/*", "eval/nothing.py", "train/x$y"]
)
def test_paths_can_be_wrong(path):
    assert broken_paths(f"See `{path}`.") != []
    assert broken_paths(f"```bash\npython eval/table.py {path}\n```\n") != []


@pytest.mark.parametrize(
    "link", ["[a](nothing.md)", "![a](docs/images/nothing.png)", "[a](docs/README.md#nothing)", "[a](#nothing)"]
)
def test_links_can_be_wrong(link):
    assert broken_links(ROOT / "README.md", f"# A page\n\nSee {link}.\n") != []


def dead_references(sources: dict[str, str]) -> list[str]:
    """Pages that code and configs name and that do not exist."""
    named = [(file, page) for file, text in sources.items() for page in re.findall(r"docs/[\w./]+\.md", text)]
    return [f"{file} names {page}" for file, page in named if not (ROOT / page).is_file()]


def test_code_names_pages_that_exist():
    files = [
        file for folder in FOLDERS.split("|") for end in ("py", "yaml") for file in (ROOT / folder).rglob(f"*.{end}")
    ]
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in files if file != Path(__file__)}
    assert dead_references(sources) == []
    assert dead_references({"a.py": "docs/nothing.md explains it."}) == ["a.py names docs/nothing.md"]


def test_a_line_can_be_too_wide():
    assert too_wide("word " * 30) != []


def test_pages_are_short():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= MAX_README_LINES and len(readme.split()) <= MAX_README_WORDS
    lengths = {page.name: len(page.read_text().splitlines()) for page in (ROOT / "docs/guides").glob("*.md")}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_GUIDE_LINES} == {}


def test_the_list_of_pages_is_whole():
    listed = set(LINK.findall((ROOT / "docs/README.md").read_text()))
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]} == listed | {"README.md"}


def script_of(path: str):
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


def test_the_page_of_options_is_made_from_the_code():
    make_options = script_of("docs/make_options.py")
    assert make_options.TARGET.read_text() == make_options.page(), "run `python docs/make_options.py`"


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore")
def test_the_lists_of_schedulers_are_made_from_the_code():
    make_samplers = script_of("docs/make_samplers.py")
    assert make_samplers.TARGET.read_text() == make_samplers.page(), "run `python docs/make_samplers.py`"


def test_the_picture_of_the_block_can_be_drawn(tmp_path, monkeypatch):
    picture = script_of("docs/figures/i2rmb.py")
    assert picture.TARGET.is_file()
    monkeypatch.setattr(picture, "TARGET", tmp_path / "i2rmb.png")
    picture.main()
    assert (tmp_path / "i2rmb.png").read_bytes().startswith(b"\x89PNG")
