"""How far a D-EMO's tokens attend to themselves: `python eval/studies/attention_to_itself.py PIPELINE… --dataset DATA`.

Prints, for flow matching at t = 0.2 and 0.8, the mean weight of a token's attention to itself in each block, for
neighbourhood and remote windows. Equal attention to all tokens of an 8×8 window would give 1/64 = 0.016.
"""

import argparse
from collections.abc import Sequence

import torch

from demo_diffusion import DEMOPipeline, DEMOTransformer2DModel
from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.models.operators import observed_attention
from demo_diffusion.models.spanning_attention import WINDOW_KINDS, partition_windows

NUM_IMAGES, TIMES = 32, (0.2, 0.8)


@torch.no_grad()
def self_attention(transformer: DEMOTransformer2DModel, *inputs: torch.Tensor) -> list[list[float]]:
    """[neighborhood, remote] of each block: a token's weight for itself, meaned over images, heads and tokens."""
    shares = []

    def record(query, key, value, num_heads, window_size, mode, window_position):
        def weight_of_itself(kind: str) -> float:
            q, k = (partition_windows(x, window_size, kind, num_heads) for x in (query, key))
            q, k, bias = (q, k, None) if window_position is None else window_position(q, k)
            scores = q @ k.mT * q.shape[-1] ** -0.5 + (0 if bias is None else bias)
            return scores.softmax(-1).diagonal(dim1=-2, dim2=-1).mean().item()

        shares.append([weight_of_itself(kind) for kind in WINDOW_KINDS["spanning"]])

    with observed_attention(record):
        transformer(*inputs)
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pipelines", nargs="+", metavar="PIPELINE", help="folder of a pipeline of flow matching")
    parser.add_argument("--dataset", required=True, help="labelled images: a folder, a parquet file or a Hub id")
    options = parser.parse_args(arguments)
    for folder in options.pipelines:
        transformer = DEMOPipeline.from_pretrained(folder).transformer
        images = load_images(DataConfig(options.dataset, resolution=transformer.input_shape[-1])).dataset
        x0, labels = zip(*(images[i] for i in range(min(NUM_IMAGES, len(images)))), strict=True)
        x0, noise = torch.stack(x0), torch.randn(len(x0), *x0[0].shape, generator=torch.Generator().manual_seed(0))
        for t in TIMES:
            shares = self_attention(
                transformer, (1 - t) * x0 + t * noise, torch.full((len(x0),), t), torch.tensor(labels)
            )
            print(f"{folder}, t = {t}: {[[round(share, 3) for share in block] for block in shares]}")


if __name__ == "__main__":
    main()
