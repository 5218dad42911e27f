"""Average precision of cases that can be worked out by hand."""

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from demo_diffusion.eval.metrics.detection import AveragePrecision, detect
from tests.support.detectors import DETECTORS, TINY, small_detector

HALF = 51 / 101  # recall ½ with precision 1: the thresholds 0, 0.01, … 0.50 of 101


def objects(*boxes, labels=None, scores=None, **more) -> dict[str, torch.Tensor]:
    """Boxes as x1, y1, x2, y2; label 0 unless told."""
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64),
        **{name: torch.as_tensor(value) for name, value in more.items()},
    }
    if scores is not None:
        found["scores"] = torch.tensor(scores, dtype=torch.float32)
    return found


def square(side: float, left: float = 0, top: float = 0) -> tuple[float, ...]:
    return left, top, left + side, top + side


def precision_of(*images, masks: bool = False):
    """Scores of (found, truth) pairs."""
    precision = AveragePrecision(masks)
    for found, truth in images:
        precision.update([found], [truth])
    return precision.compute()


S, M, L = square(20), square(50, 100, 100), square(200, 200, 200)
NOTHING = objects(scores=[])
FAR = square(50, 400, 400)

CASES = {
    "all found": ([(objects(M, scores=[0.9]), objects(M))], {"AP": 1, "AP50": 1, "AP75": 1}),
    "three of five found": (
        [
            (
                objects(*(square(50, 100 * i) for i in range(3)), scores=[0.9] * 3),
                objects(*(square(50, 100 * i) for i in range(5))),
            )
        ],
        {"AP": 61 / 101, "AP50": 61 / 101},  # the thresholds up to 0.60, which float32 would round away
    ),
    "nothing found": ([(NOTHING, objects(M))], {"AP": 0, "AP50": 0}),
    "one of two found": ([(objects(M, scores=[0.9]), objects(M, FAR))], {"AP": HALF, "AP50": HALF}),
    "IoU 0.62": (
        [(objects((0, 0, 62, 100), scores=[0.9]), objects((0, 0, 100, 100)))],
        {"AP": 0.3, "AP50": 1, "AP75": 0},  # 0.50, 0.55 and 0.60 of ten
    ),
    "a wrong one first": ([(objects(FAR, M, scores=[0.9, 0.8]), objects(M))], {"AP": 0.5, "AP50": 0.5}),
    "a wrong one last": ([(objects(FAR, M, scores=[0.7, 0.8]), objects(M))], {"AP": 1}),
    "the same twice": (
        [(objects(M, M, FAR, scores=[0.9, 0.8, 0.7]), objects(M, FAR))],
        {"AP": (51 + 50 * 2 / 3) / 101},
    ),
    "two classes, one found": (
        [(objects(M, scores=[0.9], labels=[0]), objects(M, FAR, labels=[0, 1]))],
        {"AP": 0.5, "AP50": 0.5},
    ),
    "a class that is not there": (
        [(objects(M, FAR, scores=[0.8, 0.9], labels=[0, 7]), objects(M))],
        {"AP": 1, "AP50": 1},
    ),
    "areas": (
        [(objects(M, scores=[0.9]), objects(S, M, L))],
        {"AP": 34 / 101, "APs": 0, "APm": 1, "APl": 0},  # recall ⅓
    ),
    "a wrong one of another area": (
        [(objects(L, M, scores=[0.9, 0.8]), objects(M))],
        {"AP": 0.5, "APs": None, "APm": 1, "APl": None},
    ),
    "the area that the truth gives": (
        [(objects(M, scores=[0.9]), objects(M, area=[900.0]))],  # a thin object in a box of 2500
        {"AP": 1, "APs": 1, "APm": None},
    ),
    "a crowd": (
        [(objects(square(50, 20, 20), FAR, scores=[0.9, 0.8]), objects(square(300), FAR, iscrowd=[1, 0]))],
        {"AP": 1, "AP50": 1},
    ),
    "the same without a crowd": (
        [(objects(square(50, 20, 20), FAR, scores=[0.9, 0.8]), objects(square(300), FAR, iscrowd=[0, 0]))],
        {"AP": 51 / 101 / 2},  # precision ½ up to recall ½
    ),
    "a crowd that nobody finds": ([(NOTHING, objects(L, iscrowd=[1]))], {"AP": None}),
    "no truth at all": ([(objects(M, scores=[0.9]), objects())], {"AP": None, "AP50": None, "APs": None}),
    "an image without objects": (
        [(objects(M, scores=[0.9]), objects()), (objects(M, scores=[0.8]), objects(M))],
        {"AP": 0.5, "AP50": 0.5},
    ),
    "the right box in the wrong image": (
        [(objects(M, scores=[0.9]), objects(FAR)), (objects(FAR, scores=[0.8]), objects(M))],
        {"AP": 0},
    ),
}


@pytest.mark.parametrize(("images", "expected"), CASES.values(), ids=CASES)
def test_boxes(images, expected):
    box, mask = precision_of(*images)
    assert mask is None
    for name, value in expected.items():
        assert box[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


def test_only_the_best_hundred_count():
    wrong = [square(50, 60 * i, 900) for i in range(100)]
    found = objects(*wrong, M, scores=[0.9] * 100 + [0.1])
    assert precision_of((found, objects(M)))[0]["AP"] == 0


def mask_of(*area, size=(120, 120)) -> torch.Tensor:
    left, top, right, bottom = area
    mask = torch.zeros(size)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize(
    ("area", "ap", "ap50"), [((0, 0, 100, 100), 1, 1), ((0, 0, 62, 100), 0.3, 1), ((0, 0, 49, 100), 0, 0)]
)
def test_masks_are_measured_beside_boxes(area, ap, ap50):
    box = (0, 0, 100, 100)
    truth = objects(box, masks=mask_of(*box)[None].bool())
    found = objects(box, scores=[0.9], masks=mask_of(*area)[None, None] * 0.6)  # probabilities
    boxes, masks = precision_of((found, truth), masks=True)
    assert boxes["AP"] == 1 and masks["AP"] == pytest.approx(ap) and masks["AP50"] == pytest.approx(ap50)


def test_an_image_without_objects_has_no_masks():
    box = (0, 0, 100, 100)
    right = (
        objects(box, scores=[0.9], masks=mask_of(*box)[None, None]),
        objects(box, masks=mask_of(*box)[None].bool()),
    )
    nothing = {"masks": torch.zeros(0, 120, 120, dtype=torch.bool)}
    boxes, masks = precision_of(right, (objects(scores=[], masks=torch.zeros(0, 1, 120, 120)), objects(**nothing)),
                                masks=True)  # fmt: skip
    assert boxes["AP"] == masks["AP"] == 1


def random_image(random: np.random.Generator) -> tuple[dict, dict]:
    """(found, truth) of an image: objects of all areas, crowds, some found a little beside, and wrong ones."""
    count = int(random.integers(0, 9))
    corners = random.integers(0, 300, (count, 2))
    boxes = np.concatenate([corners, corners + random.integers(5, 200, (count, 2))], 1).astype(float)
    labels = random.integers(0, 3, count)
    truth = objects(*boxes.tolist(), labels=labels.tolist(), iscrowd=(random.random(count) < 0.2).astype(int).tolist())
    near = boxes + random.normal(0, 6, boxes.shape)
    wrong = random.integers(0, 200, (3, 2)).astype(float)
    found = np.concatenate([near[random.random(count) < 0.8], np.concatenate([wrong, wrong + 60], 1)])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    kinds = random.integers(0, 3, len(found))
    return objects(*found.tolist(), labels=kinds.tolist(), scores=random.random(len(found)).tolist()), truth


def coco_precision(images: list[tuple[dict, dict]]) -> dict[str, float]:
    """The same by the authors of COCO: pycocotools."""
    annotations, detections = [], []
    for number, (found, truth) in enumerate(images):
        for box, label, crowd in zip(*(truth[key].tolist() for key in ("boxes", "labels", "iscrowd")), strict=True):
            sides = [*box[:2], box[2] - box[0], box[3] - box[1]]
            of_truth = {"bbox": sides, "area": sides[2] * sides[3], "iscrowd": crowd, "id": len(annotations) + 1}
            annotations.append({"image_id": number, "category_id": label, **of_truth})
        for box, label, score in zip(*(found[key].tolist() for key in ("boxes", "labels", "scores")), strict=True):
            sides = [*box[:2], box[2] - box[0], box[3] - box[1]]
            detections.append({"image_id": number, "category_id": label, "bbox": sides, "score": score})
    truth = COCO()
    categories = [{"id": label} for label in range(3)]
    truth.dataset = {"images": [{"id": i} for i in range(len(images))], "annotations": annotations}
    truth.dataset |= {"categories": categories, "info": {}}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), evaluation.stats, strict=False))


@pytest.mark.parametrize("seed", range(3))
def test_random_images_have_the_precision_that_coco_s_own_code_gives(seed):
    random = np.random.default_rng(seed)
    images = [random_image(random) for _ in range(30)]
    box, _ = precision_of(*images)
    assert box == pytest.approx(coco_precision(images), abs=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_found_does_not_depend_on_the_other_images(name):
    torch.manual_seed(0)
    detector = small_detector(name, **TINY).eval()
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((60, 140), (96, 64), (120, 90))]
    together = detect(detector, images, torch.device("cpu"))
    for image, found in zip(images, together, strict=True):
        (alone,) = detect(detector, [image], torch.device("cpu"))
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
