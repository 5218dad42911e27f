"""Foreign text cannot move the cursor, begin a line, or hide."""

import pytest

from demo_diffusion.records.printable import printable, printable_lines

FOREIGN = {
    "terminal escape": ("a\x1b[2Jb", "a\\x1b[2Jb"),
    "C1 escape": ("\x9b2J", "\\x9b2J"),
    "newline": ("cat\nerror: none", "cat\\nerror: none"),
    "carriage return": ("cat\rdog", "cat\\rdog"),
    "line separator": ("cat\u2028dog", "cat\\u2028dog"),
    "backspace": ("cat\b\b", "cat\\x08\\x08"),
    "tab": ("a\tb", "a\\tb"),
    "text backwards": ("gpj.\u202egnp", "gpj.\\u202egnp"),
    "no width": ("c\u200bat", "c\\u200bat"),
    "no text of the file system": ("caf\udce9", "caf\\udce9"),
    "bell, nul, delete": ("\a\0\x7f", "\\x07\\x00\\x7f"),
    "plain": ("Käse – 猫 🐈 C:\\new", "Käse – 猫 🐈 C:\\new"),
    "no text": (3, "3"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_cannot_be_seen_is_escaped(case):
    given, expected = FOREIGN[case]
    assert printable(given) == expected and printable(given).isprintable()
    printable(given).encode()


def test_lines_of_a_message_stay_but_none_begins_like_ours():
    assert printable_lines("bad YAML:\n\x1b[2Jline 1\nerror: all is well") == (
        "bad YAML:\n  \\x1b[2Jline 1\n  error: all is well"
    )
    assert printable_lines("a\r\nb\u2028c") == "a\\r\n  b\\u2028c"
