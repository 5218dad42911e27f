"""SiT's samplers against the official code's results, a plain loop, and a case whose distribution is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchHeunDiscreteScheduler
from scipy.integrate import solve_ivp

from demo_diffusion import FlowMatchDopri5Scheduler, FlowMatchSDEScheduler
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.pipelines.samplers import create_sampler
from demo_diffusion.pipelines.scheduler_fit import objective_of, set_timesteps
from demo_diffusion.schedulers.flow_match_sde import DIFFUSION_FORMS, score_from_velocity
from tests.support.goldens import load_golden


@pytest.fixture(scope="module")
def golden():
    return load_golden("flow_objective")[1]


def toy_velocity(golden):
    """SiT's toy field in this package's time and sign."""

    def velocity(x, t):
        return -(torch.einsum("oc,bchw->bohw", golden["toy_W"], x) * (2 - t) - 0.5 * x)

    return velocity


def integrate(scheduler, velocity, x, num_steps, noises=None):
    """Runs a scheduler as a pipeline does; returns the sample and the times at which the network was called."""
    scheduler.set_timesteps(num_steps)
    if noises is not None:
        draws = iter(noises)
        scheduler._noise = lambda like, generator: next(draws)
    x, times = x * getattr(scheduler, "init_noise_sigma", 1.0), []
    for timestep in scheduler.timesteps:
        times.append(float(timestep) / 1000)
        x = scheduler.step(velocity(x, times[-1]), timestep, x).prev_sample
    return x, times


def test_score_and_diffusion_equal_golden(golden):
    x, t = golden["start"], 1 - 0.37
    score = score_from_velocity(toy_velocity(golden)(x, t), x, t)
    torch.testing.assert_close(score, golden["score_at_037"], atol=1e-5, rtol=0)
    for form in ("sbdm", "sigma"):
        expected = golden[f"diffusion_{form}_at_037"]
        torch.testing.assert_close(torch.full_like(expected, DIFFUSION_FORMS[form](t, 1.0)), expected)


def test_euler_maruyama_equals_golden(golden):
    x, times = integrate(
        FlowMatchSDEScheduler(), toy_velocity(golden), golden["start"], 20, golden["sde_sigma_20_steps_noises"]
    )
    torch.testing.assert_close(x, golden["sde_sigma_20_steps"], atol=2e-6, rtol=0)
    assert len(times) == 20 and times[0] == 1 and times[-1] == pytest.approx(0.04)


@pytest.mark.parametrize(("rtol", "error"), [(1e-3, 1e-3), (1e-5, 1e-5)])
def test_dopri5_equals_golden_within_its_tolerance(golden, rtol, error):
    scheduler = FlowMatchDopri5Scheduler(rtol=rtol)
    x, times = integrate(scheduler, toy_velocity(golden), golden["start"], 10)
    torch.testing.assert_close(x, golden["ode_exact"], atol=error, rtol=0)
    assert scheduler.num_evaluations == len(times) and times[0] == 1 and times[-1] == 0


def test_heun_of_diffusers_equals_golden(golden):
    x, _ = integrate(FlowMatchHeunDiscreteScheduler(), toy_velocity(golden), golden["start"], 150)
    torch.testing.assert_close(x, golden["ode_exact"], atol=3e-5, rtol=0)


@pytest.mark.parametrize(("rtol", "error"), [(1e-3, 3e-3), (1e-5, 1e-5)])
def test_dopri5_takes_the_steps_of_scipy_s(rtol, error):
    """A peak of width 0.05 at t = 0.5, whose integral is known; steps that jump into it must be tried again."""
    width, calls = 0.05, []

    def velocity(t):
        calls.append(t)
        return 1 / (width**2 + (t - 0.5) ** 2)

    x, times = integrate(
        FlowMatchDopri5Scheduler(rtol=rtol), lambda x, t: torch.full_like(x, velocity(t)), torch.zeros(1, 1, 2, 2), 3
    )
    exact = -2 / width * math.atan(0.5 / width)
    torch.testing.assert_close(x, torch.full_like(x, exact), atol=0, rtol=error)
    calls.clear()
    solution = solve_ivp(
        lambda s, x: np.full(4, -velocity(1 - s)), (0, 1), np.zeros(4), rtol=rtol, atol=1e-6, first_step=1 / 3
    )
    assert solution.nfev == len(calls) == len(times)
    np.testing.assert_allclose(times, calls, atol=2e-4)  # float32 against float64
    assert any(later > now for now, later in itertools.pairwise(times))


def test_dopri5_costs_six_calls_a_step(golden):
    scheduler = FlowMatchDopri5Scheduler()
    _, times = integrate(scheduler, lambda x, t: torch.ones_like(x), golden["start"], 4)
    assert len(times) == 7 + 6  # 0.25, then the rest, since the error of a constant velocity is none


def test_dopri5_gives_up_with_a_message():
    with pytest.raises(ValueError, match="No step of at least .* near t = .*larger tolerances"):
        integrate(FlowMatchDopri5Scheduler(), lambda x, t: torch.randn_like(x) * 1e4, torch.zeros(1, 1, 2, 2), 5)
    with pytest.raises(ValueError, match=r"not finite near t = 1.0"):
        integrate(FlowMatchDopri5Scheduler(), lambda x, t: x / 0, torch.zeros(1, 1, 2, 2), 5)


def plain_sde(velocity, x, grid, diffusion, solver, last_step, noises):
    """SiT's loop in its own words: noise of √(2 w h), drift −v + w · score, then the last step."""
    draws = iter(noises)

    def drift(x, t):
        return -velocity(x, t) + diffusion(t) * score_from_velocity(velocity(x, t), x, t)

    for now, later in itertools.pairwise(grid):
        h = now - later
        noise = math.sqrt(2 * diffusion(now) * h) * next(draws)
        if solver == "euler":
            x = x + drift(x, now) * h + noise
        else:
            x = x + noise
            predicted = x + drift(x, now) * h
            x = x + (drift(x, now) + drift(predicted, later)) / 2 * h if later > 0 else predicted
    t = grid[-1]
    if last_step == "mean":
        x = x + drift(x, t) * t
    elif last_step == "tweedie":
        x = (x + t**2 * score_from_velocity(velocity(x, t), x, t)) / (1 - t)
    elif last_step == "euler":
        x = x - velocity(x, t) * t
    return x


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
@pytest.mark.parametrize("form", DIFFUSION_FORMS)
def test_sde_equals_a_plain_loop(golden, form, last_step, solver):
    scheduler = FlowMatchSDEScheduler(
        solver=solver, diffusion_form=form, diffusion_norm=0.7, last_step=last_step, last_step_size=0.1
    )
    start, end = 0.999 if form == "sbdm" else 1.0, 0.0 if last_step is None else 0.1
    intervals = 6 if last_step is None else 5
    grid = torch.linspace(start, end, intervals + 1, dtype=torch.float64).tolist()
    noises = torch.randn(intervals, *golden["start"].shape)
    velocity = toy_velocity(golden)

    def diffusion(t):
        return DIFFUSION_FORMS[form](t, 0.7)

    if solver == "heun":  # the scheduler takes the first step's noise into the initial one
        scale = math.sqrt(2 * diffusion(start) * (grid[0] - grid[1]))
        noises[0] = golden["start"] * (math.sqrt(1 + scale**2) - 1) / scale
        given = noises[1:]
    else:
        given = noises
    x, times = integrate(scheduler, velocity, golden["start"], 6, given)
    expected = plain_sde(velocity, golden["start"], grid, diffusion, solver, last_step, noises)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)
    calls_per_step = 2 if solver == "heun" else 1
    assert len(times) == calls_per_step * intervals + (1 if last_step else 1 - calls_per_step)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("form", DIFFUSION_FORMS)
def test_sde_gives_the_data_s_distribution(form, solver):
    """Data N(1, 0.5²): E[noise − x0 | x] is known, and every diffusion form has the same marginals."""
    mean, std = 1.0, 0.5

    def velocity(x, t):
        variance = (1 - t) ** 2 * std**2 + t**2
        centred = x - (1 - t) * mean
        return (t - (1 - t) * std**2) / variance * centred - mean

    noise = torch.randn(1, 1, 200, 200)
    scheduler = FlowMatchSDEScheduler(solver=solver, diffusion_form=form, last_step="euler", last_step_size=0.004)
    x, _ = integrate(scheduler, velocity, noise, 250)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(std, abs=0.01)
    deterministic, _ = integrate(FlowMatchSDEScheduler(diffusion_norm=0, solver=solver), velocity, noise, 250)
    assert (x - deterministic).std() > 0.3


def test_sde_noise_comes_from_the_generator(golden):
    def run(seed):
        scheduler, x = FlowMatchSDEScheduler(), golden["start"]
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(seed)
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x, generator=generator).prev_sample
        return x

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_low_precision_samples_keep_their_type(golden):
    for scheduler in (FlowMatchSDEScheduler(), FlowMatchDopri5Scheduler()):
        scheduler.set_timesteps(4)
        x = golden["start"].bfloat16()
        assert scheduler.step(x, next(iter(scheduler.timesteps)), x, return_dict=False)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("scheduler", "settings", "message"),
    [
        (FlowMatchSDEScheduler, {"solver": "rk4"}, "solver is 'rk4'"),
        (FlowMatchSDEScheduler, {"diffusion_form": "SBDM"}, "'SBDM'; it must be one of .*'sbdm'"),
        (FlowMatchSDEScheduler, {"last_step": "Mean"}, "last_step is 'Mean'"),
        (FlowMatchSDEScheduler, {"last_step_size": 1}, "last_step_size is 1"),
        (FlowMatchSDEScheduler, {"diffusion_norm": -1}, "diffusion_norm is -1"),
        (FlowMatchSDEScheduler, {"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        (FlowMatchDopri5Scheduler, {"num_train_timesteps": -5}, "num_train_timesteps is -5"),
        (FlowMatchDopri5Scheduler, {"rtol": 0}, "rtol is 0"),
        (FlowMatchDopri5Scheduler, {"atol": float("nan")}, "atol is nan"),
    ],
)
def test_wrong_settings_are_named(scheduler, settings, message):
    with pytest.raises(ValueError, match=message):
        scheduler(**settings)


@pytest.mark.parametrize("scheduler", [FlowMatchSDEScheduler, FlowMatchDopri5Scheduler])
def test_wrong_use_is_named(scheduler):
    scheduler, x = scheduler(), torch.zeros(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="call set_timesteps"):
        scheduler.step(x, 1000, x)
    with pytest.raises(ValueError, match=r"num_inference_steps is 0"):
        scheduler.set_timesteps(0)
    integrate(scheduler, lambda x, t: x, x, 3)
    with pytest.raises(RuntimeError, match="no step left"):
        scheduler.step(x, 0, x)


SAMPLE = torch.linspace(-1, 1, 256).view(1, 4, 8, 8)
BAD_STEPS = {
    "model_output is None": {"model_output": None},
    "model_output has shape .1, 1, 8, 8.": {"model_output": SAMPLE[:, :1]},
    "model_output has dtype torch.int64": {"model_output": SAMPLE.long()},
    "not finite near t = 1.0": {"model_output": SAMPLE / 0},
    "timestep is 3; the scheduler's next one is 1000": {"timestep": torch.tensor(3.0)},
    "timestep is 0; ": {"timestep": 0},
    "timestep is None": {"timestep": None},
    "timestep is 'a'": {"timestep": "a"},
    "timestep is a tensor of shape .2": {"timestep": torch.ones(2)},
    "sample is None": {"sample": None},
    "sample has dtype torch.int64": {"sample": SAMPLE.long()},
}


@pytest.mark.parametrize("message", BAD_STEPS)
@pytest.mark.parametrize("scheduler", [FlowMatchSDEScheduler, FlowMatchDopri5Scheduler])
def test_wrong_arguments_of_a_step_are_named(scheduler, message):
    scheduler = scheduler()
    scheduler.set_timesteps(3)
    right = {"model_output": SAMPLE, "timestep": next(iter(scheduler.timesteps)), "sample": SAMPLE}
    with pytest.raises(ValueError, match=message):
        scheduler.step(**{**right, **BAD_STEPS[message]})
    assert scheduler.step(**right).prev_sample.shape == SAMPLE.shape  # nothing was taken


@pytest.mark.parametrize("generator", ["a", 3, ["a"]])
def test_a_wrong_generator_is_named(generator):
    scheduler = FlowMatchSDEScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="generator is "):
        scheduler.step(SAMPLE, 1000, SAMPLE, generator=generator)


def official_respacing(num_train_timesteps, count):
    """The timesteps that Improved DDPM's rule keeps, as its text says: one section, fractional stride, rounded."""
    kept, position = [], 0.0
    stride = (num_train_timesteps - 1) / (count - 1) if count > 1 else 1
    while len(kept) < count:
        kept.append(round(position))
        position += stride
    return kept


def test_ddpm_keeps_the_official_timesteps_for_any_number_of_steps():
    scheduler, differing = DDPMObjective().scheduler(), 0
    for count in range(1, 1001):
        set_timesteps(scheduler, count, torch.device("cpu"))
        kept = scheduler.timesteps.flip(0).tolist()
        assert kept == official_respacing(1000, count)
        diffusers_own = DDPMScheduler.from_config(scheduler.config)
        diffusers_own.set_timesteps(count)
        differing += kept != diffusers_own.timesteps.flip(0).tolist()
    assert differing == 278
    with pytest.raises(ValueError, match="1001; it must be at most 1000"):
        set_timesteps(scheduler, 1001, torch.device("cpu"))


def test_ddim_s_steps_end_where_the_next_ones_start():
    """The exact noise prediction for data N(0, 0.5²) brings the samples to a spread of 0.5."""
    scheduler = create_sampler(DDPMObjective().scheduler(), "ddim")
    for count in (250, 1000):
        set_timesteps(scheduler, count, torch.device("cpu"))
        x = torch.randn(1, 1, 200, 200)
        for t in scheduler.timesteps:
            signal = scheduler.alphas_cumprod[t]
            x = scheduler.step((1 - signal).sqrt() * x / (signal * 0.25 + 1 - signal), t, x).prev_sample
        assert x.std().item() == pytest.approx(0.5, abs=0.01)
    for count in (150, 600):
        with pytest.raises(ValueError, match=f"num_inference_steps is {count}.*divides 1000"):
            set_timesteps(scheduler, count, torch.device("cpu"))


@pytest.mark.parametrize("objective", [DDPMObjective(), FlowObjective()])
def test_dpm_solver_brings_samples_to_the_data(objective):
    """The exact prediction for data N(0, 0.5²), in 100 steps, from a scheduler that any other sampler left."""
    scheduler = objective.scheduler()
    for name in objective.samplers:
        sampler = create_sampler(create_sampler(scheduler, name), "dpm_solver")
        set_timesteps(sampler, 100, torch.device("cpu"))
        x = torch.randn(1, 1, 200, 200)
        for t in sampler.timesteps:
            if isinstance(objective, DDPMObjective):
                signal = scheduler.alphas_cumprod[t]
                prediction = (1 - signal).sqrt() * x / (signal * 0.25 + 1 - signal)
            else:
                time = t / 1000
                prediction = (time - (1 - time) * 0.25) * x / ((1 - time) ** 2 * 0.25 + time**2)
            x = sampler.step(prediction, t, x).prev_sample
        assert x.std().item() == pytest.approx(0.5, abs=0.01)
        assert type(create_sampler(sampler, name)) is type(create_sampler(scheduler, name))


def test_dpm_solver_needs_fewer_steps_than_timesteps():
    sampler = create_sampler(DDPMObjective().scheduler(), "dpm_solver")
    set_timesteps(sampler, 999, torch.device("cpu"))
    with pytest.raises(ValueError, match="num_inference_steps is 1000; DPM-Solver's timesteps differ only"):
        set_timesteps(sampler, 1000, torch.device("cpu"))


@pytest.mark.parametrize("objective", [DDPMObjective(), FlowObjective()])
def test_samplers_by_name(objective, caplog):
    kind = "ddpm" if isinstance(objective, DDPMObjective) else "flow"
    scheduler = objective.scheduler()
    assert create_sampler(scheduler, None) is scheduler
    assert type(create_sampler(scheduler, next(iter(objective.samplers)))) is type(scheduler)
    for name, (scheduler_class, _) in objective.samplers.items():
        sampler = create_sampler(scheduler, name)
        assert type(sampler) is scheduler_class and objective_of(sampler) == kind
    with pytest.raises(ValueError, match=f"sampler is 'plms'.*{name}"):
        create_sampler(scheduler, "plms")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
