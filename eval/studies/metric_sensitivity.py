"""Slow proofs of the evaluation: does a distance see damage, and is it as fast as torch-fidelity?

    python -m tests.evaluation_proof sensitivity cifar10/test.parquet
    python -m tests.evaluation_proof speed FOLDER_OF_PNGS

The first prints distances between two halves of real images, the second half damaged in several ways; it exits with 1
unless they are in order. The second times torch-fidelity's Inception score alone and the whole of eval/evaluate.py on
the same folder with the same (untrained) weights, in turns, and prints the ratio of the medians.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch_fidelity
from PIL import Image, ImageFilter

from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.eval.evaluate import main as evaluate
from demo_diffusion.eval.features.extractors import EfficientNetExtractor
from demo_diffusion.eval.features.moments import Moments
from demo_diffusion.eval.metrics.distances import frechet_distance, kernel_distance
from demo_diffusion.eval.reference import main as make_reference
from demo_diffusion.eval.samples.image_sources import TrainingImages, to_tensor
from tests.support.evaluation import untrained_inception

HALF, ROUNDS = 1500, 3


def damaged(image: torch.Tensor, how: str) -> torch.Tensor:
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


def sensitivity(parquet: str) -> int:
    torch.manual_seed(0)
    source = TrainingImages(load_images(DataConfig(dataset=parquet, resolution=32)))
    images = torch.stack([source[i] for i in range(2 * HALF)])
    extractor, distances = EfficientNetExtractor(), {}
    real = features_of(images[:HALF], extractor)
    moments = Moments.of(real)
    for how in ("nothing", "noise 5", "noise 20", "noise 40", "blur", "JPEG 50"):
        features = features_of(torch.stack([damaged(image, how) for image in images[HALF:]]), extractor)
        other = Moments.of(features)
        distances[how] = frechet_distance(moments.mean, moments.covariance, other.mean, other.covariance)
        print(f"| {how} | {distances[how]:.2f} | {kernel_distance(features, real)[0]:.4f} |", flush=True)
    noise = [distances[how] for how in ("nothing", "noise 5", "noise 20", "noise 40")]
    in_order = noise == sorted(set(noise)) and min(distances, key=distances.get) == "nothing"
    print(f"In order: {in_order}")
    return 0 if in_order else 1


def speed(folder: str) -> int:
    count = len(list(Path(folder).glob("*.png")))
    times = {"torch-fidelity": [], "eval/evaluate.py": []}
    with tempfile.TemporaryDirectory() as temporary:
        weights, reference = untrained_inception(Path(temporary) / "weights.pth"), f"{temporary}/ref.npz"
        options = ["--inception_weights", str(weights)]
        side = str(Image.open(next(Path(folder).glob("*.png"))).width)
        make_reference(["--images", folder, "--resolution", side, "--out", reference, *options])
        for i in range(ROUNDS):
            started = time.perf_counter()
            torch_fidelity.calculate_metrics(
                input1=folder, isc=True, cuda=False, cache=False, verbose=False, batch_size=50,
                feature_extractor_weights_path=str(weights),
            )  # fmt: skip
            times["torch-fidelity"].append(time.perf_counter() - started)
            started = time.perf_counter()
            with contextlib.redirect_stderr(open(os.devnull, "w")):
                evaluate(["--images", folder, "--reference", reference, "--out", f"{temporary}/run{i}", *options])
            times["eval/evaluate.py"].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name}: {count / median:.1f} images/s (seconds {', '.join(f'{t:.1f}' for t in times[name])})")
    ratio = medians["torch-fidelity"] / medians["eval/evaluate.py"]
    print(f"eval/evaluate.py is {ratio:.2f} times as fast")
    return 0 if ratio >= 1 else 1


if __name__ == "__main__":
    sys.exit({"sensitivity": sensitivity, "speed": speed}[sys.argv[1]](sys.argv[2]))
