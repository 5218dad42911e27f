"""Digit scenes: the same for the same key, and what they say of themselves is true."""

import numpy as np
import pytest

from demo_diffusion.data import scenes
from demo_diffusion.data.scenes import DigitScenes


def test_a_scene_depends_on_seed_split_and_index_alone():
    first, again = DigitScenes("train", 5), DigitScenes("train", 50)
    assert all(np.array_equal(a, b) for a, b in zip(vars(first[3]).values(), vars(again[3]).values(), strict=True))
    others = [first[2], DigitScenes("test", 5)[3], DigitScenes("train", 5, seed=1)[3]]
    assert not any(np.array_equal(first[3].image, other.image) for other in others)


@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_masks_and_class_map_agree(split):
    for scene in (DigitScenes(split, 30, min_side=96, max_side=200)[i] for i in range(30)):
        height, width, _ = scene.image.shape
        assert 96 <= height <= 200 and 96 <= width <= 200 and scene.image.dtype == np.uint8
        assert 1 <= len(scene.labels) <= 5 and len(scene.labels) == len(scene.boxes) == len(scene.masks)
        assert scene.masks.shape[1:] == scene.class_map.shape == (height, width)
        assert scene.masks.sum(0).max() == 1  # no two overlap
        for (left, top, right, bottom), label, mask in zip(scene.boxes, scene.labels, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert set(scene.class_map[mask]) == {label + 1}
            assert right - left <= 40 and bottom - top <= 40
        assert (scene.class_map[~scene.masks.any(0)] == 0).all()


def test_digits_are_divided_before_scenes_are_made():
    (train, train_labels), (test, test_labels) = (scenes.digits_of(split) for split in ("train", "test"))
    assert len(train) + len(test) == 1797 and set(train_labels) == set(test_labels) == set(range(10))
    from sklearn.datasets import load_digits

    pictures = {digit.tobytes() for digit in load_digits().images / 16}
    both = {digit.tobytes() for digit in train} & {digit.tobytes() for digit in test}
    assert {digit.tobytes() for digit in [*train, *test]} == pictures and both == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validation", 5), "splits train, test"),
        (("train", 0), "at least one"),
        (("train", 5, 40), "at least 80"),
        (("train", 5, 200, 100), "the least no more than the most"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(*arguments)
