"""The model card of a trained pipeline: what it is, how it was trained, what was measured, what it draws."""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from demo_diffusion import __version__
from demo_diffusion.train.config_parsing import to_yaml
from demo_diffusion.train.configuration import TrainingConfig

CARD = """---
{metadata}
---

# {name}

{transformer} (class-conditional diffusion, demo_diffusion {version}), trained with the {objective} objective on
`{dataset}` at {resolution} pixels for {num_steps:,} steps of {batch_size}.

![samples, one class a row](samples.png)

```python
from demo_diffusion import DEMOPipeline

pipe = DEMOPipeline.from_pretrained("{name}")
images = pipe(class_labels=[0], guidance_scale={guidance_scale:g}, num_inference_steps={num_inference_steps}).images
```

The grid: guidance scale {guidance_scale:g}, {num_inference_steps} steps.

## Measured

| what | value |
|---|---|
{metrics}

![the training loss](loss.png)

## Config

```yaml
{config}```
"""


def write_model_card(
    run: Path, pipeline: Path, config: TrainingConfig, dataset: str, losses: list[dict[str, float]]
) -> None:
    """Puts README.md and its pictures into a run's pipeline folder; `dataset` is where its images come from."""
    values = {name: value for section in vars(config).values() for name, value in vars(section).items()}
    for picture in ("samples.png", "loss.png"):
        if (run / picture).is_file():
            shutil.copy(run / picture, pipeline / picture)
    metrics = {"training loss at the end": losses[-1]["loss"]} if losses else {}
    metrics |= measured(run)
    card = CARD.format(
        **{**values, "dataset": dataset},
        metadata=ModelCardData(library_name="diffusers", tags=["class-conditional-image-generation"]).to_yaml(),
        name=config.run.push_to_hub or run.name,
        version=__version__,
        metrics="\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items()),
        config=to_yaml(config),
    )
    ModelCard(card).save(pipeline / "README.md")


def measured(run: Path) -> dict[str, float]:
    """What the run itself measured: its last scores, and the nearest-neighbour accuracies."""
    values = {}
    for results in sorted(run.glob("evaluation/step-*/results.json"))[-1:]:
        facts = json.loads(results.read_text())
        where = f"{facts['num_samples']:,} samples, {facts['source']}"
        values |= {f"{name} ({where})": value for name, value in facts["metrics"].items() if value is not None}
    report = run / "nearest_neighbor.json"
    if report.is_file():
        accuracies = json.loads(report.read_text())["accuracy"]
        values |= {f"nearest-neighbour accuracy, guidance {scale}": value for scale, value in accuracies.items()}
    return values
