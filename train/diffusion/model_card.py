"""The model card of a trained pipeline: what it is, how it was trained, what was measured, what it draws."""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from demo_diffusion import __version__
from demo_diffusion.cli.config_file import to_yaml

from .config import DiffusionTrainingConfig

CARD = """---
{metadata}
---

# {name}

{transformer} (class-conditional diffusion, demo_diffusion {version}), trained with the {objective} objective on
`{dataset}` at {resolution} pixels for {step:,} steps of {batch_size}. The weights' moving average of decay {ema_decay}.
{samples}
```python
from demo_diffusion import DEMOPipeline

pipe = DEMOPipeline.from_pretrained("{name}")
images = pipe(class_labels=[0], guidance_scale={guidance_scale:g}, num_inference_steps={num_inference_steps}).images
```

## Measured

| what | value |
|---|---|
{metrics}
{loss_curve}
## Config

```yaml
{config}```
"""


SAMPLES = """
![samples, one class a row](samples.png)

The grid: guidance scale {guidance_scale:g}, {num_inference_steps} steps.
"""
LOSS_CURVE = """
![the training loss](loss.png)
"""


def write_model_card(
    run: Path,
    pipeline: Path,
    config: DiffusionTrainingConfig,
    dataset: str,
    losses: list[dict[str, float]],
    step: int,
    ema_decay: float,
) -> None:
    """Puts README.md into a pipeline folder and, after the run's last step, its pictures.

    Scores, accuracies and the grid are those of the run's first moving average; cards of others have none.

    Args:
        dataset: where the run's images come from.
        losses: the logged rows until the step.
        step: that the pipeline's weights are of.
        ema_decay: that the pipeline's weights are of.
    """
    values = {name: value for section in vars(config).values() for name, value in vars(section).items()}
    is_last, is_first = step == config.optimization.num_steps, ema_decay == config.optimization.ema_decays[0]
    pictures, files = {"samples": "", "loss_curve": ""}, [("loss_curve", "loss.png", LOSS_CURVE)]
    if is_first:
        files.append(("samples", "samples.png", SAMPLES))
    for name, file, text in files:
        if is_last and (run / file).is_file():
            shutil.copy(run / file, pipeline / file)
            pictures[name] = text.format(**values)
    metrics = {"training loss at the end": losses[-1]["loss"]} if losses else {}
    if is_first:
        metrics |= measured(run, step, is_last)
    card = CARD.format(
        **{**values, **pictures, "dataset": dataset, "step": step, "ema_decay": ema_decay},
        metadata=ModelCardData(library_name="diffusers", tags=["class-conditional-image-generation"]).to_yaml(),
        name=config.run.push_to_hub or run.name,
        version=__version__,
        metrics="\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items()),
        config=to_yaml(config),
    )
    ModelCard(card).save(pipeline / "README.md")


def measured(run: Path, step: int, is_last: bool) -> dict[str, float]:
    """What the run itself measured: its scores at the step or last before it and, at the end, the accuracies."""
    values, newest = {}, f"step-{step:09d}"
    scored = [file for file in run.glob("evaluation/step-*/results.json") if file.parent.name <= newest]
    for results in sorted(scored)[-1:]:
        facts = json.loads(results.read_text())
        where = f"{facts['num_samples']:,} samples, {facts['source']}"
        values |= {f"{name} ({where})": value for name, value in facts["metrics"].items() if value is not None}
    report = run / "nearest_neighbor.json"
    if is_last and report.is_file():
        accuracies = json.loads(report.read_text())["accuracy"]
        values |= {f"nearest-neighbour accuracy, guidance {scale}": value for scale, value in accuracies.items()}
    return values
