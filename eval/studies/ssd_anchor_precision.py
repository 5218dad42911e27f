"""Which of SSDLite's two settings of anchors finds objects of which size better, after a short training of both.

python eval/studies/ssd_anchor_precision.py --start runs/digits_ssdlite/model

Digit scenes of 512 pixels with digits of 64 to 480 pixels. Both settings begin with the weights of a detector that has
learned small digits, and see the same scenes in the same order. Prints AP and AP50 for digits of each range of sides,
on scenes of digits that no training has seen.
"""

import argparse
from collections.abc import Sequence

from demo_diffusion.cli.command import one_line_for_mistakes

import torch
from accelerate import PartialState
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import trange

from demo_diffusion.data.objects import SceneObjects
from demo_diffusion.data.scenes import DigitScenes
from demo_diffusion.eval.metrics.detection import measure_precision
from demo_diffusion.models.detection import EMOv2Detector, EMOv2DetectorConfig, load_detector
from demo_diffusion.records.tables import markdown_table

SIDE = 512
SIDES = ((64, 96), (96, 192), (192, 320), (320, 480))  # of the digits in pixels
NUM_TEST_SCENES = 60  # of each range
LEARNING_RATE, MAX_GRAD_NORM = 1e-3, 5.0


def scenes(split: str, count: int, sides: tuple[int, int]) -> SceneObjects:
    return SceneObjects(DigitScenes(split, count, SIDE, SIDE, seed=1, digit_sides=sides), masks=False)


def with_anchors(start: EMOv2Detector, scaled: bool) -> EMOv2Detector:
    """A detector for 512 pixels with the weights of `start`."""
    changes = {"image_size": SIDE, "scaled_anchors": scaled}
    detector = EMOv2Detector(EMOv2DetectorConfig(**{**start.config.to_dict(), **changes}))
    detector.load_state_dict(start.state_dict())
    return detector


def train(detector: EMOv2Detector, steps: int, batch_size: int) -> None:
    samples = scenes("train", steps * batch_size, (SIDES[0][0], SIDES[-1][1]))
    optimizer = torch.optim.AdamW(detector.parameters(), LEARNING_RATE)
    schedule = CosineAnnealingLR(optimizer, steps)
    for step in trange(steps):
        batch = [samples[step * batch_size + i] for i in range(batch_size)]
        targets = [{**target, "labels": target["labels"] + detector.config.first_label} for _, target in batch]
        sum(detector([image.float() / 255 for image, _ in batch], targets).values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@one_line_for_mistakes()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--start", required=True, help="folder of an SSDLite detector that has learned digit scenes")
    parser.add_argument("--steps", type=int, default=300, help="of training, for each setting (default: 300)")
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args(arguments)
    start, state = load_detector(options.start), PartialState(cpu=True)
    rows = {sides: {"side": f"{sides[0]}–{sides[1]}"} for sides in SIDES}
    for name, scaled in (("authors'", False), ("scaled", True)):
        detector = with_anchors(start, scaled).train()
        train(detector, options.steps, options.batch_size)
        for sides, row in rows.items():
            box = measure_precision(detector.eval(), scenes("test", NUM_TEST_SCENES, sides), state, 4).box
            row |= {f"{name}: {score}": f"{100 * box[score]:.1f}" for score in ("AP", "AP50")}
    print(markdown_table(list(rows.values())))


if __name__ == "__main__":
    main()
