"""A bad argument of an objective is a ValueError that names it; nothing is broadcast."""

import pytest
import torch

from demo_diffusion.objectives import DDPMObjective, FlowObjective, create_objective
from tests.support.bad_values import NOT_FLAGS, NOT_NAMES, NOT_NUMBERS, NOT_WHOLE, shown

OBJECTIVES = {"ddpm": DDPMObjective, "flow": FlowObjective}
BAD_SETTINGS = [
    *(("ddpm", "num_train_timesteps", value) for value in (*NOT_WHOLE, 1)),
    *(("ddpm", name, value) for name in ("beta_start", "beta_end") for value in (*NOT_NUMBERS, -1, 0, 1)),
    *(("ddpm", "prediction_type", value) for value in NOT_NAMES),
    *(("ddpm", "min_snr_gamma", value) for value in (*NOT_NUMBERS, -1, 0) if value is not None),
    *(("ddpm", "zero_terminal_snr", value) for value in NOT_FLAGS),
    *(("flow", "timestep_sampling", value) for value in NOT_NAMES),
    *(("flow", "logit_mean", value) for value in NOT_NUMBERS),
    *(("flow", "logit_std", value) for value in (*NOT_NUMBERS, -1, 0)),
    *(("flow", "direction_weight", value) for value in (*NOT_NUMBERS, -1)),
]


@pytest.mark.parametrize(("objective", "name", "value"), BAD_SETTINGS, ids=shown)
def test_a_setting_is_named(objective, name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        create_objective(objective, **{name: value})


@pytest.mark.parametrize("name", NOT_NAMES, ids=shown)
def test_a_name_is_named(name):
    with pytest.raises(ValueError, match="objective is .*; it must be one of"):
        create_objective(name)


@pytest.mark.parametrize("value", NOT_WHOLE, ids=shown)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_size_is_named(objective, value):
    with pytest.raises(ValueError, match="batch_size is "):
        OBJECTIVES[objective]().sample_timesteps(value)


@pytest.mark.parametrize("value", [0, "cpu", [None]], ids=shown)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_generator_is_named(objective, value):
    with pytest.raises(ValueError, match="generator is "):
        OBJECTIVES[objective]().sample_timesteps(2, value)


BAD_BATCHES = {
    "x0 None": ("x0 is None", lambda x0, noise, t: (None, noise, t)),
    "x0 list": ("x0 is ", lambda x0, noise, t: (x0.tolist(), noise, t)),
    "x0 whole": ("x0 has dtype", lambda x0, noise, t: (x0.long(), noise, t)),
    "x0 flat": ("x0 is ", lambda x0, noise, t: (x0.flatten(), noise, t)),
    "x0 sparse": ("x0 is of layout", lambda x0, noise, t: (x0.to_sparse(), noise, t)),
    "x0 meta": ("x0 is on the meta device", lambda x0, noise, t: (x0.to("meta"), noise, t)),
    "t meta": ("timesteps is on the meta device", lambda x0, noise, t: (x0, noise, t.to("meta"))),
    "noise None": ("noise is None", lambda x0, noise, t: (x0, None, t)),
    "noise whole": ("noise has dtype", lambda x0, noise, t: (x0, noise.long(), t)),
    "noise of one": ("noise has shape", lambda x0, noise, t: (x0, noise[:1], t)),
    "noise of one channel": ("noise has shape", lambda x0, noise, t: (x0, noise[:, :1], t)),
    "noise of one position": ("noise has shape", lambda x0, noise, t: (x0, noise[..., :1, :1], t)),
    "t None": ("timesteps is None", lambda x0, noise, t: (x0, noise, None)),
    "t number": ("timesteps is 0", lambda x0, noise, t: (x0, noise, 0)),
    "t of one": ("timesteps has shape", lambda x0, noise, t: (x0, noise, t[:1])),
    "t without batch": ("timesteps has shape", lambda x0, noise, t: (x0, noise, t[0])),
    "t of the other kind": (
        "timesteps has dtype",
        lambda x0, noise, t: (x0, noise, t.long() if t.is_floating_point() else t.float()),
    ),
    "t bool": ("timesteps has dtype", lambda x0, noise, t: (x0, noise, t > 0)),
    "t negative": ("timesteps has values from -1", lambda x0, noise, t: (x0, noise, t * 0 - 1)),
    "t too large": ("timesteps has values from ", lambda x0, noise, t: (x0, noise, t * 0 + 1000)),
}


@pytest.mark.parametrize("bad", [*BAD_BATCHES, "t NaN"])
@pytest.mark.parametrize("method", ["add_noise", "losses"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_named(name, method, bad):
    objective = OBJECTIVES[name]()
    x0, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), objective.sample_timesteps(2)
    message, change = BAD_BATCHES.get(bad, ("timesteps has", lambda x0, noise, t: (x0, noise, t * float("nan"))))
    batch = change(x0, noise, t)
    output = [torch.randn(2, 8, 8, 8)] if method == "losses" else []
    with pytest.raises(ValueError, match=message):
        getattr(objective, method)(*output, *batch)


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (2, 8, 8, 1), (2, 8, 1, 8), (2, 8, 64), (2, 5, 8, 8)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_output_is_named(name, shape):
    objective = OBJECTIVES[name]()
    with pytest.raises(ValueError, match="model_output has shape|The network gives 5 channels"):
        objective.losses(torch.randn(shape), *torch.randn(2, 2, 4, 8, 8), objective.sample_timesteps(2))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_times_are_not_read_on_a_device(name):
    """There, reading them would wait for the device."""
    objective = OBJECTIVES[name]().to("meta")
    x0, t = torch.empty(2, 4, 8, 8, device="meta"), objective.sample_timesteps(2).to("meta")
    assert objective.add_noise(x0, x0, t).is_meta
