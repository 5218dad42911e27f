import json
import re

import pytest

timm = pytest.importorskip("timm")

from demo_diffusion.eval.benchmark import main  # noqa: E402
from demo_diffusion.eval.speed.classifiers import ratio  # noqa: E402


@pytest.mark.parametrize("mode", ["eager", "onnxruntime"])
def test_table_and_file(mode, tmp_path, capsys):
    if mode == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    out = tmp_path / "throughput.json"
    arguments = ["--models", "EMOv2-1M", "--against", "edgenext_xx_small", "--rounds", "2", "--image_size", "32"]
    main(["classifiers", *arguments, "--mode", mode, "--out", str(out)])
    report = json.loads(out.read_text())
    assert set(report["models"]) == {"EMOv2-1M", "edgenext_xx_small"}
    assert all(len(model["seconds"]) == 2 and model["images_per_second"] > 0 for model in report["models"].values())
    printed = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"\| EMOv2-1M \| [\d.]+ \| edgenext_xx_small \| [\d.]+ \| [\d.]+ \|", printed)
    assert printed.split("|")[-2].strip() == f"{report['ratios']['EMOv2-1M / edgenext_xx_small']:.2f}"


def test_ratio_is_the_median_of_rounds():
    results = {"a": {"seconds": [1.0, 2.0, 10.0]}, "b": {"seconds": [3.0, 4.0, 5.0]}}
    assert ratio(results, "a", "b") == 2.0 and ratio(results, "b", "a") == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "EMOv2-1M"], "in pairs"),
        (["--models", "EMOv2-3M", "--against", "edgenext_small"], "EMOv2-3M: neither"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["classifiers", *arguments])
    assert message in capsys.readouterr().err


def test_a_model_of_another_input_size_ends_in_one_line():
    arguments = ["--models", "EMOv2-1M", "--against", "vit_tiny_patch16_224", "--image_size", "32"]
    with pytest.raises(SystemExit, match="error: vit_tiny_patch16_224 does not take images of 32 × 32 pixels"):
        main(["classifiers", *arguments])
