"""Creates the objective, the network and the pipeline that a config describes."""

from demo_diffusion import DEMOPipeline, create_transformer, objectives
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.objectives import Objective
from demo_diffusion.pipelines.samplers import create_sampler

from .config import DiffusionTrainingConfig, ModelConfig, ObjectiveConfig
from .data import DiffusionData


def create_network(
    config: ModelConfig, objective: Objective, in_channels: int, sample_size: int, num_classes: int
) -> ClassConditionalTransformer:
    """The network, with new weights.

    Args:
        in_channels, sample_size: x0 has shape (in_channels, sample_size, sample_size).
        num_classes: number of classes, without the null class.

    Raises:
        ValueError: if the config does not fit the data or the objective.
    """
    settings = {
        "in_channels": in_channels,
        "out_channels": objective.out_channels(in_channels),
        "sample_size": sample_size,
        "num_classes": num_classes,
        **config.overrides(),
    }
    objective.check_channels(settings["out_channels"], in_channels)
    return create_transformer(config.transformer, **settings)


def create_pipeline(
    config: DiffusionTrainingConfig,
    data: DiffusionData,
    objective: Objective,
    network: ClassConditionalTransformer,
) -> DEMOPipeline:
    """A pipeline around a trained network, with the config's sampler and the data's autoencoder and labels."""
    sampler = create_sampler(objective.scheduler(), config.run.sampler)
    return DEMOPipeline(network, sampler, data.vae, data.id2label, **data.pipeline_statistics)


def create_objective(config: ObjectiveConfig) -> Objective:
    """Raises ValueError if a setting is not allowed or another objective's."""
    return objectives.create_objective(config.objective, **config.settings())
