"""A file that does not hold all of a network, or something else, is refused by `from_pretrained` of every model."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import load_file, save_file
from torch import nn

from demo_diffusion import DEMOPipeline, DEMOTransformer2DModel, EMOv2Backbone, EMOv2ForImageClassification
from demo_diffusion.data.autoencoder import load_vae
from demo_diffusion.models.classifiers import image_processor, load_classifier
from demo_diffusion.objectives import DDPMObjective
from tests.support.classifiers import tiny_emov2
from tests.support.networks import TINY, randomize, tiny_dit, tiny_transformer
from tests.support.pipelines import tiny_taef2, tiny_vae

MODELS = {
    "D-EMO": tiny_transformer,
    "DiT": tiny_dit,
    "TAEF2": tiny_taef2,
    "EMOv2": lambda: randomize(tiny_emov2("EMOv2-1M")),
    "EMOv1": lambda: randomize(tiny_emov2("EMOv1-1M")),
    "backbone": lambda: randomize(EMOv2Backbone(tiny_emov2("EMOv2-1M").config)),
}
HAS_STATISTICS = {"D-EMO", "EMOv2", "EMOv1", "backbone"}


def weight_of(state: dict[str, torch.Tensor]) -> str:
    """A weight in the middle."""
    names = [name for name, value in state.items() if value.ndim >= 2 and value.is_floating_point()]
    return names[len(names) // 2]


def without(*endings: str):
    return lambda state: [state.pop(name) for name in [*state] if name.endswith(endings)]


def change(make):
    def damage(state):
        name = weight_of(state)
        state[name] = make(state[name])

    return damage


DAMAGE = {
    "one weight missing": (lambda state: state.pop(weight_of(state)), "there are no "),
    "one unknown": (lambda state: state.update({"extra.weight": torch.zeros(2)}), "unknown extra.weight"),
    "misshapen": (change(lambda x: x[:-1].clone()), "shape|size"),
    "int32": (change(lambda x: x.to(torch.int32)), "must be floating point"),
    "uint8": (change(lambda x: x.to(torch.uint8)), "must be floating point"),
    "bool": (change(lambda x: x > 0), "must be floating point"),
    "all int32": (lambda state: state.update({k: v.to(torch.int32) for k, v in state.items()}), "floating point"),
    "one NaN": (change(lambda x: x.index_fill(0, torch.tensor([1]), float("nan"))), "values that are not finite in "),
    "one infinity": (change(lambda x: x.index_fill(0, torch.tensor([1]), -float("inf"))), "values that are not finite"),
    "empty": (lambda state: state.clear(), "there are no "),
}
STATISTICS_DAMAGE = {
    "means": (without("running_mean"), "there are no .*running_mean"),
    "negative variances": (lambda state: negate(state, "running_var"), "negative variances in "),
    "variances": (without("running_var"), "there are no .*running_var"),
    "all": (without("running_mean", "running_var", "num_batches_tracked"), "there are no .*running_mean"),
}


def negate(state: dict[str, torch.Tensor], ending: str) -> None:
    for name, value in state.items():
        if name.endswith(ending):
            value.neg_().sub_(1)


def untouched(state: dict[str, torch.Tensor]) -> None:
    """What an average of the parameters alone leaves."""
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            value.fill_(float(name.endswith("var")))


def weights_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def save_damaged(name: str, damage, folder: Path) -> type:
    model = MODELS[name]().eval()
    model.save_pretrained(folder)
    state = load_file(weights_file(folder))
    damage(state)
    save_file(state, weights_file(folder), {"format": "pt"})
    return type(model)


def as_bin(file: Path) -> None:
    """The weights in PyTorch's own format, under the name that its library gives them."""
    name = "diffusion_pytorch_model.bin" if file.name.startswith("diffusion") else "pytorch_model.bin"
    torch.save(load_file(file), file.with_name(name))
    file.unlink()


def refuses(load, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load()
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", MODELS)
def test_damaged_weights_are_refused(name, damage, tmp_path):
    change, message = DAMAGE[damage]
    model_class = save_damaged(name, change, tmp_path)
    refuses(lambda: model_class.from_pretrained(tmp_path), message)


@pytest.mark.parametrize("damage", [*DAMAGE, "complex"])
@pytest.mark.parametrize("name", MODELS)
def test_damaged_weights_in_pytorch_s_format_are_refused(name, damage, tmp_path):
    change_weights, message = {**DAMAGE, "complex": (change(lambda x: x * 1j), "must be floating point")}[damage]
    model_class = save_damaged(name, change_weights, tmp_path)
    as_bin(weights_file(tmp_path))
    refuses(lambda: model_class.from_pretrained(tmp_path), f"{message}|is damaged|cannot be loaded")


VAE_DAMAGE = {
    **DAMAGE,
    "a weight of the encoder missing": (without("encoder.conv_in.weight"), "there are no encoder.conv_in.weight"),
    "no bias": (without("decoder.conv_in.bias"), "there are no decoder.conv_in.bias"),
}


@pytest.mark.parametrize("in_pytorch_s_format", [False, True])
@pytest.mark.parametrize("damage", VAE_DAMAGE)
@pytest.mark.parametrize("loader", [DEMOPipeline, DiffusionPipeline])
def test_a_pipeline_with_a_damaged_autoencoder_is_refused(loader, damage, in_pytorch_s_format, tmp_path):
    change_weights, message = VAE_DAMAGE[damage]
    DEMOPipeline(tiny_transformer(), DDPMObjective().scheduler(), tiny_vae()).save_pretrained(tmp_path)
    file = weights_file(tmp_path / "vae")
    state = load_file(file)
    change_weights(state)
    save_file(state, file, {"format": "pt"})
    if in_pytorch_s_format:
        as_bin(file)
    with pytest.raises(ValueError) as error:
        load_vae(str(tmp_path / "vae"), 3, torch.device("cpu"))
    if damage != "empty":  # diffusers' own error
        assert re.search(f"{message}|cannot be read", str(error.value), re.DOTALL)
    refuses(lambda: loader.from_pretrained(tmp_path), f"{message}|empty")


def test_an_autoencoder_with_names_of_older_versions_loads(tmp_path):
    pipeline = DEMOPipeline(tiny_transformer(), DDPMObjective().scheduler(), tiny_vae())
    pipeline.save_pretrained(tmp_path)
    file = weights_file(tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new_name, old_name in old.items():
        state = {key.replace(f".{new_name}.", f".{old_name}."): value for key, value in state.items()}
    assert any(".query." in key for key in state)
    save_file(state, file, {"format": "pt"})
    loaded = DEMOPipeline.from_pretrained(tmp_path).vae.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in pipeline.vae.state_dict().items())


@pytest.mark.parametrize("damage", STATISTICS_DAMAGE)
@pytest.mark.parametrize("name", sorted(HAS_STATISTICS))
def test_missing_statistics_are_refused(name, damage, tmp_path):
    change, message = STATISTICS_DAMAGE[damage]
    model_class = save_damaged(name, change, tmp_path)
    refuses(lambda: model_class.from_pretrained(tmp_path), message)


@pytest.mark.parametrize("name", sorted(HAS_STATISTICS))
def test_statistics_that_nothing_moved_are_refused(name, tmp_path):
    model_class = save_damaged(name, untouched, tmp_path)
    refuses(lambda: model_class.from_pretrained(tmp_path), "untouched statistics beside trained weights in ")


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("damage", [*DAMAGE, *STATISTICS_DAMAGE])
def test_a_pipeline_with_damaged_weights_is_refused(damage, low_cpu_mem_usage, tmp_path):
    change, message = {**DAMAGE, **STATISTICS_DAMAGE}[damage]
    DEMOPipeline(tiny_transformer(), DDPMObjective().scheduler()).save_pretrained(tmp_path)
    save_damaged("D-EMO", change, tmp_path / "transformer")
    refuses(lambda: DEMOPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage), message)


@pytest.mark.parametrize("damage", [*DAMAGE, *STATISTICS_DAMAGE])
def test_a_classifier_with_damaged_weights_is_not_measured(damage, tmp_path):
    change, message = {**DAMAGE, **STATISTICS_DAMAGE}[damage]
    save_damaged("EMOv2", change, tmp_path)
    image_processor(32).save_pretrained(tmp_path)
    refuses(lambda: load_classifier(str(tmp_path)), f"cannot be loaded.*({message})")


def test_a_trunk_begins_a_classifier_but_is_none(tmp_path):
    """transformers' way to train anew: the head is missing as a whole, and its report says so."""
    trunk = randomize(tiny_emov2("EMOv2-1M")).eval()
    trunk.emov2.save_pretrained(tmp_path)
    image_processor(32).save_pretrained(tmp_path)
    begun = EMOv2ForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(begun.emov2.stem.conv.conv.weight, trunk.emov2.stem.conv.conv.weight)
    with pytest.raises(ValueError, match="cannot be loaded.*there are no .*classifier.bias"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize("name", [*MODELS, "new D-EMO", "new EMOv2"])
def test_whole_and_new_networks_load(name, tmp_path):
    new = {"new D-EMO": lambda: DEMOTransformer2DModel(**TINY), "new EMOv2": lambda: tiny_emov2("EMOv2-1M")}
    model = {**MODELS, **new}[name]()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and isinstance(loaded, (ModelMixin, nn.Module))
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
