"""Trains a class-conditional diffusion network: `accelerate launch train/train_demo.py --config configs/NAME.yaml`.

The same command on an unfinished run resumes it.
"""

import importlib.util
import sys
import time
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import SchedulerMixin
from diffusers.optimization import get_scheduler
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from demo_diffusion import DEMOPipeline, create_transformer
from demo_diffusion.eval.nearest_neighbor import nearest_neighbor_report
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.objectives import DDPMObjective, FlowObjective
from demo_diffusion.pipelines.autoencoder import encode, latent_shape, load_vae
from demo_diffusion.pipelines.samplers import create_sampler
from demo_diffusion.pipelines.scheduler_fit import set_timesteps
from demo_diffusion.train.configuration import ModelConfig, ObjectiveConfig, TrainingConfig, parse_config
from demo_diffusion.train.figures import sample_grid, save_loss_curves
from demo_diffusion.train.image_data import BatchOrder, batches, load_images
from demo_diffusion.train.run_folder import RunFolder
from demo_diffusion.train.scoring import Scoring


class Trainer:
    """One run: builds everything from the config, trains, and leaves a pipeline folder."""

    def __init__(self, config: TrainingConfig):
        check_packages(config)
        self.config = config
        optimization = config.optimization
        self.accelerator = create_accelerator(config)
        set_seed(optimization.seed)
        self.folder = RunFolder(config.run.output_dir)
        self.folder.check(config)
        self.images = load_images(config.data)
        self.vae = load_vae(config.data.vae, self.images.channels, self.accelerator.device)
        self.accelerator.print(f"{len(self.images.dataset):,} images of {self.images.num_classes:,} classes")
        self.objective = create_objective(config.objective).to(self.accelerator.device)
        self.scoring = None
        if config.run.eval_every:
            self.scoring = Scoring(config.run, self.folder.path, self.accelerator.device)
        # Both raise now what would else be found when the data or the first grid is needed.
        self._batch_order(first_step=0)
        set_timesteps(self._sampler(), config.run.num_inference_steps, self.accelerator.device)

        transformer = self._create_transformer()
        self.ema = AveragedModel(
            transformer,
            device=self.accelerator.device,
            multi_avg_fn=get_ema_multi_avg_fn(optimization.ema_decay),
            use_buffers=True,  # BatchNorm's running statistics are part of what is sampled from
        ).eval()
        self.ema.update_parameters(transformer)
        if optimization.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if optimization.compile:
            transformer.compile_repeated_blocks(fullgraph=True)
        optimizer = torch.optim.AdamW(
            [p for p in transformer.parameters() if p.requires_grad],
            lr=optimization.learning_rate,
            weight_decay=optimization.weight_decay,
        )
        lr_scheduler = get_scheduler(
            optimization.lr_schedule,
            optimizer,
            num_warmup_steps=optimization.warmup_steps,
            num_training_steps=optimization.num_steps,
        )
        self.transformer, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
            transformer, optimizer, lr_scheduler
        )

    def _create_transformer(self) -> ClassConditionalTransformer:
        in_channels, sample_size = self.images.channels, self.config.data.resolution
        if self.vae is not None:
            in_channels, sample_size = latent_shape(self.vae, self.config.data.resolution)
        return create_network(self.config.model, self.objective, in_channels, sample_size, self.images.num_classes)

    def _sampler(self) -> SchedulerMixin:
        return create_sampler(self.objective.scheduler(), self.config.run.sampler)

    def run(self) -> None:
        """Trains from the newest checkpoint to the last step and writes the results."""
        first_step = self.folder.load_checkpoint(self.accelerator, self.ema)
        num_steps = self.config.optimization.num_steps
        if first_step >= num_steps:
            self.accelerator.print(f"{self.folder.path} has all of its {num_steps} steps; writing its results again.")
        elif first_step:
            self.accelerator.print(f"Continuing {self.folder.path} from step {first_step}.")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.start(self.config, self.accelerator, first_step)
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": first_step + 1}})
        self.train(first_step)
        if self.accelerator.is_main_process:
            self.finish()
        self.accelerator.end_training()

    def train(self, first_step: int) -> None:
        run, num_steps = self.config.run, self.config.optimization.num_steps
        losses = self.folder.read_losses(first_step)
        batch_iterator = iter(batches(self.images, self._batch_order(first_step), self.config.data.num_workers))
        progress = tqdm(
            range(first_step, num_steps), initial=first_step, total=num_steps, unit="step", dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        self.score(first_step)  # if it was interrupted
        recent, last_log = [], time.perf_counter()
        for step in progress:
            learning_rate = self.lr_scheduler.get_last_lr()[0]
            recent.append(self.train_step(batch_iterator, step))
            done = step + 1
            if done % run.log_every == 0 or done == num_steps:
                loss = self._mean_loss(recent, done)
                rate = len(recent) * self.config.optimization.batch_size / (time.perf_counter() - last_log)
                losses.append({"step": done, "loss": loss, "images_per_second": rate})
                progress.set_postfix(loss=f"{loss:.4f}", images_per_second=f"{rate:.0f}")
                self.accelerator.log({"loss": loss, "images_per_second": rate, "lr": learning_rate}, step=done)
                recent, last_log = [], time.perf_counter()
            paused = time.perf_counter()
            if done % run.checkpoint_every == 0 or done == num_steps:
                self._check_weights(done)
                if self.accelerator.is_main_process:
                    self.folder.write_losses(losses)
                self.folder.save_checkpoint(self.accelerator, self.ema, done)
            if run.sample_every and done % run.sample_every == 0 and done < num_steps:
                self.save_grid(done)
            self.score(done)
            last_log += time.perf_counter() - paused

    def score(self, step: int) -> None:
        """Scores the moving average if this step has a score that is not there yet."""
        if self.scoring is not None and self.scoring.is_due(step):
            self.accelerator.log(self.scoring.score(self.ema, self.pipeline(), step), step=step)

    def train_step(self, batch_iterator, step: int) -> torch.Tensor:
        """One optimizer step; returns its mean loss on this process."""
        device, optimization = self.accelerator.device, self.config.optimization
        parts = optimization.gradient_accumulation_steps
        total = 0.0
        for part in range(parts):
            images, labels = next(batch_iterator)
            is_last = part == parts - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.transformer):
                loss = self.loss(images.to(device), labels.to(device), self._generator(step, part)) / parts
                self.accelerator.backward(loss)
            total += loss.detach()
        if optimization.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.transformer.parameters(), optimization.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        self.ema.update_parameters(self.accelerator.unwrap_model(self.transformer))
        return total

    def loss(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.config.data.random_flip:
            flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        x0 = images if self.vae is None else encode(self.vae, images, generator)
        dropped = torch.rand(len(labels), generator=generator, device=labels.device)
        labels = labels.masked_fill(dropped < self.config.objective.label_dropout, self.images.num_classes)
        timesteps = self.objective.sample_timesteps(len(x0), generator)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        output = self.transformer(self.objective.add_noise(x0, noise, timesteps), timesteps, labels).sample
        return self.objective.losses(output, x0, noise, timesteps)["loss"].mean()

    def _batch_order(self, first_step: int) -> BatchOrder:
        optimization = self.config.optimization
        return BatchOrder(
            num_samples=len(self.images.dataset),
            batch_size=optimization.batch_size,
            accumulation_steps=optimization.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            first_step=first_step,
            last_step=optimization.num_steps,
            seed=optimization.seed,
        )

    def _generator(self, step: int, part: int) -> torch.Generator:
        """Noise, times and dropped labels come from (seed, step, part, rank) alone, so that a run can continue."""
        key = (self.config.optimization.seed, step, part, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(self.accelerator.device).manual_seed(seed)

    def _mean_loss(self, recent: list[torch.Tensor], step: int) -> float:
        loss = float(self.accelerator.reduce(torch.stack(recent).mean(), reduction="mean"))
        if not np.isfinite(loss):
            self._stop(f"The loss is {loss} by step {step}.")
        return loss

    def _check_weights(self, step: int) -> None:
        """A checkpoint replaces the one before, so it must be usable."""
        if not get_total_norm(self.transformer.parameters()).isfinite():
            self._stop(f"The weights are not finite at step {step}.")

    def _stop(self, reason: str) -> None:
        raise FloatingPointError(
            f"{reason} Lower learning_rate, set max_grad_norm, or use bf16 instead of fp16. The last checkpoint is "
            f"{self.folder.latest_checkpoint()}."
        )

    def pipeline(self) -> DEMOPipeline:
        """The moving average of the weights as a pipeline."""
        return DEMOPipeline(self.ema.module, self._sampler(), self.vae, self.images.id2label)

    def save_grid(self, step: int) -> None:
        if self.accelerator.is_main_process:
            grid = sample_grid(self.pipeline(), self.config.run)
            grid.save(self.folder.samples / f"step-{step:09d}.png")
            tensorboard = self.accelerator.get_tracker("tensorboard")
            tensorboard.log_images({"samples": np.array(grid)[None]}, step=step, dataformats="NHWC")
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Writes pipeline/, loss.png and samples.png, and prints what the samples are like."""
        run, pipeline = self.config.run, self.pipeline()
        pipeline.save_pretrained(self.folder.pipeline)
        losses = self.folder.read_losses(self.config.optimization.num_steps)
        save_loss_curves(self.folder.path / "loss.png", {self.folder.path.name: losses})
        sample_grid(pipeline, run).save(self.folder.path / "samples.png")
        if run.knn_samples:
            report = nearest_neighbor_report(
                pipeline,
                self.images.dataset,
                run.knn_samples,
                sorted({1.0, run.guidance_scale}),
                run.num_inference_steps,
            )
            report.save(self.folder.path / "nearest_neighbor.json")
            self.accelerator.print(report)
        self.accelerator.print(f"Pipeline, samples.png and loss.png are in {self.folder.path}.")


def create_network(
    config: ModelConfig, objective: DDPMObjective | FlowObjective, in_channels: int, sample_size: int, num_classes: int
) -> ClassConditionalTransformer:
    """Raises a ValueError if the config does not fit the data or the objective."""
    settings = {
        "in_channels": in_channels,
        "out_channels": objective.out_channels(in_channels),
        "sample_size": sample_size,
        "num_classes": num_classes,
        **config.overrides(),
    }
    objective.check_channels(settings["out_channels"], in_channels)
    return create_transformer(config.transformer, **settings)


def create_objective(config: ObjectiveConfig) -> DDPMObjective | FlowObjective:
    if config.objective == "flow":
        return FlowObjective(config.timestep_sampling, direction_weight=config.direction_weight)
    return DDPMObjective(
        prediction_type=config.prediction_type,
        min_snr_gamma=config.min_snr_gamma,
        zero_terminal_snr=config.zero_terminal_snr,
    )


def check_packages(config: TrainingConfig) -> None:
    """Raises a ValueError if a package that the run needs only later is missing."""
    needed = ["matplotlib", "tensorboard"]
    if config.data.dataset == "digits" or config.run.knn_samples:
        needed.append("sklearn")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ValueError(f"Training needs {', '.join(missing)}: pip install 'demo-diffusion[train]'.")


def create_accelerator(config: TrainingConfig) -> Accelerator:
    """Raises a ValueError if the machine has not the precision that is asked for."""
    on_cpu = not torch.accelerator.is_available()
    mixed_precision = config.optimization.mixed_precision
    if on_cpu and mixed_precision == "fp16":
        raise ValueError("mixed_precision is fp16, which needs a GPU; on a CPU use 'bf16' or 'no'.")
    return Accelerator(
        cpu=on_cpu,  # without it, processes on CPUs would not find each other
        mixed_precision=mixed_precision,
        step_scheduler_with_optimizer=False,
        log_with="tensorboard",
        project_dir=config.run.output_dir,
    )


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    try:
        trainer = Trainer(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        trainer.run()
    except KeyboardInterrupt:
        kept = trainer.folder.latest_checkpoint() or "no checkpoint yet"
        sys.exit(f"Interrupted. The same command continues from what is kept: {kept}.")


if __name__ == "__main__":
    main()
