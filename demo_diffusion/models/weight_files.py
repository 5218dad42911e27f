"""Which files in a folder hold a model's weights, and of which kind of numbers they are."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

FLOATING = (  # safetensors' names, then PyTorch's
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"),
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
)


def weight_files(folder: Path, options: Mapping) -> list[Path]:
    """The files that a library reads from a folder: safetensors or, if there are none, PyTorch's.

    Args:
        options: of `from_pretrained`: subfolder, variant and whether to read safetensors. Without a variant's
            name, the files of all variants are listed.
    """
    folder, variant = folder / (options.get("subfolder") or ""), options.get("variant")
    found = [] if options.get("use_safetensors") is False else sorted(folder.glob("*.safetensors"))
    found = found or sorted(folder.glob("*pytorch_model*.bin"))
    return [file for file in found if variant is None or f".{variant}." in file.name]


def whole_models(folder: Path) -> list[list[Path]]:
    """The files of each variant of a diffusers model in a folder; a large one is in several."""
    found: dict[str, list[Path]] = {}
    for file in weight_files(folder, {}):
        if file.name.startswith("diffusion_pytorch_model"):
            found.setdefault(re.sub(r"-\d+-of-\d+", "", file.name), []).append(file)
    return list(found.values())


def dtypes_of(file: Path) -> dict[str, str]:
    """Name of each tensor in a file -> of its kind of numbers.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        if file.suffix == ".bin":
            content = torch.load(file, map_location="meta", weights_only=True)
            return {key: str(value.dtype).removeprefix("torch.") for key, value in content.items()}
        with safe_open(file, "pt") as content:
            return {key: content.get_slice(key).get_dtype() for key in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged: {error}. Bring back a good copy.") from error
    except Exception as error:  # PyTorch's reader raises almost anything
        raise ValueError(f"{file} is damaged: it holds no named tensors. Bring back a good copy.") from error
