"""What users give the evaluation by mistake: each gets one line that names it, and nothing is scored."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.features.extractors import EfficientNetExtractor
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.eval.samples.image_sources import SampleFolder
from demo_diffusion.objectives import FlowObjective
from tests.support.evaluation import LITE, pictures
from tests.support.networks import tiny_transformer
from tests.support.png import png


def spoil(folder: Path, name: str, make) -> Path:
    copy = folder.parent / f"copy-{name}"
    shutil.copytree(folder, copy)
    make(copy)
    return copy


def resave(name: str, change):
    def make(folder: Path) -> None:
        change(Image.open(folder / name)).save(folder / name)

    return make


def new_npz(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def bad_inputs(tmp: Path, samples: Path, reference: Path) -> dict[str, tuple[list, str]]:
    """Arguments besides --out, and what the message must say."""
    good_reference = ["--reference", reference]
    good = np.zeros((4, 32, 32, 3), np.uint8)
    with np.load(reference) as file:
        content = dict(file)

    def folder(name, make):
        return ["--images", spoil(samples, name, make), *good_reference]

    def npz(name, **arrays):
        return ["--npz", new_npz(tmp / f"{name}.npz", **arrays), *good_reference]

    def ref(name, **changes):
        changed = {k: v for k, v in {**content, **changes}.items() if v is not None}
        return ["--images", samples, "--reference", new_npz(tmp / f"{name}.npz", **changed)]

    (tmp / "empty").mkdir()
    (tmp / "jpegs").mkdir()
    Image.fromarray(good[0]).save(tmp / "jpegs/a.jpg")
    (tmp / "text.npz").write_text("not an archive")
    return {
        "no source": (good_reference, "exactly one of --pipeline, --images and --npz"),
        "two sources": (["--images", samples, "--npz", "x.npz", *good_reference], "exactly one of"),
        "guided images": (
            ["--images", samples, "--guidance_scale", "2", *good_reference],
            "--guidance_scale is for samp",
        ),
        "no such folder": (["--images", tmp / "nowhere", *good_reference], "There is no folder .*nowhere"),
        "empty folder": (["--images", tmp / "empty", *good_reference], "empty holds no .png file"),
        "lossy images": (["--images", tmp / "jpegs", *good_reference], "jpegs holds .jpg files; samples must be .png"),
        "corrupt png": (
            folder("corrupt", lambda f: (f / "0003.png").write_bytes((f / "0003.png").read_bytes()[:200])),
            "0003.png cannot be read as an image",
        ),
        "mixed sizes": (folder("sizes", resave("0005.png", lambda i: i.resize((40, 32)))), r"0005.png is \(40, 32\)"),
        "grey": (folder("grey", resave("0004.png", lambda i: i.convert("L"))), "0004.png has mode L"),
        "transparent": (folder("rgba", resave("0004.png", lambda i: i.convert("RGBA"))), "0004.png has mode RGBA"),
        "no such npz": (["--npz", tmp / "nowhere.npz", *good_reference], "There is no file .*nowhere.npz"),
        "no archive": (["--npz", tmp / "text.npz", *good_reference], "text.npz cannot be read"),
        "no arr_0": (npz("s0", images=good), r"s0.npz has no 'arr_0'; it has \['images'\]"),
        "float images": (npz("s1", arr_0=good.astype(np.float32)), "arr_0 is float32"),
        "channels first": (npz("s2", arr_0=good.transpose(0, 3, 1, 2)), "must be uint8"),
        "no images": (npz("s3", arr_0=good[:0]), "arr_0 is uint8 of shape"),
        "too few labels": (npz("s4", arr_0=good, arr_1=np.zeros(3, int)), "one label an image"),
        "pickle": (npz("s5", arr_0=np.array([{}])), "cannot be read as an .npz file of arrays"),
        "damaged npz": (["--npz", damaged_npz(tmp), *good_reference], "damaged.npz cannot be read as an .npz"),
        "no facts": (ref("facts", facts=np.array("{}")), "facts.npz: its facts are not those of a reference"),
        "float pictures": (ref("fl", images=content["images"] / 2), "fl.npz: images is float64; .* images uint8"),
        "no features": (ref("no", features=content["features"][:0], images=content["images"][:0]), "of no image"),
        "too many samples": (["--images", samples, "--num_samples", "99", *good_reference], "there are 40 images"),
        "no reference": (["--images", samples], "--reference is missing"),
        "adm reference": (
            ["--images", samples, "--reference", new_npz(tmp / "adm.npz", mu=good, sigma=good)],
            "adm.npz is not a reference.*--adm",
        ),
        "missing key": (ref("key", covariance=None), r"key.npz is not a reference .* lacks \['covariance'\]"),
        "other width": (ref("width", mean=content["mean"][:7]), r"width.npz: covariance has shape .* must be \(7, 7\)"),
        "NaN reference": (ref("nan", mean=content["mean"] * np.nan), "nan.npz: mean has values that are not finite"),
        "other extractor": (
            ref("other", facts=np.array(str(content["facts"]).replace("efficientnet_lite0", "inception", 1))),
            "was made with inception .* measured with efficientnet_lite0",
        ),
        "no pipeline": (["--pipeline", tmp / "nowhere", *good_reference], "pipeline .*nowhere cannot be read"),
        "NaN samples": (["--pipeline", nan_pipeline(tmp), "--num_samples", "4", *good_reference], "not finite"),
        "other sampler": (
            ["--pipeline", tmp / "flow", "--sampler", "ddpm", *good_reference],
            "sampler is 'ddpm'; for objective 'flow'",
        ),
        "no steps": (
            ["--pipeline", tmp / "flow", "--num_inference_steps", "0", *good_reference],
            "it must be at least 1",
        ),
        "unknown extractor": (
            ["--images", samples, "--extractor", "clip", *good_reference],
            "'clip'; it must be one of",
        ),
    }


def animation(file: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green")]
    frames[0].save(file, save_all=True, append_images=frames[1:])


DEEP = np.random.default_rng(0).integers(0, 2**16, (4, 4, 3))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda file: file.write_bytes(png(DEEP, 16, "colour")), "has 16 bits a channel"),
        (lambda file: file.write_bytes(png(DEEP % 256, 8, "colour", (1, 2, 3))), "has a transparent colour"),
        (lambda file: file.write_bytes(png(DEEP[..., :2], 16, "grey with alpha")), "has mode RGBA"),
        (lambda file: Image.new("RGB", (4, 4)).save(file, "JPEG"), "has the format JPEG, whatever its name"),
        (lambda file: Image.new("RGB", (4, 4)).save(file, "BMP"), "has the format BMP, whatever its name"),
        (animation, "has 2 frames"),
    ],
)
def test_samples_that_lost_something_are_refused(save, message, tmp_path):
    save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=f"0.png {message}; samples must be 8-bit RGB in PNG format"):
        SampleFolder(tmp_path)[0]


def changed_facts(**changes):
    return lambda content: {"facts": np.array(json.dumps({**json.loads(str(content["facts"])), **changes}))}


def as_type(name: str, dtype: object):
    return lambda content: {name: content[name].astype(dtype)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (as_type(name, dtype), f"{name} is .*; features must be floating point, images uint8")
            for name in ("mean", "covariance", "spatial_mean", "spatial_covariance", "features")
            for dtype in (np.uint8, np.uint64, np.int32, bool, complex)
        ),
        (lambda content: {"features": content["features"].astype(float) + 1e300}, "features has values .* not finite"),
        *((changed_facts(extractor_fingerprint=each), "extractor_fingerprint is .* a text") for each in (None, 3, [])),
        *((changed_facts(extractor=each), "extractor is .* it must be a text") for each in (None, 3, ["inception"])),
        *((changed_facts(source=each), "source is .* it must be a text") for each in (None, 3, ["a"])),
        *((changed_facts(num_images=each), "num_images is") for each in (-3, 0, 1.5, "3", True, float("nan"))),
        (lambda content: {"facts": np.array("[" * 100_000)}, "its facts are not those of a reference"),
    ],
)
def test_a_reference_of_other_types_is_refused(change, message, lite_reference, tmp_path):
    with np.load(lite_reference) as file:
        content = dict(file)
    with pytest.raises(ValueError, match=message):
        Reference.load(Path(new_npz(tmp_path / "other.npz", **{**content, **change(content)})))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4", np.float64, np.longdouble])
def test_features_of_any_precision_are_measured(dtype, lite_reference, tmp_path):
    with np.load(lite_reference) as file:
        content = dict(file)
    for name in ("mean", "covariance", "spatial_mean", "spatial_covariance"):
        content[name] = content[name].astype(np.longdouble if dtype is np.longdouble else content[name].dtype)
    content["features"] = content["features"].astype(dtype)
    loaded = Reference.load(Path(new_npz(tmp_path / "other.npz", **content)))
    assert loaded.features.dtype == np.float32 and loaded.mean.dtype == loaded.covariance.dtype == np.float64
    torch.testing.assert_close(
        torch.from_numpy(loaded.features),
        torch.from_numpy(Reference.load(lite_reference).features),
        atol=1e-2,
        rtol=1e-3,
    )


def damaged_npz(tmp: Path) -> Path:
    path = tmp / "damaged.npz"
    np.savez_compressed(path, arr_0=np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    return path


def nan_pipeline(tmp: Path) -> Path:
    transformer = tiny_transformer(in_channels=3, out_channels=3, sample_size=32)
    DEMOPipeline(transformer, FlowObjective().scheduler()).save_pretrained(tmp / "flow")
    with torch.no_grad():
        transformer.output.proj.bias.fill_(float("nan"))
    DEMOPipeline(transformer, FlowObjective().scheduler()).save_pretrained(tmp / "nan")
    return tmp / "nan"


def test_bad_inputs_are_named_and_no_result_is_written(tmp_path, two_sets, lite_reference, monkeypatch):
    samples = Path(shutil.copytree(two_sets[0], tmp_path / "samples"))
    extractor = EfficientNetExtractor()  # made once, not for each
    monkeypatch.setattr("demo_diffusion.eval.features.extractors.EfficientNetExtractor", lambda device: extractor)
    cases = bad_inputs(tmp_path, samples, lite_reference)
    assert len(cases) >= 20
    for name, (arguments, message) in cases.items():
        out = tmp_path / f"out {name}"
        with pytest.raises(SystemExit) as stop:
            evaluate([*LITE, *map(str, arguments), "--out", str(out)])
        assert re.search(message, str(stop.value)), (name, str(stop.value))
        assert str(stop.value).startswith("error: "), name
        assert not (out / "results.json").exists() and not list(out.glob("shards/*")), name


def test_bad_references_are_named(tmp_path, random_inception):
    def fails(message, *arguments):
        with pytest.raises(SystemExit) as stop:
            make_reference([*map(str, arguments), "--out", str(tmp_path / "ref.npz")])
        assert re.search(message, str(stop.value)) and not (tmp_path / "ref.npz").exists()

    pictures(tmp_path / "one", 1)
    pictures(tmp_path / "two", 2)
    (tmp_path / "two/0001.png").write_bytes(b"nothing")
    fails("no folder", "--images", tmp_path / "nowhere", "--resolution", 8, *LITE)
    fails("--resolution is None", "--images", tmp_path / "two", *LITE)
    fails("has 1 image; statistics need at least 2", "--images", tmp_path / "one", "--resolution", 8, *LITE)
    fails("0001.png.*cannot be read", "--images", tmp_path / "two", "--resolution", 8, *LITE)
    fails("inception_weights was given", "--images", tmp_path / "one", "--resolution", 8, *LITE,
          "--inception_weights", random_inception)  # fmt: skip
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pth")
    fails("Inception cannot be read from .*weights.pth", "--images", tmp_path / "one", "--resolution", 8,
          "--inception_weights", tmp_path / "weights.pth")  # fmt: skip
