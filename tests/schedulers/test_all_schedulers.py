"""Every scheduler of diffusers and ours, in any number of steps: right samples, or a ValueError before the first step.

The network is exact for latents N(0.5, 0.8²) or pixels N(0.1, 0.2²), which clipping to [−1, 1] leaves as they are; so
the samples' mean and spread are known. They are those of a whole pipeline, not of the probe that refuses schedulers.
"""

import inspect
import warnings

import diffusers
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from demo_diffusion import DEMOPipeline, schedulers
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from tests.support.networks import tiny_dit
from tests.support.pipelines import quiet

DATA = {1: (0.1, 0.2), 4: (0.5, 0.8)}  # channels: mean, spread
FEW, MANY = (1, 2, 5, 10, 20, 50), (333, 501, 600, 1000)
SETTINGS = (
    {},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"thresholding": True},
)


def all_schedulers() -> list[type]:
    found = {}
    for module in (diffusers.schedulers, schedulers):
        for name in dir(module):
            if name.endswith("Scheduler") and inspect.isclass(getattr(module, name)):
                found[name] = getattr(module, name)
    return list(found.values())


def exact_pipeline(objective, channels: int) -> DEMOPipeline:
    mean, std = DATA[channels]
    out_channels = objective.out_channels(channels)
    network = tiny_dit(in_channels=channels, out_channels=out_channels, sample_size=32)
    pipeline = quiet(DEMOPipeline(network, objective.scheduler()))
    is_flow = isinstance(objective, FlowObjective)
    signal = None if is_flow else pipeline.scheduler.alphas_cumprod

    def forward(x, timestep, class_labels):
        t = timestep.view(-1)[0]
        data, noise = (1 - t, t) if is_flow else (signal[t.long()].sqrt(), (1 - signal[t.long()]).sqrt())
        centred = (x - data * mean) / (data**2 * std**2 + noise**2)
        predicted = noise * centred
        if is_flow:
            predicted = predicted - mean - data * std**2 * centred
        sample = predicted if is_flow else torch.cat([predicted, -torch.ones_like(x)], dim=1)
        return Transformer2DModelOutput(sample=sample)

    network.forward = forward
    return pipeline


def created(scheduler_class: type, pipeline: DEMOPipeline) -> list:
    """From the pipeline's config, as README does, and fresh with each of `SETTINGS` that it takes."""
    known, found = inspect.signature(scheduler_class.__init__).parameters, []
    makers = [lambda: scheduler_class.from_config(pipeline.scheduler.config)]
    makers += [lambda s=s: scheduler_class(**s) for s in SETTINGS if set(s) <= set(known)]
    for make in makers:
        try:
            found.append(make())
        except Exception:  # one that diffusers itself does not make
            continue
    return found


@pytest.mark.parametrize("all_steps", [FEW, pytest.param(MANY, marks=pytest.mark.proof)], ids=["few", "many"])
@pytest.mark.parametrize("scheduler_class", all_schedulers(), ids=lambda c: c.__name__)
def test_samples_are_right_or_refused(scheduler_class, all_steps):
    warnings.simplefilter("ignore")
    noise = torch.special.ndtri(torch.linspace(0, 1, 1026)[1:-1])
    noise = (noise / noise.std())[torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
    for objective in (DDPMObjective(), FlowObjective()):
        for channels in (1, 4):
            mean, std = DATA[channels]
            pipeline = exact_pipeline(objective, channels)
            latents = noise.view(1, 1, 32, 32).expand(1, channels, 32, 32)
            for scheduler in created(scheduler_class, pipeline):
                for steps in all_steps:
                    pipeline.scheduler = scheduler
                    try:
                        x = pipeline([0], 1.0, num_inference_steps=steps, latents=latents, output_type="latent",
                                     generator=torch.Generator().manual_seed(1)).images  # fmt: skip
                    except ValueError:
                        continue
                    where = f"{type(objective).__name__}, {channels} channels, {steps} steps, {dict(scheduler.config)}"
                    drawn = 0.08 if x[0, 0].flatten().sort().indices.ne(noise.sort().indices).any() else 0
                    assert abs(x.mean() - mean) < 0.006 + drawn, where
                    assert -4.5 / steps - 0.02 - drawn < x.std() - std < 1.5 / steps + 0.02 + drawn, where
