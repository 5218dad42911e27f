"""The model card of a trained detector: what it is, how it was trained, what was measured."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from demo_diffusion import __version__
from demo_diffusion.cli.config_file import to_yaml
from demo_diffusion.records.tables import markdown_table

from .config import DetectionTrainingConfig

CARD = """---
{metadata}
---

# {name}

{detector} on {model} (object detection, {parameters:,} parameters, demo_diffusion {version}), trained on `{dataset}`
for {num_steps:,} steps of {batch_size}.

```python
from demo_diffusion import EMOv2Detector

detector = EMOv2Detector.from_pretrained("{name}").eval()
found = detector([image])[0]  # a tensor (3, H, W), RGB in [0, 1]; gives boxes, labels, scores
names = [detector.config.id2label[int(label)] for label in found["labels"]]
```

## Measured

The moving average on {num_images:,} images of `{val_dataset}`, in per cent:

{table}

![detections beside the truth](detections.png)

## Config

```yaml
{config}```
"""


def write_detection_card(run: Path, model: Path, config: DetectionTrainingConfig, results: dict) -> None:
    """Puts README.md and its picture into a run's model folder."""
    shutil.copy(run / "detections.png", model / "detections.png")
    kinds = {kind: results[kind] for kind in ("box", "mask") if results[kind]}
    rows = [
        {"": kind, **{name: "–" if value is None else f"{100 * value:.1f}" for name, value in scores.items()}}
        for kind, scores in kinds.items()
    ]
    metadata = ModelCardData(pipeline_tag="object-detection", tags=["emov2", config.model.detector.lower()])
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=config.run.push_to_hub or run.name,
        version=__version__,
        detector=config.model.detector,
        model=config.model.model,
        parameters=results["parameters"],
        dataset=config.data.annotations or config.data.dataset,
        num_steps=config.optimization.num_steps,
        batch_size=config.optimization.batch_size,
        num_images=results["num_images"],
        val_dataset=results["dataset"],
        table=markdown_table(rows),
        config=to_yaml(config),
    )
    ModelCard(card).save(model / "README.md")
