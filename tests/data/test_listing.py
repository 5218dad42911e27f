"""What is a class, an image and a path: the same rule for training, references and samples."""

import os
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from demo_diffusion.data.images import DataConfig, ImageError, load_images
from demo_diffusion.data.listing import class_folders, image_files, known_order, natural_order, text_order
from demo_diffusion.data.preparation import center_crop
from demo_diffusion.eval.samples.image_sources import RealFolder, TrainingImages
from demo_diffusion.models.classifiers import check_classes
from tests.support.classifiers import tiny_emov2
from tests.support.images import image_folder, picture

HIDDEN = [".ipynb_checkpoints", ".git", ".hidden", "__MACOSX", "@eaDir", "__pycache__"]
SPECIAL = ["run[1]", "a*b", "q?", "[ab]", "{x,y}", "**", "~tilde", "a b", "%20", "#1", "ümlaut", "!x", "c[!d]"]


def grey(value: int, size=(8, 8)) -> Image.Image:
    return Image.new("RGB", size, (value,) * 3)


def config_of(path: Path, **options) -> DataConfig:
    return DataConfig(**{"dataset": str(path), "resolution": 8, **options})


def grey_of(path: Path, **options) -> int:
    image, _ = load_images(config_of(path, **options)).dataset[0]
    return round((image.mean().item() + 1) * 127.5)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_folder_is_no_class(name, tmp_path):
    folder = image_folder(tmp_path / "data", classes=("cat", "dog", name))
    (folder / "cat" / name).mkdir()
    picture().save(folder / "cat" / name / "copy.png")
    picture().save(folder / "cat/._0.png")
    images = load_images(config_of(folder))
    assert images.id2label == {0: "cat", 1: "dog"} and len(images.dataset) == len(RealFolder(folder, 8)) == 6


def test_a_folder_of_hidden_folders_alone_has_no_class(tmp_path):
    with pytest.raises(ValueError, match="there is no class folder in"):
        load_images(config_of(image_folder(tmp_path / "data", classes=HIDDEN)))


def test_an_empty_class_is_named(tmp_path):
    (image_folder(tmp_path / "data") / "cow").mkdir()
    with pytest.raises(ValueError, match="there is no image in the class folder .*cow"):
        load_images(config_of(tmp_path / "data"))


@pytest.mark.parametrize("other", ["cat ", " cat", "cat\u200b", "cat\t", "c\u00adat"])
def test_names_that_look_alike_are_no_two_classes(other, tmp_path):
    folder = image_folder(tmp_path / "folders", classes=("cat", other))
    texts = datasets.Dataset.from_dict({"image": [picture()] * 2, "label": ["cat", other]})
    texts.cast_column("image", datasets.Image()).to_parquet(tmp_path / "texts.parquet")
    for path in (folder, tmp_path / "texts.parquet"):
        with pytest.raises(ValueError, match=r"the classes .*'cat.* look alike; rename one"):
            load_images(config_of(path, label_column="label"))


@pytest.mark.parametrize("name", ["9.png", "9.JPG"])
def test_a_pipe_is_no_image(name, tmp_path):
    folder = image_folder(tmp_path / "data")
    os.mkfifo(folder / "cat" / name)
    (folder / "cat/link.png").symlink_to(name)
    for read in (lambda: load_images(config_of(folder)), lambda: RealFolder(folder, 8)):
        with pytest.raises((ValueError, OSError), match="is a pipe, a socket or a device; it must be a file"):
            read()


def test_a_link_to_an_image_is_one_and_a_link_to_nowhere_is_named(tmp_path):
    folder = image_folder(tmp_path / "data")
    (folder / "cat/link.png").symlink_to("0.png")
    (folder / "dog/nowhere.png").symlink_to("nothing.png")
    dataset = load_images(config_of(folder)).dataset
    assert len(dataset) == 8 and torch.equal(dataset[3][0], dataset[0][0])
    with pytest.raises(ValueError, match=r"nowhere.png\) cannot be read as an image"):
        dataset[7]


def test_folders_may_be_nested_deeper_than_calls(tmp_path):
    here = os.open(image_folder(tmp_path / "data") / "cat", os.O_RDONLY)
    for _ in range(1_200):
        os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    with os.fdopen(os.open("z.png", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        picture().save(file, "PNG")
    os.close(here)
    assert len(image_files(tmp_path / "data")) == 7
    subprocess.run(["rm", "-r", tmp_path / "data"], check=True)  # pytest's own cleaning calls itself for each folder


@pytest.mark.parametrize("target", [".", "..", "../cat", "../../data", "/"])
def test_links_do_not_multiply_images(target, tmp_path):
    folder = image_folder(tmp_path / "data")
    if target != "/":  # which would list the whole machine, once
        (folder / "cat/link").symlink_to(target, target_is_directory=True)
    (folder / "dog/broken").symlink_to("nowhere")
    files = image_files(folder / "cat")
    assert len(files) == len({file.resolve() for file in files}) and [file.name for file in files[:3]] == [
        "0.png", "1.png", "2.png",
    ]  # fmt: skip
    assert len(image_files(folder / "dog")) == 3 and class_folders(folder) == ["cat", "dog"]


def table(folder: Path, value: int) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    folder.mkdir(parents=True)
    content = {"image": [grey(value)] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(folder / "train.parquet")


@pytest.mark.parametrize("name", SPECIAL)
def test_a_path_is_literal(name, tmp_path):
    decoys = ["run1", "axb", "qx", "a", "x", "y", "other", "1", "c0"]
    for i, each in enumerate([*decoys, name]):
        table(tmp_path / "tables" / each, i)
        image = tmp_path / "folders" / each / "cat" / "0.png"
        image.parent.mkdir(parents=True)
        grey(100 + i).save(image)
    value = len(decoys)
    assert grey_of(tmp_path / "tables" / name / "train.parquet") == value
    assert grey_of(tmp_path / "tables" / name) == value
    assert grey_of(tmp_path / "folders" / name) == 100 + value


@pytest.mark.parametrize("labels", [[True, False], [True, True], [0.0, 1.0], [0.5, 1.5], [[0], [1]], [None, None]])
def test_labels_of_other_kinds_are_refused(labels, tmp_path):
    content = {"image": [grey(0)] * 2, "kind": labels}
    datasets.Dataset.from_dict(content).cast_column("image", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="'kind' holds"):
        load_images(config_of(tmp_path / "data.parquet", label_column="kind"))


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_training_and_reference_see_the_same_turned_photo(suffix, orientation, tmp_path):
    photo, exif = grey(0, (16, 24)), Image.Exif()
    photo.paste("white", (0, 0, 16, 8))
    photo.paste((90, 90, 90), (0, 0, 4, 24))
    exif[0x0112] = orientation
    (tmp_path / "cat").mkdir()
    photo.save(tmp_path / f"cat/photo.{suffix}", exif=exif)
    trained = TrainingImages(load_images(config_of(tmp_path, resolution=16)))[0]
    reference = RealFolder(tmp_path, 16)[0]
    assert (trained == reference).all()
    upright = np.array(center_crop(photo, 16)).transpose(2, 0, 1)
    assert (orientation == 1) == (np.abs(trained.numpy().astype(int) - upright).mean() < 4)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_training_and_reference_see_the_same_mode(mode, tmp_path):
    (tmp_path / "cat").mkdir()
    deep = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    suffix = "tif" if mode in ("PA", "CMYK", "YCbCr", "LA") else "png"
    image = deep if mode == "I;16" else picture().convert({"PA": "P"}.get(mode, mode))
    image.save(tmp_path / f"cat/a.{suffix}")
    assert (TrainingImages(load_images(config_of(tmp_path)))[0] == RealFolder(tmp_path, 8)[0]).all()


DAMAGED = {
    "empty": b"",
    "text": b"no image",
    "head of a PNG": b"\x89PNG\r\n\x1a\n",
    "head of a JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "head of a GIF": b"GIF89a\xff\xff\xff\xff",
    "head of a TIFF": b"II*\x00\x08\x00\x00\x00\xff\xff",
    "head of a BMP": b"BM" + b"\xff" * 60,
    "head of a WebP": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
}


@pytest.mark.parametrize("reader", ["training", "reference"])
@pytest.mark.parametrize("content", [*DAMAGED, "bomb"])
def test_what_is_no_image_is_named(content, reader, tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    if content == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        Image.new("1", (100, 100)).save(tmp_path / "cat/a.png")
    else:
        (tmp_path / "cat/a.png").write_bytes(DAMAGED[content])
    images = load_images(config_of(tmp_path)).dataset if reader == "training" else RealFolder(tmp_path, 8)
    with pytest.raises(ImageError if reader == "training" else ValueError, match="cat/a.png.* cannot be read"):
        images[0]


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (3000, 2), (2, 3000), (5000, 300)])
def test_a_long_image_is_cropped_before_it_grows(size):
    image = Image.new("RGB", size, "black")
    middle = tuple(side // 2 for side in size)
    image.paste("white", (middle[0] - 20, middle[1] - 20, middle[0] + 20, middle[1] + 20))
    cropped = center_crop(image, 256)
    assert cropped.size == (256, 256) and cropped.getpixel((128, 128)) == (255, 255, 255)


def test_numbered_folders_out_of_order_are_not_taken_for_other_classes():
    model = tiny_emov2("EMOv2-1M", num_labels=11)
    names = sorted(str(i) for i in range(11))  # 0, 1, 10, 2, …
    model.config.id2label = {i: f"animal {i}" for i in range(11)}
    with pytest.raises(ValueError, match="class '10' has the number 2"):
        check_classes("the classifier", model, dict(enumerate(names)))
    model.config.id2label = dict(enumerate(names))
    check_classes("the classifier", model, dict(enumerate(names)))
    model.config.id2label = {i: f"animal {i}" for i in range(11)}
    with pytest.warns(UserWarning, match="does not name 11 of the data's 11 classes, '00' for one.* by their numbers"):
        check_classes("the classifier", model, {i: f"{i:02d}" for i in range(11)})


def test_a_class_that_a_model_does_not_name_is_said(recwarn):
    model = tiny_emov2("EMOv2-1M", num_labels=3)
    model.config.id2label = {0: "bird", 1: "cat", 2: "dog"}
    check_classes("the classifier", model, {0: "bird", 1: "cat", 2: "dog"})
    assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="does not name 1 of the data's 3 classes, 'cats' for one"):
        check_classes("the classifier", model, {0: "bird", 1: "cats", 2: "dog"})


ORDERS = {  # each in its natural order
    "digits": [str(i) for i in range(12)],
    "padded": [f"{i:02d}" for i in range(12)],
    "mixed": ["01", "1", "1a", "2", "10", "10b", "a", "a1", "a2", "a10", "a10b2", "a10b10", "b"],
    "wordnet": ["n01440764", "n01443537", "n02102040", "n15075141"],
    "capitals": ["Cat", "Dog", "ant", "bee"],
    "other digits": ["class 9", "class 10", "class ٣", "²", "Ä"],
    "large numbers": ["9" * 5000, "1" + "0" * 5000],
    "points": ["0.5", "0.10", "1.0", "1.5"],
}


@pytest.mark.parametrize("name", ORDERS)
def test_numbers_in_names_are_compared_as_numbers(name):
    for given in (ORDERS[name][::-1], sorted(ORDERS[name]), ORDERS[name]):
        assert natural_order(given) == ORDERS[name]


def numbered_folders(folder, count=11):
    for i in range(count):
        (folder / str(i)).mkdir(parents=True)
        Image.new("RGB", (8, 8), (20 * i,) * 3).save(folder / str(i) / "a.png")
    return folder


def grey_of_classes(images):
    return {images.id2label[label]: round((image.mean().item() + 1) * 127.5 / 20) for image, label in images.dataset}


@pytest.mark.parametrize("order", [natural_order, text_order, known_order({i: str(10 - i) for i in range(10, -1, -1)})])
@pytest.mark.parametrize("source", ["folders", "texts"])
def test_a_class_keeps_its_images_in_any_order(order, source, tmp_path):
    folder = numbered_folders(tmp_path / "images")
    config = config_of(folder)
    if source == "texts":
        rows = {"image": [str(folder / str(i) / "a.png") for i in range(11)], "label": [str(i) for i in range(11)]}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / "images.parquet")
        config = config_of(tmp_path / "images.parquet", label_column="label")
    images = load_images(config, class_order=order)
    names = [str(i) for i in range(11)]
    assert list(images.id2label.values()) == order(names)
    assert grey_of_classes(images) == {name: int(name) for name in names}
    assert images.id2label[10] == {natural_order: "10", text_order: "9"}.get(order, "0")


def test_a_known_order_is_of_the_same_names_only():
    known = {"10": "x", **{str(i): name for i, name in enumerate(["1", "10", "2", *"abcdefg"])}}
    assert known_order(known)(sorted(known.values())) == ["1", "10", "2", *"abcdefg", "x"]
    assert known_order(known)(["10", "2", "1", "3"]) == ["1", "2", "3", "10"]


def test_labels_that_are_texts_are_there(tmp_path):
    rows = {"image": [b""] * 2, "label": ["a", None]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "images.parquet")
    with pytest.raises(ValueError, match="'label' has rows without a label"):
        load_images(config_of(tmp_path / "images.parquet", label_column="label"))
