"""The authors' own training losses of D-EMO (official_train_loss.csv, from the logs that they released)."""

import csv
import math
from pathlib import Path

from .config import DiffusionDataConfig, DiffusionTrainingConfig, ObjectiveConfig, OptimizationConfig

TABLE = Path(__file__).with_name("official_train_loss.csv")
AUTOENCODER, NUM_CLASSES = "sd-vae-ft-ema", 1000


def official_losses(
    config: DiffusionTrainingConfig, vae_name: str | None, num_classes: int, until_step: float = math.inf
) -> list[dict[str, float]]:
    """[{"step", "loss"}] of the authors' run of this network, each a mean over 2,000 steps; empty if theirs differs.

    Rows end after `until_step`, so that the newest loss can be compared.

    Args:
        vae_name: folder or hub id of the autoencoder; a copy keeps the last part of its name.
        num_classes: of the dataset.
    """
    if not (is_official(config) and Path(vae_name or "").name == AUTOENCODER and num_classes == NUM_CLASSES):
        return []
    with TABLE.open() as file:
        rows = [
            {"step": int(row["step_end"]), "loss": float(row[config.model.transformer])} for row in csv.DictReader(file)
        ]
    later = [row["step"] for row in rows if row["step"] >= until_step]
    return [row for row in rows if row["step"] <= min(later, default=math.inf)]


def is_official(config: DiffusionTrainingConfig) -> bool:
    """Whether a config trains as the authors did: preset, resolution, scaling, objective, batch and learning rate."""
    official_objective, official_optimization = ObjectiveConfig(), OptimizationConfig()
    return (
        config.model.transformer.startswith("DEMO-")
        and not config.model.overrides()
        and config.objective == official_objective
        and config.data.resolution == 256
        and config.data.latent_normalization == DiffusionDataConfig.latent_normalization
        and all(
            getattr(config.optimization, name) == getattr(official_optimization, name)
            for name in ("batch_size", "learning_rate", "lr_schedule", "weight_decay")
        )
    )
