"""Sampling: class labels in, images out."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from demo_diffusion.models import DEMOTransformer2DModel

from .labels import LabelNames
from .scheduler_fit import check_scheduler_fits, objective_of, takes_learned_variance, without_variance_slicing

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class DEMOPipeline(DiffusionPipeline):
    """Class-conditional image generation.

    Args:
        transformer: the network; its `config.num_classes` is the null class.
        scheduler: any diffusers scheduler that fits the objective; it is saved with the pipeline.
        vae: decoder of the latents; None: the network works on pixels in [−1, 1].
        id2label: names of the classes, {id: "name" or "name, synonym, …"}; saved with the pipeline.
        objective: "ddpm" (the network predicts noise) or "flow" (velocity noise − x0); None: that of `scheduler`.

    Raises:
        ValueError: if the scheduler does not fit the objective or id2label names a class that the network has not.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: DEMOTransformer2DModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
        id2label: dict | None = None,
        objective: str | None = None,
    ):
        super().__init__()
        objective = objective or objective_of(scheduler)
        check_scheduler_fits(scheduler, objective)
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.label_names = LabelNames(id2label, transformer.config.num_classes)
        self.register_to_config(id2label=self.label_names.id2label, objective=objective)
        self.image_processor = VaeImageProcessor()

    @property
    def labels(self) -> dict[str, int]:
        """Every label name and synonym that stands for one class, with its class id."""
        return self.label_names.unambiguous()

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
                and costs one network evaluation a step instead of two; 0 is unconditional.
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
                "latents" entry in the dictionary that it returns replaces them.

        Returns:
            `.images`, of the kind that `output_type` says.

        Raises:
            ValueError: before any step, if an argument is not allowed.
        """
        class_ids = self.label_names.class_ids(class_labels)
        self._check_inputs(
            len(class_ids), guidance_scale, guidance_interval, guidance_channels, num_inference_steps, generator,
            latents, output_type,
        )  # fmt: skip
        self.scheduler = without_variance_slicing(self.scheduler)
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        latents = self._initial_latents(len(class_ids), generator, latents, device)
        class_ids = torch.tensor(class_ids, device=device)
        channels = guidance_channels or self.transformer.config.in_channels
        step_options = self._step_options(generator)

        with evaluation_mode(self.transformer):
            for i, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
                scale = guidance_scale if self._is_guided(timestep, guidance_interval) else 1.0
                output = self._predict(latents, timestep, class_ids, scale, channels)
                latents = self.scheduler.step(output, timestep, latents, **step_options).prev_sample
                if callback_on_step_end is not None:
                    replaced = callback_on_step_end(self, i, timestep, {"latents": latents}) or {}
                    latents = replaced.get("latents", latents)

        images = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, class_ids: torch.Tensor, scale: float, channels: int
    ) -> torch.Tensor:
        """The guided network output that the scheduler takes."""
        if hasattr(self.scheduler, "scale_model_input"):
            latents = self.scheduler.scale_model_input(latents, timestep)
        if scale == 1:
            output = self._evaluate(latents, timestep, class_ids)
        else:
            null = torch.full_like(class_ids, self.transformer.config.num_classes)
            output = self._evaluate(torch.cat([latents, latents]), timestep, torch.cat([class_ids, null]))
            output, null_output = output.chunk(2)
            guided = torch.lerp(null_output[:, :channels], output[:, :channels], scale)
            output = torch.cat([guided, output[:, channels:]], dim=1)
        return output if takes_learned_variance(self.scheduler) else output[:, : latents.shape[1]]

    def _evaluate(self, latents: torch.Tensor, timestep: torch.Tensor, class_ids: torch.Tensor) -> torch.Tensor:
        if self.config.objective == "flow":
            timestep = timestep / self.scheduler.config.num_train_timesteps
        timesteps = timestep.to(latents.device).expand(len(latents))
        return self.transformer(latents.to(self.transformer.dtype), timesteps, class_ids).sample.float()

    def _is_guided(self, timestep: torch.Tensor, interval: tuple[float, float]) -> bool:
        return interval[0] <= float(timestep) / self.scheduler.config.num_train_timesteps <= interval[1]

    def _initial_latents(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        if latents is None:
            latents = randn_tensor(self._latent_shape(batch_size), generator=generator, device=device)
        return latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _latent_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        config = self.transformer.config
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        return batch_size, config.in_channels, height, width

    def _step_options(self, generator: torch.Generator | list[torch.Generator] | None) -> dict:
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if takes_generator else {}

    def _decode(self, latents: torch.Tensor, output_type: str):
        if output_type == "latent":
            return latents
        if not latents.isfinite().all():
            raise ValueError("Sampling gave values that are not finite; no image is returned.")
        images = latents
        if self.vae is not None:
            config = self.vae.config
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
            images = self.vae.decode(latents.to(self.vae.dtype)).sample
        return self.image_processor.postprocess(images.float(), output_type)

    def _check_inputs(
        self,
        batch_size: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float],
        guidance_channels: int | None,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        output_type: str,
    ) -> None:
        check_scheduler_fits(self.scheduler, self.config.objective)
        if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ValueError(f"guidance_scale is {guidance_scale}; it must be a finite number of at least 0.")
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(
                f"guidance_interval is {guidance_interval}; it must be (low, high) with 0 ≤ low ≤ high ≤ 1, "
                "0 the data's end and 1 the noise's."
            )
        in_channels = self.transformer.config.in_channels
        if guidance_channels is not None and not 1 <= guidance_channels <= in_channels:
            raise ValueError(f"guidance_channels is {guidance_channels}; it must be None or in [1, {in_channels}].")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at least 1.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"{len(generator)} generators were given for {batch_size} samples; give one a sample.")
        if latents is not None and tuple(latents.shape) != self._latent_shape(batch_size):
            raise ValueError(f"latents have shape {tuple(latents.shape)}; expected {self._latent_shape(batch_size)}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {list(OUTPUT_TYPES)}.")


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """BatchNorm normalises by its running statistics inside, whatever mode the model is in outside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
