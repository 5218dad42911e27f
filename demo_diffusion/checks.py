"""Types and ranges of arguments, checked where they enter: errors name the argument, its value and what is allowed."""

import math
import operator
from collections.abc import Collection, Iterable

import torch

LARGEST = 2**20  # of sizes and counts; a larger one is a mistake that would fill the memory
MAX_SHOWN = 60  # characters of a value


def check_whole(name: str, value: object, least: int = 1, most: int = LARGEST) -> None:
    """Raises ValueError unless `value` is a whole number in [least, most]; True and 2.0 are none."""
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number in [{least}, {most}].")


def check_number(
    name: str, value: object, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    """Raises ValueError unless `value` is a finite number with value ≥ least, value > above and value < below."""
    limits = {"of at least": (least, operator.ge), "above": (above, operator.gt), "below": (below, operator.lt)}
    limits = {word: limit for word, limit in limits.items() if limit[0] is not None}
    if not is_number(value) or not all(compare(value, limit) for limit, compare in limits.values()):
        allowed = " and ".join(f"{word} {limit}" for word, (limit, _) in limits.items())
        raise ValueError(f"{name} is {shown(value)}; it must be a finite number{' ' + allowed if allowed else ''}.")


def check_flag(name: str, value: object) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False.")


def check_choice(name: str, value: object, choices: Iterable) -> None:
    """Raises ValueError unless `value` is one of the choices."""
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name} is {shown(value)}; it must be one of {choices}.")


def check_tensor(name: str, value: object, shape: Collection[int | str], floating: bool) -> None:
    """Raises ValueError unless `value` is a tensor of this shape, a word being any length, and kind of numbers."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is {shown(value)}; it must be a tensor.")
    sides = zip(shape, value.shape, strict=False)
    if value.ndim != len(shape) or any(not isinstance(wanted, str) and wanted != own for wanted, own in sides):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be ({', '.join(map(str, shape))}).")
    if value.is_floating_point() != floating or value.dtype == torch.bool or value.is_complex():
        kind = "floating-point" if floating else "whole"
        raise ValueError(f"{name} has dtype {value.dtype}; it must hold {kind} numbers.")


def check_dense(name: str, value: torch.Tensor) -> None:
    """Raises ValueError unless a tensor has all its values in memory: it is not sparse and not on the meta device."""
    if value.is_meta or value.layout != torch.strided:
        kind = "on the meta device" if value.is_meta else f"of layout {value.layout}"
        raise ValueError(f"{name} is {kind}; it must be a dense tensor with values.")


def check_values(name: str, values: torch.Tensor, least: float, most: float) -> None:
    """Raises ValueError if a value is outside [least, most] or NaN.

    Values are looked at on the CPU alone, where that waits for nothing, and while no graph is made of the code.
    """
    if values.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing() or not values.numel():
        return
    low, high = (bound.item() for bound in torch.aminmax(values.detach()))
    if not (low >= least and high <= most):
        raise ValueError(f"{name} has values from {low} to {high}; they must be in [{least}, {most}].")


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number: an int or NumPy's, but no bool."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool | torch.Tensor)


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number, but no bool."""
    try:
        return math.isfinite(value) and not isinstance(value, bool | torch.Tensor)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())  # on one line
    except ValueError:  # an int of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({type(value).__name__})"
