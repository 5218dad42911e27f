"""The model card of a trained segmenter: what it is, how it was trained, what was measured."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from demo_diffusion import __version__
from demo_diffusion.cli.config_file import to_yaml

from .config import UNETS, SegmentationTrainingConfig

CARD = """---
{metadata}
---

# {name}

{model} (semantic segmentation, {parameters:,} parameters, demo_diffusion {version}), trained on `{dataset}` for
{num_steps:,} steps of {batch_size}.

```python
import demo_diffusion  # makes transformers' Auto classes know the segmenter
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

segmenter = AutoModelForSemanticSegmentation.from_pretrained("{name}").eval()
processor = AutoImageProcessor.from_pretrained("{name}")
found = segmenter(**processor(image, return_tensors="pt"))  # a PIL image
(classes,) = processor.post_process_semantic_segmentation(found, [image.size[::-1]])  # (H, W), class ids
```

## Measured

The moving average on {num_images:,} images of `{val_dataset}`: mIoU {miou:.2%}, aAcc {aacc:.2%}, mAcc {macc:.2%}, mDice
{mdice:.2%}, from one confusion matrix over all pixels.

![what is there above what was found](overlays.png)

## Config

```yaml
{config}```
"""


def write_segmentation_card(run: Path, model: Path, config: SegmentationTrainingConfig, results: dict) -> None:
    """Puts README.md and its picture into a run's model folder."""
    shutil.copy(run / "overlays.png", model / "overlays.png")
    head = config.model.head
    card = CARD.format(
        metadata=ModelCardData(pipeline_tag="image-segmentation", tags=["emov2", head]).to_yaml(),
        name=config.run.push_to_hub or run.name,
        version=__version__,
        model=head if head in UNETS else f"{head} on {config.model.model}",
        dataset=config.data.dataset,
        num_steps=config.optimization.num_steps,
        batch_size=config.optimization.batch_size,
        val_dataset=results["dataset"],
        config=to_yaml(config),
        **{name: results[name] for name in ("parameters", "num_images", "miou", "aacc", "macc", "mdice")},
    )
    ModelCard(card).save(model / "README.md")
