"""How much time does sampling take outside of the network: `python eval/studies/pipeline_overhead.py`.

The network has DEMO-S/2's modules and answers at once. A step's time is the slope between calls of few and of many
steps; a call's time is the rest. Medians over rounds, on one thread, one guided sample.
"""

import argparse
import statistics
import time

import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from demo_diffusion import DEMOPipeline, create_transformer
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.pipelines.samplers import create_sampler

FEW, MANY = 10, 100  # steps


def samplers() -> dict:
    flow, ddpm = FlowObjective().scheduler(), DDPMObjective().scheduler()
    return {
        "euler": create_sampler(flow, "euler"),
        "sde": create_sampler(flow, "sde"),
        "ddim": create_sampler(ddpm, "ddim"),
        "dpm-solver++": DPMSolverMultistepScheduler.from_config(ddpm.config),
        "ddpm": create_sampler(ddpm, "ddpm"),
    }


def pipeline_of(transformer, scheduler) -> DEMOPipeline:
    pipeline = DEMOPipeline(transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seconds(pipeline: DEMOPipeline, steps: int) -> float:
    start = time.perf_counter()
    pipeline([0], guidance_scale=4.0, num_inference_steps=steps, output_type="latent")
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformer = create_transformer("DEMO-S/2").eval()
    output = Transformer2DModelOutput(sample=torch.randn(2, 8, 32, 32))
    transformer.forward = lambda *_: output
    print("| sampler | µs a step | ms a call | step of the network of which it is 2% |\n|---|---|---|---|")
    for name, scheduler in samplers().items():
        pipeline = pipeline_of(transformer, scheduler)
        few, many = (statistics.median(seconds(pipeline, n) for _ in range(options.rounds)) for n in (FEW, MANY))
        step = (many - few) / (MANY - FEW)
        print(f"| {name} | {1e6 * step:.0f} | {1e3 * (few - FEW * step):.1f} | {50e3 * step:.1f} ms |")


if __name__ == "__main__":
    main()
