"""The model card of a trained classifier: what it is, how it was trained, what was measured."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from demo_diffusion import __version__
from demo_diffusion.cli.config_file import to_yaml

from .config import ClassificationTrainingConfig

CARD = """---
{metadata}
---

# {name}

{model} (image classification, {parameters:,} parameters, demo_diffusion {version}), trained on `{dataset}` at
{resolution} pixels for {num_steps:,} steps of {batch_size}.

```python
import demo_diffusion  # registers EMOv2 with transformers' Auto classes
from transformers import pipeline

classify = pipeline("image-classification", model="{name}")
```

## Measured

Top-1 {top1:.2%}, top-5 {top5:.2%}: the moving average on {num_images:,} images of `{val_dataset}`, split `{split}`.

![top-1 accuracy on the way](accuracy.png)

## Config

```yaml
{config}```
"""


def write_classification_card(run: Path, model: Path, config: ClassificationTrainingConfig, results: dict) -> None:
    """Puts README.md and its picture into a run's model folder."""
    shutil.copy(run / "accuracy.png", model / "accuracy.png")
    metadata = ModelCardData(library_name="transformers", pipeline_tag="image-classification", tags=["emov2"])
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=config.run.push_to_hub or run.name,
        version=__version__,
        model=config.model.model,
        parameters=results["parameters"],
        dataset=config.data.dataset,
        resolution=config.data.resolution,
        num_steps=config.optimization.num_steps,
        batch_size=config.optimization.batch_size,
        top1=results["top1"],
        top5=results["top5"],
        num_images=results["num_images"],
        val_dataset=results["dataset"],
        split=results["split"],
        config=to_yaml(config),
    )
    ModelCard(card).save(model / "README.md")
