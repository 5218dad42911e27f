"""Reads a training's config: a YAML file with one section for each dataclass, overridden on the command line.

On the command line the fields stand alone: `--num_steps 500`.
"""

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import TypeVar

import yaml

from demo_diffusion.records.printable import printable_lines
from demo_diffusion.records.reading import read_parsed

from .options import OptionParser

Config = TypeVar("Config")


def read_config(config_class: type[Config], arguments: list[str] | None = None) -> Config:
    """Reads `--config FILE.yaml` and the overrides that follow it; None: the process's own arguments.

    Raises:
        SystemExit: with a message, if a field is unknown or its value is not allowed.
    """
    sections = typing.get_type_hints(config_class)
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path, help="YAML file with the sections " + ", ".join(sections))
    chosen, overrides = config_parser.parse_known_args(arguments)
    usage = "%(prog)s [--config FILE.yaml] [--FIELD VALUE …] (--help lists the fields)"
    parser = OptionParser(config_class, parents=[config_parser], usage=usage)
    try:
        from_file = yaml_as_arguments(chosen.config, sections) if chosen.config else []
        values, unknown = parser.parse_known_args(from_file + overrides)
        if unknown:
            raise ValueError(f"Unknown option {' '.join(unknown)}; --help lists all of them.")
        return parser.config_of(values)
    except ValueError as error:
        parser.exit(2, f"error: {printable_lines(error)}\n")


def to_yaml(config: object) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


class UniqueKeyLoader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.YAMLError(f"{sorted(twice)} stand twice, again in line {node.end_mark.line + 1}")
        return super().construct_mapping(node, deep)


def yaml_as_arguments(path: Path, sections: dict[str, type]) -> list[str]:
    """A config file as command-line arguments, so that one parser checks both.

    Raises:
        ValueError: if the file is missing, is no such YAML, or has a section or a field that does not exist.
    """
    if not path.is_file():
        raise ValueError(f"There is no config file {path}.")
    content = read_parsed(path, _parse_yaml, "") or {}
    _check_mapping(path, "the file", content, set(sections))
    arguments = []
    for section, values in content.items():
        fields = {f.name for f in dataclasses.fields(sections[section])}
        _check_mapping(path, f"section {section!r}", values or {}, fields)
        for name, value in (values or {}).items():
            arguments += _as_arguments(name, value)
    return arguments


def _parse_yaml(text: str) -> object:
    try:
        return yaml.load(text, UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {error}") from error


def _as_arguments(name: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    return [f"--{name}={'' if value is None else value}"]


def _check_mapping(path: Path, place: str, content: object, allowed: set[str]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {place} holds {content!r:.50}; it must hold lines 'name: value'.")
    if unknown := set(content) - allowed:
        raise ValueError(f"{path}: {place} has no {sorted(map(str, unknown))}; it may have {sorted(allowed)}.")
