"""What a new family of tasks writes: four methods of a trainer, and nothing in engine/."""

import traceback
from dataclasses import dataclass, field

import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import Dataset

from demo_diffusion.data.images import DataConfig
from demo_diffusion.objectives import FlowObjective
from demo_diffusion.records.run_records import read_losses
from demo_diffusion.train.engine.config import OptimizationConfig, RunConfig
from demo_diffusion.train.engine.launch import run_training
from demo_diffusion.train.engine.trainer import Trainer
from tests.support.runs import ROOT, train

ROOMS = ("config", "data", "trainer", "model_card")
PACKAGE = tuple(str(ROOT / folder) for folder in ("train", "eval", "pipelines", "demo_diffusion"))
MAX_CALLS = 5


@dataclass
class LineConfig:
    """Fits a line."""

    run: RunConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimization: OptimizationConfig = field(
        default_factory=lambda: OptimizationConfig(num_steps=200, batch_size=4, learning_rate=0.1, ema_decay=0.5)
    )


class Points(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        index, _ = key
        x = torch.tensor([index / 12])
        return x, 3 * x + 1


class LineTrainer(Trainer):
    def load_data(self) -> Dataset:
        return Points()

    def create_network(self) -> nn.Module:
        return nn.Linear(1, 1)

    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return (self.network(x) - y).square().mean()

    def finish(self) -> None:
        torch.save(self.average_network().state_dict(), self.folder.path / "model")


def test_four_methods_train(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = LineConfig(RunConfig(output_dir=str(tmp_path / "line"), log_every=50))
    run_training(lambda: LineTrainer(config))
    losses = read_losses(tmp_path / "line")
    assert losses[-1]["step"] == 200 and losses[-1]["loss"] < 0.05 < losses[0]["loss"]
    line = torch.load(tmp_path / "line/model", weights_only=True)
    assert abs(line["weight"].item() - 3) < 1 and abs(line["bias"].item() - 1) < 0.5


def test_every_family_has_the_same_rooms():
    families = sorted(file.parent for file in (ROOT / "train").glob("*/trainer.py") if file.parent.name != "engine")
    assert [family.name for family in families] == ["classification", "detection", "diffusion", "segmentation"]
    for family in families:
        assert all((family / f"{room}.py").is_file() for room in ROOMS), family
        assert f"train.{family.name}" not in "".join(file.read_text() for file in (ROOT / "train/engine").glob("*.py"))


def test_the_loss_is_near_the_command(tmp_path, monkeypatch):
    """The calls from the command's main to the objective's losses, without those of other libraries."""
    losses, paths = FlowObjective.losses, []

    def recorded(self, *arguments):
        calls = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()[:-1]]
        paths.append([call for call in calls if call.startswith(PACKAGE)])
        return losses(self, *arguments)

    monkeypatch.setattr(FlowObjective, "losses", recorded)
    train(tmp_path / "run", num_steps=1, sample_every=0)
    (path,) = paths
    path = path[path.index(f"{ROOT / 'train/train_demo.py'}:main") :]
    assert len(path) <= MAX_CALLS, path  # main makes the first call, and the last of the path calls losses
    assert path[-1] == f"{ROOT / 'train/diffusion/trainer.py'}:loss"
