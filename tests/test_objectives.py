import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from demo_diffusion.objectives import DDPMObjective, FlowObjective

from .conftest import load_golden


@pytest.fixture(scope="module")
def ddpm():
    return load_golden("ddpm_objective")[1]


@pytest.fixture(scope="module")
def flow():
    return load_golden("flow_objective")[1]


def test_ddpm_losses_equal_golden(ddpm):
    objective = DDPMObjective()
    x_t = objective.add_noise(ddpm["x0"], ddpm["noise"], ddpm["timesteps"])
    torch.testing.assert_close(x_t, ddpm["x_t"], atol=1e-5, rtol=0)
    losses = objective.losses(ddpm["model_output"], ddpm["x0"], ddpm["noise"], ddpm["timesteps"])
    torch.testing.assert_close(losses["mse"], ddpm["mse"], atol=1e-5, rtol=0)
    torch.testing.assert_close(losses["vb"], ddpm["vb"], atol=0, rtol=1e-4)
    torch.testing.assert_close(losses["loss"], ddpm["loss"], atol=1e-5, rtol=0)


def test_variational_bound_trains_the_variance_alone(ddpm):
    output = ddpm["model_output"].clone().requires_grad_()
    losses = DDPMObjective().losses(output, ddpm["x0"], ddpm["noise"], ddpm["timesteps"])
    (gradient,) = torch.autograd.grad(losses["vb"].sum(), output)
    noise_gradient, variance_gradient = gradient.chunk(2, dim=1)
    assert noise_gradient.abs().max() == 0
    assert (variance_gradient.abs().amax((1, 2, 3)) > 0).all()


def test_ddpm_scheduler_takes_the_official_step(ddpm):
    scheduler = DDPMObjective().scheduler()
    assert isinstance(scheduler, DDPMScheduler)
    scheduler.set_timesteps(250)
    assert torch.equal(scheduler.timesteps.flip(0), ddpm["step250_timesteps"])
    # Without noise the step is the mean: average over the two signs of one draw.
    for i, t in enumerate(ddpm["step250_timestep"]):
        steps = []
        for sign in (1, -1):
            noise = sign * torch.ones_like(ddpm["x_t"][i : i + 1])
            steps.append(step_with_noise(scheduler, ddpm, i, t, noise))
        mean, std = (steps[0] + steps[1]) / 2, (steps[0] - steps[1]) / 2
        torch.testing.assert_close(mean[0], ddpm["step250_mean"][i], atol=1e-5, rtol=1e-5)
        if t > 0:
            torch.testing.assert_close(2 * std[0].log(), ddpm["step250_log_variance"][i], atol=1e-4, rtol=0)


def step_with_noise(scheduler, ddpm, i, t, noise):
    import diffusers.schedulers.scheduling_ddpm as module

    original, module.randn_tensor = module.randn_tensor, lambda *args, **kwargs: noise
    try:
        return scheduler.step(ddpm["model_output"][i : i + 1], t, ddpm["x_t"][i : i + 1]).prev_sample
    finally:
        module.randn_tensor = original


def test_flow_losses_equal_golden_in_our_time(flow):
    objective, t = FlowObjective(), 1 - flow["t"]
    torch.testing.assert_close(objective.add_noise(flow["data"], flow["noise"], t), flow["x_t"], atol=1e-5, rtol=0)
    losses = objective.losses(-flow["model_velocity"], flow["data"], flow["noise"], t)
    torch.testing.assert_close(losses["loss"], flow["loss"], atol=1e-5, rtol=0)
    variance = torch.randn_like(flow["model_velocity"])
    doubled = torch.cat([-flow["model_velocity"], variance], dim=1)
    assert torch.equal(objective.losses(doubled, flow["data"], flow["noise"], t)["loss"], losses["loss"])


def test_flow_scheduler_integrates_the_velocity_back_to_the_data(flow):
    scheduler = FlowObjective().scheduler()
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    scheduler.set_timesteps(10)
    x = flow["noise"]
    for t in scheduler.timesteps:
        x = scheduler.step(flow["noise"] - flow["data"], t, x).prev_sample
    torch.testing.assert_close(x, flow["data"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", [DDPMObjective(), FlowObjective(), FlowObjective("logit_normal")])
def test_timesteps_are_reproducible_and_in_range(objective):
    draws = [objective.sample_timesteps(1000, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].shape == (1000,) and draws[0].min() >= 0
    assert draws[0].max() < (1000 if isinstance(objective, DDPMObjective) else 1)


def test_logit_normal_times():
    t = FlowObjective("logit_normal", logit_mean=0.5, logit_std=0.7).sample_timesteps(100_000)
    z = torch.logit(t.double())
    assert z.mean().item() == pytest.approx(0.5, abs=0.01)
    assert z.std().item() == pytest.approx(0.7, abs=0.01)


def test_bfloat16_output_is_scored_in_float32(ddpm):
    output = ddpm["model_output"].bfloat16()
    losses = DDPMObjective().losses(output, ddpm["x0"], ddpm["noise"], ddpm["timesteps"])
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_wrong_settings_are_named(ddpm):
    x0 = ddpm["x0"]
    with pytest.raises(ValueError, match="gives 4 channels.*out_channels=8"):
        DDPMObjective().losses(x0, x0, x0, ddpm["timesteps"])
    with pytest.raises(ValueError, match="gives 3 channels.*out_channels=4"):
        FlowObjective().losses(x0[:, :3], x0, x0, torch.rand(16))
    with pytest.raises(ValueError, match="'cosine'.*logit_normal"):
        FlowObjective("cosine")
    with pytest.raises(ValueError, match="logit_std is 0"):
        FlowObjective("logit_normal", logit_std=0)
