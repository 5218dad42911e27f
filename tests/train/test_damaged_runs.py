"""Damaged files of a run: it goes on as if nothing were, or ends in one error that says what to do."""

import re
import shutil

import pytest
from accelerate import Accelerator

from demo_diffusion.records.run_records import SCORES, add_scores, read_losses, read_scores
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.engine.run_folder import RunFolder, read_parts
from tests.support.damage import DAMAGES
from tests.support.runs import arguments, first_steps_of, train

STEP = 8
NEEDED = "config.yaml"  # all others are made anew
FILES = (NEEDED, "run.json", "loss.csv", "accuracy.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = train(tmp_path_factory.mktemp("finished") / "run")
    add_scores(run, "accuracy", STEP, {"top1": 0.5, "top5": 0.75})
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def go_on(run) -> None:
    config, folder = parse_config(arguments(run)), RunFolder(run)
    folder.check(config)
    folder.start(config, Accelerator(cpu=True), STEP)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_or_made_anew(run, file, damage):
    before = (run / file).read_bytes()
    DAMAGES[damage](run / file)
    if damage == "folder" or file == NEEDED:
        # What is left of a file that was cut off may still be a config, of another run.
        named = rf"({file}|holds a run with other settings)(?s:.*)(Move it away|another --output_dir)"
        with pytest.raises(ValueError, match=named):
            go_on(run)
        return
    if damage == "missing":
        go_on(run)
    else:
        with pytest.warns(UserWarning, match=rf"{file} cannot be read: (?s:.+) begins anew.*{file}.damaged now"):
            go_on(run)
        kept = run / f"{file}.damaged"
        assert kept.is_symlink() or kept.read_bytes() != before
    losses, accuracies, parts = read_losses(run), read_scores(run, "accuracy"), read_parts(run)
    assert len(losses) == (0 if file == "loss.csv" else 4)
    assert len(accuracies) == (0 if file == "accuracy.csv" else 1)
    assert [part["first_step"] for part in parts] == ([STEP] if file == "run.json" else [0, STEP])


@pytest.mark.parametrize("file", ["run.json", "loss.csv"])
def test_a_training_goes_on_without_a_record(run, file):
    DAMAGES["zeros"](run / file)
    with pytest.warns(UserWarning, match=f"{file}.* begins anew"):
        train(run)
    assert first_steps_of(run)[-1] == STEP and (run / "pipeline").is_dir()


def test_a_training_with_a_damaged_config_ends_in_one_line(run):
    DAMAGES["binary"](run / "config.yaml")
    with pytest.raises(SystemExit, match=r"^error: .*config.yaml cannot be read: it is no text in UTF-8. Bring back"):
        train(run)


LOGS = ("loss.csv", *(f"{kind}.csv" for kind in SCORES))


@pytest.mark.parametrize("file", LOGS)
def test_a_changed_digit_of_what_was_logged_is_seen(tmp_path, file):
    run = train(tmp_path / "run", num_steps=4, lr_schedule="constant")
    for kind, names in SCORES.items():
        add_scores(run, kind, 4, dict.fromkeys(names, 0.5))
    train(run, num_steps=STEP, lr_schedule="constant")
    for kind, names in SCORES.items():  # measured after the last checkpoint was saved
        add_scores(run, kind, STEP, dict.fromkeys(names, 0.25))
    options = {"num_steps": STEP + 2, "lr_schedule": "constant"}
    shutil.copytree(run, tmp_path / "copy")
    train(tmp_path / "copy", **options)
    assert not list((tmp_path / "copy").glob("*.damaged"))
    rows = (run / file).read_text().splitlines(keepends=True)
    (place,) = (i for i, row in enumerate(rows) if row.startswith("4,"))
    rows[place] = re.sub(r"\.(\d)", lambda digit: f".{(int(digit[1]) + 1) % 10}", rows[place], count=1)
    (run / file).write_text("".join(rows))
    with pytest.warns(UserWarning, match=f"{file} changed since the checkpoint of step {STEP} .* begins anew"):
        train(run, **options)


BROKEN_ROWS = {
    "cut within a number": lambda text: text[:-3],
    "no header": lambda text: text.partition("\n")[2],
    "a comma more": lambda text: text[:-1] + ",7\n",
    "a letter in a number": lambda text: text[:-1] + "x\n",
    "a row without a loss": lambda text: text + "10\n",
    "a step twice": lambda text: text + text.splitlines()[-1] + "\n",
    "a step that is no number": lambda text: text + text.splitlines()[-1].replace("8,", "8.5,", 1) + "\n",
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_rows_that_are_not_whole_are_not_read(run, case):
    file = run / "loss.csv"
    file.write_text(BROKEN_ROWS[case](file.read_text()))
    with pytest.raises(ValueError, match="loss.csv cannot be read: .*Bring back a good copy"):
        read_losses(run)


OWN = {
    "config.yaml": "mine: 1",
    "run.json": "[1]",
    "data.json": "{}",
    "loss.csv": "a,b",
    "samples.png": "x",
    "results.json": "{}",
}


@pytest.mark.parametrize("name", OWN)
def test_a_user_s_files_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text(OWN[name])
    with pytest.raises(SystemExit, match=rf"^error: .* has {name}, which no run wrote and this one would replace"):
        train(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: OWN[name]}


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(run):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "pipeline")
    train(run)
    assert (run / "pipeline").is_dir() and first_steps_of(run)[-1] == 0


def test_every_damaged_file_is_kept(run):
    for text in ("first", "second", "third"):
        (run / "loss.csv").write_text(text)
        with pytest.warns(UserWarning, match="begins anew"):
            go_on(run)
    kept = sorted(path.name for path in run.glob("loss.csv.damaged*"))
    assert kept == ["loss.csv.damaged", "loss.csv.damaged.2", "loss.csv.damaged.3"]
    assert [(run / name).read_text() for name in kept] == ["first", "second", "third"]
