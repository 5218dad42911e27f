"""Bad arguments of the Python API: each is a ValueError."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from demo_diffusion import (
    DEMOPipeline,
    FlowMatchDopri5Scheduler,
    FlowMatchSDEScheduler,
    create_emov2,
    create_transformer,
)
from demo_diffusion.data.autoencoder import LatentNormalization, load_vae
from demo_diffusion.models.classifiers import load_classifier
from demo_diffusion.objectives import DDPMObjective, FlowObjective, create_objective
from demo_diffusion.pipelines.samplers import create_sampler
from tests.models import test_bad_arguments as models
from tests.objectives import test_bad_arguments as objectives
from tests.support.bad_values import NOT_NAMES, NOT_NUMBERS, NOT_WHOLE
from tests.support.classifiers import tiny_emov2
from tests.support.detectors import TINY
from tests.support.networks import inputs_for, tiny_transformer
from tests.support.pipelines import quiet

from .judging import judge_call
from .runner import Case

KIND = "API arguments"
NAN = float("nan")
OF_A_CALL = {
    "class_labels": (
        -1, 10, 10**20, 1.5, True, None, "unknown", [], [[1]], [1, None], torch.tensor([0.5]), torch.tensor([True]),
        b"1", object(),
    ),
    "guidance_scale": (*NOT_NUMBERS, -1),
    "guidance_interval": (None, 1, (1, 0), (0, 2), (NAN, 1), ("a", "b"), (0,), (0, 0.5, 1), "01", {}),
    "guidance_channels": (*(value for value in NOT_WHOLE if value is not None), 5),
    "num_inference_steps": (*NOT_WHOLE, 10**4 + 1),
    "generator": (0, "cpu", [None], [], [torch.Generator()] * 2, object()),
    "latents": (
        0, [0], torch.zeros(1), torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8, dtype=torch.long),
        torch.full((1, 4, 8, 8), NAN), torch.full((1, 4, 8, 8), float("inf")),
    ),
    "output_type": (None, 3, "jpeg", ["pil"], "", "latents"),
}  # fmt: skip
OF_A_PIPELINE = {
    "transformer": (None, 3, "DEMO-S/2", torch.nn.Linear(1, 1), tiny_transformer),
    "scheduler": (None, 3, "ddpm", DDPMScheduler, torch.nn.Linear(1, 1), DDPMScheduler(prediction_type="sample")),
    "vae": (3, "taef2", torch.nn.Linear(1, 1), object()),
    "id2label": (3, "cat", [1], {"a": "b"}, {99: "cat"}, {-1: "cat"}),
    "objective": (3, [], {}, "sde", "flow", True),
    "latents_mean": (0.5, [0.5], "a"),
    "trained_noise": (3, [], {"betas": 1}, {"beta_start": "a"}, {"num_train_timesteps": 10**20}, {"beta_end": 0.5}),
}
OTHER_NOISE = (
    {"beta_end": 0.012}, {"beta_schedule": "squaredcos_cap_v2"}, {"num_train_timesteps": 500},
    {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"trained_betas": [0.1] * 1000},
    {"beta_schedule": "scaled_linear"}, {"rescale_betas_zero_snr": True}, {"beta_start": 0.001},
)  # fmt: skip
PATHS = (None, 3, "", "/nowhere", "no such/name", [], "\x1b[31m", "a\0b")


def prepare(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)


def cases(root: Path) -> Iterator[Case]:
    for number, (name, call) in enumerate(calls()):
        yield Case(KIND, f"{name} ({number})", lambda folder, call=call: judge_call(call))


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """(what, a call that must be refused)."""
    yield from _of_networks()
    yield from _of_objectives()
    yield from _of_pipelines()
    yield from _of_the_rest()


def _of_networks() -> Iterator[tuple[str, Callable[[], object]]]:
    for network, field, value in models.BAD_FIELDS:
        yield f"{network} {field}={value!r:.40}", lambda n=network, f=field, v=value: models.CREATE[n](**{f: v})
    for field, value in models.BAD_EMOV2:
        yield f"EMOv2 {field}={value!r:.40}", lambda f=field, v=value: tiny_emov2("EMOv2-1M", **{f: v})
    for create, field, value in models.BAD_CREATIONS:
        yield f"{create} {field}={value!r:.40}", lambda c=create, f=field, v=value: models.SMALL[c](**{f: v})
    for create in (create_transformer, create_emov2):
        for name in NOT_NAMES:
            yield f"{create.__name__}({name!r})", lambda create=create, name=name: create(name)
        preset = "DEMO-S/2" if create is create_transformer else "EMOv2-1M"
        yield f"{create.__name__} with an unknown field", lambda c=create, p=preset: c(p, no_such=1)
    for network, create in models.CREATE.items():
        for bad, (_, change) in models.BAD_INPUTS.items():
            yield f"{network} forward, {bad}", lambda create=create, change=change: _forward(create, change)
    for message, inputs in models.BAD_PIXELS.items():
        yield f"EMOv2 forward, {message}", lambda i=inputs: tiny_emov2("EMOv2-1M", num_labels=1000).eval()(*i)
    for network, create in models.DENSE.items():
        for bad, (images, _) in models.NOT_IMAGES.items():
            yield f"{network} forward, {bad}", lambda c=create, i=images: c().eval()(i)
    for bad, (labels, _) in models.NOT_LABELS.items():
        yield f"U-EMO labels, {bad}", lambda v=labels: models.DENSE["U-EMO"]()(models.IMAGES, v)
    for network in models.DETECTORS:
        for bad, (images, _) in models.NOT_DETECTED.items():
            yield f"{network} forward, {bad}", lambda n=network, i=images: models.small_detector(n, **TINY).eval()(i)


def _forward(create: Callable, change: Callable) -> object:
    model = create(num_classes=10).eval()
    return model(*change(*inputs_for(model)))


def _of_objectives() -> Iterator[tuple[str, Callable[[], object]]]:
    for objective, name, value in objectives.BAD_SETTINGS:
        yield f"{objective} {name}={value!r:.40}", lambda o=objective, n=name, v=value: create_objective(o, **{n: v})
    for name, create in objectives.OBJECTIVES.items():
        for bad, (_, change) in objectives.BAD_BATCHES.items():
            yield f"{name} losses, {bad}", lambda create=create, change=change: _losses(create(), change)
        for value in NOT_WHOLE:
            yield f"{name} sample_timesteps({value!r:.40})", lambda c=create, v=value: c().sample_timesteps(v)
    for other in ({"logit_mean": 1.0}, {"no_such": 1}):
        yield f"ddpm with {other}", lambda other=other: create_objective("ddpm", **other)


def _losses(objective: DDPMObjective | FlowObjective, change: Callable) -> object:
    x0, noise = torch.randn(2, 2, 4, 8, 8)
    return objective.losses(torch.randn(2, 8, 8, 8), *change(x0, noise, objective.sample_timesteps(2)))


def _pipeline(**parts) -> DEMOPipeline:
    return quiet(DEMOPipeline(**{"transformer": tiny_transformer(), "scheduler": DDPMObjective().scheduler(), **parts}))


def _of_pipelines() -> Iterator[tuple[str, Callable[[], object]]]:
    for name, values in OF_A_CALL.items():
        for value in values:
            given = {"class_labels": [1], "num_inference_steps": 2, "output_type": "latent", name: value}
            yield f"pipeline({name}={value!r:.40})", lambda given=given: _pipeline()(**given)
    for name, values in OF_A_PIPELINE.items():
        for value in values:
            yield f"DEMOPipeline({name}={value!r:.40})", lambda n=name, v=value: _pipeline(**{n: v})
    for other in OTHER_NOISE:
        for scheduler in (DDPMScheduler, DDIMScheduler):
            yield f"{scheduler.__name__} with {other!r:.40}", lambda s=scheduler, o=other: _with_scheduler(s, o)


def _with_scheduler(scheduler_class: type, other: dict) -> object:
    pipeline = _pipeline()
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **other)
    return pipeline([1], num_inference_steps=2, output_type="latent")


def _of_the_rest() -> Iterator[tuple[str, Callable[[], object]]]:
    for scheduler in (FlowMatchDopri5Scheduler, FlowMatchSDEScheduler):
        for value in NOT_WHOLE:
            yield f"{scheduler.__name__} steps {value!r:.40}", lambda s=scheduler, v=value: s().set_timesteps(v)
            yield f"{scheduler.__name__} num_train_timesteps={value!r:.40}", lambda s=scheduler, v=value: s(v)
    for value in (*NOT_NUMBERS, -1):
        yield f"dopri5 rtol={value!r:.40}", lambda v=value: FlowMatchDopri5Scheduler(rtol=v)
        yield f"SDE diffusion_norm={value!r:.40}", lambda v=value: FlowMatchSDEScheduler(diffusion_norm=v)
    for name in ("solver", "diffusion_form", "last_step"):
        for value in (3, "unknown", [], True):
            yield f"SDE {name}={value!r}", lambda n=name, v=value: FlowMatchSDEScheduler(**{n: v})
    for value in (3, "a", [], ["a"], [NAN], [1.0, 2.0], {}, None, [True]):
        yield f"LatentNormalization({value!r})", lambda v=value: LatentNormalization(v, [1.0])
        yield f"LatentNormalization(std={value!r})", lambda v=value: LatentNormalization([0.0], v)
    for value in ([0.0], [-1.0], [float("inf")]):
        yield f"LatentNormalization(std={value!r})", lambda v=value: LatentNormalization([0.0], v)
    for path in PATHS:
        yield f"from_pretrained({path!r})", lambda path=path: DEMOPipeline.from_pretrained(path)
        yield f"load_classifier({path!r})", lambda path=path: load_classifier(path)
        if path is not None:
            yield f"load_vae({path!r})", lambda path=path: load_vae(path, 3, torch.device("cpu"))
    for name in NOT_NAMES:
        if name is not None:
            yield f"create_sampler({name!r})", lambda n=name: create_sampler(DDPMObjective().scheduler(), n)
