"""Hostile images and folders: each command refuses them by name, or sees what is right."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from demo_diffusion.data.latents import LatentTable
from demo_diffusion.data.preparation import to_rgb
from demo_diffusion.eval.classify import main as classify
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.models.classifiers import image_processor
from demo_diffusion.train.cache_latents import main as cache_latents
from demo_diffusion.train.train_demo import main as train_demo
from tests.data.test_listing import DAMAGED, HIDDEN, MODES, SPECIAL
from tests.support.classifiers import tiny_emov2
from tests.support.commands import options
from tests.support.evaluation import LITE
from tests.support.images import image_folder, picture
from tests.support.pipelines import tiny_vae
from tests.support.runs import arguments, state_of

from .judging import judge_command
from .runner import Case, Wrong

KIND = "images and folders"
TRAINING = {
    "resolution": 16,
    "num_steps": 2,
    "sample_every": 0,
    "checkpoint_every": 2,
    "grid_columns": 1,
    "batch_size": 4,
}


def prepare(root: Path) -> None:
    """Two classes of pictures, an autoencoder and a classifier."""
    image_folder(root / "images/train")
    tiny_vae().save_pretrained(root / "vae")
    tiny_emov2(num_labels=2, id2label={0: "cat", 1: "dog"}).save_pretrained(root / "classifier")
    image_processor(32).save_pretrained(root / "classifier")


def _run_training(root: Path, images: Path, out: Path) -> dict[str, torch.Tensor]:
    train_demo(arguments(out, dataset=images, **TRAINING))
    return state_of(out)


def _run_reference(root: Path, images: Path, out: Path) -> dict[str, torch.Tensor]:
    make_reference([*options(dataset=images, resolution=16, out=f"{out}.npz"), *LITE])
    with np.load(f"{out}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind == "f"}


def _run_cache(root: Path, images: Path, out: Path) -> dict[str, torch.Tensor]:
    cache_latents([*options(dataset=images, vae=root / "vae", resolution=16, out=out), "--strict=true"])
    table = LatentTable(out)
    return {f"{i} {table[i, 0][1]}": table[i, 0][0] for i in range(len(table))}


def _run_classify(root: Path, images: Path, out: Path) -> dict[str, torch.Tensor]:
    out.mkdir()
    classify(options(model=root / "classifier", dataset=images, split="train", out=out / "a.json"))
    results = json.loads((out / "a.json").read_text())
    return {name: torch.tensor([results[name]]) for name in ("top1", "num_images")}


RUNS = {"train_demo": _run_training, "reference": _run_reference, "cache": _run_cache, "classify": _run_classify}


def cases(root: Path) -> Iterator[Case]:
    for name, (hostile, plain) in {**hostile_images(), **hostile_folders()}.items():
        for command in RUNS:
            yield Case(
                KIND, f"{command}: {name}", lambda folder, c=command, h=hostile, p=plain: _run(root, folder, c, h, p)
            )


def _run(root: Path, folder: Path, command: str, hostile: Callable, plain: Callable | None) -> str:
    """Refused, or what the same command gives for plain files with the same pictures."""
    given = shutil.copytree(root / "images", folder / "given")
    given = hostile(given) or given
    found: list[dict] = []

    def check() -> None:
        if plain is None:
            raise Wrong("it was accepted")
        expected_images = shutil.copytree(root / "images", folder / "plain")
        plain(expected_images)
        expected = RUNS[command](root, expected_images, folder / "expected")
        if expected.keys() != found[0].keys():
            raise Wrong(f"it found {sorted(found[0])[:5]}, not {sorted(expected)[:5]}")
        for name, value in expected.items():
            if not torch.equal(value, found[0][name]):
                raise Wrong(f"{name} differs from that of plain pictures")

    return judge_command(lambda words: found.append(RUNS[command](root, given, folder / "out")), [], check)


def hostile_images() -> dict[str, tuple[Callable, Callable | None]]:
    """Name -> (makes one image hostile, does the same to a plain copy; None: it must be refused)."""
    found = {}
    for name, content in DAMAGED.items():
        found[f"image: {name}"] = (lambda f, c=content: _image(f).write_bytes(c) and None, None)
    for mode in MODES:
        found[f"image: mode {mode}"] = (
            lambda f, m=mode: _save(f, _of_mode(m)),
            lambda f, m=mode: _plain(f, _of_mode(m)),
        )
    for orientation in (2, 3, 6, 8, 9):
        turned = lambda f, o=orientation: _save_turned(f, o)  # noqa: E731
        found[f"image: orientation {orientation}"] = (turned, lambda f, o=orientation: _plain_turned(f, o))
    for size in ((1, 1), (100_000, 1), (1, 50_000), (3000, 2)):
        image = lambda s=size: Image.new("RGB", s, (10, 200, 30))  # noqa: E731
        found[f"image: {size}"] = (lambda f, i=image: _save(f, i()), lambda f, i=image: _plain(f, i()))
    found["image: bomb"] = (lambda f: _save(f, Image.new("1", (30_000, 30_000))), None)
    found["image: truncated"] = (_truncate, None)
    found["image: JPEG named .png"] = (_save_as_jpeg, _plain_jpeg)
    found["image: text after its end"] = (_append, lambda f: None)
    return found


def hostile_folders() -> dict[str, tuple[Callable, Callable | None]]:
    """Name -> (makes a folder hostile, or returns another one; does the same to a plain copy)."""
    nothing = lambda f: None  # noqa: E731
    found = {
        "folder: empty class": (lambda f: (f / "train/eel").mkdir(), None),
        "folder: loop": (lambda f: (f / "train/cat/loop").symlink_to(f / "train"), _copy_all_into_cat),
        "folder: link to itself": (lambda f: (f / "train/cat/self").symlink_to(f / "train/cat"), nothing),
        "folder: broken link": (lambda f: (f / "train/cat/0a.png").symlink_to("nowhere"), None),
        "folder: text files": (lambda f: (f / "train/cat/notes.txt").write_text("x") and None, nothing),
        "folder: no classes": (lambda f: shutil.rmtree(f / "train/cat") or shutil.rmtree(f / "train/dog"), None),
        "folder: a file": (lambda f: f / "train/cat/0.png", None),
        "folder: missing": (lambda f: f / "nowhere", None),
        "folder: a folder named as an image": (lambda f: (f / "train/cat/x.png").mkdir(), nothing),
        "folder: capital suffix": (lambda f: _image(f).rename(f / "train/cat/0.PNG") and None, nothing),
    }
    for name in HIDDEN:
        found[f"folder: {name}"] = (lambda f, n=name: _copy_class(f, n), nothing)
    for name in (*SPECIAL, "new\nline", "escape\x1b[31m"):
        found[f"folder: named {name!r}"] = (lambda f, n=name: f.rename(f.parent / n), nothing)
    return found


def _image(images: Path) -> Path:
    return images / "train/cat/0.png"


def _of_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    return picture().convert({"PA": "P"}.get(mode, mode))


def _save(images: Path, image: Image.Image) -> None:
    is_png = image.mode not in ("CMYK", "YCbCr", "PA", "LA")
    _image(images).unlink()
    image.save(_image(images) if is_png else _image(images).with_suffix(".tif"))


def _plain(images: Path, image: Image.Image) -> None:
    to_rgb(image).save(_image(images))


def _turnable() -> Image.Image:
    return Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint16).reshape(24, 16, 3).astype(np.uint8))


def _save_turned(images: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    _turnable().save(_image(images), exif=exif)


def _plain_turned(images: Path, orientation: int) -> None:
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270,
             8: Image.Transpose.ROTATE_90}  # fmt: skip
    image = _turnable()
    (image.transpose(turns[orientation]) if orientation in turns else image).save(_image(images))


def _truncate(images: Path) -> None:
    picture((200, 200)).save(_image(images))
    _image(images).write_bytes(_image(images).read_bytes()[:5000])


def _save_as_jpeg(images: Path) -> None:
    picture().save(_image(images), format="JPEG")


def _plain_jpeg(images: Path) -> None:
    _save_as_jpeg(images)
    Image.open(_image(images)).convert("RGB").save(_image(images), format="PNG")


def _append(images: Path) -> None:
    with open(_image(images), "ab") as file:
        file.write(b"#!/bin/sh\n")


def _copy_class(images: Path, name: str) -> None:
    shutil.copytree(images / "train/cat", images / "train" / name)


def _copy_all_into_cat(images: Path) -> None:
    shutil.copytree(images / "train/dog", images / "train/cat/loop/dog")
