"""The official checkpoints' format of EMOv2 and EMOv1 (the ICCV'23 release): a state dict of the networks, in."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from demo_diffusion.models import EMOv2Config, EMOv2ForImageClassification
from demo_diffusion.models.classifiers import image_processor
from demo_diffusion.models.emov2.configuration import NUM_STAGES
from demo_diffusion.models.emov2.presets import EMOV1_PRESETS, EMOV1_STYLE, EMOV2_PRESETS, IRMB_IN_EMOV2
from demo_diffusion.models.spanning_attention import ATTENTION_MODES

from .labels import imagenet_names
from .state_checks import check_keys, check_shapes, raise_listed

KIND = "EMOv2 or EMOv1"
ATTENDING_MODES = [mode for mode in ATTENTION_MODES if mode != "none"]  # they have the same weights
STAGES = range(1, NUM_STAGES + 1)  # as the official names count them; stage 0 is the stem
FIRST_CONV = {"v1": "stage0.0.convs.0.0", "v2": "stage0.0.conv"}
# Our module -> the official one.
OUTER_MODULES = {"norm.": "norm.norm.", "classifier.": "head."}
STEM_MODULES = {
    "v1": {
        "conv.conv.": "stage0.0.convs.0.0.",
        "conv.norm.": "stage0.0.convs.0.1.",
        "mixer.conv_local.": "stage0.1.conv_local.",
        "mixer.squeeze_excitation.": "stage0.1.se.conv_",
        "mixer.proj.": "stage0.1.proj.conv.",
    },
    "v2": {"conv.": "stage0.0.", "mixer.conv_local.": "stage0.1.", "mixer.proj.": "stage0.2.conv."},
}
BLOCK_MODULES = {"gamma": "ls.gamma", "mixer.conv_local.": "conv_local.", "mixer.proj.": "proj.conv."}
VALUE_MODULES = {  # of a block without and with attention
    "v1": ({"mixer.v.": "v.conv."}, {"mixer.v.": "v.conv.", "mixer.qk.": "qk.conv."}),
    "v2": (
        {"mixer.v.": "eops.0.net.conv."},
        {"mixer.v.": "eops.0.v.conv.", "mixer.qk.": "eops.0.qk.conv."},
    ),
}
NORM_MODULES = {"batch": {"norm.": "norm."}, "layer": {"norm.": "norm.norm."}}
ACTIVATION_AFTER = {"batch": "silu", "layer": "gelu"}


def is_emov2(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether the keys look like those of the official EMOv2 or EMOv1."""
    return any(f"{name}.weight" in state_dict for name in FIRST_CONV.values())


def convert_emov2(
    state_dict: Mapping[str, torch.Tensor],
    window_size: int = 7,
    attention_mode: str | None = None,
    attention_head_dims: Sequence[int] | None = None,
    image_size: int | None = None,
) -> EMOv2ForImageClassification:
    """A classifier from the official format, in eval mode.

    Keys and shapes tell the family (EMOv1 or EMOv2), widths, depths, ratios, kernels, norms, which stages attend, and
    the numbers of channels and classes. The activation follows the norm, as in every official network: SiLU after
    BatchNorm, GELU after LayerNorm. Neighborhood, remote and spanning attention have the same weights, so the mode is
    the one of the release: remote for EMOv1 and for iRMB in EMOv2's skeleton (kernels 3, 3, 5, 5), spanning otherwise.

    Args:
        state_dict: of the authors' network.
        window_size: not in the weights; 7 for weights trained at 224 pixels, 8 for 256 and 512.
        attention_mode: of the stages that attend, for ablations; None: the release's.
        attention_head_dims: of the four stages, not in the weights; None: those of the official size of these widths.
        image_size: kept in the config; None: 32 · window_size.

    Raises:
        ValueError: if keys are unknown, missing or misshapen (all are listed), or the head dims cannot be told.
    """
    family = _family(state_dict)
    if attention_mode not in (None, *ATTENDING_MODES):
        raise ValueError(f"attention_mode is {attention_mode!r}; it must be one of {ATTENDING_MODES}.")
    config = EMOv2Config(
        **_infer_config(state_dict, family, attention_mode, attention_head_dims),
        window_size=window_size,
        image_size=32 * window_size if image_size is None else image_size,
    )
    with torch.device("meta"):
        model = EMOv2ForImageClassification(config)
    ours = model.state_dict()
    modules = module_map(config, family)
    key_map = {official_name(name, modules): name for name in ours}
    check_keys(state_dict, key_map, KIND)
    check_shapes(state_dict, {key: official_shape(name, ours[name]) for key, name in key_map.items()}, KIND)
    state = {name: state_dict[key].reshape(ours[name].shape) for key, name in key_map.items()}
    model.to_empty(device="cpu").load_state_dict(state)
    return model.eval()


def _family(state_dict: Mapping[str, torch.Tensor]) -> str:
    family = next((name for name, conv in FIRST_CONV.items() if f"{conv}.weight" in state_dict), None)
    if family is None:
        raise_listed({"missing": [" or ".join(f"{conv}.weight" for conv in FIRST_CONV.values())]}, KIND)
    return family


def module_map(config: EMOv2Config, family: str) -> dict[str, str]:
    """Prefix of our names -> prefix of the official ones, of the whole network."""
    prefixes = dict(OUTER_MODULES)
    prefixes |= {f"emov2.stem.{ours}": official for ours, official in STEM_MODULES[family].items()}
    for stage in range(NUM_STAGES):
        for i in range(config.depths[stage]):
            attends = i > 0 and config.attention_modes[stage] != "none"
            block = BLOCK_MODULES | VALUE_MODULES[family][attends] | NORM_MODULES[config.norms[stage]]
            prefixes |= {f"emov2.stages.{stage}.{i}.{ours}": f"stage{stage + 1}.{i}.{o}" for ours, o in block.items()}
    return prefixes


def official_name(name: str, modules: dict[str, str]) -> str:
    prefix = next(prefix for prefix in modules if name.startswith(prefix))
    return modules[prefix] + name.removeprefix(prefix)


def official_shape(name: str, value: torch.Tensor) -> tuple[int, ...]:
    """The official network has 1×1 convolutions for the linear layers, and gamma for (B, C, H, W)."""
    if name.endswith("gamma"):
        return (1, *value.shape, 1, 1)
    is_linear = value.ndim == 2 and not name.startswith("classifier.")
    return (*value.shape, 1, 1) if is_linear else tuple(value.shape)


def _infer_config(
    state_dict: Mapping[str, torch.Tensor],
    family: str,
    attention_mode: str | None,
    attention_head_dims: Sequence[int] | None,
) -> dict:
    """The network's config from keys and shapes; keys that would tell and are missing are left to `check_keys`."""
    shapes = {key: tuple(value.shape) for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
    depths = tuple(_count_blocks(shapes, stage) for stage in STAGES)
    widths = tuple(_telling(shapes, f"stage{stage}.0.proj.conv.weight", 0) for stage in STAGES)
    stem_width = _telling(shapes, f"{FIRST_CONV[family]}.weight", 0)
    hidden = [_telling(shapes, f"stage{stage}.0.conv_local.conv.weight", 0) for stage in STAGES]
    kernels = tuple(_telling(shapes, f"stage{stage}.0.conv_local.conv.weight", 2) for stage in STAGES)
    attends = [any(re.match(rf"stage{stage}\.\d+\..*qk\.", key) for key in shapes) for stage in STAGES]
    norms = tuple("batch" if f"stage{s}.0.norm.running_mean" in shapes else "layer" for s in STAGES)
    if attention_mode is None:
        is_irmb = family == "v1" or kernels == IRMB_IN_EMOV2["kernel_sizes"]
        attention_mode = "remote" if is_irmb else "spanning"
    preset = _preset(family, widths)
    if attention_head_dims is None and preset is None and any(attends):
        raise ValueError(
            f"The head dims cannot be told from the widths {widths}, which are of no official size; give "
            "attention_head_dims, one a stage."
        )
    style = EMOV1_STYLE if family == "v1" else {}
    return {
        **style,
        "num_labels": _telling(shapes, "head.weight", 0),
        "num_channels": _telling(shapes, f"{FIRST_CONV[family]}.weight", 1),
        "stem_width": stem_width,
        "stem_squeeze_excitation": any(key.startswith("stage0.1.se.") for key in shapes),
        "hidden_sizes": widths,
        "depths": depths,
        "expansion_ratios": tuple(
            wide / narrow / 2 for wide, narrow in zip(hidden, (stem_width, *widths[:-1]), strict=True)
        ),
        "attention_head_dims": attention_head_dims or (preset["attention_head_dims"] if preset else widths),
        "attention_modes": tuple(attention_mode if attend else "none" for attend in attends),
        "kernel_sizes": kernels,
        "norms": norms,
        "activations": tuple(ACTIVATION_AFTER[norm] for norm in norms),
        "layer_scale_init_value": 1e-6 if any(key.endswith("ls.gamma") for key in shapes) else None,
        "drop_path_rate": preset["drop_path_rate"] if preset else 0.0,
    }


def _count_blocks(shapes: Mapping[str, tuple], stage: int) -> int:
    """How many different blocks there are; a gap in their numbers shows as a missing and an unknown block."""
    return max(1, len({key.split(".")[1] for key in shapes if str(key).startswith(f"stage{stage}.")}))


def _telling(shapes: Mapping[str, tuple], key: str, axis: int) -> int:
    if key not in shapes:
        raise_listed({"missing": [key]}, KIND)
    if len(shapes[key]) <= axis or shapes[key][axis] < 1:
        raise_listed({"misshapen": [f"{key} {shapes[key]}"]}, KIND)
    return shapes[key][axis]


def _preset(family: str, widths: tuple[int, ...]) -> dict | None:
    presets = EMOV1_PRESETS if family == "v1" else EMOV2_PRESETS
    return next((preset for preset in presets.values() if preset["hidden_sizes"] == widths), None)


WINDOW_SIZES = {224: 7, 256: 8, 512: 8}  # by the image size that the official weights were trained at


def classifier_from_official(
    state_dict: Mapping[str, torch.Tensor],
    path: Path,
    image_size: int | None,
    window_size: int | None,
    attention_mode: str | None,
) -> EMOv2ForImageClassification:
    """The classifier of an official state dict, with ImageNet's label names where it has 1,000 classes.

    Args:
        path: the file that it was read from.
        image_size: None: a size in the file's name, as the official files have it (EMOv2_5M_512.pth), or 224.
        window_size: None: the official one of the image size.
        attention_mode: None: the release's, see `convert_emov2`.

    Raises:
        ValueError: if the weights are not of the official format or the window size cannot be told.
    """
    if image_size is None:
        found = re.findall(r"(?<!\d)(224|256|512)(?!\d)", path.stem)
        image_size = int(found[-1]) if found else 224
    if window_size is None and image_size not in WINDOW_SIZES:
        raise ValueError(f"There is no official window size for {image_size} pixels ({WINDOW_SIZES}); give one.")
    window_size = WINDOW_SIZES[image_size] if window_size is None else window_size
    model = convert_emov2(state_dict, window_size, attention_mode, image_size=image_size)
    if names := imagenet_names(model.config.num_labels):
        model.config.id2label = names
        model.config.label2id = {name: i for i, name in names.items()}
    return model


def save_classifier(model: EMOv2ForImageClassification, folder: Path) -> None:
    model.save_pretrained(folder)
    image_processor(model.config.image_size).save_pretrained(folder)
