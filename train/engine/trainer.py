"""The training loop: what is common to every training of this package."""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import Dataset
from tqdm import tqdm

from demo_diffusion.records.run_records import read_losses, write_losses

from .accelerator import configure_deepspeed, create_accelerator
from .batch_order import BatchOrder, batches, reading
from .checkpoints import Progress
from .finite_steps import RunningStatistics, diagnosis
from .moving_averages import MovingAverages, whole
from .run_folder import RunFolder
from .stop_request import StopRequest


class Trainer(ABC):
    """One run, from its newest checkpoint to its last step.

    Everything random is a function of the seed, the step and the place in the batch (in layers such as drop path: the
    process and accumulation step), so that a run that was stopped anywhere goes on as if it had not been: bit by bit on
    the CPU with as many processes.

    A subclass opens the data, creates the network, and says what the loss is and what a run leaves.

    Attributes:
        samples: dataset whose keys are (index, epoch).
        network: what is trained, as accelerate prepared it; `plain_network` is the same without what it wraps around.
        averages: moving averages of the network.
        rows: the logged losses.

    Raises:
        ValueError: if the config does not fit the data, the machine or an earlier run in its folder.
    """

    samples: Dataset

    def __init__(self, config):
        self.config = config
        optimization = config.optimization
        self.accelerator = create_accelerator(optimization, config.run.output_dir)
        self.folder, self.rows = RunFolder(config.run.output_dir, config.run.keep_checkpoints), []
        self.folder.check(config)
        self.folder.checkpoints.check_sharding(self.accelerator)
        self.samples = self.open_data()
        part_size = self.batch_order(first_step=0).part_size  # raises now what would else be found later

        set_seed(optimization.seed)  # what was opened may have drawn
        network = self.create_network().to(self.accelerator.device)
        self._average_network = copy.deepcopy(network).requires_grad_(False).eval()
        if optimization.sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if optimization.gradient_checkpointing:
            self.checkpoint_activations(network)
        if optimization.compile:
            self.compile(network)
        optimizer = torch.optim.AdamW(
            self.parameter_groups(network), lr=optimization.learning_rate, weight_decay=optimization.weight_decay
        )
        lr_scheduler = get_scheduler(
            optimization.lr_schedule,
            optimizer,
            num_warmup_steps=optimization.warmup_steps,
            num_training_steps=self.num_steps,
        )
        configure_deepspeed(self.accelerator, part_size, optimization.mixed_precision)
        self.network, self.optimizer, self.lr_scheduler = self.accelerator.prepare(network, optimizer, lr_scheduler)
        self.plain_network = self.accelerator.unwrap_model(self.network)
        self.averages = MovingAverages(self.plain_network, optimization.ema_decays)
        self._statistics = RunningStatistics(self.plain_network)

    @abstractmethod
    def open_data(self) -> Dataset:
        """Opens everything that the run needs and returns the dataset, whose keys are (index, epoch).

        Raises:
            ValueError: if something is missing or does not fit.
        """

    @abstractmethod
    def create_network(self) -> nn.Module:
        """The network, with new weights."""

    @abstractmethod
    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of one part of a batch, with that part of what `draw` drew."""

    @abstractmethod
    def finish(self) -> None:
        """Writes what a finished run leaves. Every process calls it."""

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Random tensors of one step for the whole batch, so that they do not depend on how it is divided."""
        return {}

    @abstractmethod
    def after_step(self, step: int) -> None:
        """What is looked at while the network is trained. Every process calls it."""

    def compile(self, network: nn.Module) -> None:
        """Has torch.compile speed up the network, in place."""
        network.compile()

    def checkpoint_activations(self, network: nn.Module) -> None:
        """Has the backward pass recompute activations instead of keeping them, in place."""
        network.enable_gradient_checkpointing()

    def parameter_groups(self, network: nn.Module) -> list:
        """What the optimizer is given."""
        return [p for p in network.parameters() if p.requires_grad]

    @property
    def num_steps(self) -> int:
        return self.config.optimization.num_steps

    def average_network(self, decay: float | None = None) -> nn.Module:
        """A network in eval mode with a moving average, by default the first. Every process must call it."""
        state = self.averages.full_state(self.averages.decays[0] if decay is None else decay)
        self._average_network.load_state_dict(state)
        return self._average_network

    def run(self, stop_request: StopRequest) -> None:
        """Trains to the last step and writes the results, or saves a checkpoint as soon as it shall stop."""
        progress = self.resume()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.start(self.config, self.accelerator, progress.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": progress.step + 1}})
        order = self.batch_order(progress.step)
        with reading(batches(self.samples, order, self.config.data.num_workers)) as iterator:
            stopped = self.train(iterator, order, progress, stop_request)
        if stopped:
            self.accelerator.print(
                f"SIGTERM: stopped after step {progress.step}, which is saved; the same command continues."
            )
        else:
            self.finish()
        self.accelerator.end_training()

    def resume(self) -> Progress:
        """Restores the newest checkpoint, if there is one."""
        checkpoint = self.folder.checkpoints.latest()
        if checkpoint is None:
            return Progress()
        progress = self.folder.checkpoints.load(checkpoint, self.accelerator, self.averages)
        if progress.step >= self.num_steps:
            self.accelerator.print(f"{self.folder.path} has all of its {self.num_steps} steps; writing results again.")
        else:
            self.accelerator.print(f"Continuing {self.folder.path} from step {progress.step}.")
        return progress

    def train(self, iterator: Iterator, order: BatchOrder, progress: Progress, stop_request: StopRequest) -> bool:
        """Trains until the last step or until it shall stop; returns whether it was stopped."""
        self.rows = read_losses(self.folder.path, progress.step)
        with tqdm(
            initial=progress.step, total=self.num_steps, unit="step", dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        ) as bar:  # fmt: skip
            self.after_step(progress.step)  # if it was interrupted
            return self._train_steps(iterator, order, progress, stop_request, bar)

    def _train_steps(
        self, iterator: Iterator, order: BatchOrder, progress: Progress, stop_request: StopRequest, bar: tqdm
    ) -> bool:
        run, batch_size = self.config.run, self.config.optimization.batch_size
        last_log, logged_step, stop = time.perf_counter(), progress.step, False
        while progress.step < self.num_steps and not stop:
            learning_rate = self.lr_scheduler.get_last_lr()[0]
            stop = self.train_step(iterator, order, progress, stop_request)
            bar.update()
            is_last = progress.step == self.num_steps
            if progress.step % run.log_every == 0 or is_last:
                seconds, last_log = time.perf_counter() - last_log, time.perf_counter()
                images = (progress.step - logged_step) * batch_size
                self._log(progress, images / seconds, learning_rate, bar)
                logged_step = progress.step
            paused = time.perf_counter()
            if progress.step % run.checkpoint_every == 0 or is_last or stop:
                self._save(progress)
            if not stop:
                self.after_step(progress.step)
            last_log += time.perf_counter() - paused
        return stop and progress.step < self.num_steps

    def train_step(self, iterator: Iterator, order: BatchOrder, progress: Progress, stop_request: StopRequest) -> bool:
        """One optimizer step, without effect if its loss or gradient is not finite; returns whether to stop."""
        statistics = self._statistics.copy()
        loss = self._accumulate(iterator, order, progress.step)
        max_norm = self.config.optimization.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), max_norm)
        loss, norm, stop = self._agree(loss, norm, stop_request.is_set)
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        overflows = self.accelerator.scaler is not None and not math.isfinite(norm)
        if is_finite or overflows:  # of which the scaler of fp16 must know, to lower its scale; it skips the step
            self.optimizer.step()
        self.lr_scheduler.step()
        progress.step += 1
        if is_finite:
            if self.accelerator.num_processes > 1:
                self._statistics.average_over_processes()
            self.averages.update(self.plain_network)
            progress.skipped_in_a_row = 0
            progress.recent_losses.append(loss)
        else:
            self._statistics.restore(statistics)
            self._skip(progress, norm)
        self.optimizer.zero_grad()
        return stop

    def _accumulate(self, iterator: Iterator, order: BatchOrder, step: int) -> torch.Tensor:
        """Gradients of one step over all of this process's parts of the batch; returns their mean loss."""
        device, parts = self.accelerator.device, order.accumulation_steps
        draws = self.draw(torch.Generator(device).manual_seed(self._seed(step)))
        total = torch.zeros((), device=device)
        for number in range(parts):
            batch = [x.to(device, non_blocking=True) for x in next(iterator)]
            set_seed(self._seed(step, number, self.accelerator.process_index) % 2**32)  # of layers such as drop path
            self.accelerator.sync_gradients = number == parts - 1
            synchronize = nullcontext() if self.accelerator.sync_gradients else self.accelerator.no_sync(self.network)
            with synchronize:
                loss = self.loss(batch, {name: value[order.part(number)] for name, value in draws.items()})
                self.accelerator.backward(loss)  # divides by the number of parts
            total += loss.detach() / parts
        return total

    def _agree(self, loss: torch.Tensor, norm: torch.Tensor | float, stop: bool) -> tuple[float, float, bool]:
        """(mean loss, norm of the gradient, stop) as all processes shall see them, in one message."""
        norm = whole(torch.as_tensor(norm)).to(loss)
        facts = torch.stack([loss, norm, torch.full_like(loss, stop)])
        loss, norm, stop = self.accelerator.reduce(facts, reduction="mean").tolist()
        return loss, norm, stop > 0

    def _skip(self, progress: Progress, norm: float) -> None:
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= self.config.optimization.max_skipped_steps:
            learning_rate = self.lr_scheduler.get_last_lr()[0]
            losses = [row["loss"] for row in self.rows[-3:]] + progress.recent_losses[-3:]
            self._stop(
                f"Step {progress.step} is the last of {progress.skipped_in_a_row} in a row whose loss or gradient is "
                f"not finite. {diagnosis(self.plain_network, losses, norm, learning_rate)}"
            )

    def _log(self, progress: Progress, images_per_second: float, learning_rate: float, bar: tqdm) -> None:
        facts = {"images_per_second": images_per_second, "skipped_steps": progress.skipped_steps}
        losses, progress.recent_losses = progress.recent_losses, []
        if losses:
            facts["loss"] = float(np.mean(losses))
            self.rows.append({"step": progress.step, **facts})
            bar.set_postfix(loss=f"{facts['loss']:.4f}", images_per_second=f"{images_per_second:.0f}")
        self.accelerator.log({**facts, "lr": learning_rate}, step=progress.step)

    def _save(self, progress: Progress) -> None:
        """A checkpoint replaces one before, so it must be usable."""
        if not whole(get_total_norm(self.plain_network.parameters())).isfinite():
            self._stop(f"The weights are not finite at step {progress.step}; lower learning_rate or set max_grad_norm.")
        if self.accelerator.is_main_process:
            write_losses(self.folder.path, self.rows)
        self.folder.checkpoints.save(self.accelerator, self.averages, progress)

    def _stop(self, reason: str) -> None:
        raise FloatingPointError(f"{reason} The checkpoints are in {self.folder.checkpoints.folder}.")

    def batch_order(self, first_step: int) -> BatchOrder:
        """Raises a ValueError if the batch cannot be divided among processes and accumulation steps."""
        optimization = self.config.optimization
        return BatchOrder(
            num_samples=len(self.samples),
            batch_size=optimization.batch_size,
            accumulation_steps=optimization.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            first_step=first_step,
            last_step=self.num_steps,
            seed=optimization.seed,
        )

    def _seed(self, *key: int) -> int:
        words = np.random.SeedSequence((self.config.optimization.seed, *key)).generate_state(1, np.uint64)
        return int(words[0] >> 1)
