"""Counts a model's arithmetic as the paper's tables do."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import kernels


def _norm_flops(operations_per_element: int):
    def flops(input_shape, *args, out_shape=None, **kwargs) -> int:
        return 2 * operations_per_element * torch.Size(input_shape).numel()  # FlopCounterMode counts two per MAC

    return flops


# What fvcore counts for an affine norm in eval mode, where BatchNorm is one scale and shift.
NORM_COUNTERS = {
    torch.ops.aten.native_layer_norm: _norm_flops(5),
    torch.ops.aten.native_batch_norm: _norm_flops(2),
    torch.ops.aten._native_batch_norm_legit_no_training: _norm_flops(2),
}


@torch.no_grad()
def count_macs(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-accumulates of `model(*inputs)` in eval mode: convolutions, products, both attention products, norms.

    The published tables (arXiv 2412.06674) call them FLOPs. The counted operators and the norms' weights are fvcore's.
    Works on the "meta" device, where nothing is computed.
    """
    was_training = model.training
    model.eval()
    try:
        with kernels.disabled(), FlopCounterMode(display=False, custom_mapping=NORM_COUNTERS) as counter:
            model(*inputs)
    finally:
        model.train(was_training)
    return counter.get_total_flops() // 2
