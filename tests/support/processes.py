"""Copies of the test's process, which begin at once because everything is imported already."""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable

import torch


class Child:
    """Runs something in a copy of this process.

    Args:
        file_limit: bytes that a file may have there, as on a full disk.
    """

    def __init__(self, run: Callable[[], object], file_limit: int | None = None):
        self.read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.read)
            _run(run, write, file_limit)
        os.close(write)
        self.output = ""

    def wait_for(self, word: str) -> None:
        """Returns when it has printed a word."""
        while word not in self.output:
            chunk = os.read(self.read, 1 << 16)
            assert chunk, f"It ended before it said {word}: {self.output}"
            self.output += chunk.decode()

    def wait(self) -> tuple[int, str]:
        """Its exit status (−n: by signal n), and what it printed."""
        while chunk := os.read(self.read, 1 << 16):
            self.output += chunk.decode()
        os.close(self.read)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.output

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Sends it a signal and waits for its end."""
        os.kill(self.pid, number)
        return self.wait()


def _run(run: Callable[[], object], output: int, file_limit: int | None) -> None:
    """Ends the process as Python ends a program: status 1 after a traceback, a text of SystemExit on stderr."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # threads of the parent are not there
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    status = 1
    try:
        run()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
