"""Images with boxes: digit scenes, and COCO JSON files with everything that may be wrong in them."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import encode

from demo_diffusion.data.coco_file import run_lengths
from demo_diffusion.data.objects import ObjectsConfig, describe_objects, load_objects
from demo_diffusion.data.preparation import read_rgb
from tests.support.coco import annotation, coco_content, coco_folder


def open_folder(path, content=None, is_training=False, masks=False, **options):
    images, file = coco_folder(path, content)
    return load_objects(ObjectsConfig(images, file, **options), is_training, masks)


@pytest.mark.parametrize("masks", [False, True])
def test_digit_scenes_are_objects(masks):
    objects = load_objects(ObjectsConfig(num_scenes=3), is_training=True, masks=masks)
    image, target = objects.dataset[0]
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and objects.num_classes == 10
    assert target["boxes"].shape == (len(target["labels"]), 4) and ("masks" in target) == masks
    measured = load_objects(ObjectsConfig(num_scenes=3), is_training=False)
    assert describe_objects(measured) != describe_objects(objects) == describe_objects(objects)


def test_coco_files_are_read(tmp_path):
    objects = open_folder(tmp_path, masks=True)
    assert objects.id2label == {0: "person", 1: "stop sign", 2: "toothbrush"}  # in the order of their ids
    assert len(objects.dataset) == 4
    image, target = objects.dataset[0]
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[10, 5, 30, 25], [0, 0, 60, 40]]  # half a pixel too wide is clipped
    assert target["labels"].tolist() == [1, 2] and target["area"].tolist() == [400, 2400]
    assert target["masks"].shape == (2, 40, 60) and target["masks"].sum((1, 2)).tolist() == [400, 2400]
    _, crowd = objects.dataset[1]
    assert crowd["iscrowd"].tolist() == [1, 0] and crowd["masks"][0].sum() == 120
    _, empty = objects.dataset[2]
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 64, 64) and len(empty["labels"]) == 0


def test_training_leaves_out_crowds_empty_and_tiny_images(tmp_path):
    objects = open_folder(tmp_path, is_training=True)
    assert [len(objects.dataset[i][1]["labels"]) for i in range(len(objects.dataset))] == [2, 1]
    assert objects.dataset[1][1]["labels"].tolist() == [0]


def changed(**changes) -> dict:
    content = coco_content()
    for name, value in changes.items():
        content[name] = value(content[name]) if callable(value) else value
    return content


def with_field(name: str, value: object):
    """Changes a field of the first entry."""
    return lambda entries: [{**entries[0], name: value}, *entries[1:]]


def run_lengths_of(counts: object) -> dict:
    return {"size": [40, 60], "counts": counts}


WRONG = {
    "outside": (
        changed(annotations=[annotation(7, bbox=[50, 5, 20, 20])]),
        "annotation 7 lies outside its image of 60",
    ),
    "above": (changed(annotations=[annotation(7, bbox=[5, -9, 20, 20])]), "annotation 7 lies outside"),
    "beside": (changed(annotations=[annotation(7, bbox=[60, 5, 1, 20])]), "annotation 7 lies outside"),
    "empty": (changed(annotations=[annotation(7, bbox=[5, 5, 0, 20])]), "annotation 7 is empty"),
    "negative": (changed(annotations=[annotation(7, bbox=[5, 5, 20, -2])]), "annotation 7 is empty"),
    "three numbers": (changed(annotations=[annotation(7, bbox=[5, 5, 20])]), "no list of four numbers"),
    "not a number": (changed(annotations=[annotation(7, bbox=[5, float("nan"), 20, 2])]), "no list of four numbers"),
    "unknown category": (changed(annotations=[annotation(7, category_id=2)]), "category 2; listed are 1, 13, 90"),
    "unknown image": (changed(annotations=[annotation(7, image=9)]), "of image 9, which is not listed"),
    "twice the same id": (changed(annotations=[annotation(7), annotation(7)]), "two entries of 'annotations'"),
    "twice the same name": (changed(categories=lambda c: [*c, {"id": 2, "name": "person"}]), "two categories"),
    "no categories": (changed(categories=None), "no lists 'annotations' and 'categories'"),
    "no images": (changed(images=None), "no list 'images'"),
    "no box": (changed(annotations=[{"id": 1, "image_id": 1, "category_id": 1}]), "entry 0 of 'annotations'"),
    "missing files": (
        changed(images=lambda images: [*images, {"id": 8, "file_name": "gone.jpg", "width": 9, "height": 9}]),
        "gone.jpg are missing",
    ),
    "a list": ([], "no COCO JSON file"),
    "categories that are none": (changed(categories=[]), "no categories"),
    "a width that is a text": (changed(images=with_field("width", "60")), "image 1 has the width '60'"),
    "a height that is nothing": (changed(images=with_field("height", None)), "image 1 has the height None"),
    "a width of a billion": (changed(images=with_field("width", 10**9)), "image 1 has the width 1000000000; it must"),
    "a name that is a number": (changed(images=with_field("file_name", 1)), "image 1 has the file_name 1"),
    "ids of two types": (changed(images=with_field("id", "1")), "ids of 'images' are of the types int, str"),
    "an id with a point": (changed(annotations=[annotation(1.5)]), "entry 0 of 'annotations' has the id 1.5"),
    "a category's name": (changed(categories=[{"id": 13, "name": None}]), "category 13 has the name None"),
    "a category that is a list": (changed(annotations=[annotation(7, category_id=[13])]), r"the category \[13\]"),
    "a crowd of two": (changed(annotations=[annotation(7, iscrowd=2)]), "annotation 7 has iscrowd 2"),
    "a crowd of nothing": (changed(annotations=[annotation(7, iscrowd=None)]), "annotation 7 has iscrowd None"),
    "a negative area": (changed(annotations=[annotation(7, area=-5)]), "annotation 7 has the area -5"),
    "an area of no number": (changed(annotations=[annotation(7, area=float("nan"))]), "has the area nan"),
    "an area that is nothing": (changed(annotations=[annotation(7, area=None)]), "has the area None"),
    "a box of flags": (changed(annotations=[annotation(7, bbox=[True, True, 5, 5])]), "no list of four numbers"),
}
WRONG_MASKS = {
    "no mask": (annotation(7, segmentation=[]), "annotation 7 has no segmentation"),
    "of another size": (annotation(7, segmentation={"size": [60, 40], "counts": [2400]}), r"mask of \[60, 40\] for an"),
    "two points": (annotation(7, segmentation=[[1, 1, 5, 5]]), "at least three points"),
    "a flat polygon": (annotation(7, segmentation=[1, 1, 5, 5, 1, 5]), "at least three points"),
    "a point of no number": (annotation(7, segmentation=[[1, 1, 5, float("nan"), 1, 5]]), "other values than finite"),
    "a point of nothing": (annotation(7, segmentation=[[1, 1, 5, None, 1, 5]]), "other values than finite"),
    "a point far to the right": (annotation(7, segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), "x from 0 to 1e.09, outside"),
    "a point far below": (annotation(7, segmentation=[[0, 0, 5, 0, 5, 51]]), "y from 0 to 51, outside its image of 60"),
    "a point far above": (annotation(7, segmentation=[[0, -11, 5, 0, 5, 9]]), "y from -11 to 9, outside its image"),
    "a number that never ends": (annotation(7, segmentation=run_lengths_of("o" * 10**6)), "no run lengths"),
    "counts of too few pixels": (annotation(7, segmentation=run_lengths_of([5, 5])), "10 pixels in all; its image has"),
    "negative counts": (annotation(7, segmentation=run_lengths_of([-5, 2405])), "no run lengths"),
    "no counts": (annotation(7, segmentation={"size": [40, 60]}), "no run lengths"),
    "a text that is cut off": (annotation(7, segmentation=run_lengths_of("PU2")), "pixels in all|no run lengths"),
    "a text of other characters": (annotation(7, segmentation=run_lengths_of("a b")), "no run lengths"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_named_in_one_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        open_folder(tmp_path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("wrong", "message"), WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_wrong_masks_are_named_where_masks_are_needed(tmp_path, wrong, message):
    open_folder(tmp_path, changed(annotations=[wrong]))
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, changed(annotations=[wrong]), masks=True)


def test_bad_boxes_can_be_skipped(tmp_path):
    content = changed(annotations=[annotation(7, bbox=[5, 5, 0, 20]), annotation(8)])
    objects = open_folder(tmp_path, content, is_training=True, skip_bad_boxes=True)
    assert objects.dataset[0][1]["boxes"].tolist() == [[10, 5, 30, 25]]
    with pytest.raises(ValueError, match="no image with an object to learn"):
        open_folder(tmp_path, changed(annotations=content["annotations"][:1]), True, skip_bad_boxes=True)


def test_an_image_of_another_size_than_its_annotations_is_named(tmp_path):
    content = coco_content()
    content["images"][0]["width"] = 61
    with pytest.raises(ValueError, match="1.png has 60 × 40 pixels; its annotations are for 61 × 40"):
        open_folder(tmp_path, content).dataset[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "nowhere", "annotations": "x.json"}, "no folder of images nowhere"),
        ({"dataset": ".", "annotations": "x.json"}, "no COCO JSON file x.json"),
        ({"dataset": "."}, "needs --annotations"),
        ({"annotations": "x.json"}, "digit_scenes has its own"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        load_objects(ObjectsConfig(**options), is_training=True)


def test_a_damaged_file_is_named(tmp_path):
    images, file = coco_folder(tmp_path)
    (tmp_path / "objects.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"objects.json cannot be read"):
        load_objects(ObjectsConfig(images, file), is_training=True)


def test_pictures_are_read_as_by_every_command(tmp_path):
    images, file = coco_folder(tmp_path)
    deep = np.arange(60 * 40, dtype=np.uint16).reshape(40, 60) * 27
    Image.fromarray(deep).save(tmp_path / "pictures/1.png")
    dataset = load_objects(ObjectsConfig(images, file), is_training=False).dataset
    read = read_rgb(tmp_path / "pictures/1.png")
    assert (dataset[0][0].permute(1, 2, 0).numpy() == np.array(read)).all() and len(np.unique(read)) == 253
    (tmp_path / "pictures/1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1.png cannot be read as an image"):
        dataset[0]


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_are_read_as_coco_wrote_them(seed):
    random = np.random.default_rng(seed)
    mask = (random.random((37, 53)) < random.random()).astype(np.uint8) if seed else np.zeros((37, 53), np.uint8)
    counts = run_lengths(encode(np.asfortranarray(mask))["counts"].decode())
    runs = np.repeat(np.arange(len(counts)) % 2, counts)
    assert (runs == mask.flatten(order="F")).all()
