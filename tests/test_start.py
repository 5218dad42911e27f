"""Ctrl-C during the seconds of imports: one line in commands, KeyboardInterrupt in other programs."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT

FILES = [path for folder in ("train", "eval") for path in sorted((ROOT / folder).glob("[!_]*.py"))]
COMMANDS = {**{path.stem: [str(path)] for path in FILES}, "conversion": ["-m", "demo_diffusion.conversion"]}
# Sends itself SIGINT when torch begins to be imported, in whatever program it is.
INTERRUPTION = """
import os, signal, sys

class Interruption:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interruption())
"""


def run_and_interrupt(folder: Path, command: list[str]) -> subprocess.CompletedProcess:
    (folder / "sitecustomize.py").write_text(INTERRUPTION)
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": ""}
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # else children of a background job ignore it
    try:
        return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGINT, ignored)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_in_one_line(tmp_path, name):
    done = run_and_interrupt(tmp_path, COMMANDS[name])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_another_program_gets_its_exception(tmp_path):
    (tmp_path / "program.py").write_text("import demo_diffusion")
    done = run_and_interrupt(tmp_path, [str(tmp_path / "program.py")])
    assert "KeyboardInterrupt" in done.stderr and done.returncode != 130
