"""Attacks: each is refused in our words or has the right result. A sample of them runs always, all as a proof."""

import time

import pytest

from tests.proofs.attack.kinds import KINDS, outcomes_of
from tests.proofs.attack.runner import GOOD, Case, Wrong, run_cases, table_of

pytestmark = pytest.mark.forks
EVERY = {"options": 120, "api": 60, "run_files": 80, "images": 50, "checkpoints": 60}  # one of so many cases


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_attacks(kind, tmp_path):
    outcomes = outcomes_of([kind], tmp_path, every=EVERY[kind])
    assert len(outcomes) >= 5 and all(each.verdict in GOOD for each in outcomes), table_of(outcomes)


@pytest.mark.proof
@pytest.mark.parametrize("kind", KINDS)
def test_all_attacks(kind, tmp_path):
    outcomes = outcomes_of([kind], tmp_path)
    print(table_of(outcomes))
    assert len(outcomes) >= 100 and all(each.verdict in GOOD for each in outcomes)


def fail_wrongly(folder):
    raise Wrong("other numbers")


def leave_a_marker(folder):
    (folder / "CODE_RAN").touch()
    return "refused"


def take_memory(folder):
    return len(bytearray(1 << 40))


ENDS = {
    "refused": (lambda folder: "refused", "refused"),
    "wrong": (fail_wrongly, "WRONG"),
    "traceback": (lambda folder: 1 / 0, "TRACEBACK"),
    "code": (leave_a_marker, "CODE RAN"),
    "memory": (take_memory, "TRACEBACK"),
}


@pytest.mark.parametrize("end", ENDS)
def test_ends_of_a_case_are_told_apart(end, tmp_path):
    run, verdict = ENDS[end]
    (outcome,) = run_cases([Case("kind", end, run)], tmp_path)
    assert outcome.verdict == verdict


def test_memory_of_the_copied_process_is_not_the_case_s(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.proofs.attack.runner.BYTES", 100 << 20)  # less than this process has
    cases = {"idle": lambda folder: time.sleep(0.3) or "refused", "greedy": lambda folder: take(150 << 20)}
    outcomes = run_cases([Case("kind", name, run) for name, run in cases.items()], tmp_path)
    assert {each.case.name: each.verdict for each in outcomes} == {"idle": "refused", "greedy": "KILLED"}


def take(count):
    taken = b"x" * count
    time.sleep(30)
    return str(len(taken))


def test_a_case_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.proofs.attack.runner.SECONDS", 0.2)
    (outcome,) = run_cases([Case("kind", "hang", lambda folder: time.sleep(60))], tmp_path)
    assert outcome.verdict == "HANG"
