"""A user's mistake ends in one line; anything else is shown whole."""

import subprocess
import sys
from dataclasses import dataclass

from demo_diffusion.cli.command import one_line_for_mistakes, require_packages

import pytest

from demo_diffusion.cli.options import OptionParser, option


@one_line_for_mistakes()
def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [ValueError("size is 3; it must be 4."), FileNotFoundError(2, "No such file", "x")])
def test_a_mistake_is_one_line(error):
    for _ in range(2):  # a command may be called again
        with pytest.raises(SystemExit) as stop:
            fail(error)
        assert stop.value.code == f"error: {error}"


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(2)])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert raised.value is error


@pytest.mark.parametrize(
    ("stop", "line"),
    [
        (KeyboardInterrupt(), "error: interrupted.\n"),
        (KeyboardInterrupt("The same command continues."), "error: interrupted. The same command continues.\n"),
    ],
)
def test_ctrl_c_is_one_line_of_the_first_process(monkeypatch, capsys, stop, line):
    for rank, expected in ((None, line), ("0", line), ("1", "")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.delenv("RANK", raising=False)
            if rank is not None:
                patch.setenv("RANK", rank)
            fail(stop)
        assert ended.value.code == 130 and capsys.readouterr().err == expected


def test_foreign_text_in_a_mistake_is_escaped():
    with pytest.raises(SystemExit) as stop:
        fail(ValueError("no class \x1b[2Jcat\nerror: all is well"))
    assert stop.value.code == "error: no class \\x1b[2Jcat\n  error: all is well"


def test_what_a_mistake_is_can_be_said():
    with pytest.raises(SystemExit, match="error: not finite"), one_line_for_mistakes((FloatingPointError,)):
        raise FloatingPointError("not finite")
    with pytest.raises(ValueError), one_line_for_mistakes((FloatingPointError,)):
        raise ValueError


def test_a_command_ends_with_status_1_and_no_traceback():
    code = "from tests.cli.test_command import fail; fail(ValueError('size is 3'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: size is 3\n")


def test_missing_packages_are_named_with_their_extra():
    require_packages(["json", "torch"], "train", "Training")
    expected = r"^Training needs no_such, neither: pip install 'demo-diffusion\[train\]'\.$"
    with pytest.raises(ValueError, match=expected):
        require_packages(["no_such", "json", "neither"], "train", "Training")


@dataclass
class Options:
    size: int = option(3, "a number")
    name: str | None = option(None, "a text")


def test_options_are_the_fields_of_a_dataclass(capsys):
    assert OptionParser(Options).read(["--name", "a"]) == Options(3, "a")
    with pytest.raises(SystemExit):
        OptionParser(Options).read(["--size", "x"])
    assert "invalid int value: 'x'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        OptionParser(Options).read(["--nam", "a"])  # not taken for --name
    assert "--nam" in capsys.readouterr().err
