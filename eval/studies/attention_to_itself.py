"""How far a D-EMO's tokens attend to themselves: `python -m tests.attention_to_itself PIPELINE… --dataset DATA`.

Prints, for flow matching at t = 0.2 and 0.8, the mean weight of a token's attention to itself in each block, for
neighbourhood and remote windows. Equal attention to all tokens of an 8×8 window would give 1/64 = 0.016.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from demo_diffusion import DEMOPipeline, kernels
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.models.spanning_attention import partition_windows

mobile_block = sys.modules["demo_diffusion.models.mobile_block"]
NUM_IMAGES, TIMES = 32, (0.2, 0.8)


@contextmanager
def recording(shares: list[list[float]]) -> Iterator[None]:
    """Appends [neighborhood, remote] of each attention that is computed inside, by its definition."""
    attention = mobile_block.spanning_attention

    def record(query, key, value, num_heads, window_size, mode, window_position=None):
        of_kinds = []
        for kind in ("neighborhood", "remote"):
            q, k = (partition_windows(x, window_size, kind, num_heads) for x in (query, key))
            q, k, bias = (q, k, 0) if window_position is None else window_position(q, k)
            scores = q @ k.mT * q.shape[-1] ** -0.5 + (0 if bias is None else bias)
            of_kinds.append(scores.softmax(-1).diagonal(dim1=-2, dim2=-1).mean().item())
        shares.append(of_kinds)
        return attention(query, key, value, num_heads, window_size, mode, window_position)

    mobile_block.spanning_attention = record
    try:
        with kernels.disabled():
            yield
    finally:
        mobile_block.spanning_attention = attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pipelines", nargs="+")
    parser.add_argument("--dataset", required=True)
    options = parser.parse_args()
    for folder in options.pipelines:
        transformer = DEMOPipeline.from_pretrained(folder).transformer
        images = load_images(DataConfig(options.dataset, resolution=transformer.config.sample_size)).dataset
        x0, labels = zip(*(images[i] for i in range(NUM_IMAGES)), strict=True)
        x0, noise = torch.stack(x0), torch.randn(NUM_IMAGES, *x0[0].shape, generator=torch.Generator().manual_seed(0))
        for t in TIMES:
            shares = []
            with torch.no_grad(), recording(shares):
                transformer((1 - t) * x0 + t * noise, torch.full((NUM_IMAGES,), t), torch.tensor(labels))
            print(f"{folder}, t = {t}: {[[round(share, 3) for share in block] for block in shares]}")


if __name__ == "__main__":
    main()
