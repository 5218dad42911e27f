"""Folders of images and masks, scenes, and everything that may be wrong in them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_diffusion.data.masks import MasksConfig, load_masks
from demo_diffusion.data.strokes import ThinStrokes
from tests.support.png import png

CLASSES = np.array([[0, 1, 2], [2, 1, 0]])


def folder(tmp_path, mask: Image.Image | None, name: str = "sub/a.png"):
    for each in ("images/sub", "masks/sub"):
        (tmp_path / each).mkdir(parents=True)
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "images/sub/a.png")
    if mask is not None:
        mask.save(tmp_path / "masks" / name)
    return {"dataset": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}


def palette() -> Image.Image:
    image = Image.fromarray(CLASSES.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    return image


MASKS = {
    "grey": lambda: Image.fromarray(CLASSES.astype(np.uint8)),
    "palette": palette,
    "16 bits": lambda: Image.fromarray(CLASSES.astype(np.uint16)),
}


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["ids", "ade20k"])
def test_ids_of_every_depth_are_read_as_they_are(depth, kind, tmp_path):
    paths = folder(tmp_path, None)
    (tmp_path / "masks/sub/a.png").write_bytes(png(CLASSES[..., None], depth, "grey"))
    classes = load_masks(MasksConfig(**paths, kind=kind, num_classes=3), is_training=True).dataset[0][1]
    assert classes.tolist() == (CLASSES if kind == "ids" else np.where(CLASSES == 0, 255, CLASSES - 1)).tolist()


def pgm(largest: int):
    def save(file: Path) -> None:
        file.write_bytes(b"P5\n3 2\n%d\n" % largest + CLASSES.astype(">u2" if largest > 255 else "u1").tobytes())

    return save


def frames(file: Path) -> None:
    MASKS["grey"]().save(file, save_all=True, append_images=[Image.new("L", (3, 2), 1)])


def bomb(file: Path) -> None:
    Image.new("1", (14_000, 14_000)).save(file)


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("a.jpg", lambda file: MASKS["grey"]().save(file), "is a mask in JPEG with losses, which change class ids"),
        ("a.png", lambda file: MASKS["grey"]().save(file, "JPEG"), "is a mask in JPEG with losses"),
        ("a.png", lambda file: MASKS["grey"]().save(file, "JPEG2000"), "is a mask in JPEG2000 with losses"),
        ("a.tif", lambda file: MASKS["grey"]().save(file, compression="jpeg"), "is a mask in TIFF with losses"),
        ("a.png", frames, "is a mask of 2 pictures; it must be one"),
        ("a.tif", frames, "is a mask of 2 pictures; it must be one"),
        ("a.pgm", pgm(15), "whose largest grey level is 15"),
        ("a.pgm", pgm(1000), "whose largest grey level is 1000"),
        ("a.tif", lambda file: MASKS["grey"]().save(file, tiffinfo={262: 0}), "upside down"),
        ("a.png", bomb, "a.png cannot be read as an image: Image size .* decompression bomb"),
        ("a.png", os.mkfifo, "is a pipe, a socket or a device"),
    ],
)
def test_masks_whose_ids_cannot_be_known_are_refused(name, save, message, tmp_path):
    paths = folder(tmp_path, None)
    save(tmp_path / "masks/sub" / name)
    with pytest.raises((ValueError, OSError), match=message):
        load_masks(MasksConfig(**paths, num_classes=3), is_training=True).dataset[0]


@pytest.mark.parametrize("name", ["a.pgm", "a.tif", "a.bmp"])
def test_masks_of_other_formats(name, tmp_path):
    paths = folder(tmp_path, MASKS["grey"](), f"sub/{name}")
    assert load_masks(MasksConfig(**paths, num_classes=3), is_training=True).dataset[0][1].tolist() == CLASSES.tolist()


def test_two_masks_of_one_image_are_refused(tmp_path):
    paths = folder(tmp_path, MASKS["grey"]())
    MASKS["grey"]().save(tmp_path / "masks/sub/a.tif")
    with pytest.raises(ValueError, match="a.png has 2 masks: .*a.png, .*a.tif; keep one"):
        load_masks(MasksConfig(**paths), is_training=True)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_hold_class_ids(mask, tmp_path):
    pixels = load_masks(MasksConfig(**folder(tmp_path, MASKS[mask]()), num_classes=3), is_training=True)
    image, classes = pixels.dataset[0]
    assert image.shape == (3, 2, 3) and image[:, 0, 0].tolist() == [10, 20, 30]
    assert classes.tolist() == CLASSES.tolist() and classes.dtype == torch.int64


def test_ade20k_ignores_0_and_hrf_has_two_classes(tmp_path):
    paths = folder(tmp_path, MASKS["grey"]())
    ade = load_masks(MasksConfig(**paths, kind="ade20k", num_classes=2), is_training=True)
    assert ade.dataset[0][1].tolist() == [[255, 0, 1], [1, 0, 255]]
    hrf = load_masks(MasksConfig(**paths, kind="hrf"), is_training=True)
    assert hrf.dataset[0][1].tolist() == [[0, 1, 1], [1, 1, 0]] and hrf.id2label == {0: "background", 1: "vessel"}


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (lambda: None, {}, "1 of 1 images have no mask in .*masks; the first is .*a.png"),
        (lambda: Image.new("L", (4, 2)), {}, "has 4 × 2 pixels and .*a.png has 3 × 2; they must be the same"),
        (lambda: Image.new("RGB", (3, 2)), {}, "is a mask of mode RGB; it must hold one class id a pixel"),
        (lambda: Image.new("RGBA", (3, 2)), {}, "is a mask of mode RGBA"),
        (MASKS["grey"], {"num_classes": 2}, "has label 2; with 2 classes of kind 'ids' the labels are 0 to 1"),
        (MASKS["palette"], {"num_classes": 2}, "has label 2; with 2 classes"),
        (lambda: Image.fromarray(300 + CLASSES.astype(np.uint16)), {"num_classes": 3}, "has label 300"),
        (MASKS["grey"], {"kind": "ade20k", "num_classes": 1}, "has label 2; .* the labels are 1 to 1"),
    ],
)
def test_bad_masks_are_named(mask, options, message, tmp_path):
    paths = folder(tmp_path, mask())
    with pytest.raises(ValueError, match=message):
        load_masks(MasksConfig(**paths, **options), is_training=True).dataset[0]


def test_bad_folders_are_named(tmp_path):
    paths = folder(tmp_path, MASKS["grey"]())
    with pytest.raises(ValueError, match="needs --masks"):
        load_masks(MasksConfig(paths["dataset"]), is_training=True)
    with pytest.raises(ValueError, match="nowhere is no folder"):
        load_masks(MasksConfig(str(tmp_path / "nowhere"), paths["masks"]), is_training=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        load_masks(MasksConfig(str(tmp_path / "empty"), paths["masks"]), is_training=True)
    with pytest.raises(ValueError, match="digit_scenes has its own"):
        load_masks(MasksConfig(masks=paths["masks"]), is_training=True)
    for damaged in ("masks", "images"):
        (tmp_path / damaged / "sub/a.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="cannot be read as a"):
            load_masks(MasksConfig(**paths), is_training=True).dataset[0]


def test_strokes_are_thin_and_a_function_of_seed_split_and_index():
    first, again, other = ThinStrokes("train", 9), ThinStrokes("train", 9), ThinStrokes("test", 9)
    image, classes = first[4]
    assert image.shape == (96, 96, 3) and set(np.unique(classes)) == {0, 1}
    assert all(np.array_equal(a, b) for a, b in zip(first[4], again[4], strict=True))
    assert not np.array_equal(image, other[4][0]) and not np.array_equal(image, first[5][0])
    assert 0.01 < np.mean([first[i][1].mean() for i in range(9)]) < 0.2
    with pytest.raises(ValueError, match="splits train, test"):
        ThinStrokes("val", 9)
