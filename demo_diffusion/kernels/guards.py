"""When an operator may read a module's tensors itself instead of calling the module."""

import torch
from torch import nn

PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@torch.compiler.assume_constant_result  # Dynamo cannot ask
def is_single_threaded() -> bool:
    return torch.get_num_threads() == 1


def is_plain(tokens: torch.Tensor, module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nothing happens in a module but the arithmetic of `kind`, on tensors that lie where `tokens` do.

    Hooks, parametrisations, adapters in a layer's place, weights that are offloaded or sharded: all need the call.
    """
    tensors = (*module._parameters.values(), *module._buffers.values())
    return (
        type(module) is kind
        and not any(getattr(module, name) for name in HOOKS)
        and all(x is None or (type(x) in PLAIN_TENSORS and x.device == tokens.device) for x in tensors)
    )


def refuse_second_derivative(ctx, *gradients):
    """The backward of an operator's backward.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "The fused kernels have first derivatives only. Run the forward pass inside `with "
        "demo_diffusion.kernels.disabled():`, or set DEMO_KERNELS=0, to differentiate twice."
    )
