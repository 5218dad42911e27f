"""The arguments of a class's constructor, with the lines of its docstring: what options can be made of."""

import inspect
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple


class Argument(NamedTuple):
    """One argument; `help` is its line in the docstring."""

    name: str
    type: Any
    default: Any
    help: str


def arguments_of(owner: type) -> Iterator[Argument]:
    """The arguments of a class in their order.

    Raises:
        TypeError: if an argument has no type or no line in the docstring.
    """
    hints, lines = typing.get_type_hints(owner.__init__), documented_arguments(inspect.getdoc(owner) or "")
    for name, parameter in inspect.signature(owner).parameters.items():
        if name not in hints or name not in lines:
            raise TypeError(f"The argument {name} of {owner.__name__} needs a type and a line in the docstring.")
        yield Argument(name, hints[name], parameter.default, lines[name])


def merged_arguments(
    owners: Mapping[str, type], without: Collection[str] = (), same_defaults: bool = False
) -> list[Argument]:
    """The arguments of several classes, each once; where not all have it, its help ends in the names of those that do.

    Args:
        owners: name -> class.
        without: arguments to leave out.
        same_defaults: an argument must have one default in all classes, for options that take it from here.

    Raises:
        TypeError: if an argument has another type in another class, or another default where that is not allowed.
    """
    found: dict[str, dict[str, Argument]] = {}
    for owner, owner_class in owners.items():
        for argument in arguments_of(owner_class):
            found.setdefault(argument.name, {})[owner] = argument
    return [_merge(each, owners, same_defaults) for name, each in found.items() if name not in without]


def _merge(found: Mapping[str, Argument], owners: Collection[str], same_defaults: bool) -> Argument:
    first = next(iter(found.values()))
    if any(other.type != first.type for other in found.values()):
        raise TypeError(f"The argument {first.name} has different types in {', '.join(found)}.")
    if same_defaults and any(other.default != first.default for other in found.values()):
        raise TypeError(f"The argument {first.name} has different defaults in {', '.join(found)}.")
    return first if len(found) == len(owners) else first._replace(help=f"{first.help} ({', '.join(found)})")


def documented_arguments(docstring: str) -> dict[str, str]:
    """Name -> text of a docstring's "Args:", without its last full stop; `a, b: text` is the text of both."""
    texts, names = {}, []
    for line in docstring.partition("Args:\n")[2].splitlines():
        if line and not line.startswith("    "):
            break
        if match := re.match(r"    ([a-z_][\w, ]*): (.+)", line):
            names = match[1].split(", ")
            texts |= dict.fromkeys(names, match[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}".strip() for name in names}
    return {name: text.removesuffix(".") for name, text in texts.items()}
