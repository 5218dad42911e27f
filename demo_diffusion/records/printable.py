"""Text from elsewhere (names of files and classes, contents of files), made fit to be printed."""


def printable(text: object) -> str:
    """`str(text)` on one line: control characters, terminal escapes and what cannot be seen are shown as escapes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii", "replace") for each in str(text)
    )


def printable_lines(text: object) -> str:
    """The same for a text of several lines: they stay, those after the first are indented.

    So no line that is foreign begins where one of ours would.
    """
    return "\n  ".join(printable(line) for line in str(text).split("\n"))
