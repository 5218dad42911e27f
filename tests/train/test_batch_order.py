import pytest
import torch
from torch.utils.data import TensorDataset

from demo_diffusion.data.images import DataConfig, load_images
from demo_diffusion.train.diffusion.data import Flipped
from demo_diffusion.train.engine.batch_order import BatchOrder, batches
from tests.support.images import image_folder


def order(rank=0, num_processes=1, accumulation_steps=1, first_step=0, last_step=10, batch_size=12) -> BatchOrder:
    return BatchOrder(50, batch_size, accumulation_steps, rank, num_processes, first_step, last_step, seed=3)


def test_every_epoch_holds_every_sample_once():
    stream = [key for batch in order(last_step=25) for key in batch]
    epochs = [stream[i : i + 50] for i in range(0, 300, 50)]
    assert all(sorted(keys) == [(i, epoch) for i in range(50)] for epoch, keys in enumerate(epochs))
    assert [i for i, _ in epochs[0]] != [i for i, _ in epochs[1]]


def test_processes_and_accumulation_share_the_same_batches():
    expected = list(order())
    parts = [list(order(rank=r, num_processes=2, accumulation_steps=3)) for r in range(2)]
    for step, batch in enumerate(expected):
        seen = [i for rank in parts for part in rank[3 * step : 3 * step + 3] for i in part]
        assert sorted(seen) == sorted(batch)


def test_a_part_says_where_it_stands_in_the_batch():
    """Whoever computes a sample finds its noise at the same place."""
    expected = list(order())[3]
    for rank in range(2):
        divided = order(rank=rank, num_processes=2, accumulation_steps=3)
        for number, part in enumerate(list(divided)[9:12]):
            assert expected[divided.part(number)] == part


def test_order_continues_where_it_stopped():
    assert list(order(first_step=7)) == list(order())[7:]


def test_indivisible_batch_is_named():
    with pytest.raises(ValueError, match="batch_size is 12.*2 · 5 = 10"):
        order(num_processes=2, accumulation_steps=5)


def test_workers_keep_the_order(tmp_path):
    images = load_images(DataConfig(dataset=str(image_folder(tmp_path / "data")), resolution=8))
    indices = BatchOrder(6, 4, 1, 0, 1, 0, 5, seed=0)
    samples = Flipped(images.dataset, random_flip=True, seed=0)
    alone, together = (list(batches(samples, indices, workers)) for workers in (0, 2))
    assert len(alone) == 5
    torch.testing.assert_close(together, alone)


def test_flips_are_fair_and_new_in_every_epoch():
    pictures = TensorDataset(torch.arange(4.0).reshape(1, 1, 2, 2).expand(200, 1, 2, 2), torch.arange(200))
    samples = Flipped(pictures, random_flip=True, seed=0)
    first, second, again = ([bool(samples[i, e][0][0, 0, 0]) for i in range(200)] for e in (0, 1, 0))
    assert first == again and first != second
    assert 70 < sum(first) < 130
    assert not any(Flipped(pictures, random_flip=False, seed=0)[i, 0][0][0, 0, 0] for i in range(200))
