from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.data.preparation import center_crop, read_rgb, to_rgb
from tests.support.images import image_folder, picture
from tests.support.png import CHANNELS, png


def test_digits():
    images = load_images(DataConfig(resolution=8))
    assert (len(images.dataset), images.channels, images.num_classes) == (1797, 1, 10)
    image, label = images.dataset[0]
    assert image.shape == (1, 8, 8) and image.min() == -1 and label == 0
    with pytest.raises(ValueError, match="resolution is 32.*8 pixels"):
        load_images(DataConfig(resolution=32))


def test_images_of_their_own_size(tmp_path):
    config = DataConfig(dataset=str(image_folder(tmp_path / "data")), resolution=8)
    assert load_images(config, own_size=True).dataset[5][0].shape == (3, 12, 20)
    assert load_images(DataConfig(), own_size=True).dataset[0][0].shape == (1, 8, 8)


def test_image_folder(tmp_path):
    images = load_images(DataConfig(dataset=str(image_folder(tmp_path / "data")), resolution=8))
    assert images.id2label == {0: "cat", 1: "dog"} and images.channels == 3
    image, label = images.dataset[5]
    assert image.shape == (3, 8, 8) and image.dtype == torch.float32 and label == 1
    assert -1 <= image.min() < image.max() <= 1


def test_folder_and_file_names_mean_classes_alone(tmp_path):
    folder = image_folder(tmp_path / "data", classes=("bus", "test", "train_station"), images_per_class=2)
    for name in ("bus/bus-and-train_7.png", "test/deeper/crash-test_3.png", "cover.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture().save(folder / name)
    images = load_images(DataConfig(dataset=str(folder), resolution=8))
    assert images.id2label == {0: "bus", 1: "test", 2: "train_station"}
    assert sorted(images.dataset[i][1] for i in range(len(images.dataset))) == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("split", "size"), [("train", 6), ("val", 2)])
def test_folder_with_splits(tmp_path, split, size):
    image_folder(tmp_path / "data/train")
    image_folder(tmp_path / "data/val", images_per_class=1)
    images = load_images(DataConfig(dataset=str(tmp_path / "data"), split=split, resolution=8))
    assert len(images.dataset) == size and images.id2label == {0: "cat", 1: "dog"}


def test_a_folder_of_parquet_shards(tmp_path):
    for i in range(3):
        shard = tmp_path / f"train-0000{i}-of-00003.parquet"
        Path(parquet(tmp_path, img=[picture()] * 2, label=[0, 1])).rename(shard)
    assert len(load_images(DataConfig(dataset=str(tmp_path), resolution=8)).dataset) == 6


def test_modes():
    deep = Image.fromarray(np.full((2, 2), 40000, dtype=np.uint16))
    assert np.array(to_rgb(deep)).tolist() == [[[156] * 3] * 2] * 2
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert np.array(to_rgb(clear)).min() == 255
    for mode in ("L", "P", "CMYK", "RGBA", "1"):
        assert to_rgb(picture(mode=mode)).mode == "RGB"
    with pytest.raises(ValueError, match="mode is 'F'"):
        to_rgb(Image.new("F", (2, 2)))


@pytest.mark.parametrize("is_clear", [False, True])
@pytest.mark.parametrize(
    ("depth", "kind"),
    [*((depth, "grey") for depth in (1, 2, 4, 8, 16)), *((depth, kind) for depth in (8, 16) for kind in CHANNELS)],
)
def test_every_depth_is_rounded_and_what_is_transparent_becomes_white(depth, kind, is_clear, tmp_path):
    channels, most = CHANNELS[kind][1], 2**depth - 1
    deep = np.random.default_rng(0).integers(0, 2**depth, (4, 4, channels))
    has_alpha = kind.endswith("alpha")
    clear = tuple(map(int, deep[0, 0])) if is_clear and not has_alpha else ()
    grey = np.round(deep * 255 / most)
    expected = np.broadcast_to(grey[..., : channels - has_alpha], (4, 4, 3)).copy()
    if has_alpha:
        alpha = grey[..., -1:] / 255
        expected = 255 - alpha * (255 - expected)
    if clear:
        expected[(deep == clear).all(-1)] = 255
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(deep, depth, kind, clear))
    read = [read_rgb(tmp_path / "cat/a.png")]
    for path in (tmp_path, whole_parquet(tmp_path)):
        read += [load_images(DataConfig(dataset=str(path), resolution=4), own_size=True).dataset.picture(1)[0]]
    for image in read:
        assert np.abs(np.array(image) - expected).max() <= (1 if has_alpha else 0)  # Pillow's own rounding


def whole_parquet(folder: Path) -> Path:
    table = load_images(DataConfig(dataset=str(folder), resolution=4)).dataset.table
    rows = {"image": [{"bytes": Path(row["image"]["path"]).read_bytes(), "path": None} for row in table]}
    features = datasets.Features({"image": datasets.Image(), "label": table.features["label"]})
    table = datasets.Dataset.from_dict({**rows, "label": table["label"][:]}, features=features)
    (folder.parent / f"{folder.name} whole").mkdir()
    table.to_parquet(file := folder.parent / f"{folder.name} whole/data.parquet")
    return file


def test_an_orientation_holds_for_deep_colours():
    turned, plain = (Image.open(BytesIO(png(DEEP, 16, "colour"))) for _ in range(2))
    turned.info["exif"] = b"Exif\0\0" + exif_of(6)
    assert np.array_equal(np.array(to_rgb(turned)), np.rot90(np.array(to_rgb(plain)), -1))


DEEP = np.random.default_rng(0).integers(0, 2**16, (3, 5, 3))


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def test_a_transparent_colour_that_was_not_read_is_refused():
    image = Image.new("RGB", (2, 2))
    image.info["transparency"] = (1000, 2000, 3000)
    with pytest.raises(ValueError, match=r"transparent colour is \(1000, 2000, 3000\), of 16 bits"):
        to_rgb(image)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    folder = image_folder(tmp_path / "data")
    (folder / "cat/1.png").write_bytes(b"no image")
    dataset = load_images(DataConfig(dataset=str(folder), resolution=8)).dataset
    with pytest.raises(ValueError, match="Row 1 .*cat/1.png.* cannot be read as an image"):
        dataset[1]


def parquet(path, **columns) -> str:
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    features = datasets.Features({name: features.get(name, datasets.Value("int64")) for name in columns})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path / "data.parquet")
    return str(path / "data.parquet")


def test_parquet(tmp_path):
    file = parquet(tmp_path, img=[picture()] * 3, label=[0, 1, 1])
    images = load_images(DataConfig(dataset=file, resolution=12))
    expected = torch.from_numpy(np.array(picture().crop((4, 0, 16, 12)))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(images.dataset[1][0], expected)
    assert images.num_classes == 2


def test_numbers_without_names_are_class_ids(tmp_path):
    labels = list(range(12))[::-1]
    file = parquet(tmp_path, img=[picture()] * 12, fine=labels)
    images = load_images(DataConfig(dataset=file, resolution=8, label_column="fine"))
    assert images.id2label == {i: str(i) for i in range(12)}
    assert [images.dataset[i][1] for i in range(12)] == labels


@pytest.mark.parametrize("labels", [[0, 5], [1, 2], [0, 10**7], [0, 10**12], [0, 2**63], [3]])
def test_numbers_that_leave_one_out_are_no_class_ids(labels, tmp_path):
    table = datasets.Dataset.from_dict({"img": [picture()] * len(labels), "fine": np.array(labels, np.uint64)})
    table.cast_column("img", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=rf"'fine' has {len(labels)} different labels up to {max(labels)}, but none"):
        load_images(DataConfig(dataset=str(tmp_path / "data.parquet"), resolution=8, label_column="fine"))


@pytest.mark.parametrize("name", [None, "", "  "])
def test_an_empty_text_is_no_label(name, tmp_path):
    table = datasets.Dataset.from_dict({"img": [picture()] * 2, "kind": ["cat", name]})
    table.cast_column("img", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="'kind' has rows without a label"):
        load_images(DataConfig(dataset=str(tmp_path / "data.parquet"), resolution=8, label_column="kind"))


def test_a_name_without_an_image_stays_a_class_and_is_said(tmp_path):
    file = parquet(tmp_path, img=[picture()] * 2, label=[1, 1])
    with pytest.warns(UserWarning, match="1 of 2 classes have no image: cat"):
        assert load_images(DataConfig(dataset=file, resolution=8)).id2label == {0: "cat", 1: "dog"}


def test_a_hostile_description_of_the_columns_is_named(tmp_path):
    table = pq.read_table(parquet(tmp_path, img=[picture()], label=[0]))
    nested = table.replace_schema_metadata({b"huggingface": b"[" * 100_000})
    pq.write_table(nested, tmp_path / "nested.parquet")
    with pytest.raises(ValueError, match=r"nested.parquet cannot be read: "):
        load_images(DataConfig(dataset=str(tmp_path / "nested.parquet"), resolution=8))


def test_texts_become_classes(tmp_path):
    table = datasets.Dataset.from_dict({"img": [picture()] * 3, "kind": ["owl", "cat", "owl"]})
    table.cast_column("img", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    options = {"dataset": str(tmp_path / "data.parquet"), "resolution": 8}
    images = load_images(DataConfig(label_column="kind", **options))
    assert images.id2label == {0: "cat", 1: "owl"} and images.dataset[0][1] == 1


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"img": [picture()], "fine": [3]}, {}, "0 columns of type ClassLabel.*--label_column"),
        ({"label": [0]}, {}, "0 columns of type Image.*--image_column"),
        ({"img": [picture()], "label": [0]}, {"image_column": "image"}, "no column 'image'.*img"),
        (
            {"img": [picture()], "label": [0]},
            {"image_column": "label", "label_column": "label"},
            "they must be two",
        ),
        ({"label": [0], "fine": [1]}, {"image_column": "fine"}, "'fine' holds .* not images"),
        ({"img": [picture()] * 2, "label": [0, -1]}, {}, r"labels \[-1\].*0 … 1"),
        ({"img": [picture()] * 2, "fine": [5, -2]}, {"label_column": "fine"}, r"labels \[-2\].*0 … 5"),
        ({"img": [], "label": []}, {}, "split 'train' of .*data.parquet cannot be read.*no data"),
    ],
)
def test_wrong_data_is_named(columns, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_images(DataConfig(dataset=parquet(tmp_path, **columns), resolution=8, **options))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "missing.parquet"])
def test_missing_data_is_named(name):
    with pytest.raises(ValueError, match=f"no dataset at {name}"):
        load_images(DataConfig(dataset=name))


def test_missing_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="split 'test' of .* cannot be read.*no folder"):
        load_images(DataConfig(dataset=str(image_folder(tmp_path / "data")), split="test"))
    with pytest.raises(ValueError, match="class folder"):
        load_images(DataConfig(dataset=str(tmp_path / "data/cat")))


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (100, 17), (5, 7)])
def test_center_crop_gives_the_size(size):
    assert center_crop(picture(size), 8).size == (8, 8)


def test_center_crop_keeps_the_centre():
    image = Image.new("RGB", (64, 16), "black")
    image.paste("white", (24, 0, 40, 16))
    assert np.array(center_crop(image, 8)).min() > 200
