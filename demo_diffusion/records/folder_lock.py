"""One command at a time writes an output: a lock for the life of rank 0, and a file that says who holds it.

The operating system holds the lock, so it ends with its process however that dies: neither a dead owner nor a reused
process number can keep it. Network file systems pass such locks on to other machines, but some are mounted without. So
an owner also touches the file of its facts; facts of another machine that nobody has touched for STALE_SECONDS are a
dead owner's. Times are compared as that file system tells them, whatever the clocks of the machines say.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, get_int_from_env
from filelock import FileLock, Timeout

from .files import check_output_folder, read_json, remove_leftovers, write_json

HEARTBEAT_SECONDS, STALE_SECONDS = 20.0, 300.0
GRACE_SECONDS = 3.0  # a killed process holds its lock until the system has freed its memory
LOCK_NAME, FACTS_SUFFIX = ".demo_diffusion.lock", ".json"  # no name of a user's file, which would be removed
LOCK_FACTS = {"host", "pid", "since"}
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # as accelerate reads them


def is_lock(path: Path) -> bool:
    """Whether a path is one of the two files of a lock in its folder."""
    return path.name in (LOCK_NAME, LOCK_NAME + FACTS_SUFFIX)


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Lets no other command write into a folder, which is made if need be and removed if it stays empty.

    Rank 0 holds it; every process must call it. SIGTERM, if nobody else handles it, ends the program as an
    exception does.

    Raises:
        ValueError: names the other command if there is one; or if the folder cannot be written.
    """
    folder = Path(folder)
    with _hold(folder / LOCK_NAME, folder):
        yield


def check_free(folder: Path) -> None:
    """Raises ValueError if another command writes into a folder now; for a command that will hold it later."""
    with ExitStack() as stack:
        _enter(stack, folder / LOCK_NAME, folder, is_needed=(folder / LOCK_NAME).exists())


@contextmanager
def hold_target(target: str | Path | None) -> Iterator[None]:
    """As `hold_folder`, for a file or folder that appears whole at the end; its lock is beside it.

    What a killed command left of it is removed. Without a target nothing is held.
    """
    if target is None:
        yield
        return
    target = Path(target)
    folder = target.absolute().parent
    with _hold(folder / f".{target.name}{LOCK_NAME}", target):
        if get_int_from_env(RANKS, 0) == 0:
            remove_leftovers(folder, target.name)
        yield


@contextmanager
def _hold(path: Path, output: Path) -> Iterator[None]:
    with ExitStack() as stack:
        _enter(stack, path, output)
        yield


def _enter(stack: ExitStack, path: Path, output: Path, is_needed: bool = True) -> None:
    """Takes the lock on rank 0. If that fails, it raises there and, once processes know each other, on all."""
    refusal = None
    if is_needed and get_int_from_env(RANKS, 0) == 0:
        try:
            stack.enter_context(_in_folder(path.parent))
            stack.enter_context(_locked(path, output))
            stack.enter_context(_ending_on_sigterm())
        except (OSError, ValueError) as error:
            refusal = error
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        (refusal,) = broadcast_object_list([refusal])
    if refusal is not None:
        raise refusal


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes it and its parents if they are new and stay empty."""
    check_output_folder(folder)
    new = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    lock, facts = FileLock(path, timeout=GRACE_SECONDS), Path(f"{path}{FACTS_SUFFIX}")
    try:
        try:
            lock.acquire()
        except FileNotFoundError:  # the command that made the folder has just removed it again
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise ValueError(_refusal(output, _read(facts))) from None
    try:
        _check_other_machine(path, facts, output)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            write_json(facts, {"host": socket.gethostname(), "pid": os.getpid(), "since": since})
            with _heartbeat(facts):
                yield
        finally:
            for each in (facts, path):  # while it is locked: who has opened it meanwhile notices that
                with suppress(OSError):  # Windows removes no open file
                    each.unlink(missing_ok=True)
    finally:
        lock.release()


def _check_other_machine(path: Path, facts: Path, output: Path) -> None:
    """Refuses if another machine may still write; a dead owner of this one has lost its lock with its life."""
    owner = _read(facts)
    if owner.get("host") in (None, socket.gethostname()):
        return
    os.utime(path)  # what time it is there
    silent = path.stat().st_mtime - facts.stat().st_mtime
    if silent < STALE_SECONDS:
        raise ValueError(
            f"{_refusal(output, owner)} If it is dead, this ends by itself in {STALE_SECONDS - silent:.0f} seconds, or "
            f"when you remove {facts}."
        )


def _refusal(output: Path, owner: dict) -> str:
    process = (
        f" (process {owner['pid']} on {owner['host']}, since {owner['since']})" if owner.keys() >= LOCK_FACTS else ""
    )
    return f"Another command{process} is writing {output}. Wait for its end, or choose another output."


def _read(facts: Path) -> dict:
    """What a lock's owner says of itself; nothing if it has not said it yet or the file is damaged."""
    try:
        return read_json(facts) or {}
    except (OSError, ValueError):
        return {}


@contextmanager
def _heartbeat(facts: Path) -> Iterator[None]:
    """Touches a file every few seconds, from a thread of its own."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # removed by hand
                os.utime(facts)

    thread = threading.Thread(target=beat, name="folder lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, so that the lock and unfinished files go; a handler of the command stays."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    is_free = is_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    owner = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a worker that was forked
            os._exit(128 + number)
        sys.exit(128 + number)

    if is_free:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if is_free:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
