"""One command at a time: whoever is second is refused, and no death of an owner keeps its lock."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from demo_diffusion.records import folder_lock
from demo_diffusion.records.folder_lock import LOCK_NAME, STALE_SECONDS, check_free, hold_folder, hold_target
from tests.support.processes import Child

pytestmark = pytest.mark.forks

OUTPUTS = {"folder": hold_folder, "target": hold_target}
FACTS = {"host": "another-machine", "pid": 1234, "since": "2026-01-02 03:04:05"}


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(folder_lock, "GRACE_SECONDS", 0)


def lock_of(output: Path, kind: str) -> Path:
    return output / LOCK_NAME if kind == "folder" else output.parent / f".{output.name}{LOCK_NAME}"


def hold_until_told(hold, output: Path):
    """What a child does: holds an output, says so, and waits."""

    def run() -> None:
        with hold(output):
            print("holds", flush=True)
            time.sleep(60)

    return run


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_second_is_refused_in_one_line_that_names_the_first(tmp_path, kind):
    output = tmp_path / "new/out"
    child = Child(hold_until_told(OUTPUTS[kind], output))
    child.wait_for("holds")
    expected = rf"process {child.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-.* is writing {output}"
    for _ in range(2):  # a refusal takes nothing away
        with pytest.raises(ValueError, match=expected) as error, OUTPUTS[kind](output):
            pass
        assert "\n" not in str(error.value)
    if kind == "folder":
        with pytest.raises(ValueError, match=expected):
            check_free(output)
    child.end(signal.SIGKILL)


ENDS = {
    "exit": lambda: None,
    "error": lambda: 1 / 0,
    "SystemExit": lambda: exit(3),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "os._exit": lambda: os._exit(0),
}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_the_owner_frees_the_output(tmp_path, kind, end):
    output = tmp_path / "new/out"

    def run() -> None:
        with OUTPUTS[kind](output):
            ENDS[end]()

    Child(run).wait()
    cleaned = end not in ("SIGKILL", "os._exit")
    assert bool(list(tmp_path.iterdir())) != cleaned  # what the lock made goes with it
    with OUTPUTS[kind](output):
        assert json.loads(Path(f"{lock_of(output, kind)}.json").read_text())["pid"] == os.getpid()
    assert not lock_of(output, kind).exists() and not Path(f"{lock_of(output, kind)}.json").exists()


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: None])
def test_sigterm_is_handled_only_if_nobody_else_does(tmp_path, handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with hold_folder(tmp_path):
            assert (signal.getsignal(signal.SIGTERM) is handler) == (handler is not signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_another_machine_is_believed_while_its_heart_beats(tmp_path, kind):
    """Its lock may be unknown here, so the facts alone tell."""
    output = tmp_path / "out"
    facts = Path(f"{lock_of(output, kind)}.json")
    facts.parent.mkdir(exist_ok=True)
    facts.write_text(json.dumps(FACTS))
    expected = rf"process 1234 on another-machine.*ends by itself in \d+ seconds, or when you remove {facts}"
    with pytest.raises(ValueError, match=expected), OUTPUTS[kind](output):
        pass
    assert json.loads(facts.read_text()) == FACTS
    os.utime(facts, (time.time(), time.time() - STALE_SECONDS - 1))
    with OUTPUTS[kind](output):
        assert json.loads(facts.read_text())["pid"] == os.getpid()
    facts.write_text(json.dumps(FACTS))
    facts.unlink()
    with OUTPUTS[kind](output):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 3}', '{"pid": "x"}'])
def test_damaged_facts_keep_nobody_out_and_hide_no_owner(tmp_path, text):
    (tmp_path / f"{LOCK_NAME}.json").write_text(text)
    os.utime(tmp_path / f"{LOCK_NAME}.json", (0, 0))
    with hold_folder(tmp_path):
        (tmp_path / f"{LOCK_NAME}.json").write_text(text)
        with pytest.raises(ValueError, match=f"Another command.* is writing {tmp_path}"), hold_folder(tmp_path):
            pass


def test_an_owner_that_is_dying_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "GRACE_SECONDS", 10)

    def run() -> None:
        with hold_folder(tmp_path):
            print("holds", flush=True)
            time.sleep(0.5)

    child = Child(run)
    child.wait_for("holds")
    with hold_folder(tmp_path):
        assert child.wait()[0] == 0


def test_a_worker_that_outlives_its_owner_does_not_keep_the_lock(tmp_path):
    def run() -> None:
        with hold_folder(tmp_path):
            if os.fork() == 0:
                print("works", flush=True)
                time.sleep(1)
                os._exit(0)
            time.sleep(60)

    child = Child(run)
    child.wait_for("works")
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    with hold_folder(tmp_path):
        pass


def test_the_owner_s_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.01)
    with hold_folder(tmp_path):
        os.utime(tmp_path / f"{LOCK_NAME}.json", (0, 0))
        deadline = time.time() + 10
        while (tmp_path / f"{LOCK_NAME}.json").stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.01)
        assert (tmp_path / f"{LOCK_NAME}.json").stat().st_mtime > 0


@pytest.mark.parametrize("variable", ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"])
def test_rank_0_holds_it_for_all(tmp_path, monkeypatch, variable):
    with hold_folder(tmp_path / "out"):
        monkeypatch.setenv(variable, "1")
        with hold_folder(tmp_path / "out"):
            pass
        monkeypatch.setenv(variable, "0")
        with pytest.raises(ValueError, match="Another command"), hold_folder(tmp_path / "out"):
            pass


def test_a_folder_that_gets_files_stays_and_one_that_cannot_be_written_is_named(tmp_path):
    with hold_folder(tmp_path / "a/b"):
        (tmp_path / "a/b/file").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["file"]
    with pytest.raises(ValueError, match="is not a folder that may be written to"), hold_folder(tmp_path / "a/b/file"):
        pass


def test_of_many_at_once_one_holds_it(tmp_path):
    """Each time all begin at the same moment, and none holds it while another does."""
    for _ in range(5):
        start = time.time() + 0.3

        def run(start: float = start) -> None:
            time.sleep(max(0.0, start - time.time()))
            with hold_folder(tmp_path / "out"):
                (tmp_path / "out/alone").touch(exist_ok=False)
                time.sleep(0.2)
                (tmp_path / "out/alone").unlink()

        ends = [child.wait() for child in [Child(run) for _ in range(6)]]
        assert sorted(status for status, _ in ends)[0] == 0
        assert all(status == 0 or "Another command" in output for status, output in ends), ends
        assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize("name", ["out", "a.json", "[a] *?.png"])
def test_a_target_s_leftovers_go_and_those_of_others_stay(tmp_path, name):
    target, other = tmp_path / name, tmp_path / f"{name}.other"
    leftovers = {each: tmp_path / f"{each.name}.demo_diffusion-ab12cd34.partial" for each in (target, other)}
    users = tmp_path / f"{name}.partial"
    for folder in (*leftovers.values(), users):
        folder.mkdir()
        (folder / folder.name.split(".demo_diffusion")[0]).write_text("half")
    with hold_target(target):
        assert not leftovers[target].exists()
        assert leftovers[other].exists() and users.exists()


def test_without_a_target_nothing_is_held(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hold_target(None):
        assert list(tmp_path.iterdir()) == []


def test_a_user_s_own_lock_files_stay(tmp_path):
    for name in (".lock", ".lock.json", ".out.lock"):
        (tmp_path / name).write_text("the user's")
    with hold_folder(tmp_path), hold_target(tmp_path / "out"):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        (".lock", ".lock.json", ".out.lock"), "the user's"
    )
