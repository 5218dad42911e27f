"""SHA-256 of files, modules, tensors and records: what made a result, and whether a file is as it was written.

Digests are saved beside results, so none of them may change.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn


def tensor_hash(
    tensors: Mapping[str, torch.Tensor], *, is_sorted: bool = True, dtype: torch.dtype | None = None, prefix: str = ""
) -> str:
    """SHA-256 of `prefix`, then of each tensor's name and bytes.

    Args:
        is_sorted: whether tensors follow each other by name; False: in the order given.
        dtype: what they are converted to; None: they stay as they are.
    """
    digest = hashlib.sha256(prefix.encode())
    for name in sorted(tensors) if is_sorted else tensors:
        tensor = tensors[name].detach().to("cpu", dtype).flatten()
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()


def state_hash(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers as they are, in its own order."""
    return tensor_hash(network.state_dict(), is_sorted=False)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers as float32, by name: the same whatever dtype it was loaded in."""
    return tensor_hash(module.state_dict(), dtype=torch.float32)


def file_hash(*paths: Path) -> str:
    """SHA-256 of the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of files in a folder, several at a time."""
    names = list(names)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashlib works without Python's lock
        return dict(zip(names, threads.map(lambda name: file_hash(folder / name), names), strict=True))


SEAL = "sha256_of_the_rest"


def sealed(record: Mapping) -> dict:
    """A record for a JSON file with a hash of its own content, for `is_sealed`."""
    return {**record, SEAL: _hash_without(record, SEAL)}


def is_sealed(record: Mapping) -> bool | None:
    """Whether a record that was read is as it was sealed; None: it has no seal, as files of older versions."""
    if SEAL in record:
        return record[SEAL] == _hash_without(record, SEAL)
    has_renamed_seal = any(value == _hash_without(record, name) for name, value in record.items() if _is_hash(value))
    return False if has_renamed_seal else None


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _hash_without(record: Mapping, name: str) -> str:
    """Of what JSON makes of a record without one entry."""
    content = json.loads(json.dumps({key: value for key, value in record.items() if key != name}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings_of(component) -> dict:
    """A component's config without diffusers' own entries."""
    return {name: value for name, value in component.config.items() if not name.startswith("_")}
