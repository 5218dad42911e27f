"""What a run says of itself: the loss against the authors' own, the model card, the upload."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from demo_diffusion.records.figures import save_loss_curves
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.official_losses import official_losses
from demo_diffusion.train.engine import hub
from tests.support.hub import FakeHub
from tests.support.runs import ROOT, train

THEIRS = ("stabilityai/sd-vae-ft-ema", 1000)
IMAGENET = ROOT / "configs/diffusion/imagenet256"


def config_of(name: str, *overrides: str):
    return parse_config(["--config", str(IMAGENET / f"{name}.yaml"), *overrides])


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("demo_s_2", 0.20897, 0.15400),
        ("demo_b_2", 0.19848, 0.15144),
        ("demo_l_2", 0.19326, 0.14862),
        ("demo_xl_2", 0.19191, 0.14803),
    ],
)
def test_the_authors_losses_belong_to_their_presets(name, first, last):
    rows = official_losses(config_of(name), *THEIRS)
    assert [row["step"] for row in rows] == list(range(2000, 400_001, 2000))
    assert (rows[0]["loss"], rows[-1]["loss"]) == (first, last)
    assert [row["step"] for row in official_losses(config_of(name), *THEIRS, until_step=3100)] == [2000, 4000]


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("dit_s_2", None),
        ("sit_s_2", None),
        ("demo_s_2_flow", None),
        ("demo_s_2", "--num_layers=3"),
        ("demo_s_2", "--min_snr_gamma=5"),
        ("demo_s_2", "--batch_size=128"),
        ("demo_s_2", "--resolution=512"),
    ],
)
def test_other_trainings_are_not_compared_with_the_authors(name, override):
    assert official_losses(config_of(name, *filter(None, [override])), *THEIRS) == []


@pytest.mark.parametrize("data", [(None, 1000), ("stabilityai/sd-vae-ft-mse", 1000), (THEIRS[0], 10)])
def test_trainings_on_other_data_are_not_compared_with_the_authors(data):
    assert official_losses(config_of("demo_s_2"), *data) == []
    assert official_losses(config_of("demo_s_2"), "copies/sd-vae-ft-ema", 1000)


def test_the_authors_curve_lies_under_the_run_s(tmp_path):
    mine = [{"step": step, "loss": 0.3 - step / 30_000} for step in range(100, 2100, 100)]
    save_loss_curves(
        tmp_path / "both.png", {"mine": mine, "official": official_losses(config_of("demo_s_2"), *THEIRS, 2000)}
    )
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_the_result_is_uploaded_with_its_card(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    run = train(tmp_path / "run", push_to_hub="someone/digits", knn_samples=10)
    ((repo_id, files),) = FakeHub.uploads
    assert repo_id == "someone/digits"
    assert {"README.md", "samples.png", "loss.png", "model_index.json", "transformer", "scheduler"} <= set(files)
    text = (run / "pipeline/README.md").read_text()
    card = ModelCard(text)
    assert "class-conditional-image-generation" in card.data.tags
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings == yaml.safe_load((run / "config.yaml").read_text())
    accuracy = json.loads((run / "nearest_neighbor.json").read_text())["accuracy"]["1.5"]
    assert f"| nearest-neighbour accuracy, guidance 1.5 | {accuracy:.6g} |" in text
    assert 'from_pretrained("someone/digits")' in text

    monkeypatch.setattr(FakeHub, "fails", True)
    with pytest.raises(SystemExit, match="cannot be uploaded.*no route.*hf upload someone/digits"):
        train(run, push_to_hub="someone/digits", knn_samples=10)
    assert (run / "pipeline/model_index.json").is_file()
