"""What counts as refused: one line of a command, an error of ours in Python."""

import contextlib
import io
import re
from collections.abc import Callable

from accelerate.state import AcceleratorState, PartialState

from .runner import REFUSED, RIGHT, Wrong

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Check = Callable[[], None]  # raises Wrong


def never() -> None:
    raise Wrong("it was accepted")


def judge_command(main: Callable[[list[str]], object], arguments: list[str], check: Check = never) -> str:
    """Refused, if a command ends in one line `error: …` and another status than 0; else what `check` says."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    printed, errors = io.StringIO(), io.StringIO()
    status: object = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code
    if isinstance(status, str):
        errors.write(status + "\n")
    text = printed.getvalue() + errors.getvalue()
    print(text)
    if "Traceback (most recent call last)" in text:
        raise AssertionError(f"it printed a traceback: {text[-200:]}")
    if CONTROL.search(_without_bars(text)):
        raise Wrong(f"it printed control characters: {text[-200:]!r}")
    if status in (None, 0):
        check()
        return RIGHT
    if not re.search(r"^(\S.*: )?error: \S", errors.getvalue(), re.MULTILINE):
        raise AssertionError(f"it ended with status {status!r} without an error line: {text[-200:]}")
    return REFUSED


def _without_bars(text: str) -> str:
    """Without carriage returns and the cursor movements of tqdm."""
    return text.replace("\r", "").replace("\x1b[A", "")


def judge_call(call: Callable[[], object]) -> str:
    """Refused, if Python raises a ValueError that says something or an error of the system."""
    try:
        result = call()
    except (ValueError, OSError) as error:
        if not str(error):
            raise
        return REFUSED
    raise Wrong(f"it was accepted and gave {result!r:.80}")
