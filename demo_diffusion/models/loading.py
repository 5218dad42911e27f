"""Loads a network only if its file holds all of it: what is missing or left over would make other samples or scores."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import nn

from .weight_files import FLOATING, dtypes_of, weight_files, whole_models

MAX_LISTED = 5
ALIGNMENT = 64  # bytes: PyTorch's own tensors begin at multiples of it


class CheckedLoading:
    """Mixed into a model of diffusers or transformers, before its base class: a `from_pretrained` that checks.

    Attributes:
        new_layers: prefixes of the layers that a file may lack as a whole, because a user trains them anew.
    """

    new_layers: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **options):
        """As the library's own.

        Raises:
            ValueError: if the file lacks weights or BatchNorm's statistics, has unknown, misshapen or whole-numbered
                ones, values that are not finite or variances that are negative, or statistics that training has never
                moved beside weights that it has.
        """
        load = super().from_pretrained
        model, info = load_checked(load, pretrained_model_name_or_path, *args, new_layers=cls.new_layers, **options)
        return (model, info) if output_loading_info else model


def load_checked(
    load: Callable, name: str | Path | None, *args, new_layers: Iterable[str] = (), **options
) -> tuple[nn.Module, dict]:
    """A model and what was said of its loading, by `from_pretrained` of a library, checked as `CheckedLoading` says."""
    is_local = Path(str(name)).is_dir()
    if is_local:  # before the libraries stumble over them
        check_dtypes(name, Path(name), options)
    try:
        model, info = load(name, *args, output_loading_info=True, **options)
    except RuntimeError as error:  # what transformers raises for misshapen weights
        raise ValueError(f"The weights of {name} cannot be loaded: {error}") from error
    if name is not None and options.get("state_dict") is None:
        check_loaded(name, model, info, new_layers)
        if not is_local:
            where = {key: options.get(key) for key in ("revision", "cache_dir")}
            check_dtypes(name, Path(snapshot_download(str(name), local_files_only=True, **where)), options)
    align(model)
    return model, info


def check_part(model: nn.Module) -> None:
    """The same checks of a diffusers model that a pipeline has loaded, of its values and of the folder that it is from.

    Raises:
        ValueError: if it is not wholly what the folder's files hold, or they hold something else.
    """
    name = model.config.get("_name_or_path")
    folder, expected = Path(str(name or "")), set(model.state_dict())
    missing, unexpected = set(), set()
    if name and folder.is_dir():
        check_dtypes(name, folder, {})
        for files in whole_models(folder):
            held = {key: key for file in files for key in dtypes_of(file)}
            model._fix_state_dict_keys_on_load(held)  # the names of older versions of diffusers
            missing |= expected - set(held)
            unexpected |= set(held) - expected
    info = {"missing_keys": missing, "unexpected_keys": unexpected}
    check_loaded(name or type(model).__name__, model, info)


def check_loaded(name: str | Path, model: nn.Module, info: Mapping, new_layers: Iterable[str] = ()) -> None:
    """Raises ValueError if a file did not fill a model.

    Args:
        info: what `from_pretrained(…, output_loading_info=True)` says of the loading.
        new_layers: prefixes of layers that may be missing as a whole.
    """
    missing = set(info["missing_keys"])
    for prefix in new_layers:
        of_layer = {key for key in model.state_dict() if key.startswith(prefix)}
        missing -= of_layer if of_layer <= missing else set()
    problems = {
        "no": missing,
        "unknown": info["unexpected_keys"],
        "untouched statistics beside trained weights in": untouched_statistics(model),
        "values that are not finite in": not_finite(model),
        "negative variances in": negative_variances(model),
    }
    listed = [f"{problem} {_listed(keys)}" for problem, keys in problems.items() if keys]
    if listed:
        raise ValueError(
            f"The weights of {name} are not those of a {type(model).__name__} with its config: there are "
            f"{'; '.join(listed)}. Bring back a good copy, or save it again with save_pretrained."
        )


def align(model: nn.Module) -> None:
    """Moves what a file's layout put at uneven places of the memory: a CPU's sums round by where their numbers lie.

    So a loaded network gives what the saved one gave, bit by bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def untouched_statistics(model: nn.Module) -> list[str]:
    """BatchNorms with trained weights whose running statistics are those of a new layer, 0 and 1."""
    return [name for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d) and _is_untouched(norm)]


def not_finite(model: nn.Module) -> list[str]:
    """Names of the weights and buffers that hold NaN or infinity."""
    return [name for name, value in model.state_dict().items() if not (value.is_meta or _is_finite(value))]


def _is_finite(value: torch.Tensor) -> bool:
    if not value.is_floating_point() or value.itemsize == 1 or not value.numel():  # float8 has no such operation
        return True
    return all(bool(bound.isfinite()) for bound in torch.aminmax(value))


def negative_variances(model: nn.Module) -> list[str]:
    """BatchNorms whose running variance is negative somewhere."""
    norms = {name: norm.running_var for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    return [name for name, variance in norms.items() if variance is not None and bool((variance < 0).any())]


def _is_untouched(norm: nn.BatchNorm2d) -> bool:
    if norm.running_mean is None or not norm.affine or norm.weight.is_meta:
        return False
    is_new = not norm.running_mean.any() and bool((norm.running_var == 1).all())
    return is_new and (bool(norm.bias.any()) or not bool((norm.weight == 1).all()))


def check_dtypes(name: str | Path, folder: Path, options: Mapping) -> None:
    """Raises ValueError if a file in a folder holds anything but floating-point numbers as weights.

    Args:
        options: of `from_pretrained`, which say where in the folder the file is.
    """
    wrong = []
    for file in weight_files(folder, options):
        wrong += [f"{key} ({kind})" for key, kind in dtypes_of(file).items() if not _may_be(key, kind)]
    if wrong:
        raise ValueError(f"The weights of {name} must be floating point; these are not: {_listed(wrong)}.")


def _may_be(key: str, kind: str) -> bool:
    return kind in FLOATING or key.endswith("num_batches_tracked")


def _listed(keys: Iterable[str]) -> str:
    keys = sorted(map(str, keys))
    more = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    return ", ".join(keys[:MAX_LISTED]) + more
