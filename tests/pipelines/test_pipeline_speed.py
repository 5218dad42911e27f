"""Sampling with compiled networks and with CUDA graphs, and what the pipeline adds to the network."""

import diffusers
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from demo_diffusion import DEMOPipeline, FlowMatchDopri5Scheduler, FlowMatchSDEScheduler
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.objectives import DDPMObjective
from tests.support.networks import tiny_dit, tiny_transformer

FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW_SCHEDULERS = {
    "euler": diffusers.FlowMatchEulerDiscreteScheduler(),
    "heun": diffusers.FlowMatchHeunDiscreteScheduler(),
    "dopri5": FlowMatchDopri5Scheduler(rtol=0.1),
    "sde": FlowMatchSDEScheduler(),
    "sde-heun": FlowMatchSDEScheduler(solver="heun"),
    "dpm-solver": diffusers.DPMSolverMultistepScheduler(**FLOW_SIGMAS),
    "unipc": diffusers.UniPCMultistepScheduler(**FLOW_SIGMAS),
}
DDPM_SCHEDULERS = {
    scheduler_class.__name__.removesuffix("Scheduler"): scheduler_class.from_config(DDPMObjective().scheduler().config)
    for scheduler_class in (
        diffusers.DDPMScheduler,
        diffusers.DDIMScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.DPMSolverSinglestepScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.KDPM2DiscreteScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.PNDMScheduler,
        diffusers.UniPCMultistepScheduler,
    )
}
SCHEDULERS = {**FLOW_SCHEDULERS, **DDPM_SCHEDULERS}
GUIDANCE = {
    "guided": {"guidance_scale": 3.0},
    "unguided": {"guidance_scale": 1.0},
    "interval": {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.7)},
}


def pipeline_for(scheduler: diffusers.SchedulerMixin, create=tiny_transformer) -> DEMOPipeline:
    network = create(out_channels=4 if scheduler in FLOW_SCHEDULERS.values() else 8)
    with torch.no_grad():
        network.output.proj.weight.mul_(0.1)  # a smooth field
    pipeline = DEMOPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flow_pipeline(create=tiny_transformer) -> DEMOPipeline:
    return pipeline_for(FLOW_SCHEDULERS["euler"], create)


def sample(pipeline: DEMOPipeline, generator: torch.Generator | None = None, **options) -> torch.Tensor:
    options = {"num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "latent", **options}
    return pipeline([1, 2], generator=generator, **options).images


def seeded(pipeline: DEMOPipeline, **options) -> torch.Tensor:
    return sample(pipeline, torch.Generator().manual_seed(0), **options)


def overwrite_outputs(network: ClassConditionalTransformer) -> None:
    """Gives all outputs in one buffer, as CUDA graphs do: a replay overwrites what the last one gave."""
    forward, config = network.forward, network.config
    buffer = torch.empty(4, config.out_channels, config.sample_size, config.sample_size)

    def replay(*args):
        output = forward(*args).sample
        return Transformer2DModelOutput(sample=buffer[: len(output)].copy_(output))

    network.forward = replay


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_network_outputs_may_be_overwritten_by_the_next_ones(name, guidance):
    pipeline = pipeline_for(SCHEDULERS[name])
    expected = seeded(pipeline, **GUIDANCE[guidance])
    overwrite_outputs(pipeline.transformer)
    assert torch.equal(seeded(pipeline, **GUIDANCE[guidance]), expected)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "dopri5"])  # its error decides on its steps
def test_no_step_reads_from_the_device(monkeypatch, name, guidance):
    """On the meta device there is nothing to read: what would make the host wait for a GPU raises there."""
    monkeypatch.setattr("demo_diffusion.pipelines.pipeline_demo._check_finite", lambda *_: None)  # reads, at the end
    pipeline = pipeline_for(SCHEDULERS[name])
    pipeline.transformer.to("meta")
    assert sample(pipeline, **GUIDANCE[guidance]).is_meta


def test_a_first_timestep_that_comes_twice_is_not_skipped():
    scheduler = diffusers.DPMSolverMultistepScheduler(**FLOW_SIGMAS, flow_shift=6.0)
    pipeline = flow_pipeline()
    pipeline.scheduler = scheduler
    sample(pipeline, num_inference_steps=250)
    assert scheduler.timesteps[0] == scheduler.timesteps[1] and scheduler.step_index == 250


@pytest.mark.parametrize("create", [tiny_transformer, tiny_dit])
def test_all_blocks_and_steps_share_one_graph_a_batch_size(create):
    pipeline, graphs = flow_pipeline(create), CompileCounterWithBackend("aot_eager")
    expected = {name: seeded(pipeline, **options) for name, options in GUIDANCE.items()}
    pipeline.transformer.compile_repeated_blocks(backend=graphs, fullgraph=True, dynamic=False)
    for name, compiled in (("unguided", 1), ("interval", 2), ("guided", 2)):
        torch.testing.assert_close(seeded(pipeline, **GUIDANCE[name]), expected[name])
        assert graphs.frame_count == compiled


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("create", [tiny_transformer, tiny_dit])
def test_the_whole_network_is_one_graph_a_batch_size(create, in_place):
    pipeline, graphs = flow_pipeline(create), CompileCounterWithBackend("aot_eager")
    options = GUIDANCE["interval"]
    expected = seeded(pipeline, **options)
    if in_place:
        pipeline.transformer.compile(backend=graphs, fullgraph=True, dynamic=False)
    else:
        pipeline.transformer = torch.compile(pipeline.transformer, backend=graphs, fullgraph=True, dynamic=False)
    torch.testing.assert_close(seeded(pipeline, **options), expected)
    assert graphs.frame_count == 2


def test_a_fused_network_compiles_too():
    pipeline, graphs = flow_pipeline(), CompileCounterWithBackend("aot_eager")
    expected = seeded(pipeline)
    pipeline.transformer.fuse()
    pipeline.transformer.compile_repeated_blocks(backend=graphs, fullgraph=True, dynamic=False)
    for _ in range(2):
        torch.testing.assert_close(seeded(pipeline), expected, atol=1e-4, rtol=1e-4)
    assert graphs.frame_count == 1


def test_inductor_gives_what_eager_gives():
    pipeline = flow_pipeline()
    expected = seeded(pipeline)
    pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    torch.testing.assert_close(seeded(pipeline), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_compiled_pipeline_is_saved_as_it_was(tmp_path, wrap):
    pipeline = flow_pipeline()
    expected, names = seeded(pipeline), set(pipeline.transformer.state_dict())
    pipeline.transformer.compile_repeated_blocks(backend="aot_eager")
    if wrap:
        pipeline.transformer = torch.compile(pipeline.transformer, backend="aot_eager")
    seeded(pipeline)
    pipeline.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")) == names
    loaded = DEMOPipeline.from_pretrained(tmp_path)
    assert torch.equal(seeded(loaded), expected)


@pytest.mark.parametrize(
    ("compile_network", "steps"),
    [
        (lambda network: network, 0),
        (lambda network: network.compile_repeated_blocks(backend="eager"), 10),
        (lambda network: network.compile(backend="eager"), 10),
    ],
)
def test_every_evaluation_of_a_compiled_network_begins_a_step_of_cuda_graphs(monkeypatch, compile_network, steps):
    """Else each of its blocks would, and free the memory that the next block's input is in."""
    pipeline, begun = flow_pipeline(), []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    compile_network(pipeline.transformer)
    sample(pipeline)
    assert len(begun) == steps


def test_no_step_searches_the_network(monkeypatch):
    """diffusers' `dtype` walks through all modules, which takes longer than all else that a step does outside them."""
    pipeline, walks, named_modules = flow_pipeline(), [], torch.nn.Module.named_modules

    def counted(module, *args, **kwargs):
        walks.append(module)
        return named_modules(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "named_modules", counted)
    pipeline.transformer.forward = lambda x, timestep, class_labels: Transformer2DModelOutput(sample=x)
    counts = []
    for steps in (2, 20):
        walks.clear()
        sample(pipeline, num_inference_steps=steps)
        counts.append(walks.count(pipeline.transformer))
    assert counts[0] == counts[1]
