"""A checkpoint that is not as it was written is never trained on."""

import json
import shutil
import warnings

import pytest

from demo_diffusion.train.engine.checkpoints import MANIFEST, Checkpoints, read_manifest
from tests.support.damage import DAMAGES, flipped_bit, random_flips
from tests.support.runs import first_steps_of, forget_hashes, state_of, train

NUM_FLIPS = 60
NEWEST, OLDER = "step-000000008", "step-000000006"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_every_flipped_bit_is_seen(run):
    folder = run / "checkpoints"
    flips, unseen = random_flips(folder / NEWEST, NUM_FLIPS), []
    assert {name for name, _ in flips} >= {MANIFEST, "model.safetensors", "optimizer.bin", "ema_0.99.safetensors"}
    assert Checkpoints(folder).latest().name == NEWEST
    for name, bit in flips:
        with flipped_bit(folder / NEWEST / name, bit), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if Checkpoints(folder).latest().name != OLDER or f"{NEWEST} is passed over" not in str(warned[0].message):
                unseen.append((name, bit))
            with pytest.raises(ValueError, match=f"{NEWEST} is damaged"):
                Checkpoints(folder).of_step(8)
    assert unseen == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [MANIFEST, "model.safetensors", "optimizer.bin"])
def test_a_damaged_checkpoint_is_passed_over(run, file, damage):
    if damage == "other encoding" and file != MANIFEST:
        pytest.skip("only texts have one")
    DAMAGES[damage](run / "checkpoints" / NEWEST / file)
    with pytest.warns(UserWarning, match=f"{NEWEST} is passed over"):
        assert Checkpoints(run / "checkpoints").latest().name == OLDER


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "scheduler.bin", "ema_0.99.safetensors"])
def test_one_of_an_older_version_that_cannot_be_loaded_is_passed_over(finished, run, file):
    """It has no hashes, and zeros of the same size are seen by nothing but the reader."""
    forget_hashes(run / "checkpoints" / NEWEST)
    DAMAGES["zeros"](run / "checkpoints" / NEWEST / file)
    with pytest.warns(UserWarning, match=f"{NEWEST} is passed over: it cannot be loaded"):
        train(run)
    assert first_steps_of(run) == [0, 6]
    actual, expected = state_of(run), state_of(finished)
    assert all((actual[name] == value).all() for name, value in expected.items())


def test_if_none_can_be_loaded_the_run_does_not_start_anew(run):
    for name in (NEWEST, OLDER):
        forget_hashes(run / "checkpoints" / name)
        DAMAGES["zeros"](run / "checkpoints" / name / "model.safetensors")
    with pytest.raises(SystemExit, match="None of the checkpoints .* is whole"), pytest.warns(UserWarning):
        train(run)


def test_older_manifests_are_read_and_new_ones_have_hashes(run):
    checkpoint = run / "checkpoints" / NEWEST
    manifest = read_manifest(checkpoint)
    assert manifest["sha256"].keys() == manifest["bytes"].keys() and MANIFEST not in manifest["bytes"]
    forget_hashes(checkpoint)
    assert "sha256" not in read_manifest(checkpoint) and Checkpoints(run / "checkpoints").latest() == checkpoint


@pytest.mark.parametrize("is_older", [False, True])
def test_the_step_fits_the_name(run, is_older):
    renamed = run / "checkpoints/step-000000020"
    (run / "checkpoints" / NEWEST).rename(renamed)
    if is_older:
        forget_hashes(renamed)
    with pytest.warns(UserWarning, match="step-000000020 is passed over: .*it is of step 8"):
        assert Checkpoints(run / "checkpoints").latest().name == OLDER


def test_a_manifest_without_its_hash_is_no_older_one(run):
    file = run / "checkpoints" / NEWEST / MANIFEST
    text = file.read_text().replace('"sha256_of', '"sha257_of')
    file.write_text(text)
    json.loads(text)
    with pytest.warns(UserWarning, match="its hash is not that of its content"):
        assert Checkpoints(run / "checkpoints").latest().name == OLDER
