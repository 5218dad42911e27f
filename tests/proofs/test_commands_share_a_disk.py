"""Every command that writes: two at once in one place, and a disk that is full.

Commands run in copies of this process, so two begin at the same moment and each takes about a second.
"""

import os
from pathlib import Path

import pytest

from demo_diffusion.records import folder_lock
from tests.support.commands import COMMANDS, make_ground
from tests.support.processes import Child

pytestmark = pytest.mark.forks


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(folder_lock, "GRACE_SECONDS", 0)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def error_line(output: str) -> str:
    """The one line that a command ends with."""
    assert "Traceback" not in output, output
    lines = output.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], output
    return lines[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_refused_while_another_writes_there(tmp_path, ground, name):
    command, out = COMMANDS[name], tmp_path / "out"
    if not command.makes_folder:
        out.mkdir()
    with command.hold(out):
        before = files_of(tmp_path)
        with pytest.raises(SystemExit, match=rf"^error: Another command \(process {os.getpid()} on .*\) is writing "):
            command.main(command.arguments(ground, out, 0))
        assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    "pair", [0, pytest.param(1, marks=pytest.mark.proof), pytest.param(2, marks=pytest.mark.proof)]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_commands_at_once_one_is_refused_and_the_other_whole(tmp_path, ground, name, pair):
    """One that ends before the other begins is replaced by it, if the command replaces results."""
    command, out = COMMANDS[name], tmp_path / "out"
    if not command.makes_folder:
        out.mkdir()
    runs = [command.arguments(ground, out, variant) for variant in (0, 1)]
    children = [Child(lambda run=run: command.main(run)) for run in runs]
    ends = [child.wait() for child in children]
    statuses = [status for status, _ in ends]
    assert sorted(statuses) == [0, 1] or (command.replaces and statuses == [0, 0]), ends
    winner = statuses.index(0)
    if 1 in statuses:
        line = error_line(ends[1 - winner][1])
        assert f"process {children[winner].pid} on" in line or "of other settings" in line or "exists already" in line
    command.check(out, winner)
    assert [path for path in tmp_path.rglob("*") if ".lock" in path.name or ".partial" in path.name] == []


@pytest.mark.parametrize(
    "limit", [0, 30_000, *(pytest.param(x, marks=pytest.mark.proof) for x in (300, 3_000, 100_000))]
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_in_one_line_and_the_same_command_then_succeeds(tmp_path, ground, name, limit):
    """The limit is on the size of each file, so commands come to different stages."""
    command, out = COMMANDS[name], tmp_path / "out"
    if not command.makes_folder:
        out.mkdir()
    run = command.arguments(ground, out, 0)
    status, output = Child(lambda: command.main(run), file_limit=limit).wait()
    if status != 0:
        assert status == 1
        error_line(output)
        assert [path for path in tmp_path.rglob("*") if ".partial" in path.name] == []
        status, output = Child(lambda: command.main(run)).wait()
        assert status == 0, output
    command.check(out, 0)
