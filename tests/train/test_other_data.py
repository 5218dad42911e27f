"""A run that goes on must find the data that it was begun with."""

import json
import shutil

import pytest
import torch
from PIL import Image

from demo_diffusion import DEMOPipeline
from demo_diffusion.data.listing import text_order
from demo_diffusion.train.engine.checkpoints import Checkpoints
from demo_diffusion.train.engine.run_folder import DATA_FILE, RunFolder
from demo_diffusion.train.export_pipeline import main as export
from tests.support.images import image_folder, picture
from tests.support.runs import first_steps_of, forget_hashes, state_of, train

OPTIONS = {
    "resolution": 8,
    "num_steps": 2,
    "checkpoint_every": 1,
    "sample_every": 0,
    "grid_columns": 1,
    "lr_schedule": "constant",
}


def rename(folder):
    (folder / "cat").rename(folder / "zebra")


def swap(folder):
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (folder / old).rename(folder / new)


def add_class(folder):
    image_folder(folder, classes=("eel",))


def remove_class(folder):
    shutil.rmtree(folder / "dog")
    picture((30, 30)).save(folder / "cat/8.png")


def replace_image(folder):
    Image.new("RGB", (20, 12), "red").save(folder / "cat/1.png")


def add_image(folder):
    picture().save(folder / "cat/0b.png")


CHANGES = {
    rename: "class 1 is 'zebra' instead of 'dog'|class 0 is 'dog' instead of 'cat'",
    swap: "other images, or in another order",
    add_class: "9 images instead of 6; 3 classes instead of 2",
    remove_class: "4 images instead of 6; 1 classes instead of 2",
    replace_image: "other images",
    add_image: "7 images instead of 6",
    lambda folder: (folder / "cat/1.png").unlink(): "5 images instead of 6",
    lambda folder: (folder / "cat/1.png").rename(folder / "dog/9.png"): "other images",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(change, tmp_path):
    images = image_folder(tmp_path / "images")
    for i, file in enumerate(sorted(images.rglob("*.png"))):  # all different
        Image.new("RGB", (20, 12), (40 * i, 0, 0)).save(file)
    train(tmp_path / "run", **{**OPTIONS, "num_steps": 1}, dataset=images, batch_size=4)
    change(images)
    with pytest.raises(SystemExit, match=rf"error: .*run holds a run on other data: now there are ({CHANGES[change]})"):
        train(tmp_path / "run", **OPTIONS, dataset=images, batch_size=4)
    assert first_steps_of(tmp_path / "run") == [0]
    with pytest.raises(SystemExit, match="error: .*run holds a run on other data"):  # its classes would get other names
        export([str(tmp_path / "run"), f"--out={tmp_path / 'exported'}"])
    assert not (tmp_path / "exported").exists()


def test_the_same_data_go_on_with_and_without_the_record(tmp_path):
    images = image_folder(tmp_path / "images")
    for steps in (1, 2, 3):
        train(tmp_path / "run", **{**OPTIONS, "num_steps": steps}, dataset=images, batch_size=4)
        assert json.loads((tmp_path / "run" / DATA_FILE).read_text())["num_images"] == 6
        if steps == 2:  # a run of an older version has none
            (tmp_path / "run" / DATA_FILE).unlink()
            forget_hashes(Checkpoints(tmp_path / "run/checkpoints").latest())
    assert first_steps_of(tmp_path / "run") == [0, 1, 2]


@pytest.mark.parametrize("has_record", [True, False])
def test_a_run_keeps_the_order_of_classes_that_it_began_with(has_record, tmp_path, monkeypatch):
    """Classes were numbered as texts once, 0, 1, 10, 2, …: by runs with and without a record of their data."""
    names = [str(i) for i in range(11)]
    images = image_folder(tmp_path / "images", classes=names)
    options = {**OPTIONS, "dataset": images, "batch_size": 4}
    with monkeypatch.context() as before:
        before.setattr(RunFolder, "class_order", lambda self: text_order)
        for name in ("run", "expected"):
            train(tmp_path / name, **{**options, "num_steps": 1 if name == "run" else 2})
    if not has_record:
        (tmp_path / "run" / DATA_FILE).unlink()
        forget_hashes(Checkpoints(tmp_path / "run/checkpoints").latest())
    train(tmp_path / "run", **options)
    export([str(tmp_path / "run"), f"--out={tmp_path / 'exported/pipeline'}"])
    for name in ("run", "expected", "exported"):
        pipeline = DEMOPipeline.from_pretrained(tmp_path / name / "pipeline")
        assert [pipeline.labels[label] for label in sorted(names)] == list(range(11))
    expected = state_of(tmp_path / "expected")
    assert all(torch.equal(value, expected[name]) for name, value in state_of(tmp_path / "run").items())
    train(tmp_path / "new", **options)
    assert DEMOPipeline.from_pretrained(tmp_path / "new" / "pipeline").labels["10"] == 10
