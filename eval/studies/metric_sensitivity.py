"""Does a distance see damage: `python eval/studies/metric_sensitivity.py cifar10/test.parquet`.

Prints distances between two halves of real images, the second half damaged in several ways, by EfficientNet-Lite0.
Exits with 1 unless more noise is farther, and no damage is nearest.
"""

import argparse
import io
import sys

import torch
from PIL import Image, ImageFilter

from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.eval.features.extractors import EfficientNetExtractor
from demo_diffusion.eval.features.moments import Moments
from demo_diffusion.eval.metrics.distances import frechet_distance, kernel_distance
from demo_diffusion.eval.samples.image_sources import TrainingImages, to_tensor

NOISE = ("nothing", "noise 5", "noise 20", "noise 40")  # standard deviation in grey levels
DAMAGES = (*NOISE, "blur", "JPEG 50")


def damaged(image: torch.Tensor, how: str) -> torch.Tensor:
    """A damaged copy of a uint8 image (3, H, W)."""
    if how.startswith("noise"):
        noisy = image + float(how.split()[1]) * torch.randn(image.shape)
        return noisy.round().clamp(0, 255).to(torch.uint8)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if how == "blur":
        return to_tensor(picture.filter(ImageFilter.GaussianBlur(1)))
    if how == "JPEG 50":
        picture.save(buffer := io.BytesIO(), "jpeg", quality=50)
        return to_tensor(Image.open(buffer))
    return image


def features_of(images: torch.Tensor, extractor: EfficientNetExtractor) -> torch.Tensor:
    return torch.cat([extractor(batch).pooled for batch in images.split(50)])


def distances(images: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Damage -> (Fréchet, kernel) distance of the damaged second half from the first, of images (2n, 3, H, W)."""
    first, second = images.chunk(2)
    extractor, found = EfficientNetExtractor(), {}
    real = features_of(first, extractor)
    moments = Moments.of(real)
    for how in DAMAGES:
        features = features_of(torch.stack([damaged(image, how) for image in second]), extractor)
        other = Moments.of(features)
        frechet = frechet_distance(moments.mean, moments.covariance, other.mean, other.covariance)
        found[how] = (frechet, kernel_distance(features, real)[0])
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder of class folders, .parquet file or hub id")
    parser.add_argument("--resolution", type=int, default=32, help="side in pixels")
    parser.add_argument("--half", type=int, default=1500, help="images in each half")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    source = TrainingImages(load_images(DataConfig(dataset=options.dataset, resolution=options.resolution)))
    found = distances(torch.stack([source[i] for i in range(2 * options.half)]))
    print("| damage | FD | KID |\n|---|---|---|")
    for how, (frechet, kernel) in found.items():
        print(f"| {how} | {frechet:.2f} | {kernel:.4f} |")
    noise = [found[how][0] for how in NOISE]
    if noise != sorted(set(noise)) or min(found, key=found.get) != "nothing":
        sys.exit("The distances are not in the order of the damage.")


if __name__ == "__main__":
    main()
