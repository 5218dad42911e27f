"""Markdown tables."""

from .printable import printable


def markdown_table(rows: list[dict[str, str]], columns: list[str] | None = None) -> str:
    """Rows under the given columns, or all of theirs in the order of their appearance; any text stays in its cell."""
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: object) -> str:
    return printable(text).replace("|", "\\|")
