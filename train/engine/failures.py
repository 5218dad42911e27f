"""What to tell of an error that a library raised in the middle of a training."""

import re
import traceback
from pathlib import Path

from safetensors import SafetensorError

from demo_diffusion.records.files import write_text

FAILURES = (ValueError, RuntimeError, SafetensorError)
TRACEBACK_FILE = "traceback.txt"
ADVICE = {
    "more than 1 value per channel": "BatchNorm needs more than one value of a channel in each forward pass: raise "
    "batch_size or resolution, or lower gradient_accumulation_steps or patch_size.",
    "out of memory": "Raise gradient_accumulation_steps, set gradient_checkpointing, or lower batch_size.",
}
OTHER_ADVICE = "Change the option or the file that it names."


def what_failed(error: Exception) -> str:
    """The error in a sentence, without a worker's traceback, and what to do."""
    text = str(error) or type(error).__name__
    if "Original Traceback" in text:  # what a loader's worker puts around its errors
        text = re.split(r"\n[\w.]*(?:Error|Exception): ", text)[-1]
    text = text.strip()
    advice = next((each for sign, each in ADVICE.items() if sign in text), OTHER_ADVICE)
    return f"{text}{'' if text.endswith('.') else '.'} {advice}"


def keep_traceback(folder: Path, error: Exception) -> str:
    """Writes the traceback of an error into a run's folder, and says so; empty if it cannot."""
    try:
        write_text(folder / TRACEBACK_FILE, "".join(traceback.format_exception(error)))
    except OSError:
        return ""
    return f"The traceback is in {folder / TRACEBACK_FILE}."
