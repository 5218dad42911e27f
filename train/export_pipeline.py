"""Exports a checkpoint, by default the newest: `python train/export_pipeline.py RUN --step 700 --out DIR`.

Writes a pipeline folder, of an unfinished run or of another moving average too, however the run was divided among
processes. Opens the run's data (for the label names) and its autoencoder again.
"""

import argparse
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

import torch
from safetensors.torch import load_file

from demo_diffusion.records.files import write_whole
from demo_diffusion.records.folder_lock import hold_target
from demo_diffusion.records.run_records import read_losses
from demo_diffusion.train.diffusion.build import create_network, create_objective, create_pipeline
from demo_diffusion.train.diffusion.config import parse_config
from demo_diffusion.train.diffusion.data import open_training_data
from demo_diffusion.train.diffusion.model_card import write_model_card
from demo_diffusion.train.engine.checkpoints import average_file, progress_of
from demo_diffusion.train.engine.hub import check_hub_access, upload
from demo_diffusion.train.engine.run_folder import RunFolder


def export(run: Path, out: Path, ema_decay: float | None = None, step: int | None = None) -> None:
    """Writes a pipeline folder with its model card.

    Raises:
        ValueError: if the run has no whole checkpoint (of that step) or no such average, or if `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder.")
    config_file = run / "config.yaml"
    folder = RunFolder(run)
    checkpoints = folder.checkpoints
    checkpoint = checkpoints.latest() if step is None else checkpoints.of_step(step)
    if checkpoint is None or not config_file.is_file():
        raise ValueError(f"{run} is not the folder of a run with a checkpoint.")
    config = parse_config(["--config", str(config_file), "--output_dir", str(run)])
    decays = config.optimization.ema_decays
    if ema_decay is not None and ema_decay not in decays:
        raise ValueError(f"{run} has no moving average of decay {ema_decay}; it has {decays}.")
    decay = decays[0] if ema_decay is None else ema_decay
    data = open_training_data(config.data, config.optimization.seed, torch.device("cpu"), folder.class_order())
    folder.check_data(data.facts)
    objective = create_objective(config.objective)
    network = create_network(config.model, objective, data.channels, data.side, data.num_classes)
    network.load_state_dict(load_file(checkpoint / average_file(decay)))
    done = progress_of(checkpoint).step
    pipeline = create_pipeline(config, data, objective, network.eval())

    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        write_model_card(run, folder, config, data.dataset, read_losses(run, done), done, decay)

    write_whole(out, write)
    print(f"Wrote {out}: step {done}, moving average {decay}.")


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--step", type=int, help="of the checkpoint, one that is kept; default: the newest")
    parser.add_argument("--ema_decay", type=float, help="which moving average; default: the run's first")
    parser.add_argument("--push_to_hub", help="hub id to upload it to")
    options = parser.parse_args(arguments)
    if options.push_to_hub:
        check_hub_access()
    with hold_target(options.out):
        export(options.run, options.out, options.ema_decay, options.step)
    if options.push_to_hub:
        upload(options.out, options.push_to_hub)


if __name__ == "__main__":
    main()
