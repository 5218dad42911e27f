"""Makes the list of schedulers in docs/reference/samplers_table.md: `python docs/make_samplers.py`."""

import inspect
import warnings
from pathlib import Path

import diffusers
from diffusers import SchedulerMixin

from demo_diffusion import schedulers
from demo_diffusion.objectives import OBJECTIVES, create_objective
from demo_diffusion.pipelines.scheduler_check import check_samples_are_right
from demo_diffusion.pipelines.scheduler_fit import check_scheduler_fits, sampling_scheduler

TARGET = Path(__file__).parent / "reference/samplers_table.md"
HEADING = "## Which schedulers give right samples\n"
STEPS = (1, 2, 5, 10, 20, 50, 100)
INTRODUCTION = """
Before the first step a pipeline tries its scheduler on latents whose exact network is known, N(0.5, 0.8²): the samples'
mean must be right, and their spread may err by no more than a good solver does in that number of steps. Otherwise it
refuses the scheduler and says what to use. Schedulers that are not listed are refused in any number of steps. DDIM and
PNDM always get `trailing` spacing, and latents are never clipped, whatever the scheduler's config says. `python
docs/make_samplers.py` makes the lists by the same function.
"""
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def page() -> str:
    """The text of the page, with a new list."""
    kept = TARGET.read_text().split(HEADING)[0]
    return kept + HEADING + INTRODUCTION + "".join(map(table, OBJECTIVES))


def table(objective: str) -> str:
    lines = [f"\n| scheduler for {objective} | {' | '.join(map(str, STEPS))} |", "|---" * (len(STEPS) + 1) + "|"]
    for name, scheduler in candidates(objective):
        right = [is_right(scheduler, objective, steps) for steps in STEPS]
        if any(right):
            cells = " | ".join("yes" if each else "refused" for each in right)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def candidates(objective: str) -> list[tuple[str, SchedulerMixin]]:
    """Each scheduler as a user would make it: of the pipeline's own config, or for flow with its default settings."""
    found = []
    config = create_objective(objective).scheduler().config
    for scheduler_class in scheduler_classes():
        is_solver_of_both = "use_flow_sigmas" in inspect.signature(scheduler_class.__init__).parameters
        settings = FLOW_SIGMAS if objective == "flow" and is_solver_of_both else {}
        name = f"`{scheduler_class.__name__}`" + (" with flow sigmas" if settings else "")
        try:
            scheduler = scheduler_class(**settings) if objective == "flow" else scheduler_class.from_config(config)
            check_scheduler_fits(scheduler, objective)
        except Exception:  # not one for this objective; diffusers raises anything
            continue
        found.append((name, sampling_scheduler(scheduler, are_latents=True)))
    return found


def scheduler_classes() -> list[type]:
    """Every scheduler of diffusers and ours, by name."""
    modules = (diffusers.schedulers, schedulers)
    found = {name: getattr(module, name) for module in modules for name in dir(module) if name.endswith("Scheduler")}
    return [found[name] for name in sorted(found) if inspect.isclass(found[name])]


def is_right(scheduler: SchedulerMixin, objective: str, num_inference_steps: int) -> bool:
    try:
        check_samples_are_right(scheduler, objective, create_objective(objective).scheduler(), num_inference_steps)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    TARGET.write_text(page())
    print(f"Wrote {TARGET}.")
