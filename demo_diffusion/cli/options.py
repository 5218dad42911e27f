"""An option is a field of a dataclass; its default, help and range stand together.

A config is a dataclass of options, or of sections, each of which is one. The parser, the checks and the table of the
documentation all read the same rows.
"""

import argparse
import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Union

LARGEST = 2**32 - 1  # of every number, a seed among them
WORDS = {**dict.fromkeys(("yes", "true", "t", "y", "1"), True), **dict.fromkeys(("no", "false", "f", "n", "0"), False)}


class Range(NamedTuple):
    """The finite numbers that an option allows; a bound that is None does not hold."""

    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None

    def allows(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        has_lower, has_upper = self[:2] != (None, None), self[2:] != (None, None)
        if has_lower and has_upper:
            lower = f"({self.above}" if self.least is None else f"[{self.least}"
            upper = f"{self.below})" if self.most is None else f"{self.most}]"
            return f"in {lower}, {upper}"
        if self.above == 0:
            return "positive"
        words = {"at least": self.least, "above": self.above, "below": self.below, "at most": self.most}
        return next(f"{word} {bound}" for word, bound in words.items() if bound is not None)


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    required: bool = False,
):
    """A field of a section with its default, its line in `--help` and its range.

    Args:
        least, above, below, most: bounds of the number; `above` and `below` are not allowed themselves.
        required: the default, an empty text, is not allowed.
    """
    bounds = Range(least, above, below, most)
    metadata = {"help": help, "range": None if bounds == Range() else bounds, "required": required}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def with_options(options: list[tuple[str, Any, dataclasses.Field]]) -> Callable[[type], type]:
    """Makes a class a dataclass with further fields (name, type, field) after its own."""

    def decorate(section: type) -> type:
        same = {name: getattr(section, name) for name in ("__doc__", "__module__", "__qualname__")}
        return dataclasses.make_dataclass(
            section.__name__, options, bases=(dataclasses.dataclass(section),), namespace=same
        )

    return decorate


class Option(NamedTuple):
    """What a config class says of one option.

    Attributes:
        section: name of the section; "" in a config without sections.
        type: of the value, or of a list's items.
        allowed: range of the number; None: any.
        choices: the only values allowed; empty: any.
        is_optional: None is allowed.
    """

    section: str
    name: str
    type: type
    default: Any
    allowed: Range | None
    choices: tuple[str, ...]
    help: str
    is_list: bool
    is_optional: bool
    is_required: bool

    def check(self, value: Any, prefix: str = "") -> None:
        """Raises ValueError if the value is missing, outside the range, or a number that can only be a mistake."""
        if self.is_required and not value:
            raise ValueError(f"{prefix}{self.name} is missing.")
        for each in value if self.is_list else (value,):
            if self.type in (int, float) and each is not None and not abs(each) <= LARGEST:
                raise ValueError(f"{prefix}{self.name} is {each!s:.20}; it must be a number of at most {LARGEST}.")
        if self.allowed is None or (value is None and self.is_optional):
            return
        if not self.allowed.allows(value):
            raise ValueError(f"{prefix}{self.name} is {value}; it must be {self.allowed}.")


def options_of(config_class: type) -> Iterator[Option]:
    """The options of a config class, section by section, in the order of their fields."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from (each._replace(section=field.name) for each in options_of(hints[field.name]))
        else:
            yield _read_field(field, hints[field.name])


def _read_field(field: dataclasses.Field, hint: Any) -> Option:
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    parts = typing.get_args(hint) if is_union else (hint,)
    (kind,) = [part for part in parts if part is not type(None)]
    is_list = typing.get_origin(kind) is list
    if is_list:
        (kind,) = typing.get_args(kind)
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    return Option(
        section="",
        name=field.name,
        type=str if choices else kind,
        default=field.default_factory() if is_list else field.default,
        allowed=field.metadata.get("range"),
        choices=choices,
        help=field.metadata["help"],
        is_list=is_list,
        is_optional=type(None) in parts,
        is_required=field.metadata.get("required", False),
    )


def check_options(config: Any, prefix: str = "") -> None:
    """Checks each option of a config, with or without sections, by itself.

    Args:
        prefix: stands before an option's name in errors: "--" in a command without a file.

    Raises:
        ValueError: if a required option is missing or a number is outside its range.
    """
    for each in options_of(type(config)):
        section = getattr(config, each.section) if each.section else config
        each.check(getattr(section, each.name), prefix)


class OptionParser(argparse.ArgumentParser):
    """Reads the options of a config class from a command line; `--num-steps` is an alias of `--num_steps`."""

    def __init__(self, config_class: type, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)
        self.config_class = config_class
        groups = {"": self}
        for each in options_of(config_class):
            if each.section not in groups:
                groups[each.section] = self.add_argument_group(each.section)
            groups[each.section].add_argument(f"--{each.name}", **_argument(each))

    def parse_known_args(self, args: list[str] | None = None, namespace: argparse.Namespace | None = None):
        return super().parse_known_args(spell_with_underscores(sys.argv[1:] if args is None else args), namespace)

    def read(self, arguments: list[str] | None = None) -> Any:
        """A config of these arguments; None: the process's own.

        Raises:
            SystemExit: if an option is unknown or its value cannot be read.
        """
        return self.config_of(self.parse_args(arguments))

    def config_of(self, values: argparse.Namespace) -> Any:
        """The config of parsed values."""
        sections: dict[str, dict[str, Any]] = {}
        for each in options_of(self.config_class):
            sections.setdefault(each.section, {})[each.name] = getattr(values, each.name)
        if "" in sections:
            return self.config_class(**sections[""])
        hints = typing.get_type_hints(self.config_class)
        return self.config_class(**{name: hints[name](**options) for name, options in sections.items()})


def spell_with_underscores(arguments: list[str]) -> list[str]:
    """Command-line arguments with underscores for the hyphens in options' names: --num-steps=5 -> --num_steps=5."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        is_option = argument.startswith("--") and len(argument) > 2
        spelled.append(f"--{name.replace('-', '_')}{equals}{value}" if is_option else argument)
    return spelled


def _argument(each: Option) -> dict[str, Any]:
    """How argparse reads an option."""
    text = each.help if each.allowed is None else f"{each.help}; {each.allowed}"
    settings = {"default": each.default, "help": text.replace("%", "%%"), "type": each.type}
    if each.type is bool:
        settings |= {"type": _bool, "nargs": "?", "const": True}
    if each.is_list:
        settings["nargs"] = "*"  # `--more_ema_decays` without values undoes a list of a file
    if each.choices:
        settings |= {"choices": each.choices, "metavar": f"{{{','.join(each.choices)}}}"}
    if each.is_optional:
        # `--vae none` and `--vae=` undo what a file sets; where "none" is a choice, only the latter does.
        words = ("",) if "none" in each.choices else ("", "none")
        settings["type"] = _none_or(settings["type"], words)
        if each.choices:
            settings["choices"] = (*each.choices, None)
    return settings


def _bool(text: str) -> bool:
    if text.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return WORDS[text.lower()]


def _none_or(convert: Callable[[str], Any], words: tuple[str, ...]) -> Callable[[str], Any]:
    @functools.wraps(convert, updated=())
    def converted(text: str) -> Any:
        return None if text.lower() in words else convert(text)

    return converted
