"""Makes a pipeline of a run's newest checkpoint: `python train/export_pipeline.py RUN --ema_decay 0.999 --out DIR`.

For a run that is not finished, or for another of its moving averages. Opens the run's data and autoencoder again.
"""

import argparse
import sys
from pathlib import Path

from demo_diffusion.train.configuration import parse_config
from demo_diffusion.train.hub import check_hub_access, upload
from demo_diffusion.train.model_card import write_model_card
from demo_diffusion.train.run_folder import RunFolder, replace_folder
from demo_diffusion.train.train_demo import DiffusionTrainer


def export(run: Path, out: Path, ema_decay: float | None = None) -> None:
    """Writes a pipeline folder with its model card.

    Raises:
        ValueError: if the run has no whole checkpoint or no such average, or `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder.")
    config_file = run / "config.yaml"
    if not config_file.is_file() or RunFolder(run).checkpoints.latest() is None:
        raise ValueError(f"{run} is not the folder of a run with a checkpoint.")
    config = parse_config(["--config", str(config_file), "--output_dir", str(run)])
    decays = config.optimization.ema_decays
    if ema_decay is not None and ema_decay not in decays:
        raise ValueError(f"{run} has no moving average of decay {ema_decay:g}; it has {decays}.")
    trainer = DiffusionTrainer(config)
    progress = trainer.resume()
    replace_folder(out, trainer.pipeline(ema_decay).save_pretrained)
    write_model_card(run, out, config, RunFolder(run).read_losses(progress.step))
    print(f"Wrote {out}: step {progress.step}, moving average {decays[0] if ema_decay is None else ema_decay:g}.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--ema_decay", type=float, help="which moving average; default: the run's first")
    parser.add_argument("--push_to_hub", help="hub id to upload it to")
    options = parser.parse_args(arguments)
    try:
        if options.push_to_hub:
            check_hub_access()
        export(options.run, options.out, options.ema_decay)
        if options.push_to_hub:
            upload(options.out, options.push_to_hub)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
