import itertools
import json
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from demo_diffusion import DEMOPipeline, FlowMatchDopri5Scheduler, FlowMatchSDEScheduler
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from tests.support.goldens import load_golden
from tests.support.networks import tiny_dit, tiny_transformer
from tests.support.pipelines import quiet, tiny_taesd, tiny_vae

NAMES = dict(enumerate(["tench", "goldfish", "crane", "otter", "crane", "owl", "newt", "frog", "toad", "skunk"]))
NAMES[0] = "tench, Tinca tinca"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ddpm_pipeline(**components) -> DEMOPipeline:
    parts = {"transformer": tiny_transformer(), "scheduler": DDPMObjective().scheduler(), **components}
    return quiet(DEMOPipeline(**parts))


def flow_pipeline(**components) -> DEMOPipeline:
    parts = {"transformer": tiny_transformer(out_channels=4), "scheduler": FlowObjective().scheduler(), **components}
    return quiet(DEMOPipeline(**parts))


def sample(pipeline: DEMOPipeline, labels=(1, 2), **options) -> torch.Tensor:
    options = {"num_inference_steps": 4, "output_type": "latent", "generator": generator(), **options}
    return pipeline(list(labels), **options).images


def count_samples(pipeline: DEMOPipeline, **options) -> int:
    """How many samples went through the network."""
    counted = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda module, args: counted.append(len(args[0])))
    sample(pipeline, **options)
    hook.remove()
    return sum(counted)


@torch.no_grad()
def test_flow_equals_a_plain_euler_loop():
    pipeline = flow_pipeline()
    x = noise = torch.randn(2, 4, 8, 8)
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    labels, null = torch.tensor([1, 2]), torch.tensor([10, 10])
    for now, later in itertools.pairwise(times):
        t = torch.full((2,), now)
        velocity, unconditional = (pipeline.transformer(x, t, y).sample for y in (labels, null))
        x = x + (later - now) * (unconditional + 3.0 * (velocity - unconditional))
    output = sample(pipeline, latents=noise, guidance_scale=3.0)
    torch.testing.assert_close(output, x, atol=1e-5, rtol=1e-5)


def test_euler_equals_the_official_solver():
    """SiT's toy field; its time runs from noise at 0 to data at 1, and its velocity is data − noise."""
    _, golden = load_golden("flow_objective")
    pipeline = flow_pipeline()

    def forward(x, timestep, class_labels):
        t = 1 - timestep.view(-1, 1, 1, 1)
        velocity = torch.einsum("oc,bchw->bohw", golden["toy_W"], x) * (1 + t) - 0.5 * x
        return Transformer2DModelOutput(sample=-velocity)

    pipeline.transformer.forward = forward
    output = sample(pipeline, [0] * 8, latents=golden["start"], num_inference_steps=50, guidance_scale=1)
    torch.testing.assert_close(output, golden["ode_euler_50_steps"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_ddim_equals_its_formula():
    pipeline = ddpm_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # linspace, whose steps do not join
    signal = pipeline.scheduler.alphas_cumprod
    x = noise = torch.randn(2, 4, 8, 8)
    steps = [999, 749, 499, 249]
    for now in steps:
        earlier = now - 1000 // 4
        predicted = pipeline.transformer(x, torch.tensor([now, now]), torch.tensor([1, 2])).sample[:, :4]
        x0 = (x - (1 - signal[now]).sqrt() * predicted) / signal[now].sqrt()
        signal_earlier = signal[earlier] if earlier >= 0 else torch.tensor(1.0)
        x = signal_earlier.sqrt() * x0 + (1 - signal_earlier).sqrt() * predicted
    torch.testing.assert_close(sample(pipeline, latents=noise, guidance_scale=1), x, atol=1e-5, rtol=1e-5)


def test_ddpm_keeps_the_learned_variance():
    pipeline = ddpm_pipeline()
    first = sample(pipeline)
    weight = pipeline.transformer.output.proj.bias
    with torch.no_grad():
        weight.view(2, 2, 8)[:, :, 4:] += 1.0  # the variance's channels alone
    assert not torch.allclose(sample(pipeline), first)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    second = sample(pipeline)
    with torch.no_grad():
        weight.view(2, 2, 8)[:, :, 4:] -= 1.0
    assert torch.equal(sample(pipeline), second)


@pytest.mark.parametrize("scheduler_class", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_other_schedulers_get_all_latent_channels(scheduler_class):
    """With many small steps every deterministic solver comes to DDIM's result, in each of the four channels."""
    pipeline = ddpm_pipeline()
    with torch.no_grad():
        pipeline.transformer.output.proj.weight.mul_(0.05)  # a smooth field
    learned_range_config = pipeline.scheduler.config
    noise = torch.randn(2, 4, 8, 8)
    results = []
    for each in (DDIMScheduler, scheduler_class):
        pipeline.scheduler = each.from_config(learned_range_config)
        results.append(sample(pipeline, num_inference_steps=200, guidance_scale=1, latents=noise))
    for channel in range(4):
        ddim, other = (result[:, channel] for result in results)
        assert (other - ddim).norm() < 0.05 * ddim.norm()


def test_another_scheduler_leaves_the_learned_variance_in_the_config():
    pipeline = ddpm_pipeline()
    first = sample(pipeline)
    for scheduler_class in (DPMSolverMultistepScheduler, DDIMScheduler):
        pipeline.scheduler = scheduler = scheduler_class.from_config(pipeline.scheduler.config)
        sample(pipeline)
        assert pipeline.scheduler is scheduler
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    assert torch.equal(sample(pipeline), first)


def test_flow_solvers_agree():
    pipeline = flow_pipeline()
    with torch.no_grad():
        pipeline.transformer.output.proj.weight.mul_(0.1)
    noise = torch.randn(2, 4, 8, 8)
    results = []
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        pipeline.scheduler = scheduler
        results.append(sample(pipeline, num_inference_steps=100, latents=noise))
    for result in results[1:]:
        assert (result - results[0]).norm() < 0.02 * results[0].norm()


def test_guidance_interval_costs_and_acts_inside_alone():
    pipeline = flow_pipeline()
    assert count_samples(pipeline, guidance_scale=1) == count_samples(pipeline, guidance_scale=0) == 4 * 2
    assert count_samples(pipeline, guidance_scale=3) == 4 * 2 * 2
    assert count_samples(pipeline, guidance_scale=3, guidance_interval=(0.3, 0.7)) == (4 + 1) * 2  # t = 0.5
    assert count_samples(pipeline, guidance_scale=3, guidance_interval=(0.7, 1.0)) == (4 + 2) * 2
    unguided = sample(pipeline, guidance_scale=1)
    assert torch.equal(sample(pipeline, guidance_scale=3, guidance_interval=(0.99999, 0.99999)), unguided)
    assert not torch.equal(sample(pipeline, guidance_scale=3, guidance_interval=(0.9, 1.0)), unguided)


def test_guidance_channels():
    pipeline = flow_pipeline()
    options = {"num_inference_steps": 1, "guidance_scale": 3}
    everything = sample(pipeline, **options)
    unguided = sample(pipeline, num_inference_steps=1, guidance_scale=1)
    first_three = sample(pipeline, guidance_channels=3, **options)
    assert torch.equal(first_three[:, :3], everything[:, :3])
    torch.testing.assert_close(first_three[:, 3:], unguided[:, 3:], atol=1e-5, rtol=1e-5)
    assert torch.equal(sample(pipeline, guidance_channels=4, **options), everything)


def test_scale_zero_is_unconditional():
    pipeline = flow_pipeline()
    one, other = (sample(pipeline, labels, guidance_scale=0) for labels in ((1, 2), (7, 3)))
    assert torch.equal(one, other)


def test_samples_do_not_depend_on_the_batch_with_a_generator_each():
    pipeline = ddpm_pipeline()
    together = sample(pipeline, (1, 2, 3), generator=[generator(i) for i in range(3)])
    for i in range(3):
        alone = sample(pipeline, (i + 1,), generator=[generator(i)])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_labels_by_name_number_and_tensor():
    pipeline = flow_pipeline(id2label=NAMES)
    assert pipeline.label_names.class_ids(["Tinca tinca", "tench", "tench, Tinca tinca", 3, np.int64(4)]) == [
        0,
        0,
        0,
        3,
        4,
    ]
    assert pipeline.label_names.class_ids("otter") == [3]
    assert pipeline.label_names.class_ids(torch.tensor([5, 6])) == [5, 6]
    assert pipeline.labels["owl"] == 5 and "crane" not in pipeline.labels
    assert len(pipeline("otter", num_inference_steps=1, output_type="latent").images) == 1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([10], {}, r"Class id 10 is out of range.*0 … 9.*guidance_scale=0"),
        ([-1], {}, "Class id -1"),
        ([1.5], {}, "1.5 is neither"),
        ([], {}, "empty"),
        (["ottre"], {}, "'ottre'.*Did you mean 'otter'"),
        (["crane"], {}, r"\[2, 4\]"),
        ([1], {"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ([1], {"guidance_scale": -1}, "guidance_scale is -1"),
        ([1], {"guidance_scale": None}, "guidance_scale is None"),
        ([1], {"guidance_interval": None}, "guidance_interval is None"),
        ([1], {"guidance_interval": 0.5}, "guidance_interval is 0.5"),
        ([1], {"guidance_interval": ("a", "b")}, "guidance_interval is"),
        ([1], {"guidance_channels": 2.5}, "guidance_channels is 2.5"),
        ([1], {"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ([1], {"latents": np.zeros((1, 4, 8, 8))}, r"latents is array\(.*ndarray"),
        ([1], {"generator": (torch.Generator(),)}, "generator is a tuple"),
        ([1], {"guidance_interval": (0.7, 0.3)}, r"\(0.7, 0.3\).*low ≤ high"),
        ([1], {"guidance_interval": (0.0, 700.0)}, "guidance_interval"),
        ([1], {"guidance_channels": 5}, r"guidance_channels is 5.*\[1, 4\]"),
        ([1], {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ([1], {"latents": torch.zeros(1, 4, 8, 9)}, r"\(1, 4, 8, 9\); it must be \(1, 4, 8, 8\)"),
        ([1, 2], {"generator": [torch.Generator()]}, "1 generators.*2 samples"),
        ([1], {"output_type": "jpeg"}, "'jpeg'.*pil"),
        ([1], {"output_type": "pil"}, "no autoencoder, and its samples have 4 channels.*output_type='latent'"),
    ],
)
def test_wrong_arguments_are_named_before_any_step(labels, options, message):
    pipeline = flow_pipeline(id2label=NAMES)
    pipeline.transformer.forward = None  # calling it would fail
    with pytest.raises(ValueError, match=message):
        pipeline(labels, **options)


def test_label_names_are_needed_for_names():
    with pytest.raises(ValueError, match="no label names.*id2label"):
        flow_pipeline()("otter")
    with pytest.raises(ValueError, match=r"classes \[10\].*0 … 9"):
        flow_pipeline(id2label={10: "eleventh"})
    with pytest.raises(ValueError, match="id2label must be {class id: name}"):
        flow_pipeline(id2label={"cat": 0})


def test_scheduler_of_another_objective_is_refused():
    pipeline = flow_pipeline()
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler does not fit.*'flow'.*FlowMatchEuler"):
        sample(pipeline)
    with pytest.raises(ValueError, match="FlowMatchEuler.* does not fit.*'ddpm'.*DDPMScheduler"):
        DEMOPipeline(tiny_transformer(), FlowMatchEulerDiscreteScheduler(), objective="ddpm")
    for scheduler in (
        DDIMScheduler(prediction_type="sample"),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
        DPMSolverMultistepScheduler(use_flow_sigmas=True),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        DDIMInverseScheduler(),
    ):
        with pytest.raises(ValueError, match=f"{type(scheduler).__name__} with .* fits no objective.*use_flow_sigmas"):
            DEMOPipeline(tiny_transformer(), scheduler)
    with pytest.raises(ValueError, match="'edm'"):
        DEMOPipeline(tiny_transformer(), DDIMScheduler(), objective="edm")


def test_another_prediction_type_is_refused():
    pipeline = ddpm_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="integrates 'v_prediction', but .* trained for 'epsilon'"):
        sample(pipeline)


@torch.no_grad()
def test_v_prediction_samples_as_the_noise_that_it_stands_for():
    pipeline = ddpm_pipeline()
    noise = torch.randn(2, 4, 8, 8)
    expected = sample(pipeline, latents=noise, num_inference_steps=10)
    objective = DDPMObjective(prediction_type="v_prediction")
    converted = quiet(DEMOPipeline(pipeline.transformer, objective.scheduler()))
    forward = pipeline.transformer.forward

    def predict_v(x, timestep, class_labels):
        predicted, variance = forward(x, timestep, class_labels).sample.chunk(2, dim=1)
        signal, sigma = (table[timestep.long()].view(-1, 1, 1, 1) for table in
                         (objective.signal_scale, objective.noise_scale))  # fmt: skip
        v = signal * predicted - sigma * (x - sigma * predicted) / signal
        return Transformer2DModelOutput(sample=torch.cat([v, variance], dim=1))

    converted.transformer.forward = predict_v
    output = sample(converted, latents=noise, num_inference_steps=10)
    assert (output - expected).norm() < 1e-3 * expected.norm()


def test_other_noise_levels_are_refused():
    pipeline = ddpm_pipeline()
    pipeline.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with pytest.raises(ValueError, match=r"other noise levels.*DDIMScheduler.from_config"):
        sample(pipeline)


def test_components_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="needs 8 output channels; this network has 4"):
        DEMOPipeline(tiny_transformer(out_channels=4), DDPMObjective().scheduler())
    network = tiny_transformer(in_channels=3)
    with pytest.raises(ValueError, match="4 latent channels, the network 3"):
        DEMOPipeline(network, DDPMObjective().scheduler(), vae=tiny_vae())


def test_sampling_normalises_by_running_statistics_whatever_the_mode():
    pipeline = flow_pipeline()
    expected = sample(pipeline)
    pipeline.transformer.train()
    frozen = pipeline.transformer.transformer_blocks[0].eval()
    before = {name: b.clone() for name, b in pipeline.transformer.named_buffers()}
    assert torch.equal(sample(pipeline), expected)
    assert pipeline.transformer.training and not frozen.training
    assert all(torch.equal(b, before[name]) for name, b in pipeline.transformer.named_buffers())


def test_values_that_are_not_finite_are_not_returned_as_images():
    pipeline = quiet(DEMOPipeline(tiny_transformer(in_channels=3, out_channels=3), FlowObjective().scheduler()))
    with torch.no_grad():
        pipeline.transformer.output.proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        sample(pipeline, output_type="pil")
    pipeline = ddpm_pipeline(vae=tiny_vae())
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        sample(pipeline, output_type="pil")


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types(channels):
    transformer = tiny_transformer(in_channels=channels, out_channels=channels)
    pipeline = quiet(DEMOPipeline(transformer, FlowObjective().scheduler()))
    latents = sample(pipeline)
    expected = (latents / 2 + 0.5).clamp(0, 1)
    as_tensor = sample(pipeline, output_type="pt")
    torch.testing.assert_close(as_tensor, expected)
    as_array = sample(pipeline, output_type="np")
    np.testing.assert_allclose(as_array, expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    pictures = sample(pipeline, output_type="pil")
    pixels = np.stack([np.array(picture).reshape(8, 8, channels) for picture in pictures])
    assert np.array_equal(pixels, (as_array * 255).round().astype(np.uint8))
    (in_tuple,) = pipeline([1], num_inference_steps=1, return_dict=False)
    assert len(in_tuple) == 1


def test_callback_sees_every_step_and_may_replace_the_latents():
    pipeline, seen = flow_pipeline(), []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else tensors

    output = sample(pipeline, callback_on_step_end=callback)
    assert [step for step, _ in seen] == [0, 1, 2, 3] and seen[0][1] == 1000
    assert output.abs().max() == 0


@torch.no_grad()
def test_autoencoder_kl_decodes_unscaled_latents():
    pipeline = ddpm_pipeline(vae=tiny_vae())
    latents = sample(pipeline)
    expected = (pipeline.vae.decode(latents / 0.3 + 0.1).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(sample(pipeline, output_type="pt"), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (2, 3, 16, 16)


@torch.no_grad()
def test_autoencoder_tiny(tmp_path):
    vae = tiny_taesd()
    pipeline = flow_pipeline(vae=vae)
    expected = (vae.decode(sample(pipeline)).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(sample(pipeline, output_type="pt"), expected, atol=1e-5, rtol=1e-5)
    pipeline.save_pretrained(tmp_path)
    assert isinstance(DEMOPipeline.from_pretrained(tmp_path).vae, AutoencoderTiny)


def sit_pipeline(**components) -> DEMOPipeline:
    return quiet(DEMOPipeline(tiny_dit(reverse_time=True), FlowMatchSDEScheduler(), **components))


def test_the_adaptive_solver_decides_how_often_the_network_is_called():
    pipeline = flow_pipeline()
    with torch.no_grad():
        pipeline.transformer.output.proj.weight.mul_(0.1)
    noise = torch.randn(2, 4, 8, 8)
    euler = sample(pipeline, latents=noise, num_inference_steps=400)
    pipeline.scheduler = FlowMatchDopri5Scheduler(rtol=1e-4)
    adaptive = sample(pipeline, latents=noise, num_inference_steps=5)
    assert (adaptive - euler).norm() < 0.01 * euler.norm()
    assert pipeline.scheduler.num_evaluations > 7
    again = quiet(DEMOPipeline(pipeline.transformer, pipeline.scheduler))  # copies the scheduler that has run
    assert torch.equal(sample(again, latents=noise, num_inference_steps=5), adaptive)


@pytest.mark.parametrize("loader", [DEMOPipeline, diffusers.DiffusionPipeline])
@pytest.mark.parametrize("create", [flow_pipeline, ddpm_pipeline, sit_pipeline])
def test_a_saved_folder_samples_alone(tmp_path, loader, create, caplog):
    pipeline = create(id2label=NAMES, vae=tiny_vae())
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(loader.from_pretrained(tmp_path))
    assert type(loaded) is DEMOPipeline
    assert type(loaded.scheduler) is type(pipeline.scheduler)
    assert loaded.label_names.id2label == NAMES and loaded.config.objective == pipeline.config.objective
    options = {"output_type": "pt", "guidance_scale": 2.0}
    assert torch.equal(sample(loaded, ("otter", 2), **options), sample(pipeline, (3, 2), **options))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_saved_folder_loads_in_a_new_process(tmp_path):
    flow_pipeline().save_pretrained(tmp_path)
    code = (
        "import diffusers, demo_diffusion; "
        f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path)!r}); "
        "print(type(pipe).__name__, len(pipe([1], num_inference_steps=1, output_type='latent').images))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["DEMOPipeline", "1"]


@torch.no_grad()
def test_bfloat16_and_offload_hooks(tmp_path):
    pipeline = flow_pipeline(vae=tiny_vae())
    expected = sample(pipeline, output_type="pt")
    pipeline.save_pretrained(tmp_path)
    loaded = quiet(DEMOPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16))
    assert loaded.transformer.dtype == loaded.vae.dtype == torch.bfloat16
    output = sample(loaded, output_type="pt")
    assert output.dtype == torch.float32 and (output - expected).abs().mean() < 0.05
    pipeline.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(sample(pipeline, output_type="pt"), expected)


@pytest.mark.parametrize("create", [flow_pipeline, ddpm_pipeline])
def test_samples_that_are_not_finite_are_named(create):
    pipeline = create()
    with torch.no_grad():
        pipeline.transformer.output.proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"sample 0 \(class 3\), sample 1 \(class 7\)\. Nothing"):
        sample(pipeline, [3, 7])


def test_one_sample_that_is_not_finite_is_named_alone():
    pipeline = flow_pipeline()
    forward = pipeline.transformer.forward

    def break_class_seven(x, timestep, class_labels):
        output = forward(x, timestep, class_labels).sample
        return Transformer2DModelOutput(sample=output.masked_fill((class_labels == 7).view(-1, 1, 1, 1), float("inf")))

    pipeline.transformer.forward = break_class_seven
    with pytest.raises(ValueError, match=r"not finite: sample 2 \(class 7\)\."):
        sample(pipeline, [3, 5, 7], guidance_scale=1)


OTHER_NOISE = (
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_end": 0.012},
    {"prediction_type": "v_prediction"},
    {"num_train_timesteps": 500},
)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("other", OTHER_NOISE, ids=lambda other: next(iter(other)))
def test_a_scheduler_given_at_loading_is_held_to_the_trained_noise(tmp_path, other, is_old):
    pipeline = ddpm_pipeline()
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    entries = json.loads(index.read_text())
    assert entries["trained_noise"]["beta_end"] == 0.02 and entries["trained_noise"]["prediction_type"] == "epsilon"
    if is_old:
        del entries["trained_noise"]
        index.write_text(json.dumps(entries))
    same = quiet(DEMOPipeline.from_pretrained(tmp_path, scheduler=pipeline.scheduler))
    assert torch.equal(sample(same), sample(pipeline)) and torch.equal(
        sample(quiet(DEMOPipeline.from_pretrained(tmp_path))), sample(pipeline)
    )
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, **other)
    with pytest.raises(ValueError, match="other noise levels|trained for"):
        DEMOPipeline.from_pretrained(tmp_path, scheduler=scheduler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": [None]}, "generator is a list of NoneType"),
        ({"generator": 0}, "generator is a int"),
        ({"num_inference_steps": 10**20}, "num_inference_steps is 1000"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"guidance_scale": 10**400}, "guidance_scale is 1000"),
        ({"guidance_scale": "4"}, "guidance_scale is '4'"),
        ({"guidance_channels": True}, "guidance_channels is True"),
        ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.long)}, "latents has dtype torch.int64"),
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, "latents has values that are not finite"),
        ({"output_type": ["pil"]}, "output_type is"),
        ({"output_type": None}, "output_type is None"),
        ({"guidance_scale": 1e39}, "guidance_scale is 1e"),
        ({"latents": torch.zeros(1, 4, 8, 8, device="meta")}, "latents is on the meta device"),
        ({"latents": torch.zeros(1, 4, 8, 8).to_sparse()}, "latents is of layout torch.sparse_coo"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3"),
        ({"callback_on_step_end": "a"}, "callback_on_step_end is 'a'"),
        ({"return_dict": "a"}, "return_dict is 'a'"),
        ({"return_dict": None}, "return_dict is None"),
        ({"class_labels": {1: 2}}, "class_labels is {1: 2}"),
        ({"class_labels": b"1"}, "class_labels is b'1'"),
        ({"class_labels": torch.zeros(1, dtype=torch.long, device="meta")}, "class_labels is on the meta device"),
        ({"class_labels": torch.ones(1, dtype=torch.long).to_sparse()}, "class_labels is of layout"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(options, message):
    pipeline = flow_pipeline()
    pipeline.transformer.forward = None
    with pytest.raises(ValueError, match=message):
        pipeline(**{"class_labels": [1], "output_type": "latent", **options})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "callback_on_step_end returned 3"),
        ([1], "callback_on_step_end returned .1."),
        ({"latents": None}, "latents of callback_on_step_end is None"),
        ({"latents": torch.zeros(1)}, "latents of callback_on_step_end has shape"),
        ({"latents": torch.zeros(1, 4, 8, 8).long()}, "latents of callback_on_step_end has dtype"),
        ({"latents": torch.zeros(1, 4, 8, 8, device="meta")}, "latents of callback_on_step_end is on the meta"),
        ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, r"not finite: sample 0 \(class 1\)"),
    ],
)
def test_what_a_callback_must_not_return_is_named(returned, message):
    with pytest.raises(ValueError, match=message):
        sample(flow_pipeline(), [1], callback_on_step_end=lambda *arguments: returned)


@pytest.mark.parametrize("factor", [1e38, float("inf")])
def test_a_network_that_overflows_is_one_error_of_the_adaptive_solver(factor):
    pipeline = flow_pipeline()
    pipeline.scheduler = FlowMatchDopri5Scheduler()
    with torch.no_grad():
        pipeline.transformer.output.proj.weight.mul_(factor)
    with pytest.raises(ValueError, match="not finite"):
        sample(pipeline, [1])


CLIPS = {
    "no range": {"clip_sample": True, "clip_sample_range": 0},
    "a range of 0.3": {"clip_sample": True, "clip_sample_range": 0.3},
    "a negative range": {"clip_sample": True, "clip_sample_range": -1},
}


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("case", CLIPS)
@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, DDPMScheduler])
def test_pixels_are_clipped_to_their_range(scheduler_class, case, from_file, tmp_path):
    pipeline = ddpm_pipeline(transformer=tiny_transformer(in_channels=1, out_channels=2))
    known = pipeline.scheduler.config
    right, wrong = (scheduler_class.from_config(known, **s) for s in ({"clip_sample": True}, CLIPS[case]))
    pipeline.scheduler = right
    expected = sample(pipeline)
    pipeline.scheduler = wrong
    if from_file:
        pipeline.save_pretrained(tmp_path)
        pipeline = quiet(DEMOPipeline.from_pretrained(tmp_path))
    assert torch.equal(sample(pipeline), expected)


@pytest.mark.parametrize(
    "settings", [{"sample_max_value": 0.2}, {"sample_max_value": "1"}, {"dynamic_thresholding_ratio": 2}], ids=str
)
@pytest.mark.parametrize(
    "scheduler_class",
    [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler],
)
def test_thresholds_that_shrink_pixels_are_refused(scheduler_class, settings):
    pipeline = ddpm_pipeline(transformer=tiny_transformer(in_channels=1, out_channels=2))
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, thresholding=True, **settings)
    with pytest.raises(ValueError, match=f"'s {next(iter(settings))} is "):
        sample(pipeline)
    pipeline = flow_pipeline(transformer=tiny_transformer(in_channels=1, out_channels=1))
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    pipeline.scheduler = DPMSolverMultistepScheduler(thresholding=True, **flow, **settings)
    with pytest.raises(ValueError, match=f"'s {next(iter(settings))} is "):
        sample(pipeline)


def test_noise_levels_that_are_no_noise_are_not_sampled():
    pipeline = ddpm_pipeline(scheduler=DDPMScheduler(num_train_timesteps=37, variance_type="learned_range"))
    with pytest.raises(ValueError, match=r"After the last of 37 timesteps 0.83 of the data is left"):
        sample(pipeline)


@pytest.mark.parametrize("inner", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_within_a_scheduler(inner):
    pipeline = ddpm_pipeline()
    known = pipeline.scheduler.config
    solver = inner.from_config(known, variance_type=None)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(known, solver_p=solver)
    assert sample(pipeline).isfinite().all()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"transformer": None}, "transformer is a NoneType"),
        ({"scheduler": "ddpm"}, "scheduler is a str"),
        ({"scheduler": DDPMScheduler}, "scheduler is a "),
        ({"vae": "taef2"}, "vae is a str"),
        ({"objective": 3}, "objective is 3"),
        ({"objective": []}, "objective is"),
        ({"trained_noise": {"betas": 1}}, "trained_noise is .*betas.*unknown"),
        ({"trained_noise": [1]}, "trained_noise is"),
        ({"trained_noise": {"beta_start": "a"}}, "trained_noise is"),
        ({"trained_noise": {"beta_start": 1e-4, "beta_end": 10**400}}, "trained_noise is"),
    ],
)
def test_parts_of_a_wrong_kind_are_named(parts, message):
    with pytest.raises(ValueError, match=message):
        DEMOPipeline(**{"transformer": tiny_transformer(), "scheduler": DDPMObjective().scheduler(), **parts})
