import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from demo_diffusion.cli.arguments import arguments_of
from demo_diffusion.objectives import OBJECTIVES, DDPMObjective, FlowObjective, create_objective
from tests.support.goldens import load_golden


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


def test_min_snr_weighs_the_mse_alone(ddpm):
    arguments = ddpm["model_output"], ddpm["x0"], ddpm["noise"], ddpm["timesteps"]
    plain, weighted = DDPMObjective().losses(*arguments), DDPMObjective(min_snr_gamma=5).losses(*arguments)
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[ddpm["timesteps"]]
    snr = signal / (1 - signal)
    weight = torch.minimum(snr, torch.tensor(5.0)) / snr
    assert weight.min() < 0.01 and weight.max() == 1  # both sides of gamma are among the samples
    torch.testing.assert_close(weighted["loss"], (weight * plain["mse"] + plain["vb"]).float(), atol=1e-6, rtol=1e-5)
    assert torch.equal(weighted["mse"], plain["mse"]) and torch.equal(weighted["vb"], plain["vb"])


def test_v_prediction_is_the_same_bound_in_other_words(ddpm):
    """v = √ᾱ noise − √(1 − ᾱ) x0: the v of a network that predicts noise has the same bound."""
    x0, noise, timesteps = ddpm["x0"], ddpm["noise"], ddpm["timesteps"]
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timesteps].view(-1, 1, 1, 1)
    predicted_noise, variance = ddpm["model_output"].double().chunk(2, dim=1)
    predicted_x0 = (ddpm["x_t"] - (1 - signal).sqrt() * predicted_noise) / signal.sqrt()
    v = signal.sqrt() * predicted_noise - (1 - signal).sqrt() * predicted_x0
    losses = DDPMObjective(prediction_type="v_prediction").losses(torch.cat([v, variance], 1), x0, noise, timesteps)
    torch.testing.assert_close(losses["vb"], ddpm["vb"], atol=0, rtol=1e-3)
    target = signal.sqrt() * noise - (1 - signal).sqrt() * x0
    torch.testing.assert_close(losses["mse"], (v - target).square().mean((1, 2, 3)).float(), atol=1e-5, rtol=1e-5)
    weighted = DDPMObjective(prediction_type="v_prediction", min_snr_gamma=5)
    snr = (signal / (1 - signal)).flatten()
    torch.testing.assert_close(
        weighted.mse_weight[timesteps], (torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)).float()
    )


def test_zero_terminal_snr():
    objective = DDPMObjective(prediction_type="v_prediction", zero_terminal_snr=True)
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    last, first = torch.tensor([999, 999]), torch.tensor([0, 0])
    assert torch.equal(objective.add_noise(x0, noise, last), noise)
    torch.testing.assert_close(objective.add_noise(x0, noise, first), DDPMObjective().add_noise(x0, noise, first))
    losses = objective.losses(torch.randn(2, 8, 8, 8), x0, noise, last)
    assert all(loss.isfinite().all() for loss in losses.values())
    scheduler = objective.scheduler()
    torch.testing.assert_close(scheduler.alphas_cumprod, objective.signal_scale**2, atol=1e-6, rtol=0)
    for scheduler_class in (DDPMScheduler, DDIMScheduler):
        scheduler = scheduler_class.from_config(objective.scheduler().config)
        scheduler.set_timesteps(1000)
        output = torch.cat([-x0, torch.zeros_like(x0)], 1)  # v = −x0 where x_t is noise alone
        output = output if scheduler_class is DDPMScheduler else -x0
        predicted = scheduler.step(output, 999, noise).pred_original_sample
        torch.testing.assert_close(predicted, x0, atol=1e-5, rtol=0)


def test_direction_loss_is_one_minus_the_cosine(flow):
    t, data, noise = 1 - flow["t"], flow["data"], flow["noise"]
    prediction, velocity = -flow["model_velocity"], noise - data
    plain = FlowObjective().losses(prediction, data, noise, t)["loss"]
    directed = FlowObjective(direction_weight=0.3).losses(prediction, data, noise, t)["loss"]
    products = (prediction * velocity).sum(1) / (prediction.norm(dim=1) * velocity.norm(dim=1))
    torch.testing.assert_close(directed, plain + 0.3 * (1 - products).mean((1, 2)), atol=1e-5, rtol=0)
    assert (directed - plain).min() > 1e-3
    with pytest.raises(ValueError, match="direction_weight needs more than one channel"):
        FlowObjective(direction_weight=0.3).losses(prediction[:, :1], data[:, :1], noise[:, :1], t)


def test_bfloat16_output_is_scored_in_float32(ddpm):
    output = ddpm["model_output"].bfloat16()
    losses = DDPMObjective().losses(output, ddpm["x0"], ddpm["noise"], ddpm["timesteps"])
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_wrong_settings_are_named(ddpm):
    x0 = ddpm["x0"]
    with pytest.raises(ValueError, match="gives 4 channels.*out_channels to 8"):
        DDPMObjective().losses(x0, x0, x0, ddpm["timesteps"])
    with pytest.raises(ValueError, match="gives 3 channels.*out_channels to 4"):
        FlowObjective().losses(x0[:, :3], x0, x0, torch.rand(16))
    with pytest.raises(ValueError, match="'cosine'.*logit_normal"):
        FlowObjective("cosine")
    with pytest.raises(ValueError, match="logit_std is 0"):
        FlowObjective("logit_normal", logit_std=0)
    with pytest.raises(ValueError, match="direction_weight is -1"):
        FlowObjective(direction_weight=-1)
    with pytest.raises(ValueError, match="'sample'; it must be one of"):
        DDPMObjective(prediction_type="sample")
    with pytest.raises(ValueError, match="zero_terminal_snr needs prediction_type 'v_prediction'"):
        DDPMObjective(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="min_snr_gamma would give .* no weight, from which sampling starts"):
        DDPMObjective(prediction_type="v_prediction", zero_terminal_snr=True, min_snr_gamma=5)
    with pytest.raises(ValueError, match="min_snr_gamma is nan"):
        DDPMObjective(min_snr_gamma=math.nan)


@pytest.mark.parametrize("settings", [{"num_train_timesteps": each} for each in (2, 10, 37, 100, 400)] + [
    {"beta_end": 0.001}, {"beta_start": 1e-5, "beta_end": 1e-5}, {"beta_end": 0.004},
])  # fmt: skip
def test_noise_that_still_shows_the_data_is_refused(settings):
    with pytest.raises(ValueError, match=r"of the data is left .*must be at most 0.1.*num_train_timesteps"):
        DDPMObjective(**settings)


@pytest.mark.parametrize("settings", [{"num_train_timesteps": 500}, {"num_train_timesteps": 37, "beta_end": 0.5}])
def test_noise_that_is_noise_is_taken(settings):
    assert DDPMObjective(**settings).signal_scale[-1] < 0.1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_timesteps_of_any_whole_kind_are_the_same(dtype):
    torch.manual_seed(0)
    ddpm = DDPMObjective(min_snr_gamma=5)
    x0, noise, output = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.randn(2, 8, 4, 4)
    timesteps = torch.tensor([100, 1])
    assert torch.equal(ddpm.add_noise(x0, noise, timesteps.to(dtype)), ddpm.add_noise(x0, noise, timesteps))
    expected = ddpm.losses(output, x0, noise, timesteps)
    for name, value in ddpm.losses(output, x0, noise, timesteps.to(dtype)).items():
        assert torch.equal(value, expected[name])


def test_objectives_by_name():
    for name, objective_class in OBJECTIVES.items():
        objective = create_objective(name)
        assert type(objective) is objective_class and objective_class.fits(objective.scheduler())
        others = [each for each in OBJECTIVES.values() if each is not objective_class]
        assert not any(each.fits(objective.scheduler()) for each in others)
        assert type(objective.scheduler()) is next(iter(objective.samplers.values()))[0]
        drawn = objective.sample_timesteps(100)
        assert drawn.is_floating_point() == objective.continuous_time and (drawn.max() < 1) == objective.continuous_time
    assert create_objective("flow", direction_weight=0.3).direction_weight == 0.3
    for name, settings, message in (
        ("edm", {}, "objective is 'edm'; it must be one of .*'ddpm', 'flow'"),
        ("ddpm", {"direction_weight": 1.0}, "direction_weight 1.0 needs objective 'flow'"),
        ("flow", {"sigma": 1}, "No objective has the setting 'sigma'"),
    ):
        with pytest.raises(ValueError, match=message):
            create_objective(name, **settings)


def test_objectives_that_share_an_argument_share_its_default():
    """The config's section has one field for both."""
    defaults = {}
    for objective in OBJECTIVES.values():
        for argument in arguments_of(objective):
            assert defaults.setdefault(argument.name, argument.default) == argument.default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps is 1; it must be a whole number in .2, "),
        ({"beta_start": 0.1}, "beta_start is 0.1 and beta_end 0.02"),
        ({"beta_end": 1.0}, "beta_end is 1.0"),
        ({"min_snr_gamma": math.inf}, "min_snr_gamma is inf"),
    ],
)
def test_noise_levels_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDPMObjective(**arguments)
