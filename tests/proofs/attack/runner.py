"""Runs each case in a copy of this process, with limits of memory and time, and says how it ended."""

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import psutil
import torch

SECONDS, BYTES = 60, 3 << 30  # that a case may take, beside what the process has when it is copied
MARKER = "CODE_RAN"  # the name that hostile pickles give the file they write
REFUSED, RIGHT = "refused", "right"
VERDICTS = (REFUSED, RIGHT, "WRONG", "TRACEBACK", "HANG", "KILLED", "CODE RAN")
GOOD = (REFUSED, RIGHT)


class Wrong(Exception):
    """Something was accepted, and its result is not the right one."""


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        kind: of which the table has a row.
        name: what is done, and where.
        run: does it in an empty folder that is its own, and returns "refused" or "right" or raises `Wrong`; any other
            exception is a traceback that a user would see.
    """

    kind: str
    name: str
    run: Callable[[Path], str]


@dataclass(frozen=True)
class Outcome:
    case: Case
    verdict: str
    text: str
    seconds: float


class _Copy:
    """A case in a copy of this process."""

    def __init__(self, case: Case, folder: Path):
        self.case, self.folder = case, folder
        folder.mkdir(parents=True)
        self.answer, self.log = folder.with_suffix(".json"), folder.with_suffix(".log")
        self.started, self.pid = time.monotonic(), os.fork()
        if self.pid == 0:
            _become_case(case, folder, self.answer, self.log)

    def outcome(self) -> Outcome | None:
        """How it ended; None as long as it runs."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.started
        if ended:
            verdict, text = self._said(os.waitstatus_to_exitcode(status))
        elif seconds > SECONDS:
            verdict, text = "HANG", f"more than {SECONDS} s"
        elif _memory(self.pid) > BYTES:
            verdict, text = "KILLED", f"more than {BYTES / 1e9:.1f} GB"
        else:
            return None
        if not ended:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if list(self.folder.rglob(MARKER)):
            verdict, text = "CODE RAN", "of a file"
        return Outcome(self.case, verdict, text, seconds)

    def _said(self, status: int) -> tuple[str, str]:
        if not self.answer.is_file():
            return "KILLED", f"exit status {status}"
        return tuple(json.loads(self.answer.read_text()))

    def clear(self) -> None:
        for path in (self.answer, self.log):
            path.unlink(missing_ok=True)
        _make_removable(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def _memory(pid: int) -> int:
    """Bytes of a process and its children that are theirs alone, not shared with what they are copies of."""
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(True)]
        if sum(each.memory_info().rss for each in processes) <= BYTES:
            return 0  # to count exactly takes long
        return sum(each.memory_full_info().uss for each in processes)
    except psutil.Error:
        return 0


def _make_removable(folder: Path) -> None:
    for root, folders, _ in os.walk(folder):
        for name in folders:
            if not os.path.islink(path := os.path.join(root, name)):
                os.chmod(path, 0o700)


def _become_case(case: Case, folder: Path, answer: Path, log: Path) -> None:
    """Ends the process with the verdict of a case."""
    os.setsid()
    _redirect_output(log)
    _limit_memory()
    torch.set_num_threads(1)  # threads of the parent are not there
    torch.manual_seed(0)
    os.chdir(folder)
    datasets.config.HF_DATASETS_CACHE = folder / ".datasets"
    try:
        verdict = case.run(folder), ""
    except Wrong as error:
        verdict = "WRONG", str(error)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        verdict = "TRACEBACK", f"{type(error).__name__}: {error}"[:300] + f" ({where.filename}:{where.lineno})"
        traceback.print_exc()
    answer.write_text(json.dumps(verdict))
    sys.stderr.flush()
    os._exit(0)


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)


def _limit_memory() -> None:
    """What is mapped too, so that a single large request fails at once."""
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 * BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_cases(cases: Iterable[Case], folder: Path, at_once: int = 2, keep: bool = False) -> list[Outcome]:
    """The outcomes, in the order in which the cases end.

    Args:
        folder: for the cases' own folders, which are removed.
        at_once: copies of this process that run together.
        keep: leaves the folder and the output of a case that is neither refused nor right.
    """
    waiting, running, outcomes = list(enumerate(cases))[::-1], [], []
    while waiting or running:
        while waiting and len(running) < at_once:
            number, case = waiting.pop()
            running.append(_Copy(case, folder / f"{number:05d}"))
        for copy in list(running):
            if outcome := copy.outcome():
                running.remove(copy)
                outcomes.append(outcome)
                if outcome.verdict in GOOD or not keep:
                    copy.clear()
        time.sleep(0.005)
    return outcomes


def table_of(outcomes: list[Outcome]) -> str:
    """Numbers of each kind and verdict, and a line for each case that is neither refused nor right."""
    kinds = list(dict.fromkeys(outcome.case.kind for outcome in outcomes))
    lines = ["| kind | cases | " + " | ".join(VERDICTS) + " |", "|---" * (len(VERDICTS) + 2) + "|"]
    for kind in kinds:
        verdicts = [outcome.verdict for outcome in outcomes if outcome.case.kind == kind]
        numbers = [len(verdicts), *(verdicts.count(verdict) for verdict in VERDICTS)]
        lines.append(f"| {kind} | " + " | ".join(map(str, numbers)) + " |")
    bad = [each for each in outcomes if each.verdict not in GOOD]
    lines += [f"{each.verdict}: {each.case.kind}: {each.case.name}: {each.text!r}" for each in bad]
    return "\n".join(lines)
