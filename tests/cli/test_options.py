from dataclasses import dataclass
from typing import Literal

import pytest

from demo_diffusion.cli.arguments import arguments_of, documented_arguments, merged_arguments
from demo_diffusion.cli.options import (
    OptionParser,
    Range,
    check_options,
    option,
    options_of,
    spell_with_underscores,
    with_options,
)


@dataclass
class Size:
    """Numbers."""

    width: int = option(8, "of the image", above=0)
    share: float = option(0.5, "of 100 %", least=0, below=1)
    depth: int | None = option(None, "of the network", least=2)
    sizes: list[int] = option([1, 2], "several")


@dataclass
class Words:
    """Texts."""

    name: str = option("", "of the run", required=True)
    mode: Literal["none", "some"] | None = option(None, "how much")
    kind: Literal["a", "b"] = option("a", "which")
    fast: bool = option(False, "or slow")
    folder: str | None = option(None, "where")


@dataclass
class Config:
    """Both."""

    size: Size
    words: Words


@pytest.mark.parametrize(
    ("bounds", "text", "inside", "outside"),
    [
        (Range(above=0), "positive", [1, 1e-9], [0, -1]),
        (Range(least=0), "at least 0", [0, 5], [-1e-9]),
        (Range(least=2, most=4), "in [2, 4]", [2, 4], [1, 5]),
        (Range(least=0, below=1), "in [0, 1)", [0, 0.99], [1]),
        (Range(above=0, most=1), "in (0, 1]", [1], [0, 1.1]),
        (Range(above=3), "above 3", [4], [3]),
        (Range(most=3), "at most 3", [3, -9], [4]),
        (Range(below=3), "below 3", [2], [3]),
    ],
)
def test_ranges(bounds, text, inside, outside):
    assert str(bounds) == text
    assert all(bounds.allows(value) for value in inside)
    assert not any(bounds.allows(value) for value in (*outside, float("nan"), float("inf"), -float("inf")))


def test_rows_say_what_the_fields_say():
    rows = {row.name: row for row in options_of(Config)}
    assert [(row.section, row.name) for row in rows.values()][::4] == [
        ("size", "width"),
        ("words", "name"),
        ("words", "folder"),
    ]
    assert rows["width"][2:7] == (int, 8, Range(above=0), (), "of the image")
    assert rows["depth"].is_optional and rows["depth"].type is int and rows["depth"].default is None
    assert rows["sizes"].is_list and rows["sizes"].default == [1, 2] and Size().sizes is not Size().sizes
    assert rows["mode"].choices == ("none", "some") and rows["mode"].is_optional and rows["mode"].type is str
    assert [row.section for row in options_of(Size)] == [""] * 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Size(width=0), "width is 0; it must be positive"),
        (Size(share=1.0), r"share is 1.0; it must be in \[0, 1\)"),
        (Size(depth=1), "depth is 1; it must be at least 2"),
        (Words(), "name is missing"),
        (Config(Size(depth=0), Words("run")), "depth is 0"),
    ],
)
def test_one_function_checks_all_options(config, message):
    with pytest.raises(ValueError, match=f"^--{message}"):
        check_options(config, "--")
    check_options(Config(Size(depth=None), Words("run")))


def test_the_parser_reads_sections(capsys):
    parser = OptionParser(Config)
    words = ["--width", "3", "--sizes", "4", "--sizes", "--fast", "--kind=b", "--name", "a-b"]
    assert parser.read(words) == Config(Size(3, sizes=[]), Words("a-b", kind="b", fast=True))
    assert parser.read(["--fast", "no", "--depth=", "--folder", "None"]) == Config(Size(), Words())
    assert parser.read(["--depth", "none", "--mode", "none"]).words.mode == "none"  # a choice, not nothing
    assert parser.read(["--mode", "some", "--mode="]).words.mode is None
    for words, message in (
        (["--width", "x"], "argument --width: invalid int value: 'x'"),
        (["--depth", "x"], "argument --depth: invalid int value: 'x'"),
        (["--kind", "c"], "argument --kind: invalid choice: 'c'"),
        (["--mode", "all"], "argument --mode: invalid choice: 'all'"),
        (["--fast", "maybe"], "'maybe' is neither true nor false"),
        (["--wid", "3"], "unrecognized arguments: --wid 3"),
    ):
        with pytest.raises(SystemExit):
            parser.read(words)
        assert message in capsys.readouterr().err


def test_help_has_ranges_and_choices():
    text = " ".join(OptionParser(Config).format_help().split())
    assert "of the image; positive (default: 8)" in text and "of 100 %; in [0, 1) (default: 0.5)" in text
    assert "--mode {none,some}" in text and "--kind {a,b}" in text


def test_hyphens_are_an_alias():
    assert spell_with_underscores(["a-b", "--num-steps", "-1", "--out-dir=a-b", "--", "-v"]) == [
        "a-b", "--num_steps", "-1", "--out_dir=a-b", "--", "-v",
    ]  # fmt: skip

    @dataclass
    class Steps:
        num_steps: int = option(1, "how many")

    assert OptionParser(Steps).read(["--num-steps", "5"]) == Steps(5)


class First:
    """The first.

    Args:
        size: of it, which
            takes two lines.
        low, high: both ends.

    Raises:
        ValueError: never.
    """

    def __init__(self, size: int, low: float = 0.0, high: float = 1.0): ...


class Second:
    """The second.

    Args:
        size: of the other.
        mode: how.
    """

    def __init__(self, size: int = 3, mode: str = "fast"): ...


def test_arguments_have_their_lines_of_the_docstring():
    assert [(a.name, a.type, a.help) for a in arguments_of(First)] == [
        ("size", int, "of it, which takes two lines"),
        ("low", float, "both ends"),
        ("high", float, "both ends"),
    ]
    merged = merged_arguments({"one": First, "two": Second}, without=["low"])
    assert [(a.name, a.help) for a in merged] == [
        ("size", "of it, which takes two lines"),
        ("high", "both ends (one)"),
        ("mode", "how (two)"),
    ]
    assert documented_arguments("No arguments.") == {}


def test_arguments_without_a_line_or_with_two_types_are_refused():
    class Undocumented:
        """Nothing."""

        def __init__(self, size: int): ...

    class Other:
        """Other.

        Args:
            size: a text.
        """

        def __init__(self, size: str): ...

    with pytest.raises(TypeError, match="size of Undocumented needs a type and a line"):
        list(arguments_of(Undocumented))
    with pytest.raises(TypeError, match="size has different types in one, two"):
        merged_arguments({"one": First, "two": Other})


def test_options_that_take_their_default_from_classes_need_one_default():
    class Another:
        """Another.

        Args:
            mode: how.
        """

        def __init__(self, mode: str = "slow"): ...

    owners = {"one": Second, "two": Another}
    assert [each.name for each in merged_arguments(owners)] == ["size", "mode"]
    with pytest.raises(TypeError, match="mode has different defaults in one, two"):
        merged_arguments(owners, same_defaults=True)


def test_a_section_takes_options_of_elsewhere():
    @with_options([("size", int | None, option(None, "of it"))])
    class Section:
        """What it is."""

        name: str = option("x", "of it")

        def double(self) -> int:
            return 2 * self.size

    assert [row.name for row in options_of(Section)] == ["name", "size"] and Section.__doc__ == "What it is."
    assert Section(size=2).double() == 4 and Section() == Section("x", None)
