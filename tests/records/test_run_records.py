"""What a run logs is read as it was written."""

import pytest

from demo_diffusion.records.run_records import add_scores, read_losses, read_scores, write_losses


def test_losses_are_read_as_written(tmp_path):
    rows = [{"step": 10, "loss": 0.1 + 0.2}, {"step": 20, "loss": 1e-7, "grad_norm": 2.5}]
    assert read_losses(tmp_path) == []
    write_losses(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    write_losses(tmp_path, rows)
    assert read_losses(tmp_path) == rows and read_losses(tmp_path, until_step=15) == rows[:1]
    assert (tmp_path / "loss.csv").read_text().splitlines()[0] == "step,loss,grad_norm"
    assert type(read_losses(tmp_path)[0]["step"]) is int


def test_an_accuracy_replaces_those_of_later_steps(tmp_path):
    for step, top1 in ((10, 0.5), (20, 0.6), (30, 1), (20, 0.7)):
        add_scores(tmp_path, "accuracy", step, {"top1": top1, "top5": 1.0})
    assert [(row["step"], row["top1"]) for row in read_scores(tmp_path, "accuracy")] == [(10, 0.5), (20, 0.7)]
    assert all(type(row["top5"]) is float for row in read_scores(tmp_path, "accuracy"))


@pytest.mark.parametrize("row", [f"{10**400},1", f"1,{10**400}", f"{2**53 + 1},1"])
def test_numbers_that_no_float_holds_are_refused(row, tmp_path):
    (tmp_path / "loss.csv").write_text(f"step,loss\n{row}\n")
    with pytest.raises(ValueError, match="loss.csv cannot be read: it has the number .*; the largest is 900719"):
        read_losses(tmp_path)
