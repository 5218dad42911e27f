"""Checks of a foreign state dict whose errors list every key that is wrong."""

from collections.abc import Iterable, Mapping, Sequence

import torch

MAX_LISTED = 20
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_keys(state_dict: Mapping[str, torch.Tensor], expected: Iterable[str], kind: str) -> None:
    """Raises a ValueError unless the keys are those expected and the values tensors of finite float32 numbers.

    Args:
        kind: names the code.
    """
    expected = dict.fromkeys(expected)
    problems = {
        "missing": [key for key in expected if key not in state_dict],
        "unknown": [key for key in state_dict if key not in expected],
        "not a tensor of numbers": [key for key, value in state_dict.items() if not _is_usable(key, value)],
        "not finite": [
            key for key, value in state_dict.items() if _is_usable(key, value) and not value.float().isfinite().all()
        ],
    }
    raise_listed(problems, kind)


def check_shapes(state_dict: Mapping[str, torch.Tensor], expected: Mapping[str, Sequence[int]], kind: str) -> None:
    """Raises a ValueError unless every expected key's value has its shape."""
    misshapen = [
        f"{key} {tuple(state_dict[key].shape)}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if state_dict[key].shape != torch.Size(shape)
    ]
    raise_listed({"misshapen": misshapen}, kind)


def raise_listed(problems: dict[str, list[str]], kind: str) -> None:
    """Raises a ValueError that lists the problems by their names, if there are any."""
    lists = []
    for name, entries in problems.items():
        more = f" and {len(entries) - MAX_LISTED} more" if len(entries) > MAX_LISTED else ""
        if entries:
            lists.append(f"{name}: {', '.join(map(str, entries[:MAX_LISTED]))}{more}")
    if lists:
        raise ValueError(f"This is not a checkpoint of the official {kind}. {'; '.join(lists)}.")


def _is_usable(key: str, value: object) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    is_count = str(key).endswith("num_batches_tracked")
    return value.dtype in DTYPES or (is_count and not value.is_floating_point() and not value.is_complex())
