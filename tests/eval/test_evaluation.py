"""Evaluation against torch-fidelity's own results, closed forms, and what users give it by mistake."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch_fidelity
import torch_fidelity.feature_extractor_inceptionv3 as inception_module
from accelerate import PartialState
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.models import ResNet50_Weights

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.features.extractors import (
    EfficientNetExtractor,
    Features,
    InceptionExtractor,
    create_extractor,
    fuse_batch_norm,
)
from demo_diffusion.eval.features.moments import Moments
from demo_diffusion.eval.features.reference import Reference
from demo_diffusion.eval.features.shards import FeatureShards
from demo_diffusion.eval.metrics.distances import frechet_distance, inception_score, nearest
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.eval.samples.generated import GeneratedSamples, SamplingPlan
from demo_diffusion.eval.samples.image_sources import RealFolder, SampleFolder, to_uint8
from demo_diffusion.eval.table import main as print_table
from demo_diffusion.objectives import FlowObjective
from demo_diffusion.records.shards import remove_unfit
from tests.support.evaluation import LITE, pictures
from tests.support.networks import tiny_transformer
from tests.support.pipelines import quiet

ROOT = Path(__file__).parents[2]


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_equals_torch_fidelity(two_sets, random_inception, tmp_path):
    samples, real = two_sets
    weights = ["--inception_weights", str(random_inception)]
    make_reference(["--images", str(real), "--resolution", "32", "--out", str(tmp_path / "ref.npz"), *weights])
    evaluate(
        ["--images", str(samples), "--reference", str(tmp_path / "ref.npz"), "--out", str(tmp_path / "run"), *weights]
    )
    ours = results_of(tmp_path / "run")["metrics"]
    theirs = torch_fidelity.calculate_metrics(
        input1=str(samples), input2=str(real), isc=True, fid=True, kid=True, prc=True, cuda=False, cache=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(random_inception), isc_splits=1,
        samples_shuffle=False, kid_subset_size=40, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    for name, key in {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-4, abs=0), name
    assert ours["fid"] > 1e-3 and ours["kid"] > 1e-3 and ours["is"] > 1.001 and 0 < ours["recall"] < 1
    assert set(ours) == {"fid", "sfid", "is", "is_std", "kid", "kid_std", "precision", "recall"}


@torch.no_grad()
def test_spatial_features_are_in_tensorflow_s_order(random_inception):
    """mixed_6's convolution, one position after the other, the first 7 channels of each."""
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    features = InceptionExtractor(random_inception)(images)
    assert features.spatial.shape == (2, 17 * 17 * 7) and features.pooled.shape == (2, 2048)
    network = inception_module.FeatureExtractorInceptionV3(
        "plain", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(random_inception)
    )
    kept = {}
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: kept.update(middle=output))
    pooled, logits = network(images)
    by_hand = [kept["middle"][1, c, i, j] for i in range(17) for j in range(17) for c in range(7)]
    torch.testing.assert_close(features.spatial[1], torch.stack(by_hand), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.logits, logits, atol=1e-5, rtol=1e-4)


def test_moments_equal_numpy_and_add_up():
    x = torch.randn(500, 30, dtype=torch.float64) * 3 + 5
    parts = Moments.of(x[:123]) + Moments.of(x[123:124]) + Moments.of(x[124:])
    for moments in (Moments.of(x), parts):
        np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="at least 2 samples; there are 1"):
        _ = Moments.of(x[:1]).covariance


def test_frechet_distance_has_its_closed_form():
    a, b, mean = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 1.0]), np.array([1.0, 2.0, 2.0])
    expected = 9 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mean, np.diag(a), 0 * mean, np.diag(b)) == pytest.approx(expected, rel=1e-12)
    x, y = np.random.default_rng(0).normal(size=(2, 20, 50))  # fewer samples than dimensions: singular covariances
    both = [(z.mean(0), np.cov(z, rowvar=False)) for z in (x, y)]
    assert frechet_distance(*both[0], *both[1]) == pytest.approx(frechet_distance(*both[1], *both[0]), rel=1e-6)
    assert frechet_distance(*both[0], *both[0]) == pytest.approx(0, abs=1e-6)


def test_inception_score_takes_consecutive_splits():
    """Splits of one sure class each: the score is 1 in all, and would be 2 if they were shuffled."""
    logits = torch.zeros(12_000, 4)
    logits[:5000, 0] = logits[5000:, 1] = 100.0
    assert inception_score(logits) == pytest.approx((1.0, 0.0))  # 5,000, 5,000 and 2,000
    assert inception_score(logits[2500:7500])[0] == pytest.approx(2.0)


def test_nearest():
    real = torch.tensor([[0.0, 0], [10, 0], [0, 3]])
    assert nearest(torch.tensor([[1.0, 0]]), real, 2).tolist() == [[0, 2]]


def test_distances_grow_with_the_damage(tmp_path):
    """Half against half is lowest; then noise in its order. More kinds: eval/studies/metric_sensitivity.py."""
    extractor = EfficientNetExtractor()
    pictures(tmp_path / "all", 160, seed=3)
    source = SampleFolder(tmp_path / "all")
    images = torch.stack([source[i] for i in range(160)])
    features = Moments.of(extractor(images[:80]).pooled)

    def distance(damaged: torch.Tensor) -> float:
        other = Moments.of(extractor(damaged).pooled)
        return frechet_distance(features.mean, features.covariance, other.mean, other.covariance)

    def noisy(level: float) -> torch.Tensor:
        return (images[80:] + level * torch.randn(80, 3, 32, 32)).round().clamp(0, 255).to(torch.uint8)

    distances = [distance(images[80:]), *(distance(noisy(level)) for level in (5, 20, 40))]
    assert distances == sorted(distances) and len(set(distances)) == 4


def test_efficientnet_recognises_photographs():
    """Its weights went into the right layers: scikit-learn's photographs of a temple's hall and of a flower."""
    extractor = EfficientNetExtractor()
    for name, expected in (("china.jpg", "palace"), ("flower.jpg", "daisy")):
        image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)
        best = extractor(image[None]).logits[0].topk(5).indices
        assert expected in [ResNet50_Weights.DEFAULT.meta["categories"][i] for i in best]


def test_folded_norms_change_no_feature():
    """Of timm's blocks, which end in an activation inside the norm, with statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    images = torch.randn(4, 3, 64, 64)
    network(images)
    network.eval()
    with torch.no_grad():
        expected = network.forward_features(images)
        folded = fuse_batch_norm(network)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        assert torch.allclose(folded.forward_features(images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def saved_pipeline(folder: Path, **config) -> DEMOPipeline:
    pipeline = DEMOPipeline(tiny_transformer(in_channels=3, out_channels=3, **config), FlowObjective().scheduler())
    with torch.no_grad():
        pipeline.transformer.output.proj.weight.mul_(0.1)
    pipeline.save_pretrained(folder)
    return quiet(pipeline)


def features_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "shards").iterdir())}


def test_a_pipeline_is_sampled_scored_and_exported(tmp_path, small_reference, capsys):
    pipeline = saved_pipeline(tmp_path / "pipeline")
    arguments = [
        "--pipeline", str(tmp_path / "pipeline"), "--reference", str(small_reference), "--num_samples", "25",
        "--num_inference_steps", "3", "--guidance_scale", "2", "--shard_size", "10", "--batch_size", "5", *LITE,
    ]  # fmt: skip
    evaluate([*arguments, "--out", str(tmp_path / "run"), "--export", "true"])
    line = capsys.readouterr().out.strip()
    assert re.fullmatch(r"25 samples: fd_efficientnet_lite0 [\d.]+, .*", line)
    results = results_of(tmp_path / "run")
    assert results["num_samples"] == 25 and results["images_per_second"] > 0
    assert all(results["metrics"][f"{n}_efficientnet_lite0"] is not None for n in ("fd", "sfd", "kd", "recall"))
    assert results["metrics"]["recognized_efficientnet_lite0"] is None  # ten classes, not ImageNet's
    assert not [name for name in results["metrics"] if name in ("fid", "kid")]
    facts = results["fingerprint"]
    assert facts["sampler"] == "FlowMatchEulerDiscreteScheduler" and facts["guidance_scale"] == 2
    assert facts["parameters"] == sum(p.numel() for p in pipeline.transformer.parameters())
    with np.load(tmp_path / "run/samples.npz") as exported:
        assert exported["arr_0"].shape == (25, 8, 8, 3) and exported["arr_0"].dtype == np.uint8
        assert exported["arr_1"].tolist() == [i % 10 for i in range(25)]
        plan = SamplingPlan(25, num_inference_steps=3, guidance_scale=2)
        again = torch.cat([*GeneratedSamples(pipeline, plan).batches(20, 25, 5)])
        assert np.array_equal(exported["arr_0"][20:], again.permute(0, 2, 3, 1).numpy())
    # What was exported scores the same.
    evaluate(["--npz", str(tmp_path / "run/samples.npz"), "--reference", str(small_reference), "--out",
              str(tmp_path / "again"), "--shard_size", "10", "--batch_size", "5", *LITE])  # fmt: skip
    assert results_of(tmp_path / "again")["metrics"] == results["metrics"]
    sheet = Image.open(tmp_path / "run/contact_sheet.png")
    assert sheet.size[0] > 300 and sheet.size[1] < 17 * 70  # 16 rows, though all images were kept
    print_table([str(tmp_path / "run")])
    table = capsys.readouterr().out
    assert "| DEMO-XL/2 | 492.7 | 101.5 | 9.6 |" in table
    assert "num_samples 25, num_inference_steps 3, guidance_scale 2.0, labels balanced" in table.splitlines()[-1]


def test_samples_depend_on_the_seed_and_their_index_alone(tmp_path):
    pipeline = saved_pipeline(tmp_path / "pipeline")

    def samples(seed=0, labels="balanced", batches=((0, 6),)):
        plan = SamplingPlan(6, num_inference_steps=2, seed=seed, labels=labels)
        source = GeneratedSamples(pipeline, plan)
        return torch.cat([batch for span in batches for batch in source.batches(*span, 2)]), source.labels

    images, labels = samples()
    assert labels == [0, 1, 2, 3, 4, 5]
    assert torch.equal(samples(batches=((0, 4), (4, 6)))[0], images)
    assert not torch.equal(samples(seed=1)[0], images)
    drawn = samples(labels="random")[1]
    assert drawn == samples(labels="random")[1] != labels and samples(seed=1, labels="random")[1] != drawn


def run_evaluation(processes: int, arguments: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(ROOT / "eval/evaluate.py"), *arguments], env=environment, start_new_session=True, **options
    )


def test_killed_and_continued_with_other_processes_gives_the_same_features(tmp_path, small_reference):
    saved_pipeline(tmp_path / "pipeline")
    arguments = [
        "--pipeline", str(tmp_path / "pipeline"), "--reference", str(small_reference), "--num_samples", "60",
        "--num_inference_steps", "20", "--shard_size", "6", "--batch_size", "3", "--labels", "random", *LITE,
    ]  # fmt: skip
    killed = tmp_path / "killed"
    process = run_evaluation(2, [*arguments, "--out", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list(killed.glob("shards/*.safetensors"))) < 3:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(killed.glob("shards/*.safetensors")))
    assert 3 <= done < 10 and not (killed / "results.json").exists()
    (first, *_) = sorted(killed.glob("shards/*.safetensors"))
    first.write_bytes(first.read_bytes()[:100])  # and one damaged besides
    assert run_evaluation(1, [*arguments, "--out", str(killed)]).wait() == 0
    assert run_evaluation(2, [*arguments, "--out", str(tmp_path / "whole")]).wait() == 0
    assert features_of(killed) == features_of(tmp_path / "whole") and len(features_of(killed)) == 10
    assert results_of(killed)["metrics"] == results_of(tmp_path / "whole")["metrics"]


def test_another_evaluation_does_not_continue_a_folder(tmp_path, two_sets, lite_reference):
    arguments = [
        "--images",
        str(two_sets[0]),
        "--reference",
        str(lite_reference),
        "--out",
        str(tmp_path / "run"),
        *LITE,
    ]
    evaluate([*arguments, "--num_samples", "10"])
    with pytest.raises(SystemExit, match=r"holds an evaluation of other settings: num_samples \(was 10, now 12\)"):
        evaluate([*arguments, "--num_samples", "12"])
    first = results_of(tmp_path / "run")
    evaluate([*arguments, "--num_samples", "10"])
    assert results_of(tmp_path / "run") == first


def test_adm_s_own_file(tmp_path, random_inception):
    """Its moments are taken as they are; its images give the features."""
    generator = np.random.default_rng(0)
    content = {
        "mu": generator.normal(size=2048), "sigma": np.eye(2048), "mu_s": generator.normal(size=2023),
        "sigma_s": np.eye(2023), "arr_0": generator.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8),
    }  # fmt: skip
    np.savez(tmp_path / "adm.npz", **content)
    weights = ["--inception_weights", str(random_inception)]
    make_reference(["--adm", str(tmp_path / "adm.npz"), "--out", str(tmp_path / "ref.npz"), *weights])
    reference = Reference.load(tmp_path / "ref.npz")
    assert np.array_equal(reference.mean, content["mu"]) and reference.features.shape == (6, 2048)
    with pytest.raises(SystemExit, match="are Inception's"):
        make_reference(["--adm", str(tmp_path / "adm.npz"), "--out", str(tmp_path / "x.npz"), *LITE])
    for name, broken in (("mu", {"mu": np.zeros(3)}), ("sigma_s", {"sigma_s": None})):
        np.savez(tmp_path / "bad.npz", **{k: v for k, v in {**content, **broken}.items() if v is not None})
        with pytest.raises(SystemExit, match=f"bad.npz is not ADM's reference file: {name} is"):
            make_reference(["--adm", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "x.npz"), *weights])


def test_reference_of_a_dataset_keeps_evenly_spaced_images(tmp_path, monkeypatch):
    from demo_diffusion.eval.features import reference as module

    monkeypatch.setattr(module, "MAX_KEPT", 5)
    for class_name in ("bird", "cat"):
        pictures(tmp_path / "data" / class_name, 10)
    data = ["--dataset", str(tmp_path / "data"), "--resolution", "16"]
    make_reference([*data, "--out", str(tmp_path / "ref.npz"), "--batch_size", "7", *LITE])
    reference = Reference.load(tmp_path / "ref.npz")
    assert reference.num_images == 20 and reference.images.shape == (5, 16, 16, 3) and reference.mean.shape == (1280,)
    source = RealFolder(tmp_path / "data", 16)
    for kept, index in zip(reference.images, (0, 5, 10, 14, 19), strict=True):
        assert np.array_equal(kept, source[index].permute(1, 2, 0).numpy())


def test_real_images_of_any_kind_become_rgb(tmp_path):
    pictures(tmp_path / "real", 2, size=50)
    Image.open(tmp_path / "real/0000.png").convert("L").save(tmp_path / "real/0002.jpg")
    source = RealFolder(tmp_path / "real", 16)
    assert len(source) == 3 and all(source[i].shape == (3, 16, 16) for i in range(3))


def test_pixels_are_rounded():
    pixels = torch.tensor([-1.0, 1.0, 0.0, -0.999, 2.0]).view(1, 1, 1, 5)
    assert to_uint8(pixels)[0, :, 0].tolist() == [[0, 255, 128, 0, 255]] * 3


def test_table_of_what_is_no_evaluation(tmp_path):
    with pytest.raises(SystemExit, match="holds no results.json"):
        print_table([str(tmp_path)])
    good = {"metrics": {"fid": 3}, "fingerprint": {"parameters": 5, "gmacs": 1.5, "sampler": "ddpm", "reference": "r"}}
    fingerprint = good["fingerprint"]
    for text in (
        "{}", "[" * 100_000, "[]", "\xff",
        *(json.dumps({**good, "metrics": {"fid": value}}) for value in (10**400, "3", True, [3], {})),
        *(
            json.dumps({**good, "fingerprint": {**fingerprint, name: value}})
            for name, value in (
                ("sampler", None), ("sampler", ["ddpm"]), ("reference", ["r"]), ("reference", 3), ("gmacs", "1"),
                ("parameters", 10**400), ("parameters", None), ("parameters", -1), ("parameters", float("nan")),
            )
        ),
    ):  # fmt: skip
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(SystemExit, match=r"^error: .*is not what eval/evaluate.py writes"):
            print_table([str(tmp_path)])


def test_foreign_text_in_the_table_is_escaped(tmp_path, capsys):
    (run := tmp_path / "a|b\x1b[2J").mkdir()
    fingerprint = {"sampler": "s\n| x |", "reference": "\x1b[31mr", "dtype": "d\rd"}
    (run / "results.json").write_text(json.dumps({"metrics": {"fid\x07": 3}, "fingerprint": fingerprint}))
    print_table([str(run)])
    table = capsys.readouterr().out
    assert all(line.isprintable() and line.startswith("| ") for line in table.splitlines())
    assert r"a\|b\x1b[2J" in table and r"s\n\| x \|" in table and r"| fid\x07 |" in table


def test_damaged_shards_are_made_again(tmp_path):
    shards = FeatureShards(tmp_path, num_items=5, shard_size=2)
    assert len(shards) == 3 and shards.missing() == [0, 1, 2] and shards.span(2) == range(4, 5)
    for shard, count in enumerate((2, 2, 1)):
        features = Features(torch.rand(count, 6), torch.rand(count, 7), torch.rand(count, 4))
        shards.write(shard, features, torch.zeros(0, 3, 2, 2, dtype=torch.uint8))
    remove_unfit(shards, PartialState())
    assert shards.missing() == [] and shards.read("spatial").shape == (5, 7)
    content = bytearray((tmp_path / "000001.safetensors").read_bytes())
    content[-10:] = b"\0" * 10
    (tmp_path / "000001.safetensors").write_bytes(content)
    shutil.copy(tmp_path / "000000.safetensors", tmp_path / "000002.safetensors")  # two images where one must be
    (tmp_path / "000007.safetensors.demo_diffusion-x1234567.partial").mkdir()
    remove_unfit(shards, PartialState())
    assert shards.missing() == [1, 2] and not list(tmp_path.glob("*.partial"))


def test_what_changes_the_numbers_is_in_the_fingerprint(tmp_path, two_sets, lite_reference):
    def run(source: list, out="run"):
        evaluate([*map(str, source), "--reference", str(lite_reference), "--out", str(tmp_path / out), *LITE])

    images = Path(shutil.copytree(two_sets[0], tmp_path / "images"))
    run(["--images", images, "--num_samples", 4])
    Image.open(images / "0001.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(images / "0000.png")
    with pytest.raises(SystemExit, match="holds an evaluation of other settings: images_sha256"):
        run(["--images", images, "--num_samples", 4])
    saved_pipeline(tmp_path / "pipeline", sample_size=32)
    sampling = ["--pipeline", tmp_path / "pipeline", "--num_samples", 4, "--num_inference_steps", 2]
    run(sampling, "sampled")
    config = tmp_path / "pipeline/transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "timestep_scale": 3.0}))
    with pytest.raises(SystemExit, match="holds an evaluation of other settings: network_settings"):
        run(sampling, "sampled")


def test_a_mistake_does_not_spoil_the_folder(tmp_path, small_reference):
    saved_pipeline(tmp_path / "pipeline")
    arguments = ["--pipeline", str(tmp_path / "pipeline"), "--reference", str(small_reference), "--num_samples", "4",
                 "--out", str(tmp_path / "run"), "--num_inference_steps", "2", *LITE]  # fmt: skip
    with pytest.raises(SystemExit, match="guidance_scale is -1"):
        evaluate([*arguments, "--guidance_scale", "-1"])
    evaluate([*arguments, "--guidance_scale", "1"])
    assert results_of(tmp_path / "run")["fingerprint"]["guidance_scale"] == 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_samples_have_no_neighbours(tmp_path, two_sets, lite_reference, count):
    evaluate(["--images", str(two_sets[0]), "--reference", str(lite_reference), "--num_samples", str(count), "--out",
              str(tmp_path / "run"), *LITE])  # fmt: skip
    assert (results_of(tmp_path / "run")["metrics"]["precision_efficientnet_lite0"] is None) == (count < 4)


def test_imagenet_s_labels_must_be_said(tmp_path, two_sets, lite_reference):
    source = SampleFolder(two_sets[0])
    images = np.stack([source[i].permute(1, 2, 0).numpy() for i in range(4)])
    best = EfficientNetExtractor()(torch.stack([source[i] for i in range(4)])).logits.argmax(1).numpy()
    for said, labels, expected in ((True, best, 1.0), (False, best, None), (True, best - 1000, "0 … 999")):
        np.savez(tmp_path / "samples.npz", arr_0=images, arr_1=labels)
        arguments = ["--npz", str(tmp_path / "samples.npz"), "--reference", str(lite_reference), *LITE,
                     "--imagenet_labels", str(said), "--out", str(tmp_path / f"{said}{labels[0]}")]  # fmt: skip
        if isinstance(expected, str):
            with pytest.raises(SystemExit, match=expected):
                evaluate(arguments)
        else:
            evaluate(arguments)
            results = results_of(tmp_path / f"{said}{labels[0]}")
            assert results["metrics"]["recognized_efficientnet_lite0"] == expected


def test_an_extractor_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    create_extractor("efficientnet_lite0")
    assert torch.equal(torch.rand(3), expected)
