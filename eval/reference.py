"""Makes the statistics of real images that samples are measured against, once.

python eval/reference.py --adm VIRTUAL_imagenet256_labeled.npz --out imagenet256.npz
python eval/reference.py --images FOLDER --resolution 256 --out reference.npz
python eval/reference.py --dataset uoft-cs/cifar10 --split test --resolution 32 --out cifar10.npz
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from demo_diffusion.eval.distances import Moments
from demo_diffusion.eval.extractors import EXTRACTORS, FeatureExtractor, create_extractor
from demo_diffusion.eval.image_sources import ImageSource, RealFolder, SampleArray, TrainingImages
from demo_diffusion.eval.reference_statistics import MAX_KEPT, Reference, read_npz
from demo_diffusion.train.common_configuration import DataConfig
from demo_diffusion.train.image_data import load_images

MOMENTS_AT_ONCE = 500
ADM_ARRAYS = {"mu": 2048, "sigma": 2048, "mu_s": 2023, "sigma_s": 2023}


def reference_of(source: ImageSource, extractor: FeatureExtractor, name: str, batch_size: int) -> Reference:
    """Statistics over all images of a source; features and pixels of at most `MAX_KEPT`, evenly spaced, are kept.

    Raises:
        ValueError: if there are fewer than two images, or one is not fit.
    """
    if len(source) < 2:
        raise ValueError(f"{name} has {len(source)} image; statistics need at least 2.")
    pooled, spatial = [], []  # features not yet in the moments
    moments = [None, None]
    kept = set(np.linspace(0, len(source) - 1, min(len(source), MAX_KEPT)).round().astype(int).tolist())
    features, images, first = [], [], 0
    for batch in tqdm(source.batches(0, len(source), batch_size), total=-(-len(source) // batch_size), unit="batch"):
        made = extractor(batch)
        chosen = [i for i in range(len(batch)) if first + i in kept]
        features.append(made.pooled[chosen])
        images.append(batch[chosen].permute(0, 2, 3, 1))
        pooled.append(made.pooled)
        spatial.append(made.spatial)
        first += len(batch)
        if len(pooled) * batch_size >= MOMENTS_AT_ONCE or first == len(source):
            moments = [add(total, parts) for total, parts in zip(moments, (pooled, spatial), strict=True)]
            pooled, spatial = [], []
    return Reference(
        moments[0].mean, moments[0].covariance, moments[1].mean, moments[1].covariance, torch.cat(features).numpy(),
        torch.cat(images).numpy(), len(source), extractor.name, extractor.fingerprint, name,
    )  # fmt: skip


def add(total: Moments | None, parts: list[torch.Tensor]) -> Moments:
    new = Moments.of(torch.cat(parts))
    return new if total is None else total + new


def reference_of_adm(path: Path, extractor: FeatureExtractor, batch_size: int) -> Reference:
    """ADM's file: its moments, which are over the whole training set, and the features of its 10,000 images.

    Raises:
        ValueError: if it is something else, or the extractor is not Inception, whose moments these are.
    """
    if extractor.name != "inception":
        raise ValueError(f"The moments in {path} are Inception's; they do not serve {extractor.name}. Use --dataset.")
    content = read_npz(path)
    for name, width in ADM_ARRAYS.items():
        shape = (width,) * (2 if name.startswith("sigma") else 1)
        if name not in content or content[name].shape != shape:
            found = content[name].shape if name in content else "not there"
            raise ValueError(f"{path} is not ADM's reference file: {name} is {found}, expected {shape}.")
    reference = reference_of(SampleArray(path), extractor, str(path), batch_size)
    reference.mean, reference.covariance = content["mu"].astype(np.float64), content["sigma"].astype(np.float64)
    reference.spatial_mean = content["mu_s"].astype(np.float64)
    reference.spatial_covariance = content["sigma_s"].astype(np.float64)
    reference.num_images = None
    return reference


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
    if options.out.suffix != ".npz":
        raise ValueError(f"--out is {options.out}; it must end in .npz.")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size is {options.batch_size}; it must be at least 1.")
    if options.adm is None and (options.resolution is None or options.resolution < 1):
        raise ValueError(f"--resolution is {options.resolution}; give the side of the samples in pixels.")
    if options.adm is not None and options.resolution is not None:
        raise ValueError("--resolution has no meaning for --adm, whose images have their size; leave it out.")
    existing = next(folder for folder in options.out.absolute().parents if folder.exists())
    if not existing.is_dir() or options.out.is_dir():
        raise ValueError(f"--out is {options.out}, where no file can be written.")
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


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        reference = make_reference(options)
        reference.save(options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote {options.out}: {reference.extractor} statistics and {len(reference.features):,} images.")


if __name__ == "__main__":
    main()
