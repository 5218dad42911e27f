"""Curves are written whole, in every format."""

import numpy as np
import pytest
from PIL import Image

from demo_diffusion.records.figures import PLOT_FORMATS, save_accuracy_curves, save_loss_curves, save_score_curves

ROWS = [{"step": step, "loss": 1 / step, "top1": 1 - 1 / step} for step in range(1, 20)]


def shown(path) -> float:
    """The share of pixels that are not white."""
    return (np.array(Image.open(path).convert("L")) < 250).mean()


@pytest.mark.parametrize("save", [save_loss_curves, save_accuracy_curves])
def test_each_run_is_drawn(tmp_path, save):
    save(tmp_path / "one.png", {"a": ROWS})
    save(tmp_path / "two.png", {"a": ROWS, "b": ROWS[5:]})
    assert Image.open(tmp_path / "one.png").size == (840, 480)
    assert shown(tmp_path / "two.png") > shown(tmp_path / "one.png") > 0.01


def test_scores_stand_side_by_side(tmp_path):
    curve = {"a": ([1, 2], [3.0, 4.0])}
    save_score_curves(tmp_path / "one.png", {"step": curve}, "fid")
    save_score_curves(tmp_path / "two.png", {"step": curve, "minutes": curve}, "fid")
    assert [Image.open(tmp_path / name).width for name in ("one.png", "two.png")] == [600, 1200]


@pytest.mark.parametrize("suffix", PLOT_FORMATS)
def test_every_format_is_written(tmp_path, suffix):
    save_loss_curves(tmp_path / f"loss{suffix}", {"a": ROWS})
    assert (tmp_path / f"loss{suffix}").stat().st_size > 1000


def test_a_plot_that_fails_leaves_the_earlier_one(tmp_path):
    save_loss_curves(tmp_path / "loss.png", {"a": ROWS})
    before = (tmp_path / "loss.png").read_bytes()
    with pytest.raises(KeyError):
        save_loss_curves(tmp_path / "loss.png", {"a": [{"step": 1}]})
    assert (tmp_path / "loss.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
