"""The training loop, which every training of this package shares."""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import Dataset
from tqdm import tqdm

from demo_diffusion.records.folder_lock import check_free
from demo_diffusion.records.run_records import read_losses, write_losses

from .accelerator import configure_deepspeed, create_accelerator
from .batch_order import BatchOrder, batches, reading
from .checkpoints import Progress, step_of
from .failures import FAILURES, keep_traceback, what_failed
from .finite_steps import RunningStatistics, diagnosis
from .moving_averages import MovingAverages, whole
from .run_folder import RunFolder
from .schedules import create_lr_scheduler
from .stop_request import StopRequest


class Trainer(ABC):
    """One run, from its newest checkpoint to its last step.

    A family of tasks writes a subclass that answers four questions, each with one method: `load_data` (which data),
    `create_network` (which network), `loss` (what loss) and `finish` (what a run leaves). It may also override
    `set_up`, `draw`, `look`, `collate`, `compile`, `checkpoint_activations` and `parameter_groups`. `run` is the loop.

    Everything random is a function of the seed, the step and the place in the batch; in layers such as drop path it is
    a function of the process and the accumulation step too. A run that stopped anywhere therefore continues as if it
    had not: bit by bit on the CPU with the same number of processes.

    Args:
        config: dataclass with the sections `data` (a `DataConfig`), `optimization` (an `OptimizationConfig`) and `run`
            (a `RunConfig`), and whatever else the subclass reads.

    Attributes:
        accelerator: accelerate's view of device and processes.
        folder: the run's folder, `folder.path`.
        samples: what `load_data` returned.
        network: the network as accelerate prepared it; `plain_network` is the same without the wrappers.
        averages: moving averages of the network.
        rows: logged losses; `run` sets them.
        progress, order, iterator: steps done, order of the batches, and the batches themselves; `run` sets them.

    Raises:
        ValueError: if the config does not fit the data, the machine or an earlier run in its folder.
    """

    def __init__(self, config):
        self.config = config
        optimization = config.optimization

        # The machine, the folder and the data: everything that a user may have got wrong comes first.
        self.accelerator = create_accelerator(optimization, config.run.output_dir)
        self.folder = RunFolder(config.run.output_dir, config.run.keep_checkpoints)
        check_free(self.folder.path)
        self.folder.check(config)
        self.folder.checkpoints.check_sharding(self.accelerator)
        self.samples = self.load_data()
        self.folder.check_data(self.data_facts())
        self.set_up()
        part_size = self.batch_order(first_step=0).part_size  # raises now if the batch cannot be divided

        # The network and its optimizer.
        set_seed(optimization.seed)  # because loading the data may have drawn random numbers
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
        lr_scheduler = create_lr_scheduler(optimization, optimizer, self.num_steps)

        # The same, divided among processes.
        configure_deepspeed(self.accelerator, part_size, optimization.mixed_precision)
        self.network, self.optimizer, self.lr_scheduler = self.accelerator.prepare(network, optimizer, lr_scheduler)
        self.plain_network = self.accelerator.unwrap_model(self.network)
        self.averages = MovingAverages(self.plain_network, optimization.ema_decays)
        self._statistics = RunningStatistics(self.plain_network)
        self._before: list[torch.Tensor] | None = None  # BatchNorm's statistics before a step that is being computed
        self._is_in_step = False  # weights, optimizer and averages are not of one step

    @abstractmethod
    def load_data(self) -> Dataset:
        """Which data: returns a dataset whose keys are (index, epoch), for augmentations that change every epoch.

        Its items are tuples of tensors or numbers; the default collation, or `collate`, makes a batch of them.

        Raises:
            ValueError: if data are missing or do not fit the config.
        """

    @abstractmethod
    def create_network(self) -> nn.Module:
        """Which network: returns it with new weights, in training mode, on any device.

        Raises:
            ValueError: if the config does not fit the data.
        """

    @abstractmethod
    def loss(self, batch: list[torch.Tensor], draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """What loss: returns the mean loss, a scalar, of one part of a batch.

        Args:
            batch: collated items of the dataset, on the device; the first dimension is the samples of this part.
            draws: what `draw` returned, cut to the samples of this part.
        """

    @abstractmethod
    def finish(self) -> None:
        """What a run leaves: writes its result to `folder.path / "pipeline"` or `"model"`. Every process calls it."""

    def data_facts(self) -> dict:
        """By what the data are recognised when a run goes on, as `describe_images`; empty: they are not."""
        return {}

    def set_up(self) -> None:  # noqa: B027 (a family may do without)
        """Creates what loss, looks and result need beside data and network, such as a teacher. Nothing by default.

        The constructor calls it after `load_data` and before `create_network`.

        Raises:
            ValueError: if something is missing or does not fit.
        """

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Random tensors of one step for the whole batch (first dimension: batch_size). None by default.

        They are drawn for the whole batch so that they do not depend on how it is divided.
        """
        return {}

    def look(self, step: int) -> None:  # noqa: B027 (a family may do without)
        """Looks at the network after a step, by samples or scores that are due. Nothing by default.

        It is called once more at the step where a run resumes, for what the interruption left out. Every process
        calls it.
        """

    def compile(self, network: nn.Module) -> None:
        """Compiles the network in place."""
        network.compile()

    def checkpoint_activations(self, network: nn.Module) -> None:
        """Makes the backward pass recompute activations instead of keeping them, in place."""
        network.enable_gradient_checkpointing()

    def parameter_groups(self, network: nn.Module) -> list:
        """Parameters, or groups of them, for the optimizer."""
        return [p for p in network.parameters() if p.requires_grad]

    # Makes a batch of a list of the dataset's items, for items that do not stack; None: PyTorch's default collation.
    collate: Callable[[list], Sequence] | None = None

    @property
    def num_steps(self) -> int:
        return self.config.optimization.num_steps

    def average_network(self, decay: float | None = None) -> nn.Module:
        """A network in eval mode with a moving average, by default the first. Every process must call it."""
        state = self.averages.full_state(self.averages.decays[0] if decay is None else decay)
        self._average_network.load_state_dict(state)
        return self._average_network

    def run(self, stop_request: StopRequest) -> None:
        """Trains to the last step and writes the results, or saves a checkpoint when asked to stop.

        Raises:
            ValueError: if anything in it fails; it says what to do, and what is saved.
        """
        accelerator, optimization, run = self.accelerator, self.config.optimization, self.config.run

        # Resume from the newest checkpoint, or start the folder.
        self.progress = progress = self.resume()
        self._start_records()
        self.order = self.batch_order(progress.step)
        loader = batches(self.samples, self.order, self.config.data.num_workers, self.collate)
        seconds, logged_step, is_stopped = 0.0, progress.step, False
        is_quiet = not accelerator.is_main_process

        with (
            self._state_kept_on_failure(),
            reading(loader) as self.iterator,  # before the bar, whose thread a worker must not inherit
            tqdm(initial=progress.step, total=self.num_steps, unit="step", dynamic_ncols=True, disable=is_quiet) as bar,
        ):
            # Look at what an interruption left out.
            self.look(progress.step)
            while progress.step < self.num_steps and not is_stopped:
                # Draw what is random in this step, for the whole batch.
                started, learning_rate = time.perf_counter(), self.lr_scheduler.get_last_lr()[0]
                draws = self.draw(torch.Generator(accelerator.device).manual_seed(self._seed(progress.step)))

                # Accumulate gradients over this process's parts of the batch.
                self._before = statistics = self._statistics.copy()
                loss = self.accumulate_gradients(draws)
                norm = accelerator.clip_grad_norm_(self.network.parameters(), optimization.max_grad_norm or math.inf)

                # Agree with the other processes on the loss, the norm and whether to stop.
                loss, norm, stop = self._agree(loss, norm, stop_request.is_set)
                is_finite = math.isfinite(loss) and math.isfinite(norm)

                # Apply the step, or skip it if its loss or gradient is not finite.
                self._is_in_step = True
                overflows = accelerator.scaler is not None and not math.isfinite(norm)
                if is_finite or overflows:  # fp16's scaler must see an overflow, to lower its scale; it skips the step
                    self.optimizer.step()
                self.lr_scheduler.step()
                progress.step += 1
                if is_finite:
                    progress.skipped_in_a_row = 0
                    progress.recent_losses.append(loss)
                else:
                    self._statistics.restore(statistics)
                    self._count_skipped(norm)
                self.optimizer.zero_grad()

                # Average weights and BatchNorm's statistics.
                if is_finite:
                    if accelerator.num_processes > 1:
                        self._statistics.average_over_processes()
                    self.averages.update(self.plain_network)
                self._before, self._is_in_step = None, False
                seconds += time.perf_counter() - started
                bar.update()

                # Log the mean loss since the last row.
                is_last = progress.step == self.num_steps
                if progress.step % run.log_every == 0 or is_last:
                    images = (progress.step - logged_step) * optimization.batch_size
                    self._log(images / seconds, learning_rate, bar)
                    seconds, logged_step = 0.0, progress.step

                # Save a checkpoint, also when asked to stop.
                if progress.step % run.checkpoint_every == 0 or is_last or stop:
                    self._save()
                is_stopped = stop and not is_last

                # Look at the network.
                if not is_stopped:
                    self.look(progress.step)

        if is_stopped:
            accelerator.print(
                f"{stop_request.reason}: stopped after step {progress.step}, which is saved; "
                "the same command continues."
            )
        else:
            with self._state_kept_on_failure():
                self.finish()
        accelerator.end_training()

    @contextmanager
    def _state_kept_on_failure(self) -> Iterator[None]:
        """Saves what is done when something fails, and says what failed, what to do and what is saved."""
        try:
            yield
        except FAILURES as error:
            traceback = keep_traceback(self.folder.path, error)
            raise ValueError(f"{what_failed(error)} {self._keep_state()} {traceback}".rstrip()) from error

    def _keep_state(self) -> str:
        """Saves the steps that are done when one fails, if that can be, and says from where the run goes on.

        Other processes would not come to save, so only a process alone does.
        """
        step, checkpoints = self.progress.step, self.folder.checkpoints
        try:
            can_save = step > 0 and self.accelerator.num_processes == 1 and not self._is_in_step
            if can_save and not checkpoints.has(step):
                if self._before is not None:
                    self._statistics.restore(self._before)
                self._save()
            kept = checkpoints.latest()
        except (ArithmeticError, OSError, *FAILURES) as error:
            return f"Step {step} cannot be saved: {error}"
        if kept is None:
            return "The same command goes on from the start: nothing is saved yet."
        return f"The same command goes on from step {step_of(kept)}, which is saved."

    def resume(self) -> Progress:
        """Restores the newest checkpoint, if there is one."""
        progress = self.folder.checkpoints.load_latest(self.accelerator, self.averages)
        if progress is None:
            return Progress()
        if progress.step >= self.num_steps:
            self.accelerator.print(f"{self.folder.path} has all of its {self.num_steps} steps; writing results again.")
        else:
            self.accelerator.print(f"Continuing {self.folder.path} from step {progress.step}.")
        return progress

    def _start_records(self) -> None:
        """Opens config.yaml, run.json, the rows of loss.csv and TensorBoard's files at the step of `progress`."""
        step = self.progress.step
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.start(self.config, self.accelerator, step)
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        self.rows = read_losses(self.folder.path, step)

    def accumulate_gradients(self, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """Adds up the gradients of one step over this process's parts of the batch; returns their mean loss."""
        device, parts = self.accelerator.device, self.order.accumulation_steps
        total = torch.zeros((), device=device)
        for number in range(parts):
            batch = send_to_device(next(self.iterator), device, non_blocking=True)
            part = {name: value[self.order.part(number)] for name, value in draws.items()}
            layer_seed = self._seed(self.progress.step, number, self.accelerator.process_index)
            set_seed(layer_seed % 2**32)  # for layers such as drop path
            self.accelerator.sync_gradients = number == parts - 1
            with nullcontext() if self.accelerator.sync_gradients else self.accelerator.no_sync(self.network):
                loss = self.loss(batch, part)
                self.accelerator.backward(loss)  # divides by the number of parts
            total += loss.detach() / parts
        return total

    def _agree(self, loss: torch.Tensor, norm: torch.Tensor | float, stop: bool) -> tuple[float, float, bool]:
        """(loss, norm of the gradient, stop): averaged over processes with one all-reduce; one asks to stop for all."""
        norm = whole(torch.as_tensor(norm)).to(loss)
        facts = torch.stack([loss, norm, torch.full_like(loss, stop)])
        loss, norm, stop = self.accelerator.reduce(facts, reduction="mean").tolist()
        return loss, norm, stop > 0

    def _count_skipped(self, norm: float) -> None:
        """Counts a skipped step. Too many in a row stop the run with a diagnosis."""
        progress = self.progress
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= self.config.optimization.max_skipped_steps:
            learning_rate = self.lr_scheduler.get_last_lr()[0]
            losses = [row["loss"] for row in self.rows[-3:]] + progress.recent_losses[-3:]
            self._fail(
                f"Step {progress.step} is the last of {progress.skipped_in_a_row} in a row whose loss or gradient is "
                f"not finite. {diagnosis(self.plain_network, losses, norm, learning_rate)}"
            )

    def _log(self, images_per_second: float, learning_rate: float, bar: tqdm) -> None:
        """Logs the mean of the recent losses, which begin anew; a window of skipped steps alone has no row."""
        progress = self.progress
        facts = {"images_per_second": images_per_second, "skipped_steps": progress.skipped_steps}
        losses, progress.recent_losses = progress.recent_losses, []
        if losses:
            facts["loss"] = float(np.mean(losses))
            self.rows.append({"step": progress.step, **facts})
            bar.set_postfix(loss=f"{facts['loss']:.4f}", images_per_second=f"{images_per_second:.0f}")
        self.accelerator.log({**facts, "lr": learning_rate}, step=progress.step)

    def _save(self) -> None:
        """Saves a checkpoint. It replaces an older one, so weights that are not finite stop the run instead."""
        step = self.progress.step
        if not whole(get_total_norm(self.plain_network.parameters())).isfinite():
            self._fail(f"The weights are not finite at step {step}; lower learning_rate or set max_grad_norm.")
        if self.accelerator.is_main_process:
            write_losses(self.folder.path, self.rows)
        self.folder.checkpoints.save(self.accelerator, self.averages, self.progress)

    def _fail(self, reason: str) -> None:
        raise FloatingPointError(f"{reason} The checkpoints are in {self.folder.checkpoints.folder}.")

    def batch_order(self, first_step: int) -> BatchOrder:
        """The order of the batches from a step on.

        Raises:
            ValueError: if the batch cannot be divided among processes and accumulation steps.
        """
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
