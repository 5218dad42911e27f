import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderTiny
from safetensors.torch import load_file, save_file

from demo_diffusion import DEMOPipeline
from demo_diffusion.conversion.__main__ import main as convert
from demo_diffusion.conversion.taef2 import convert_taef2
from demo_diffusion.data.autoencoder import (
    LatentNormalization,
    draw_latents,
    encode_moments,
    latent_shape,
    load_vae,
    normalization_of,
)
from demo_diffusion.models.autoencoder_taef2 import AutoencoderTAEF2
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from tests.support.bad_values import shown
from tests.support.damage import DAMAGES
from tests.support.networks import tiny_transformer
from tests.support.pipelines import tiny_taef2, tiny_taesd, tiny_vae

PUBLISHED = Path(__file__).parents[3] / "shared/models/taef2"
CPU = torch.device("cpu")


def tiny_dc() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.4,
    ).eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


AUTOENCODERS = {
    # its sample, and what diffusers makes of normalised latents before it decodes them
    tiny_vae: (lambda vae, x: vae.encode(x).latent_dist.sample(generator()), lambda z: z / 0.3 + 0.1),
    tiny_taesd: (lambda vae, x: vae.encode(x).latents, lambda z: z),
    tiny_dc: (lambda vae, x: vae.encode(x).latent, lambda z: z / 0.4),
    tiny_taef2: (lambda vae, x: vae.encode(x).latents, lambda z: z / 0.5 + 0.2),
}


@pytest.mark.parametrize("create", AUTOENCODERS)
@torch.no_grad()
def test_every_kind_of_autoencoder(tmp_path, create):
    sample, unscale = AUTOENCODERS[create]
    create().save_pretrained(tmp_path)
    vae = load_vae(str(tmp_path), 3, CPU)
    assert type(vae) is type(create()) and not any(p.requires_grad for p in vae.parameters())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    channels, side = latent_shape(vae, 32)
    moments = encode_moments(vae, images)
    assert moments.shape == (2, channels * (2 if create is tiny_vae else 1), side, side) and moments.is_contiguous()
    noise = torch.randn(2, channels, side, side, generator=generator())
    latents, expected = draw_latents(moments, noise), sample(vae, images)
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=1e-5)
    normalized = normalization_of(vae).apply(latents)
    torch.testing.assert_close(unscale(normalized), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("create", AUTOENCODERS)
@pytest.mark.parametrize("statistics", [{}, {"latents_mean": [0.1, 0.2, -0.3, 2], "latents_std": [0.5, 1, 2, 4]}])
@torch.no_grad()
def test_a_saved_pipeline_undoes_the_normalization(tmp_path, create, statistics):
    vae = create()
    normalization = LatentNormalization(*statistics.values()) if statistics else normalization_of(vae)
    DEMOPipeline(tiny_transformer(), FlowObjective().scheduler(), vae, **statistics).save_pretrained(tmp_path)
    pipeline = DEMOPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.vae) is type(vae) and pipeline.latent_normalization == normalization

    def images(output_type: str) -> torch.Tensor:
        return pipeline([1, 2], num_inference_steps=2, generator=generator(), output_type=output_type).images

    latents = images("latent")
    if statistics:
        mean, std = (torch.tensor(statistics[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        latents = latents * std + mean
    else:
        latents = AUTOENCODERS[create][1](latents)
    expected = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images("pt"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"latents_mean": [0.0]}, "both or neither"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "of 3 channels; the latents have 4"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 3}, "4 means and 3 stds"),
        ({"latents_mean": [0.0], "latents_std": [0.0]}, "every one must be positive"),
        ({"latents_mean": [float("nan")], "latents_std": [1.0]}, "finite"),
    ],
)
def test_wrong_statistics_are_named(statistics, message):
    with pytest.raises(ValueError, match=message):
        DEMOPipeline(tiny_transformer(), FlowObjective().scheduler(), **statistics)


def test_latents_without_an_autoencoder_are_no_picture():
    statistics = {"latents_mean": [0.0], "latents_std": [2.0]}
    pipeline = DEMOPipeline(tiny_transformer(in_channels=3), FlowObjective().scheduler(), **statistics)
    with pytest.raises(ValueError, match="no autoencoder, and its samples have 3 channels of latents"):
        pipeline([1], num_inference_steps=1)


def test_statistics_of_the_autoencoder_itself():
    """As diffusers' pipelines of SDXL: latents · latents_std / scaling_factor + latents_mean before decoding."""
    vae = tiny_vae(latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 1, 2], scaling_factor=0.5)
    assert normalization_of(vae) == LatentNormalization((1, 2, 3, 4), (2, 4, 2, 4))


def test_draws_are_those_of_diffusers():
    moments = torch.randn(2, 8, 4, 4)
    moments[0, 4:] = torch.tensor([-100.0, 100.0, 0.0, 1.0])[:, None, None]
    noise = torch.randn(2, 4, 4, 4)
    mean, log_variance = moments.chunk(2, dim=1)
    expected = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
    assert torch.equal(draw_latents(moments, noise), expected)
    assert torch.equal(draw_latents(moments, torch.zeros_like(noise)), mean)
    assert draw_latents(moments.half(), noise).dtype == torch.float32
    with pytest.raises(ValueError, match=r"moments have shape \(2, 8, 4, 4\) and noise \(2, 3, 4, 4\)"):
        draw_latents(moments, noise[:, :3])


def test_normalization_undoes_itself():
    latents = torch.randn(2, 4, 3, 3)
    for normalization in (LatentNormalization((1, 2, 3, 4), (1, 2, 4, 8)), LatentNormalization((1,), (4,))):
        torch.testing.assert_close(normalization.undo(normalization.apply(latents)), latents)
    first = LatentNormalization((1, 2, 3, 4), (1, 2, 4, 8)).apply(latents)[:, 3]
    assert torch.equal(first, (latents[:, 3] - 4) / 8)


def test_other_models_are_refused(tmp_path):
    tiny_transformer().save_pretrained(tmp_path / "transformer")
    tiny_dc().save_pretrained(tmp_path / "dc")
    with pytest.raises(ValueError, match="DEMOTransformer2DModel; it must be an AutoencoderKL or AutoencoderTiny"):
        load_vae(str(tmp_path / "transformer"), 3, CPU)
    with pytest.raises(ValueError, match="takes 3 channels; the images have 1"):
        load_vae(str(tmp_path / "dc"), 1, CPU)
    with pytest.raises(ValueError, match="nothing cannot be read"):
        load_vae(str(tmp_path / "nothing"), 3, CPU)
    for create, resolution in ((tiny_vae, 33), (tiny_dc, 33), (tiny_taef2, 12)):
        with pytest.raises(ValueError, match=f"resolution is {resolution}"):
            latent_shape(create(), resolution)


def original_taef2(autoencoder: AutoencoderTAEF2) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Its weights under the original keys, where the decoder counts its clamp as layer 0."""
    encoder = {key.removeprefix("layers."): value for key, value in autoencoder.encoder.state_dict().items()}
    decoder = {}
    for key, value in autoencoder.decoder.state_dict().items():
        index, rest = key.removeprefix("layers.").split(".", 1)
        decoder[f"{int(index) + 1}.{rest}"] = value
    return encoder, decoder


class PlainTAEF2:
    """The network as its author describes it, layer by layer, on original keys and images in [0, 1]."""

    def __init__(self, encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor]):
        self.encoder, self.decoder = encoder, decoder

    @staticmethod
    def conv(state, key, x, stride=1):
        return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride=stride, padding=1)

    @classmethod
    def block(cls, state, index, x):
        if f"{index}.pool.0.weight" in state:
            pooled = F.conv2d(x, state[f"{index}.pool.0.weight"])
            pooled = F.relu(F.group_norm(pooled, 4, state[f"{index}.pool.1.weight"], state[f"{index}.pool.1.bias"]))
            x = x + F.conv2d(pooled, state[f"{index}.pool.3.weight"])
        y = F.relu(cls.conv(state, f"{index}.conv.0", x))
        y = F.relu(cls.conv(state, f"{index}.conv.2", y))
        return F.relu(cls.conv(state, f"{index}.conv.4", y) + x)

    def encode(self, images):
        x = self.block(self.encoder, 1, self.conv(self.encoder, 0, images))
        for first in (2, 6, 10):
            x = self.conv(self.encoder, first, x, stride=2)
            for index in range(first + 1, first + 4):
                x = self.block(self.encoder, index, x)
        return self.conv(self.encoder, 14, x)

    def decode(self, latents):
        x = F.relu(self.conv(self.decoder, 1, 3 * torch.tanh(latents / 3)))
        for first in (3, 8, 13):
            for index in range(first, first + 3):
                x = self.block(self.decoder, index, x)
            x = self.conv(self.decoder, first + 4, F.interpolate(x, scale_factor=2))
        return self.conv(self.decoder, 19, self.block(self.decoder, 18, x))


@torch.no_grad()
def test_converted_taef2_computes_what_its_author_describes():
    encoder, decoder = original_taef2(tiny_taef2(latent_channels=6))
    assert len(encoder) + len(decoder) == len(AutoencoderTAEF2().state_dict())
    autoencoder, plain = convert_taef2(encoder, decoder), PlainTAEF2(encoder, decoder)
    assert autoencoder.config.latent_channels == 6 and autoencoder.config.scaling_factor == 1
    images = torch.rand(2, 3, 32, 24)
    latents = autoencoder.encode(images * 2 - 1).latents
    torch.testing.assert_close(latents, plain.encode(images), atol=1e-4, rtol=1e-4)
    decoded = plain.decode(latents) * 2 - 1
    torch.testing.assert_close(autoencoder.decode(latents).sample, decoded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(autoencoder(images * 2 - 1).sample, decoded, atol=1e-4, rtol=1e-4)
    assert autoencoder.decode(latents, return_dict=False)[0].shape == (2, 3, 32, 24)


def test_converting_taef2_files(tmp_path):
    original = tiny_taef2().half()
    (tmp_path / "source").mkdir()
    encoder, decoder = original_taef2(original)
    with pytest.raises(SystemExit, match="cannot be read as a folder or hub id of diffusers' DiTPipeline"):
        convert([str(tmp_path / "source"), str(tmp_path / "target")])
    save_file(encoder, tmp_path / "source/encoder.safetensors")
    with pytest.raises(SystemExit, match="has no decoder.safetensors; give the folder with TAEF2's two files"):
        convert([str(tmp_path / "source"), str(tmp_path / "target")])
    with pytest.raises(SystemExit, match="--vae has no meaning for"):
        convert([str(tmp_path / "source"), str(tmp_path / "target"), "--vae", "none"])
    save_file(decoder, tmp_path / "source/decoder.safetensors")
    convert([str(tmp_path / "source"), str(tmp_path / "target")])
    vae = load_vae(str(tmp_path / "target"), 3, CPU)
    assert vae.dtype == torch.float32 and sorted(tmp_path.iterdir()) == [tmp_path / "source", tmp_path / "target"]
    for name, value in original.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value.float())
    with pytest.raises(SystemExit, match="exists already"):
        convert([str(tmp_path / "source"), str(tmp_path / "target")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda e, d: e.pop("0.weight"), "layers.0.weight is not among them"),
        (lambda e, d: e.pop("12.pool.0.weight"), "12.pool.0.weight"),
        (lambda e, d: d.update({"4.conv.0.weight": torch.zeros(1)}), "3.conv.0.weight"),
        (lambda e, d: d.update({"mid.weight": torch.zeros(1)}), "decoder's weights.*'mid.weight'"),
        (lambda e, d: e.update({"00.weight": e["0.weight"]}), "'00.weight' twice"),
        (lambda e, d: e.update({"0.weight": torch.tensor(1.0)}), "misshapen: encoder.layers.0.weight"),
        (lambda e, d: e.update({"0.bias": e["0.bias"] * math.nan}), "not finite: encoder.layers.0.bias"),
        (lambda e, d: e.update({"0.bias": e["0.bias"].double() + 1e300}), "not finite: encoder.layers.0.bias"),
        (lambda e, d: e.update({"0.bias": e["0.bias"] * 1j}), "not a tensor of numbers: encoder.layers.0.bias"),
        (lambda e, d: e.update({"0.bias": e["0.bias"].to(torch.float8_e4m3fn)}), "not a tensor of numbers"),
        (lambda e, d: e.update({"0.bias": e["0.bias"].int()}), "not a tensor of numbers"),
        (lambda e, d: e.update({"0.bias": e["0.bias"].half()}), "of torch.float16 and torch.float32; .* one dtype"),
    ],
)
def test_other_weights_are_not_taef2(damage, message):
    encoder, decoder = original_taef2(tiny_taef2())
    damage(encoder, decoder)
    with pytest.raises(ValueError, match=message):
        convert_taef2(encoder, decoder)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published weights are not at hand")
@torch.no_grad()
def test_the_published_taef2():
    autoencoder = convert_taef2(*(load_file(PUBLISHED / f"{part}.safetensors") for part in ("encoder", "decoder")))
    autoencoder, example = autoencoder.float(), load_file(PUBLISHED / "example.safetensors")
    latents = autoencoder.encode(example["image_0_1"] * 2 - 1).latents
    torch.testing.assert_close(latents, example["latent"], atol=1e-4, rtol=1e-4)
    decoded = autoencoder.decode(example["latent"]).sample / 2 + 0.5
    torch.testing.assert_close(decoded, example["decoded"], atol=1e-4, rtol=1e-4)


def test_an_autoencoder_of_diffusers_stays_one(tmp_path):
    tiny_taesd().save_pretrained(tmp_path)
    assert isinstance(load_vae(str(tmp_path), 3, CPU), AutoencoderTiny)


def change_config(file: Path, **entries) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


DAMAGED_VAES = {
    **{f"config.json: {name}": ("config.json", damage) for name, damage in DAMAGES.items()},
    **{
        f"weights: {name}": ("diffusion_pytorch_model.safetensors", damage)
        for name, damage in DAMAGES.items()
        if name != "other encoding"
    },
    "no scaling": ("config.json", lambda file: change_config(file, scaling_factor=0)),
    "scaling is a text": ("config.json", lambda file: change_config(file, scaling_factor="large")),
    "scaling is nothing": ("config.json", lambda file: change_config(file, scaling_factor=None)),
    "widths are a text": ("config.json", lambda file: change_config(file, block_out_channels="wide")),
    "widths are nothing": ("config.json", lambda file: change_config(file, block_out_channels=None)),
    "other widths": ("config.json", lambda file: change_config(file, block_out_channels=[8, 16])),
    "unknown block": ("config.json", lambda file: change_config(file, down_block_types=["Nothing"] * 2)),
    "statistics are a text": ("config.json", lambda file: change_config(file, latents_mean="a", latents_std="b")),
}


BAD_NUMBERS = (0, "1", None, 10**400, -1, True, [1.0], float("nan"), float("inf"))


@pytest.mark.parametrize("setting", ["scaling_factor", "shift_factor"])
@pytest.mark.parametrize("value", BAD_NUMBERS, ids=shown)
def test_a_bad_number_in_the_config_is_named(tmp_path, setting, value):
    DEMOPipeline(tiny_transformer(), DDPMObjective().scheduler(), tiny_vae()).save_pretrained(tmp_path)
    change_config(tmp_path / "vae" / "config.json", **{setting: value})
    allowed = setting == "shift_factor" and value in (0, None, -1) and value is not True
    with nullcontext() if allowed else pytest.raises(ValueError, match=f"The autoencoder's {setting} is "):
        load_vae(str(tmp_path / "vae"), 3, CPU)
        assert allowed
    with nullcontext() if allowed else pytest.raises(ValueError, match=f"The autoencoder's {setting} is "):
        DEMOPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("case", DAMAGED_VAES)
def test_a_damaged_autoencoder_is_one_error(tmp_path, case):
    file, damage = DAMAGED_VAES[case]
    tiny_vae().save_pretrained(tmp_path / "vae")
    damage(tmp_path / "vae" / file)
    with pytest.raises(ValueError, match=f"{tmp_path}/vae (cannot be read|is a model of another library)"):
        load_vae(str(tmp_path / "vae"), 3, torch.device("cpu"))
