"""Files and folders are whole or not there, and outputs that cannot be written are named."""

import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from demo_diffusion import DEMOPipeline
from demo_diffusion.objectives import FlowObjective
from demo_diffusion.records.files import (
    check_output_file,
    check_output_folder,
    read_json,
    read_npz,
    remove_leftovers,
    write_json,
    write_npz,
    write_text,
    write_whole,
)
from tests.support.classifiers import tiny_emov2
from tests.support.networks import tiny_transformer
from tests.support.pipelines import tiny_taef2


def make_folder(path: Path, content: str) -> None:
    path.mkdir()
    (path / "inside").write_text(content)


def test_files_and_folders_replace_earlier_ones(tmp_path):
    for content in ("one", "two"):
        write_text(tmp_path / "new/file", content)
        write_whole(tmp_path / "new/folder", lambda path, content=content: make_folder(path, content))
        assert (tmp_path / "new/file").read_text() == (tmp_path / "new/folder/inside").read_text() == content
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"file", "folder"}


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("interruption", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_earlier_one(tmp_path, is_folder, interruption):
    target = tmp_path / "target"
    write_whole(target, lambda path: make_folder(path, "earlier") if is_folder else path.write_text("earlier"))

    def write(path: Path) -> None:
        make_folder(path, "half") if is_folder else path.write_text("half")
        raise interruption

    with pytest.raises(interruption):
        write_whole(target, write)
    assert (target / "inside" if is_folder else target).read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]


def in_another_process(run) -> int:
    """Runs something in a copy of this process; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_two_processes_that_write_one_target_do_not_meet(tmp_path):
    target = tmp_path / "target"

    def write(path: Path) -> None:
        path.write_text("outer")
        assert in_another_process(lambda: write_text(target, "inner")) == 0
        assert path.name == target.name and path.read_text() == "outer" and target.read_text() == "inner"

    write_whole(target, write)
    assert target.read_text() == "outer" and list(tmp_path.iterdir()) == [target]


def test_a_file_never_replaces_a_folder(tmp_path):
    make_folder(tmp_path / "target", "kept")
    with pytest.raises(OSError):
        write_text(tmp_path / "target", "text")
    assert (tmp_path / "target/inside").read_text() == "kept"


def test_what_a_killed_process_left_is_removed(tmp_path):
    die = lambda path: path.write_text("half") and os._exit(9)  # noqa: E731
    assert in_another_process(lambda: write_whole(tmp_path / "target", die)) == 9
    assert len(list(tmp_path.glob("target.demo_diffusion-*.partial"))) == 1 and not (tmp_path / "target").exists()
    write_text(tmp_path / "kept", "")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_comes_back_whose_replacement_was_killed_between_two_renames(tmp_path, monkeypatch):
    write_whole(tmp_path / "target", lambda path: make_folder(path, "earlier"))
    replace = os.replace

    def kill_after(source, target):
        replace(source, target)
        os._exit(9)

    def write() -> None:
        monkeypatch.setattr(os, "replace", kill_after)
        write_whole(tmp_path / "target", lambda path: make_folder(path, "new"))

    assert in_another_process(write) == 9 and not (tmp_path / "target").exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target/inside").read_text() == "earlier"


OWN = "target.demo_diffusion-x1234567.partial"  # as `write_whole` names its folders


@pytest.mark.parametrize(
    "path",
    [
        "X.partial", "target.partial", ".partial", "target.x1234567.partial/target", "000000.1.partial",
        "step-000000003.partial/model.safetensors", "target.demo_diffusion-.partial",
        "target.demo_diffusion-x12345678.partial", ".demo_diffusion-x1234567.partial", OWN, f"{OWN}/notes.txt",
        "target.tmp", "target~", ".target.swp", "tmpx1234567", f"{OWN}.bak",
    ],
)  # fmt: skip
def test_files_of_a_user_survive_whatever_their_names(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("mine")
    write_text(tmp_path / "target", "one")
    remove_leftovers(tmp_path)
    write_text(tmp_path / "target", "two")
    assert (tmp_path / path).read_text() == "mine" and (tmp_path / "target").read_text() == "two"


def test_a_link_that_looks_like_a_leftover_survives(tmp_path):
    make_folder(tmp_path / "elsewhere", "mine")
    (tmp_path / OWN).symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path)
    assert (tmp_path / OWN / "inside").read_text() == "mine"


LARGE = torch.zeros(100_000)
WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(400_000)),
    "text": lambda path: path.write_text("x" * 400_000),
    "arrays": lambda path: np.savez(path.open("wb"), x=LARGE.numpy()),
    "torch": lambda path: torch.save({"x": LARGE}, path),
    "safetensors": lambda path: save_file({"x": LARGE}, path),
    "image": lambda path: Image.effect_noise((600, 600), 50).save(path, "png"),
    "pipeline": lambda path: DEMOPipeline(tiny_transformer(), FlowObjective().scheduler()).save_pretrained(path),
    "classifier": lambda path: tiny_emov2("EMOv2-5M").save_pretrained(path),
    "taef2": lambda path: tiny_taef2().save_pretrained(path),
}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_error_for_every_format(tmp_path, kind, earlier):
    """The limit is the system's own on the size of a file; writers of formats raise their own errors there."""
    target, limits = tmp_path / "target", resource.getrlimit(resource.RLIMIT_FSIZE)
    if earlier:
        write_whole(target, WRITERS[kind])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(f"{target} cannot be written: ")) as error:
            write_whole(target, WRITERS[kind])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert bool(list(tmp_path.iterdir())) == earlier


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyboardInterrupt])
def test_other_errors_stay_what_they_are(tmp_path, error):
    def write(path: Path) -> None:
        raise error("mine")

    with pytest.raises(error, match="^mine$"):
        write_whole(tmp_path / "target", write)


def test_json_and_arrays_are_read_as_written(tmp_path):
    content = {"name": "Größe", "list": [1, None, 0.1]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content and read_json(tmp_path / "nowhere.json") is None
    assert (tmp_path / "a.json").read_text().startswith('{\n "name": "Größe",\n "list"')
    write_npz(tmp_path / "a", x=np.arange(3))  # the name stays without .npz
    assert read_npz(tmp_path / "a")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["{", "3", ""])
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ValueError, match="a cannot be read"):
        read_json(tmp_path / "a")
    with pytest.raises(ValueError, match=r"a cannot be read as an \.npz file"):
        read_npz(tmp_path / "a")
    with pytest.raises(ValueError, match="There is no file .*nowhere"):
        read_npz(tmp_path / "nowhere")


def test_outputs_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    file = tmp_path / "file.png"
    check_output_folder(tmp_path / "a/b")
    check_output_file(file, (".png", ".svg"))
    check_output_file(tmp_path / "a/b.npz", make_parents=True)
    file.touch()
    check_output_file(file)
    for folder in (file, file / "below"):
        with pytest.raises(ValueError, match=re.escape(f"{folder} cannot be written: {file} is not a folder")):
            check_output_folder(folder)
    for path, options in (
        (tmp_path, {}),
        (tmp_path / "a/b.png", {}),
        (tmp_path / "a.txt", {"suffixes": (".png", ".svg")}),
        (file / "a.png", {}),
    ):
        with pytest.raises(ValueError, match=re.escape(f"--out is {path}; it must be a ")):
            check_output_file(path, **options)
    with pytest.raises(ValueError, match="must be a .png, .svg file in a folder there is"):
        check_output_file(tmp_path / "a.txt", (".png", ".svg"))
    with pytest.raises(ValueError, match="must be a .npz file[.]"):
        check_output_file(tmp_path / "a/b.txt", (".npz",), make_parents=True)
    with pytest.raises(ValueError, match="file.png is not a folder that may be written to"):
        check_output_file(file / "a/b.npz", make_parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who runs the tests may be allowed everything
    for check in (check_output_folder, check_output_file):
        with pytest.raises(ValueError, match="is not a folder that may be written to"):
            check(tmp_path / "new")


def test_an_output_over_an_input_is_refused(tmp_path):
    model, picture, link = tmp_path / "model", tmp_path / "photo.png", tmp_path / "link.png"
    model.mkdir()
    for file in (model / "config.json", picture):
        file.write_text("mine")
    link.symlink_to(picture)
    inputs = {"--model": model, "--picture": picture, "--npz": None}
    for out, owner in ((model / "config.json", "--model"), (picture, "--picture"), (link, "--picture")):
        with pytest.raises(ValueError, match=f"--out is {out}, a file of {owner}, which would be replaced"):
            check_output_file(out, inputs=inputs)
    for out in (model / "new.json", tmp_path / "new.json"):
        check_output_file(out, inputs=inputs)
