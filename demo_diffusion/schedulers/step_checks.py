"""What a scheduler's `step` must be given."""

import torch

from demo_diffusion.checks import check_number, check_tensor, shown

ALLOWED_ROUNDING = 1e-3  # of a timestep, over the number of timesteps


def check_step(
    model_output: object, timestep: object, sample: object, expected: float, num_train_timesteps: int
) -> None:
    """Checks the arguments of `step`: nothing is broadcast.

    Values are looked at on the CPU alone, where that waits for nothing.

    Args:
        expected: the timestep whose turn it is.

    Raises:
        ValueError: if a shape or kind of numbers is not allowed, the timestep is another, or a velocity is not finite.
    """
    check_tensor("sample", sample, getattr(sample, "shape", ()), floating=True)
    check_tensor("model_output", model_output, sample.shape, floating=True)
    is_tensor = isinstance(timestep, torch.Tensor)
    if is_tensor and timestep.numel() != 1:
        raise ValueError(f"timestep is {shown(timestep)}; it must be one number.")
    if not is_tensor or timestep.device.type == "cpu":
        given = timestep.item() if is_tensor else timestep
        check_number("timestep", given)
        if abs(given - expected) > ALLOWED_ROUNDING * num_train_timesteps:
            raise ValueError(f"timestep is {given:g}; the scheduler's next one is {expected:g}. Take them in order.")
    if model_output.device.type == "cpu" and not model_output.isfinite().all():
        raise ValueError(
            f"The velocity is not finite near t = {expected / num_train_timesteps:.6f}; there is no sample."
        )


def check_generator(generator: object) -> None:
    """Raises ValueError unless it is a generator, a list of them or None."""
    each = generator if isinstance(generator, list) and generator else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError(f"generator is {shown(generator)}; it must be a torch.Generator or a list of them.")
