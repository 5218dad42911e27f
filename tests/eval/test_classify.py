import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from PIL import Image
from torch.utils.data import TensorDataset
from transformers import BitImageProcessor, TimmWrapperConfig, TimmWrapperForImageClassification, ViTImageProcessor

from demo_diffusion import EMOv2ForImageClassification, create_emov2
from demo_diffusion.eval.classify import main
from demo_diffusion.eval.metrics.accuracy import change_crop, measure_accuracy

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two pictures of each colour in a grey margin, which a centre crop of half the side leaves out."""
    folder = tmp_path_factory.mktemp("pictures") / "data"
    for channel, name in enumerate(reversed(CLASSES)):
        for number in range(2):
            (folder / "validation" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((40, 40, 3), 128, np.uint8)
            pixels[10:30, 10:30] = 0
            pixels[10:30, 10:30, channel] = 255
            Image.fromarray(pixels).save(folder / "validation" / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CLASSES)


def save_model(folder: Path, names: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    model = create_emov2("EMOv2-1M", num_labels=len(names), depths=(1, 1, 1, 1))
    model.config.id2label = dict(enumerate(names))
    model.save_pretrained(folder)
    processor = BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def results_of(out: Path, **options) -> dict:
    AcceleratorState._reset_state(reset_partial_state=True)
    main([f"--{name}={value}" for name, value in {**options, "out": out / "results.json"}.items()])
    return json.loads((out / "results.json").read_text())


def error_of(**options) -> str:
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit) as error:
        main([f"--{name}={value}" for name, value in options.items()])
    return str(error.value)


@pytest.mark.parametrize("batch_size", [3, 100])
def test_accuracy_of_known_logits(batch_size):
    logits = torch.eye(7).repeat(2, 1) * 2 + torch.arange(7) / 100  # the likeliest is i, then 6, 5, 4, …
    labels = torch.cat([torch.arange(7), torch.tensor([6, 0, 0, 6, 0, 5, 1])])
    accuracy = measure_accuracy(lambda x: x, TensorDataset(logits, labels), PartialState(cpu=True), batch_size)
    assert (accuracy.num_images, accuracy.top1, accuracy.top5) == (14, 8 / 14, 10 / 14)
    assert accuracy.network_images_per_second >= accuracy.images_per_second > 0


def test_top5_of_fewer_classes_is_everything():
    samples = TensorDataset(torch.eye(3), torch.tensor([1, 1, 0]))
    accuracy = measure_accuracy(lambda x: x, samples, PartialState(cpu=True), 2)
    assert (accuracy.top1, accuracy.top5) == (1 / 3, 1)


def test_the_result_names_what_made_it(pictures, model_folder, tmp_path, capsys):
    results = results_of(tmp_path, model=model_folder, dataset=pictures)
    assert results["num_images"] == 6 and results["top5"] == 1
    assert results["input"] == [3, 32, 32]
    assert results["top1"] in {i / 6 for i in range(7)}
    assert {"command", "git_commit", "packages", "weights_sha256", "model", "dataset", "split"} <= results.keys()
    assert re.search(r"6 images: top-1 [\d.]+%, top-5 100.00%; [\d,]+ images/s", capsys.readouterr().out)


def mean_colour(self, pixel_values):
    red, green, blue = pixel_values.mean((2, 3)).T
    return type("Output", (), {"logits": torch.stack([blue, green, red], dim=1)})


def test_a_network_that_knows_is_right(pictures, model_folder, tmp_path, monkeypatch):
    """Colours are told apart by the mean of each channel: labels, channel order and normalisation must all be right."""
    monkeypatch.setattr(EMOv2ForImageClassification, "forward", mean_colour)
    assert results_of(tmp_path, model=model_folder, dataset=pictures)["top1"] == 1


def test_resolution_and_crop_change_the_input(pictures, model_folder, tmp_path, monkeypatch):
    from demo_diffusion import EMOv2ForImageClassification

    seen, forward = [], EMOv2ForImageClassification.forward
    monkeypatch.setattr(
        EMOv2ForImageClassification, "forward", lambda self, x: seen.append(x) or forward(self, pixel_values=x)
    )
    assert results_of(tmp_path, model=model_folder, dataset=pictures, resolution=48)["input"] == [3, 48, 48]
    spread = seen[0][0].std()
    assert results_of(tmp_path, model=model_folder, dataset=pictures, crop_pct=1)["input"] == [3, 32, 32]
    assert seen[1].shape[-1] == 32 and seen[1][0].std() < spread  # the whole picture has the grey margin


def test_only_a_centre_crop_can_be_changed():
    processor = BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32})
    change_crop(processor, 48, None)
    assert processor.crop_size["height"] == 48 and processor.size["shortest_edge"] == 96
    with pytest.raises(ValueError, match="ViTImageProcessor works otherwise"):
        change_crop(ViTImageProcessor(), 48, None)


def test_timm_models_are_classifiers_too(pictures, tmp_path):
    import timm

    settings = timm.create_model("test_byobnet", num_classes=3).pretrained_cfg
    config = TimmWrapperConfig.from_dict(
        {"architecture": "test_byobnet", "pretrained_cfg": settings, "label_names": list(CLASSES), "num_classes": 3}
    )
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "timm")
    results = results_of(tmp_path, model=tmp_path / "timm", dataset=pictures)
    assert results["num_images"] == 6 and results["input"] == list(settings["input_size"])


def test_digits_are_measured_too(tmp_path):
    folder = save_model(tmp_path / "model", tuple(map(str, range(10))))
    assert results_of(tmp_path, model=folder, dataset="digits", batch_size=512)["num_images"] == 1797


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "--model is missing"),
        ({"dataset": ""}, "Give exactly one of --dataset and --npz"),
        ({"npz": "samples.npz"}, "Give exactly one of --dataset and --npz"),
        ({"dataset": "./missing.parquet"}, "There is no dataset at ./missing.parquet"),
        ({"split": "test"}, "split 'test' of .* cannot be read"),
        ({"model": Path(__file__).parent}, "classifier .* cannot be loaded"),
        ({"batch_size": 0}, "--batch_size is 0; it must be in"),
        ({"resolution": 0}, "--resolution is 0; it must be at least 1"),
        ({"crop_pct": 2}, r"--crop_pct is 2.0; it must be in \(0, 1\]"),
        ({"out": "missing/results.json"}, "--out is missing/results.json; it must be a file in a folder there is"),
    ],
)
def test_mistakes_are_named(pictures, model_folder, options, message):
    assert re.search(message, error_of(**{"model": model_folder, "dataset": pictures, **options}))


def colour_samples(folder: Path, **arrays) -> Path:
    """Three pictures of one colour each, blue, green and red, with the classes 0, 1 and 2."""
    images = np.zeros((3, 40, 40, 3), np.uint8)
    images[range(3), ..., (2, 1, 0)] = 200
    np.savez(folder / "samples.npz", arr_0=images, **arrays)
    return folder / "samples.npz"


def test_the_share_of_samples_that_are_of_their_class(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(EMOv2ForImageClassification, "forward", mean_colour)
    samples = colour_samples(tmp_path, arr_1=np.array([0, 1, 1]))
    results = results_of(tmp_path, model=model_folder, npz=samples)
    assert (results["num_images"], results["top1"]) == (3, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({}, "has no 'arr_1'"), ({"arr_1": np.array([0, 1, 3])}, "The samples have classes 0 … 3, .* has 0 … 2")],
)
def test_samples_without_fit_classes_are_refused(model_folder, tmp_path, arrays, message):
    assert re.search(message, error_of(model=model_folder, npz=colour_samples(tmp_path, **arrays)))


def test_other_classes_are_refused(pictures, tmp_path):
    more = save_model(tmp_path / "more", (*CLASSES, "yellow"))
    assert re.search("has 4 classes, the data 3", error_of(model=more, dataset=pictures))
    some = save_model(tmp_path / "some", ("green", "red", "yellow"))
    assert re.search("has the class 'green' at 0, the data at 1", error_of(model=some, dataset=pictures))


def test_classes_in_another_order_are_found_by_name(pictures, model_folder, tmp_path):
    """The same network with its last layer's rows, and their names, the other way round."""
    expected = results_of(tmp_path, model=model_folder, dataset=pictures)
    turned = save_model(tmp_path / "turned", tuple(reversed(CLASSES)))
    model = EMOv2ForImageClassification.from_pretrained(turned)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    model.save_pretrained(turned)
    assert results_of(tmp_path, model=turned, dataset=pictures)["top1"] == expected["top1"]


@pytest.mark.skipif("IMAGENET_SAMPLE" not in os.environ, reason="needs IMAGENET_SAMPLE, a labelled part of ImageNet-1K")
def test_imagenet_accuracy_of_known_weights(tmp_path):
    """EfficientNet-Lite0, a known network with known weights, on real images."""
    from demo_diffusion.eval.features.extractors import EfficientNetExtractor

    network = EfficientNetExtractor().network
    settings = {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": network.pretrained_cfg, "num_classes": 1000}
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(settings))
    model.timm_model.load_state_dict(network.state_dict())
    model.save_pretrained(tmp_path / "lite0")
    sample = Path(os.environ["IMAGENET_SAMPLE"])
    results = results_of(tmp_path, model=tmp_path / "lite0", dataset=sample.resolve(), split="train", batch_size=10)
    assert results["top1"] > 0.7 and results["top5"] > 0.9
