"""mIoU, accuracies and mDice of cases worked out by hand."""

import pytest
import torch
from accelerate import PartialState
from torch import nn

from demo_diffusion.eval.metrics.segmentation import measure_overlap, overlap_of


class Fixed(nn.Module):
    """Finds the class that an image's red channel names."""

    def __init__(self, num_labels: int):
        super().__init__()
        self.config = type("Config", (), {"num_labels": num_labels})()

    def forward(self, pixel_values):
        red = (255 * (pixel_values[:, 0] * 0.229 + 0.485)).round().long()
        return type("Output", (), {"logits": nn.functional.one_hot(red, self.config.num_labels).movedim(-1, 1).float()})


def measured(found: list, there: list, num_labels: int):
    samples = []
    for guess, truth in zip(found, there, strict=True):
        image = torch.tensor(guess, dtype=torch.uint8)[None].expand(3, -1, -1).contiguous()
        samples.append((image, torch.tensor(truth)))
    return measure_overlap(Fixed(num_labels), samples, PartialState(cpu=True))


def test_one_image():
    """Class 0: 2 right of 3 there and 2 found; class 1: 1 right of 1 there and 2 found."""
    overlap = measured([[[0, 0], [1, 1]]], [[[0, 0], [0, 1]]], 2)
    assert overlap.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert overlap.aacc == pytest.approx(3 / 4)
    assert overlap.macc == pytest.approx((2 / 3 + 1) / 2)
    assert overlap.mdice == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert overlap.iou == [pytest.approx(2 / 3), pytest.approx(1 / 2)]


def test_ignored_pixels_count_nowhere_and_absent_classes_in_no_mean():
    overlap = measured([[[0, 1, 1]]], [[[0, 255, 1]]], 3)
    assert (overlap.miou, overlap.aacc, overlap.macc, overlap.mdice) == (1, 1, 1, 1)
    assert overlap.iou == [1, 1, None]
    with pytest.raises(ValueError, match="No pixel of the 1 images counts: every label is 255"):
        measured([[[0, 1]]], [[[255, 255]]], 2)


def test_a_class_that_is_found_and_not_there_lowers_miou_and_not_macc():
    overlap = measured([[[0, 2]]], [[[0, 0]]], 3)
    assert overlap.iou == [pytest.approx(1 / 2), None, 0]
    assert overlap.miou == pytest.approx(1 / 4) and overlap.macc == pytest.approx(1 / 2)
    assert overlap.mdice == pytest.approx((2 / 3 + 0) / 2)


def test_the_whole_set_has_one_matrix_which_is_not_the_mean_over_images():
    found, there = [[[0, 1, 1, 1]], [[0, 0]]], [[[0, 0, 0, 1]], [[0, 0]]]
    overlap = measured(found, there, 2)
    assert overlap.iou == [pytest.approx(3 / 5), pytest.approx(1 / 3)]
    means = [measured([f], [t], 2).miou for f, t in zip(found, there, strict=True)]
    assert means == [pytest.approx(1 / 3), 1] and overlap.miou == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert abs(sum(means) / 2 - overlap.miou) > 0.1


def test_rows_are_what_is_there():
    assert overlap_of(torch.tensor([[1, 3], [0, 4]]), 1).macc == pytest.approx((1 / 4 + 1) / 2)
