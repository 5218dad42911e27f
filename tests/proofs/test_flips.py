"""200 random flipped bits over all that is read back: each is detected.

A flip that leaves everything that is read as it was, in an unused byte of an archive, is replaced by another one.
"""

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from demo_diffusion.data.latents import LatentTable
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.features.reference import ARRAYS, Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.train.cache_latents import main as cache_latents
from demo_diffusion.train.engine.checkpoints import Checkpoints
from tests.support.commands import COMMANDS, make_ground
from tests.support.damage import flipped_bit
from tests.support.runs import train

FLIPS = 50  # of each kind
DETECTED = object()


def read_checkpoint(run: Path) -> object:
    """The newest checkpoint's name, which a damaged one must not be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = Checkpoints(run / "checkpoints").latest().name
    return name if name == "step-000000008" else DETECTED


def read_latents(folder: Path) -> object:
    try:
        table = LatentTable(folder)
        return torch.cat([table[i, flip][0].flatten() for i in range(len(table)) for flip in (False, True)]).tolist()
    except ValueError:
        return DETECTED


def read_features(folder: Path) -> object:
    shards = FeatureShards(folder, num_items=8, shard_size=2)
    if not all(shards.is_whole(shard) for shard in range(len(shards))):
        return DETECTED
    return [shards.read(name).tolist() for name in ("pooled", "spatial", "images")]


def read_reference(folder: Path) -> object:
    try:
        reference = Reference.load(folder / "reference.npz")
    except ValueError:
        return DETECTED
    facts = (reference.num_images, reference.extractor, reference.extractor_fingerprint, reference.source)
    return facts, [getattr(reference, name).tolist() for name in ARRAYS]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, tuple[list[Path], Callable[[Path], object], Path]]:
    """Kind -> (its files, how they are read, of which folder)."""
    root = tmp_path_factory.mktemp("flips")
    make_ground(root / "ground")
    train(root / "checkpoint")
    cache_latents(COMMANDS["cache_latents"].arguments(root / "ground", root / "latents", 0))
    evaluate(COMMANDS["evaluate"].arguments(root / "ground", root / "evaluation", 0))
    (root / "latents/skipped.json").unlink()  # nobody reads it again
    (root / "reference").mkdir()
    (root / "ground/reference.npz").rename(root / "reference/reference.npz")
    newest = root / "checkpoint/checkpoints/step-000000008"
    return {
        "checkpoint": (files_of(newest), read_checkpoint, root / "checkpoint"),
        "latents": (files_of(root / "latents"), read_latents, root / "latents"),
        "features": (files_of(root / "evaluation/shards"), read_features, root / "evaluation/shards"),
        "reference": (files_of(root / "reference"), read_reference, root / "reference"),
    }


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["checkpoint", "latents", "features", "reference"])
def test_each_of_fifty_flips_is_detected(kinds, kind):
    files, read, folder = kinds[kind]
    chance, detected, harmless, silent = random.Random(kind), 0, 0, []
    whole = read(folder)
    assert whole is not DETECTED
    while detected < FLIPS and not silent:
        file = files[(detected + harmless) % len(files)]
        bit = chance.randrange(8 * file.stat().st_size)
        with flipped_bit(file, bit):
            found = read(folder)
        if found is DETECTED:
            detected += 1
        elif found == whole and kind != "checkpoint":
            harmless += 1
        else:
            silent.append((file.name, bit))
    print(f"{kind}: {detected} of {detected + len(silent)} flips detected; {harmless} more change nothing that is read")
    assert silent == []
