"""A folder of shards belongs to one set of facts, which decide what is in it and stand in a JSON file beside them."""

import json
from collections.abc import Callable
from pathlib import Path

from .files import check_output_folder, is_leftover, read_json, remove_leftovers, write_json
from .folder_lock import is_lock

Compare = Callable[[dict, dict], list[str]]


def compare_facts(saved: dict, now: dict) -> list[str]:
    """Facts that differ, as texts."""
    names = dict.fromkeys([*saved, *now])
    return [
        f"{name} (was {saved.get(name)}, now {now.get(name)})" for name in names if saved.get(name) != now.get(name)
    ]


def differences(file: Path, facts: dict, compare: Compare = compare_facts) -> list[str]:
    """What the shards beside `file` were made with differently, as texts; empty if there are none yet.

    Raises:
        ValueError: if the file is damaged.
    """
    saved = read_json(file) if _has_shards(file.parent) else None
    return [] if saved is None else compare(saved, json.loads(json.dumps(facts)))


def claim_folder(file: Path, facts: dict, content: str, compare: Compare = compare_facts) -> None:
    """Writes the facts into a new folder, or finds the same ones in a folder whose work goes on.

    Removes what killed processes left. One process calls it, before any writes.

    Args:
        file: JSON file of the facts in the folder.
        content: what the folder holds, such as "latents".
        compare: (saved facts, facts) -> those that differ in what decides the content, as texts.

    Raises:
        ValueError: if the folder cannot be written, or holds content of other facts, or other files.
    """
    folder = file.parent
    check_output_folder(folder)
    if changed := differences(file, facts, compare):
        raise ValueError(f"{folder} holds {content} of other settings: {'; '.join(changed)}. Choose another --out.")
    is_begun = file.is_file() and (_has_shards(folder) or bool((read_json(file) or {}).keys() & facts.keys()))
    if folder.exists() and not is_begun and any(_is_foreign(path) for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and does not hold {content}. Choose another --out.")
    remove_leftovers(folder)
    if not (file.is_file() and _has_shards(folder)):
        write_json(file, facts)


def _has_shards(folder: Path) -> bool:
    return any(folder.glob("shards/*.safetensors"))


def _is_foreign(path: Path) -> bool:
    return not is_leftover(path) and not is_lock(path)
