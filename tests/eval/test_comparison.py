"""Runs side by side: scores here; losses and accuracies where runs are trained, in tests/train."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from demo_diffusion.eval.compare_runs import main
from demo_diffusion.eval.reports.comparison import ScoredRun, compare_scores


def scored_run(
    folder: Path, speed: float, scores: dict[int, float], last_step: int = 300, num_samples: int = 50
) -> Path:
    """Batches of 10; the loss is 1 / step; the first row's speed is that of compiling."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"optimization": {"batch_size": 10}}))
    rows = [f"{step},{speed if step > 10 else 0.1},{1 / step}" for step in range(10, last_step + 1, 10)]
    (folder / "loss.csv").write_text("\n".join(["step,images_per_second,loss", *rows, ""]))
    for step, value in scores.items():
        out = folder / f"evaluation/step-{step:09d}"
        out.mkdir(parents=True)
        (out / "results.json").write_text(
            json.dumps(
                {"metrics": {"fid": value, "kid": None, "kid_std": 1.0}, "fingerprint": {"num_samples": num_samples}}
            )
        )
    return folder


def test_runs_are_compared_at_equal_steps_and_at_equal_time(tmp_path):
    fast = scored_run(tmp_path / "fast", 20.0, {100: 50.0, 200: 30.0, 300: 20.0})
    slow = scored_run(tmp_path / "slow", 10.0, {100: 40.0, 200: 24.0})
    rows = compare_scores([ScoredRun.read(run, ["fid"]) for run in (fast, slow)])
    found = [(Path(r["run"]).name, r["at"], r["steps"], r["seconds"], r["fid"]) for r in rows]
    assert found == [
        ("fast", "200 steps", "200", "100", "30"),
        ("slow", "200 steps", "200", "200", "24"),
        ("fast", "150 s", "300", "150", "20"),
        ("slow", "150 s", "150", "150", "32"),
    ]
    mean = sum(1 / step for step in (190, 200)) / 2
    assert float(rows[0]["loss"]) == pytest.approx(mean, rel=1e-3)


def test_what_was_not_measured_is_left_out(tmp_path):
    """At the time of the fast run's last score the slow one has no score yet, and a run's losses may end earlier."""
    fast = scored_run(tmp_path / "fast", 20.0, {100: 50.0, 300: 20.0}, last_step=290)
    slow = scored_run(tmp_path / "slow", 4.0, {100: 40.0})
    rows = compare_scores([ScoredRun.read(run, ["fid"]) for run in (fast, slow)])
    assert [(row["steps"], row["fid"]) for row in rows] == [("100", "50"), ("100", "40"), ("300", "20"), ("60", "–")]
    assert rows[2]["loss"] == "–" and rows[3]["loss"] == f"{1 / 60:.4g}"


def test_a_loss_is_that_of_the_newest_row_where_rows_are_rare(tmp_path):
    run = ScoredRun.read(scored_run(tmp_path / "run", 20.0, {100: 50.0}), ["fid"])
    assert run.loss_until(39) == pytest.approx(1 / 30)
    assert run.loss_until(20) == pytest.approx(1 / 20)


def test_the_command_prints_a_table_and_draws_the_curves(tmp_path, capsys):
    runs = [scored_run(tmp_path / name, speed, {100: 50.0, 300: 20.0}) for name, speed in (("a", 20.0), ("b", 10.0))]
    main([*map(str, runs), "--plot", "fid", "--out", str(tmp_path / "fid.png")])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 6 and "| 300 | 150 |" in table[2]
    main([*map(str, runs), "--plot", "fid", "--images_per_second", "5", "5", "--out", str(tmp_path / "fid.png")])
    assert "| 300 | 600 |" in capsys.readouterr().out.splitlines()[2]
    assert Image.open(tmp_path / "fid.png").width > 500
    main([*map(str, runs), "--plot", "kid_std", "--out", str(tmp_path / "kid.png"), "--metrics", "fid"])
    assert capsys.readouterr().out.splitlines()[0].endswith("| loss | kid_std | fid |")


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({}, [], "has no scores"),
        ({100: 1.0}, ["--metrics", "kid"], "has no kid; it has fid, kid_std"),
        ({200: 1.0}, [], "no step at which all runs were scored"),
        ({100: 1.0}, ["--out", "fd.jpg"], "must be a .png"),
        ({100: 1.0}, ["--images_per_second", "5"], r"has \[5.0\]; it must have a positive number for each run"),
        ({100: 1.0}, ["--images_per_second", "5", "0"], "must have a positive number"),
    ],
)
def test_bad_input_is_refused(tmp_path, scores, options, message):
    runs = [scored_run(tmp_path / "a", 10.0, {100: 1.0}), scored_run(tmp_path / "b", 10.0, scores)]
    with pytest.raises(SystemExit, match=message):
        main([*map(str, runs), "--plot", "fid", "--out", str(tmp_path / "fid.png"), *options])
    assert not (tmp_path / "fid.png").exists()


def test_speeds_are_for_scores(tmp_path):
    run = scored_run(tmp_path / "a", 10.0, {100: 1.0})
    with pytest.raises(SystemExit, match="--images_per_second is for scores"):
        main([str(run), "--images_per_second", "5", "--out", str(tmp_path / "loss.png")])


def test_scores_of_other_numbers_of_samples_are_refused(tmp_path):
    runs = [scored_run(tmp_path / str(n), 10.0, {100: 1.0}, num_samples=n) for n in (50, 60)]
    with pytest.raises(SystemExit, match=r"differ in num_samples \(50, 60\)"):
        main([*map(str, runs), "--plot", "fid", "--out", str(tmp_path / "fid.png")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("step-late", "{}"),
        (f"step-{10**200}", "{}"),
        ("step-5", "{"),
        ("step-5", '{"metrics": {}}'),
        ("step-5", "[" * 100_000),
        ("step-5", f'{{"metrics": {{"fid": {10**400}}}, "fingerprint": {{}}}}'),
    ],
)
def test_damaged_scores_are_named(tmp_path, name, text):
    run = scored_run(tmp_path / "a", 10.0, {100: 1.0})
    (run / "evaluation" / name).mkdir()
    (run / "evaluation" / name / "results.json").write_text(text)
    with pytest.raises(SystemExit, match=f"{name}(/.*is not what eval/evaluate.py| is not the folder of)"):
        main([str(run), "--plot", "fid", "--out", str(tmp_path / "fid.png")])


def test_a_folder_without_losses_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="lacks loss.csv or config.yaml"):
        main([str(tmp_path), "--plot", "fid", "--out", str(tmp_path / "fid.png")])
