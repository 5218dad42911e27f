"""Sampling: class labels in, images out."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from demo_diffusion.checks import (
    check_choice,
    check_dense,
    check_flag,
    check_number,
    check_tensor,
    check_whole,
    is_number,
    shown,
)
from demo_diffusion.data.autoencoder import Autoencoder, LatentNormalization, normalization_of
from demo_diffusion.models import ClassConditionalTransformer
from demo_diffusion.models.loading import check_part
from demo_diffusion.objectives import OBJECTIVES

from .guidance import Guidance, GuidedNetwork
from .labels import LabelNames
from .scheduler_check import check_samples_are_right
from .scheduler_fit import (
    check_scheduler_fits,
    objective_of,
    sampling_scheduler,
    set_timesteps,
    takes_learned_variance,
)

MOST_STEPS = 10_000
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class NotFiniteError(ValueError):
    """Sampling gave values that are not finite.

    Args:
        classes: {index of the sample: class id} of the bad samples.
    """

    def __init__(self, classes: dict[int, int]):
        self.classes = classes
        named = ", ".join(f"sample {index} (class {label})" for index, label in list(classes.items())[:8])
        more = f" and {len(classes) - 8} more" if len(classes) > 8 else ""
        super().__init__(f"Sampling gave values that are not finite: {named}{more}. Nothing is returned.")


class DEMOPipeline(DiffusionPipeline):
    """Class-conditional image generation.

    A saved pipeline is loaded by `DEMOPipeline.from_pretrained(folder)`, or, once `demo_diffusion` has been imported,
    by `diffusers.DiffusionPipeline.from_pretrained(folder)`.

    Args:
        transformer: the network; its `config.num_classes` is the null class.
        scheduler: any diffusers scheduler that fits the objective; it is saved with the pipeline.
        vae: decoder of the latents; None: the network works on pixels in [−1, 1].
        id2label: names of the classes, {id: "name" or "name, synonym, …"}; saved with the pipeline.
        objective: name of what the network predicts, of `demo_diffusion.objectives.OBJECTIVES`; None: by `scheduler`.
        latents_mean, latents_std: what the latents were normalised with in training, one number a channel or one for
            all; saved with the pipeline. None: by the autoencoder's own config.
        trained_noise: what the network learned of the noise, `Objective.noise_settings` (betas and prediction type, or
            the path); saved with the pipeline, so that later schedulers are held to it. None: by `scheduler`.

    Raises:
        ValueError: if the parts do not fit together.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: ClassConditionalTransformer,
        scheduler: SchedulerMixin,
        vae: Autoencoder | None = None,
        id2label: dict | None = None,
        objective: str | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        trained_noise: dict | None = None,
    ):
        super().__init__()
        _check_parts(transformer, scheduler, vae)
        if vae is not None:
            check_part(vae)
            normalization_of(vae)
        objective = objective_of(scheduler) if objective is None else objective
        check_scheduler_fits(scheduler, objective)
        trained_noise = OBJECTIVES[objective].noise_settings(scheduler) if trained_noise is None else trained_noise
        self._trained_with = _trained_scheduler(objective, trained_noise)
        check_scheduler_fits(scheduler, objective, self._trained_with)
        _check_channels(transformer, scheduler, vae)
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.label_names = LabelNames(id2label, transformer.config.num_classes)
        normalization = _normalization(latents_mean, latents_std, transformer.config.in_channels)
        self.register_to_config(
            id2label=self.label_names.id2label,
            objective=objective,
            latents_mean=normalization and list(normalization.mean),
            latents_std=normalization and list(normalization.std),
            trained_noise=trained_noise,
        )
        self.image_processor = VaeImageProcessor()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, scheduler: SchedulerMixin | None = None, **options):
        """As `DiffusionPipeline.from_pretrained`; a `scheduler` given must have the noise levels of the folder's own.

        Raises:
            ValueError: if it does not fit the network.
        """
        if not isinstance(pretrained_model_name_or_path, str | os.PathLike):
            raise ValueError(f"{shown(pretrained_model_name_or_path)} is no folder and no hub id.")
        try:
            pipeline = super().from_pretrained(pretrained_model_name_or_path, **options)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # of readers of damaged files
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"The pipeline {pretrained_model_name_or_path} cannot be read: {reason}") from error
        if scheduler is not None:
            _check_parts(pipeline.transformer, scheduler, pipeline.vae)
            check_scheduler_fits(scheduler, pipeline.config.objective, pipeline._trained_with)
            _check_channels(pipeline.transformer, scheduler, pipeline.vae)
            pipeline.register_modules(scheduler=scheduler)
        return pipeline

    @property
    def labels(self) -> dict[str, int]:
        """Every label name and synonym that stands for one class, with its class id."""
        return self.label_names.unambiguous()

    @property
    def latent_normalization(self) -> LatentNormalization | None:
        """Between the network's latents and the autoencoder's; None: the network works on pixels."""
        given = _normalization(self.config.latents_mean, self.config.latents_std, self.transformer.config.in_channels)
        return given or (normalization_of(self.vae) if self.vae is not None else None)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor,
        guidance_scale: float = 4.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DEMOPipeline", int, torch.Tensor, dict], dict] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generates one image for each class label.

        Args:
            class_labels: class ids or label names.
            guidance_scale: classifier-free guidance w: null + w · (class − null) (arXiv 2207.12598). 1 is no guidance
                and 0 unconditional; both cost one network evaluation a step instead of two.
            guidance_interval: guidance acts at times t in [low, high], t = 0 data, t = 1 noise
                (arXiv 2404.07724); outside, samples follow the class alone, at half the cost.
            guidance_channels: guide only the first n channels; None: all. DiT's published numbers use 3 of 4.
            num_inference_steps: steps of the scheduler.
            generator: one for the batch, or a list of one a sample (then batch size does not change a sample).
            latents: initial noise (B, in_channels, H, W) instead of a draw from `generator`.
            output_type: "pil", "np" (B, H, W, C in [0, 1]), "pt" (B, C, H, W in [0, 1]) or "latent" (B, C, H, W, what
                the scheduler gave).
            return_dict: False: a tuple instead of `ImagePipelineOutput`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": latents}) after each step; a
                "latents" entry in the dictionary that it returns replaces them, but is not read by solvers of several
                stages (Heun's within a step, Dormand–Prince's before the end).

        Returns:
            `.images`, of the kind that `output_type` says.

        Raises:
            ValueError: before any step, if an argument is not allowed; at the end, if values are not finite.
        """
        class_ids = self.label_names.class_ids(class_labels)
        _check_guidance(guidance_scale, guidance_interval, guidance_channels, self.transformer.config.in_channels)
        self._check_inputs(
            len(class_ids), num_inference_steps, generator, latents, output_type, return_dict, callback_on_step_end
        )
        scheduler = sampling_scheduler(self.scheduler, self._are_latents)
        check_samples_are_right(scheduler, self.config.objective, self._trained_with, num_inference_steps)
        set_timesteps(scheduler, num_inference_steps, torch.device("cpu"))  # where what it looks up waits for no device
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(self._latent_shape(len(class_ids)), generator=generator, device=device)
        latents = latents.to(device, torch.float32) * getattr(scheduler, "init_noise_sigma", 1.0)
        labels, class_ids = class_ids, torch.tensor(class_ids, device=device)
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels)
        network = GuidedNetwork(self.transformer, scheduler, self.config.objective, class_ids, guidance)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_options = {"generator": generator} if takes_generator else {}

        with evaluation_mode(self.transformer):
            for i, timestep in enumerate(self.progress_bar(scheduler.timesteps)):
                output = network(latents, timestep)
                latents = _stepped(scheduler, output, timestep, latents, labels, step_options)
                if callback_on_step_end is not None:
                    latents = _replaced(latents, callback_on_step_end(self, i, timestep, {"latents": latents}))

        images = self._decode(latents, labels, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _latent_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        return batch_size, *self.transformer.input_shape

    @property
    def _are_latents(self) -> bool:
        return self.transformer.config.in_channels not in (1, 3) or self.latent_normalization is not None

    def _decode(self, latents: torch.Tensor, class_ids: list[int], output_type: str):
        if output_type == "latent":
            _check_finite(latents, class_ids)
            return latents
        images = latents
        if self.vae is not None:
            images = self.vae.decode(self.latent_normalization.undo(latents).to(self.vae.dtype)).sample
        _check_finite(images, class_ids)
        return self.image_processor.postprocess(images.float(), output_type)

    def _check_inputs(
        self,
        batch_size: int,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        output_type: str,
        return_dict: bool,
        callback: Callable | None,
    ) -> None:
        check_scheduler_fits(self.scheduler, self.config.objective, self._trained_with)
        _check_channels(self.transformer, self.scheduler, self.vae)
        check_whole("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        if not isinstance(generator, torch.Generator | list | None):
            raise ValueError(
                f"generator is a {type(generator).__name__}; it must be a torch.Generator or a list of them."
            )
        if isinstance(generator, list) and not all(isinstance(each, torch.Generator) for each in generator):
            kinds = sorted({type(each).__name__ for each in generator})
            raise ValueError(f"generator is a list of {', '.join(kinds)}; each must be a torch.Generator.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators were given for {batch_size} samples; give one a sample.")
        if latents is not None:
            check_tensor("latents", latents, self._latent_shape(batch_size), floating=True)
            check_dense("latents", latents)
            if not latents.isfinite().all():
                raise ValueError("latents has values that are not finite.")
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_flag("return_dict", return_dict)
        if callback is not None and not callable(callback):
            raise ValueError(f"callback_on_step_end is {shown(callback)}; it must be a function or None.")
        channels = self.transformer.config.in_channels
        if self.vae is None and self._are_latents and output_type != "latent":
            raise ValueError(
                f"The pipeline has no autoencoder, and its samples have {channels} channels of latents, which are no "
                "picture. Use output_type='latent', or put an autoencoder in: pipe.register_modules(vae=…)."
            )


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """BatchNorm normalises by its running statistics inside, whatever mode the model is in outside."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_parts(transformer: object, scheduler: object, vae: object) -> None:
    for name, part, allowed in (
        ("transformer", transformer, torch.nn.Module),
        ("scheduler", scheduler, SchedulerMixin),
        ("vae", vae, ModelMixin | None),
    ):
        is_network = name == "scheduler" or part is None or hasattr(part, "config")
        if not isinstance(part, allowed) or not is_network:
            raise ValueError(
                f"{name} is a {type(part).__name__}; give a transformer of this package, a diffusers scheduler, and an "
                "autoencoder or None."
            )


def _trained_scheduler(objective: str, trained_noise: dict) -> SchedulerMixin:
    try:
        return OBJECTIVES[objective].trained_scheduler(trained_noise)
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"trained_noise is {trained_noise!r}, which objective {objective!r} cannot have: {error}"
        ) from error


def _stepped(
    scheduler: SchedulerMixin,
    output: torch.Tensor,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    class_ids: list[int],
    options: dict,
) -> torch.Tensor:
    """The scheduler's next latents; where it refuses values that are not finite, the samples are named."""
    try:
        return scheduler.step(output, timestep, latents, **options).prev_sample
    except ValueError:
        _check_finite(output, class_ids)
        raise


def _replaced(latents: torch.Tensor, returned: object) -> torch.Tensor:
    """The latents, or those that a callback returned in their place."""
    if returned is None:
        return latents
    if not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end returned {shown(returned)}; it must be a dictionary or None.")
    replaced = returned.get("latents", latents)
    check_tensor("latents of callback_on_step_end", replaced, latents.shape, floating=True)
    check_dense("latents of callback_on_step_end", replaced)
    return replaced


def _check_finite(images: torch.Tensor, class_ids: list[int]) -> None:
    """Raises `NotFiniteError` if values of a sample (B, …) are not finite."""
    bad = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NotFiniteError({i: class_ids[i] for i in bad})


def _check_guidance(scale: float, interval: tuple[float, float], channels: int | None, in_channels: int) -> None:
    check_number("guidance_scale", scale, least=0, below=torch.finfo(torch.float32).max)
    is_pair = isinstance(interval, tuple | list) and len(interval) == 2 and all(map(is_number, interval))
    if not is_pair or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"guidance_interval is {interval!r}; it must be (low, high) with 0 ≤ low ≤ high ≤ 1, 0 the data's end and "
            "1 the noise's."
        )
    if channels is not None:
        check_whole("guidance_channels", channels, 1, in_channels)


def _check_channels(
    transformer: ClassConditionalTransformer, scheduler: SchedulerMixin, vae: torch.nn.Module | None
) -> None:
    in_channels, out_channels = transformer.config.in_channels, transformer.config.out_channels
    if takes_learned_variance(scheduler) and out_channels != 2 * in_channels:
        raise ValueError(
            f"{type(scheduler).__name__} with variance_type={scheduler.config.variance_type!r} needs {2 * in_channels} "
            f"output channels; this network has {out_channels}. Use variance_type='fixed_small'."
        )
    if vae is not None and vae.config.latent_channels != in_channels:
        raise ValueError(
            f"The autoencoder has {vae.config.latent_channels} latent channels, the network {in_channels}; they must "
            "be equal."
        )


def _normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> LatentNormalization | None:
    if (mean is None) != (std is None):
        raise ValueError(f"latents_mean is {mean} and latents_std {std}; give both or neither.")
    if mean is None:
        return None
    normalization = LatentNormalization(mean, std)
    normalization.check_channels(channels)
    return normalization
