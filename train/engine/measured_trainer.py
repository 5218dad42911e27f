"""Trainings whose moving average is measured along the run and left as a model folder."""

import dataclasses
from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import nn

from demo_diffusion.records.figures import save_loss_curves
from demo_diffusion.records.files import write_json, write_whole
from demo_diffusion.records.provenance import provenance
from demo_diffusion.records.run_records import SCORES, add_scores, read_scores

from .hub import upload
from .trainer import Trainer


class MeasuredTrainer(Trainer):
    """Answers what a run leaves; a family answers `measure`, `scores`, `result` and `save` in its place.

    Attributes:
        kind: of `SCORES`; it names the file of the scores.
        measured: the last measurement, a dataclass whose text is one line; None: none in this part of the run.
    """

    kind: str
    measured: Any = None

    @abstractmethod
    def measure(self) -> Any:
        """A measurement of the moving average. Every process must call it."""

    @abstractmethod
    def scores(self, measured: Any) -> dict[str, float | None]:
        """The numbers of a measurement to log, those of its kind among them; None: it cannot be computed."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """What results.json says of the data, beside the measurement."""

    @abstractmethod
    def save(self, network: nn.Module, path: Path, results: dict[str, Any]) -> None:
        """Writes a model folder with its card; the main process alone calls it."""

    def measurement(self) -> dict[str, Any]:
        """The measurement at the last step, for results.json. Every process calls it."""
        if self.measured is None:  # it was made before an interruption
            self.measured = self.measure()
        return dataclasses.asdict(self.measured)

    def plot(self) -> None:
        """Draws what was logged so far."""
        if self.rows:
            save_loss_curves(self.folder.path / "loss.png", {self.folder.path.name: self.rows})

    def look(self, step: int) -> None:
        """Measures the moving average if that is due and was not done before an interruption."""
        every = self.config.run.eval_every
        is_due = step == self.num_steps or (every and step > 0 and step % every == 0)
        if not is_due or any(row["step"] == step for row in read_scores(self.folder.path, self.kind)):
            return
        self.measured = self.measure()
        scores = {name: value for name, value in self.scores(self.measured).items() if value is not None}
        self.accelerator.log({f"val/{name}": value for name, value in scores.items()}, step=step)
        self.accelerator.print(f"step {step:,}: {self.measured}")
        if self.accelerator.is_main_process and scores.keys() >= set(SCORES[self.kind]):
            add_scores(self.folder.path, self.kind, step, {name: scores[name] for name in SCORES[self.kind]})
            self.plot()
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Writes the moving average as a model folder, the curves and results.json."""
        measurement, network = self.measurement(), self.average_network()
        if not self.accelerator.is_main_process:
            return
        self.plot()
        results = {
            **measurement,
            "step": self.num_steps,
            **self.result(),
            "parameters": sum(p.numel() for p in network.parameters()),
            **provenance(self.accelerator),
        }
        write_json(self.folder.path / "results.json", results)
        model = self.folder.path / "model"
        write_whole(model, lambda path: self.save(network, path, results))
        shares = ", ".join(f"{name} {measurement[name]:.2%}" for name in SCORES[self.kind] if name in measurement)
        print(f"{shares or self.measured}; model, results.json and curves: {self.folder.path}.")
        if self.config.run.push_to_hub is not None:
            upload(model, self.config.run.push_to_hub)
