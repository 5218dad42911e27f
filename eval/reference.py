"""Makes the statistics of real images that samples are measured against, once.

python eval/reference.py --adm VIRTUAL_imagenet256_labeled.npz --out imagenet256.npz
python eval/reference.py --images FOLDER --resolution 256 --out reference.npz
python eval/reference.py --dataset uoft-cs/cifar10 --split test --resolution 32 --out cifar10.npz
"""

import argparse
from pathlib import Path

from demo_diffusion.cli.command import one_line_for_mistakes

import torch

from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.eval.features.extractors import EXTRACTORS, create_extractor
from demo_diffusion.eval.features.reference import Reference, reference_of, reference_of_adm
from demo_diffusion.eval.samples.image_sources import RealFolder, TrainingImages
from demo_diffusion.records.files import check_output_file
from demo_diffusion.records.folder_lock import hold_target


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--adm", type=Path, help="ADM's reference file (.npz with mu, sigma, mu_s, sigma_s, arr_0)")
    source.add_argument("--images", type=Path, help="folder of real images")
    source.add_argument("--dataset", help="as in training: folder of class folders, .parquet file or hub id")
    parser.add_argument("--split", default="train", help="split of the dataset")
    parser.add_argument("--resolution", type=int, help="side in pixels, as ADM prepares ImageNet (not with --adm)")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--extractor", choices=list(EXTRACTORS), default="inception")
    parser.add_argument(
        "--inception_weights", type=Path, help="state dict in torch-fidelity's format; default: its own"
    )
    parser.add_argument("--batch_size", type=int, default=50)
    return parser.parse_args(arguments)


def make_reference(options: argparse.Namespace) -> Reference:
    """Raises a ValueError if the options or the images are not fit."""
    if options.batch_size < 1:
        raise ValueError(f"--batch_size is {options.batch_size}; it must be at least 1.")
    if options.adm is None and (options.resolution is None or options.resolution < 1):
        raise ValueError(f"--resolution is {options.resolution}; give the side of the samples in pixels.")
    if options.adm is not None and options.resolution is not None:
        raise ValueError("--resolution has no meaning for --adm, whose images have their size; leave it out.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor = create_extractor(options.extractor, options.inception_weights, device)
    if options.adm is not None:
        return reference_of_adm(options.adm, extractor, options.batch_size)
    if options.images is not None:
        source, name = RealFolder(options.images, options.resolution), str(options.images)
    else:
        data = DataConfig(dataset=options.dataset, split=options.split, resolution=options.resolution)
        source, name = TrainingImages(load_images(data)), f"{options.dataset} ({options.split})"
    return reference_of(source, extractor, f"{name} at {options.resolution} px", options.batch_size)


@one_line_for_mistakes()
def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    inputs = {f"--{name}": getattr(options, name) for name in ("adm", "images", "dataset", "inception_weights")}
    check_output_file(options.out, (".npz",), make_parents=True, inputs=inputs)
    with hold_target(options.out):
        reference = make_reference(options)
        reference.save(options.out)
    print(f"Wrote {options.out}: {reference.extractor} statistics and {len(reference.features):,} images.")


if __name__ == "__main__":
    main()
