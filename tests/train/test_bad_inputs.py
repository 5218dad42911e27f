"""What a user may give to the training command by mistake: each ends in one line that names it."""

import re

import datasets
import pytest
from diffusers import UNet2DModel
from PIL import Image

from demo_diffusion.data.latents import METADATA_FILE
from demo_diffusion.train.cache_latents import main as cache_latents
from tests.support.images import image_folder, picture
from tests.support.pipelines import tiny_vae
from tests.support.runs import train


def yaml_file(text: str):
    return lambda folder: {"config": write(folder / "config.yaml", text)}


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def images_with(name: str, make):
    def options(folder):
        make(image_folder(folder / "images") / "cat" / name)
        return {"dataset": folder / "images", "resolution": 8, "batch_size": 14}

    return options


def truncated_jpeg(path):
    picture().save(path)
    path.write_bytes(path.read_bytes()[:300])


def parquet_of(labels, label_feature, image_feature=datasets.Image()):  # noqa: B008
    def options(folder):
        image = Image.new("RGB", (8, 8)) if isinstance(image_feature, datasets.Image) else 1
        features = datasets.Features({"image": image_feature, "label": label_feature})
        table = datasets.Dataset.from_dict({"image": [image] * len(labels), "label": labels}, features=features)
        table.to_parquet(folder / "data.parquet")
        return {"dataset": folder / "data.parquet", "resolution": 8}

    return options


def latents(change=lambda folder: None, **options):
    def make(folder):
        tiny_vae().save_pretrained(folder / "vae")
        cache = {"dataset": image_folder(folder / "images"), "vae": folder / "vae", "out": folder / "latents"}
        cache_latents([f"--{k}={v}" for k, v in {**cache, "resolution": 16, "num_workers": 0}.items()])
        change(folder / "latents")
        return {"latents": folder / "latents", "resolution": 16, **options}

    return make


def truncate_shard(folder):
    shard = folder / "shards/000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])


def flip_shard(folder):
    shard = folder / "shards/000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")


def damage_vae(folder):
    tiny_vae().save_pretrained(folder / "vae")
    write(folder / "vae/config.json", b"\0" * 100)
    return {"vae": folder / "vae", "dataset": image_folder(folder / "images"), "resolution": 16}


def other_model(folder):
    unet = UNet2DModel(block_out_channels=(4, 4), norm_num_groups=4, down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    unet.save_pretrained(folder / "unet")
    return {"vae": folder / "unet", "dataset": image_folder(folder / "images"), "resolution": 16}


BAD_INPUTS = {
    "no config": (lambda folder: {"config": folder / "nowhere.yaml"}, "There is no config file"),
    "no yaml": (yaml_file("model: [1"), "is not valid YAML"),
    "config is no text": (lambda folder: {"config": write(folder / "c.yaml", b"\xff\xfe")}, "c.yaml cannot be read"),
    "config nested deeply": (yaml_file("[" * 10_000), "config.yaml cannot be read: RecursionError"),
    "config with an escape": (yaml_file('"model\\e[2J": 1'), r"has no \['model\\x1b\[2J'\]"),
    "unknown section": (yaml_file("modell:\n  num_layers: 1\n"), "has no \\['modell'\\]; it may have"),
    "unknown field": (yaml_file("model:\n  layers: 1\n"), "'model' has no \\['layers'\\]; it may have"),
    "field twice": (yaml_file("data:\n  resolution: 8\n  resolution: 16\n"), "'resolution'.* stand twice"),
    "wrong type": (yaml_file("optimization:\n  num_steps: many\n"), "--num_steps: invalid int value: 'many'"),
    "negative rate": ({"learning_rate": -1}, "learning_rate is -1.0; it must be positive"),
    "no such preset": ({"transformer": "DEMO-M/2"}, "DEMO-M/2.*DEMO-S/2"),
    "no dataset": ({"dataset": "./nowhere", "resolution": 8}, "no dataset at ./nowhere"),
    "empty folder": (lambda folder: {"dataset": folder, "resolution": 8}, "cannot be read.*no class folder in"),
    "empty class": (images_with("../empty", lambda path: path.mkdir()), "no image in the class folder .*empty"),
    "corrupt JPEG": (images_with("bad.jpg", truncated_jpeg), r"Row \d \(.*cat/bad.jpg\) cannot be read as an image"),
    "corrupt in worker": (
        lambda folder: {**images_with("bad.jpg", truncated_jpeg)(folder), "num_workers": 2},
        r"error: Row \d \(.*cat/bad.jpg\) cannot be read",
    ),
    "text as JPEG": (images_with("bad.jpg", lambda path: write(path, "text")), "cat/bad.jpg.* cannot be read"),
    "no bytes": (images_with("bad.png", lambda path: write(path, "")), "cat/bad.png.* cannot be read"),
    "unknown range": (
        images_with("bad.tif", lambda path: Image.new("F", (8, 8)).save(path)), "cat/bad.tif.*mode is 'F', whose range",
    ),
    "label out of range": (parquet_of([0, -1], datasets.ClassLabel(names=["a", "b"])), r"labels \[-1\].*0 … 1"),
    "labels no classes": (
        lambda folder: {**parquet_of([0.5, 1.5], datasets.Value("float32"))(folder), "label_column": "label"},
        "labels must be whole numbers or texts",
    ),
    "no images": (
        lambda folder: parquet_of([0, 1], datasets.ClassLabel(names=["a", "b"]), datasets.Value("int64"))(folder),
        "0 columns of type Image",
    ),
    "batch indivisible": ({"batch_size": 9, "gradient_accumulation_steps": 2}, "batch_size is 9.*multiple"),
    "no autoencoder": (other_model, "is a UNet2DModel; it must be an AutoencoderKL"),
    "latents missing": (lambda folder: {"latents": folder / "nowhere"}, "nowhere does not exist"),
    "latents unfinished": (latents(lambda out: (out / METADATA_FILE).unlink()), "not finished.*This continues"),
    "shard truncated": (latents(truncate_shard), "000000.safetensors has 100 bytes instead of"),
    "shard changed": (
        latents(flip_shard, batch_size=14), r"error: The shard .*000000.safetensors .* changed.*again: torchrun",
    ),
    "shard changed, in worker": (
        latents(flip_shard, batch_size=14, num_workers=2), "error: The shard .*000000.safetensors .* changed.*again: ",
    ),
    "vae damaged": (damage_vae, "error: The autoencoder .*vae cannot be read"),
    "latents of other size": (latents(resolution=32), "resolution is 32; the latents .* of 16 pixels"),
    "wrong latent shape": (latents(patch_size=3), "sample_size is 8.*patch_size"),
    "folder is a file": (lambda folder: {"output_dir": write(folder / "file", "")}, "file cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_mistake_is_named_in_one_line(tmp_path, capsys, case):
    options, message = BAD_INPUTS[case]
    options = options(tmp_path) if callable(options) else options
    with pytest.raises(SystemExit) as stop:
        train(options.pop("output_dir", tmp_path / "run"), **options)
    text = str(stop.value) if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert not (tmp_path / "run/pipeline").exists()


def test_unusual_images_are_trained_on(tmp_path):
    images = image_folder(tmp_path / "images")
    picture().convert("CMYK").save(images / "cat/cmyk.jpg")
    Image.new("RGB", (1, 1)).save(images / "cat/pixel.png")
    Image.new("RGB", (200, 3)).save(images / "dog/stripe.png")
    assert (train(tmp_path / "run", dataset=images, resolution=8) / "pipeline").is_dir()
