"""Trains D-EMO, DiT or SiT."""

from pathlib import Path

from demo_diffusion.cli.command import require_packages

import numpy as np
import torch
from torch.utils.data import Dataset

from demo_diffusion import DEMOPipeline
from demo_diffusion.eval.metrics.nearest_neighbor import nearest_neighbor_report
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.pipelines.samplers import create_sampler
from demo_diffusion.pipelines.scheduler_check import check_samples_are_right
from demo_diffusion.pipelines.scheduler_fit import objective_of
from demo_diffusion.records.figures import save_loss_curves
from demo_diffusion.records.files import write_whole
from demo_diffusion.train.engine.hub import check_hub_access, upload
from demo_diffusion.train.engine.trainer import Trainer

from .build import create_network, create_objective, create_pipeline
from .config import DiffusionTrainingConfig
from .data import DiffusionData, open_training_data
from .model_card import write_model_card
from .official_losses import official_losses
from .sample_grid import sample_grid
from .scoring import Scoring

PLOT_EVERY = 2000  # steps, as in the authors' curves, whose losses are means over 2,000 steps


class DiffusionTrainer(Trainer):
    """Trains D-EMO, DiT or SiT and leaves a pipeline folder.

    Attributes:
        data: what the network learns, as `DiffusionData`.
        objective: what it predicts.
        scoring: scores samples while training; None: no scores.

    Raises:
        ValueError: if a package, the hub, data or an option does not allow the run.
    """

    data: DiffusionData

    def __init__(self, config: DiffusionTrainingConfig):
        check_packages(config)
        if config.run.push_to_hub is not None:
            check_hub_access()
        super().__init__(config)

    def load_data(self) -> Dataset:
        config = self.config
        seed, order = config.optimization.seed, self.folder.class_order()
        self.data = open_training_data(config.data, seed, self.accelerator.device, order)
        self.accelerator.print(f"{len(self.data.samples):,} images of {self.data.num_classes:,} classes")
        return self.data.samples

    def data_facts(self) -> dict:
        return self.data.facts

    def set_up(self) -> None:
        """Creates the objective and the scoring, and checks the sampler."""
        run, device = self.config.run, self.accelerator.device
        self.objective = create_objective(self.config.objective).to(device)
        self.scoring = Scoring(run, self.folder.path, self.config.data.resolution, device) if run.eval_every else None
        trained_with = self.objective.scheduler()
        sampler = create_sampler(trained_with, run.sampler)
        check_samples_are_right(sampler, objective_of(sampler), trained_with, run.num_inference_steps)

    def create_network(self) -> ClassConditionalTransformer:
        data = self.data
        return create_network(self.config.model, self.objective, data.channels, data.side, data.num_classes)

    def compile(self, network: ClassConditionalTransformer) -> None:
        network.compile_repeated_blocks(fullgraph=True)

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Noise for the autoencoder's posterior, dropped labels, timesteps and noise of one step."""
        batch_size, device = self.config.optimization.batch_size, generator.device
        shape, draws = (batch_size, self.data.channels, self.data.side, self.data.side), {}
        if self.data.normalization is not None:
            draws["posterior_noise"] = torch.randn(shape, generator=generator, device=device)
        dropped = torch.rand(batch_size, generator=generator, device=device)
        draws["label_is_dropped"] = dropped < self.config.objective.label_dropout
        draws["timesteps"] = self.objective.sample_timesteps(batch_size, generator)
        draws["noise"] = torch.randn(shape, generator=generator, device=device)
        return draws

    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        samples, labels = batch
        timesteps, noise = draws["timesteps"], draws["noise"]
        # x0: pixels, or latents drawn from their posterior.
        x0 = self.data.x0(samples, draws.get("posterior_noise"))
        # The null class replaces some labels, for classifier-free guidance.
        labels = labels.masked_fill(draws["label_is_dropped"], self.data.num_classes)
        # The network sees x_t; the objective knows what it should have predicted.
        output = self.network(self.objective.add_noise(x0, noise, timesteps), timesteps, labels).sample
        return self.objective.losses(output, x0, noise, timesteps)["loss"].mean()

    def look(self, step: int) -> None:
        """Draws a loss curve, a grid of samples and a score, each if it is due."""
        if step > 0 and step % PLOT_EVERY == 0 and self.accelerator.is_main_process:
            self.plot_losses()
        every = self.config.run.sample_every
        is_grid_due = every and 0 < step < self.num_steps and step % every == 0
        is_score_due = self.scoring is not None and self.scoring.is_due(step)
        if not is_grid_due and not is_score_due:
            return
        pipeline = self.pipeline()
        if is_grid_due:
            self._save_grid(pipeline, step)
        if is_score_due:
            self.accelerator.log(self.scoring.score(pipeline, step), step=step)

    def finish(self) -> None:
        """Writes a pipeline for each moving average, samples.png, loss.png and the accuracy of the samples' classes."""
        if self.accelerator.is_main_process:
            self.plot_losses()
        for decay in self.averages.decays[1:]:
            pipeline = self.pipeline(decay)
            if self.accelerator.is_main_process:
                self._write_pipeline(pipeline, f"pipeline_ema_{decay}", decay)
        pipeline = self.pipeline()
        if not self.accelerator.is_main_process:
            return
        run, folder = self.config.run, self.folder.path
        write_whole(folder / "samples.png", sample_grid(pipeline, run).save)
        if run.knn_samples:
            self._measure_classes(pipeline)
        self._write_pipeline(pipeline, "pipeline", self.averages.decays[0])
        print(f"Pipeline, samples.png and loss.png are in {folder}.")
        if run.push_to_hub is not None:
            upload(folder / "pipeline", run.push_to_hub)

    def _write_pipeline(self, pipeline: DEMOPipeline, name: str, decay: float) -> None:
        def write(path: Path) -> None:
            pipeline.save_pretrained(path)
            write_model_card(self.folder.path, path, self.config, self.data.dataset, self.rows, self.num_steps, decay)

        write_whole(self.folder.path / name, write)

    def pipeline(self, decay: float | None = None) -> DEMOPipeline:
        """A pipeline with a moving average, by default the first. Every process must call it."""
        return create_pipeline(self.config, self.data, self.objective, self.average_network(decay))

    def plot_losses(self) -> None:
        """Writes loss.png: the losses so far, and the authors' own if they trained this network in this way."""
        last_step = self.rows[-1]["step"] if self.rows else 0
        official = official_losses(self.config, self.data.vae_name, self.data.num_classes, last_step)
        runs = {self.folder.path.name: self.rows}
        if official:
            runs["official D-EMO training, mean of 2,000 steps"] = official
        save_loss_curves(self.folder.path / "loss.png", runs)

    def _save_grid(self, pipeline: DEMOPipeline, step: int) -> None:
        if self.accelerator.is_main_process:
            grid = sample_grid(pipeline, self.config.run)
            write_whole(self.folder.path / f"samples/step-{step:09d}.png", grid.save)
            tensorboard = self.accelerator.get_tracker("tensorboard")
            tensorboard.log_images({"samples": np.array(grid)[None]}, step=step, dataformats="NHWC")
        self.accelerator.wait_for_everyone()

    def _measure_classes(self, pipeline: DEMOPipeline) -> None:
        run = self.config.run
        report = nearest_neighbor_report(
            pipeline,
            self.data.images.dataset,
            run.knn_samples,
            sorted({1.0, run.guidance_scale}),
            run.num_inference_steps,
        )
        report.save(self.folder.path / "nearest_neighbor.json")
        print(report)


def check_packages(config: DiffusionTrainingConfig) -> None:
    """Checks the packages that the run needs only later.

    Raises:
        ValueError: if one is missing.
    """
    needed = ["matplotlib", "tensorboard"]
    if (config.data.dataset == "digits" and config.data.latents is None) or config.run.knn_samples:
        needed.append("sklearn")
    require_packages(needed, "train", "Training")
