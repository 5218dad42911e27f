"""The authors' own training losses of D-EMO (official_train_loss.csv, from the logs that they released)."""

import csv
import math
from pathlib import Path

from demo_diffusion.train.configuration import DiffusionDataConfig, ObjectiveConfig, OptimizationConfig, TrainingConfig

TABLE = Path(__file__).with_name("official_train_loss.csv")
# What else the authors' runs had; the autoencoder is compared where it is named.
AUTOENCODER = "stabilityai/sd-vae-ft-ema"


def official_losses(config: TrainingConfig, until_step: float = math.inf) -> list[dict[str, float]]:
    """[{"step", "loss"}] of the authors' run of this network, each a mean over 2,000 steps; empty if theirs differs.

    Rows end after `until_step`, so that the newest loss can be compared.
    """
    if not is_official(config):
        return []
    with TABLE.open() as file:
        rows = [
            {"step": int(row["step_end"]), "loss": float(row[config.model.transformer])} for row in csv.DictReader(file)
        ]
    later = [row["step"] for row in rows if row["step"] >= until_step]
    return [row for row in rows if row["step"] <= min(later, default=math.inf)]


def is_official(config: TrainingConfig) -> bool:
    """Whether a config's losses can be compared with the authors': preset, ImageNet 256 latents, objective, batch."""
    official_objective, official_optimization = ObjectiveConfig(), OptimizationConfig()
    return (
        config.model.transformer.startswith("DEMO-")
        and not config.model.overrides()
        and config.objective == official_objective
        and config.data.resolution == 256
        and config.data.latent_normalization == DiffusionDataConfig.latent_normalization
        and (config.data.vae == AUTOENCODER or config.data.latents is not None)
        and all(
            getattr(config.optimization, name) == getattr(official_optimization, name)
            for name in ("batch_size", "learning_rate", "lr_schedule", "weight_decay")
        )
    )
