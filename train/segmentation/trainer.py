"""Trains segmenters on EMOv2 or EMOv1, U-EMO and the plain UNet."""

import dataclasses

from demo_diffusion.cli.command import require_packages

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import SegformerImageProcessor

from demo_diffusion.data.masks import describe_masks, load_masks
from demo_diffusion.eval.metrics.segmentation import Overlap, measure_overlap
from demo_diffusion.eval.reports.overlays import save_overlays
from demo_diffusion.models.segmentation import UEMOConfig, UEMOForSemanticSegmentation, create_segmenter
from demo_diffusion.records.figures import save_loss_curves
from demo_diffusion.records.files import write_json, write_whole
from demo_diffusion.records.provenance import provenance
from demo_diffusion.records.run_records import SCORES, add_scores, read_scores
from demo_diffusion.train.engine.hub import check_hub_access, upload
from demo_diffusion.train.engine.trainer import Trainer

from .config import UNETS, SegmentationTrainingConfig
from .data import AugmentedPixels
from .model_card import write_segmentation_card


class SegmentationTrainer(Trainer):
    """Trains a segmenter and leaves a folder that AutoModelForSemanticSegmentation loads.

    Attributes:
        pixels, val_pixels: images with masks to learn and to measure.
        overlap: the last measurement.

    Raises:
        ValueError: if a package, the hub, data or an option does not allow the run.
    """

    def __init__(self, config: SegmentationTrainingConfig):
        require_packages(("torchmetrics", "matplotlib", "tensorboard"), "segmentation", "Training a segmenter")
        if config.run.push_to_hub is not None:
            check_hub_access()
        self.pixels = load_masks(config.data, is_training=True)
        self.val_pixels = load_masks(config.data.validation(), is_training=False)
        self.overlap: Overlap | None = None
        length = config.optimization.in_steps(len(self.pixels.dataset))
        super().__init__(dataclasses.replace(config, optimization=length))

    def data_facts(self) -> dict:
        return describe_masks(self.pixels)

    def load_data(self) -> Dataset:
        config = self.config
        self.accelerator.print(
            f"{len(self.pixels.dataset):,} images with {len(self.pixels.id2label):,} classes, "
            f"{len(self.val_pixels.dataset):,} to measure on; {self.num_steps:,} steps of "
            f"{config.optimization.batch_size}"
        )
        return AugmentedPixels(self.pixels.dataset, config.augmentation, config.optimization.seed)

    def set_up(self) -> None:
        """Checks how many images a forward pass gets."""
        images = self.batch_order(first_step=0).part_size
        if images < 2:
            raise ValueError(
                f"BatchNorm needs at least two images in each forward pass; batch_size "
                f"{self.config.optimization.batch_size} gives {images}."
            )

    def create_network(self) -> nn.Module:
        model, names = self.config.model, self.pixels.id2label
        if model.head in UNETS:
            labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
            return UEMOForSemanticSegmentation(UEMOConfig(**model.unet_options(), **labels)).train()
        options = model.segmenter_options()
        return create_segmenter(backbone_weights=model.backbone_weights, id2label=names, **options).train()

    def checkpoint_activations(self, network: nn.Module) -> None:
        network.gradient_checkpointing_enable()

    def parameter_groups(self, network: nn.Module) -> list:
        """As the authors': no weight decay for the norms of backbone or UNet; a factor for the decode head's rate."""
        optimization = self.config.optimization
        head = list(network.decode_head.parameters())
        if self.config.model.head == "fpn":  # the pyramid is not the head's
            head = [p for name, p in network.decode_head.named_parameters() if not name.startswith("pyramid.")]
        in_head = {id(p) for p in head}
        rest = [(name, p) for name, p in network.named_parameters() if id(p) not in in_head]
        is_norm = {name: "norm" in name and name.startswith(("backbone.", "unet.")) for name, _ in rest}
        return [
            {"params": [p for name, p in rest if not is_norm[name]]},
            {"params": [p for name, p in rest if is_norm[name]], "weight_decay": 0.0},
            {"params": head, "lr": optimization.learning_rate * optimization.head_lr_factor},
        ]

    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.network(pixel_values=batch[0], labels=batch[1]).loss

    def look(self, step: int) -> None:
        """Measures the moving average if that is due and was not done before an interruption."""
        every = self.config.run.eval_every
        is_due = step == self.num_steps or (every and step > 0 and step % every == 0)
        if not is_due or any(row["step"] == step for row in read_scores(self.folder.path, "overlap")):
            return
        self.overlap = self.measure()
        scores = {name: getattr(self.overlap, name) for name in SCORES["overlap"]}
        self.accelerator.log({f"val/{name}": value for name, value in scores.items()}, step=step)
        self.accelerator.print(f"step {step:,}: {self.overlap}")
        if self.accelerator.is_main_process:
            add_scores(self.folder.path, "overlap", step, scores)
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Writes the moving average as a model folder, overlays beside the truth, and results.json."""
        if self.overlap is None:  # it was measured before an interruption
            self.overlap = self.measure()
        network = self.average_network()
        if not self.accelerator.is_main_process:
            return
        folder, model_folder = self.folder.path, self.folder.path / "model"
        if self.rows:
            save_loss_curves(folder / "loss.png", {folder.name: self.rows})
        view, samples = self.config.run.view(), self.val_pixels.dataset
        save_overlays(folder / "overlays.png", network, samples, self.accelerator.device, view)
        results = {
            **dataclasses.asdict(self.overlap),
            "step": self.num_steps,
            "dataset": self.config.data.validation().dataset,
            "parameters": sum(p.numel() for p in network.parameters()),
            **provenance(self.accelerator),
        }
        write_json(folder / "results.json", results)

        def write(path):
            network.save_pretrained(path)
            SegformerImageProcessor(do_resize=False).save_pretrained(path)
            write_segmentation_card(folder, path, self.config, results)

        write_whole(model_folder, write)
        print(f"{self.overlap}; model, overlays.png and loss.png: {folder}.")
        if self.config.run.push_to_hub is not None:
            upload(model_folder, self.config.run.push_to_hub)

    def measure(self) -> Overlap:
        """The overlap of the moving average on the validation images. Every process must call it."""
        run, workers = self.config.run, self.config.data.num_workers
        samples = self.val_pixels.dataset
        return measure_overlap(self.average_network(), samples, self.accelerator, workers, run.view())
