"""What made a result: command, machine, versions, commit."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator, PartialState

PACKAGES = ("torch", "diffusers", "accelerate", "transformers", "datasets", "safetensors")


def provenance(accelerator: Accelerator | PartialState) -> dict:
    """The command, machine, versions and commit that make a result."""
    return {
        "command": shlex.join(sys.argv),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this code; None if it is not run from its own repository."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return None
