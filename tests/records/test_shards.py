"""Shards are whole or missing, and each is made by one process."""

import threading
import time
from dataclasses import dataclass

import pytest
import torch
from accelerate import PartialState

from demo_diffusion.records import shards as shards_module
from demo_diffusion.records.shards import Shards, make_missing, read_tensors, remove_unfit


class Squares(Shards):
    def make(self, shards: list[int]) -> None:
        for shard in shards:
            self.write_tensors(shard, {"x": torch.tensor(list(self.span(shard))) ** 2}, {"made": "by test"})

    def is_as_written(self, shard, tensors, metadata) -> bool:
        return metadata["made"] == "by test" and len(tensors["x"]) == len(self.span(shard))


@dataclass
class Process:
    """One of several, as far as shards ask for it."""

    process_index: int
    num_processes: int

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        pass


def content(shards: Shards) -> list[int]:
    return [int(x) for shard in range(len(shards)) for x in read_tensors(shards.path(shard))[0]["x"]]


def test_spans_cover_everything_once(tmp_path):
    shards = Squares(tmp_path, 7, 3)
    assert [list(shards.span(shard)) for shard in range(len(shards))] == [[0, 1, 2], [3, 4, 5], [6]]
    assert shards.missing() == [0, 1, 2] and len(Squares(tmp_path, 6, 3)) == 2


def test_what_is_missing_is_made_and_nothing_else(tmp_path):
    shards, state = Squares(tmp_path, 7, 3), PartialState(cpu=True)
    assert make_missing(shards, state, shards.make) > 0
    before = shards.path(0).stat().st_mtime_ns
    shards.path(1).unlink()
    made = []
    make_missing(shards, state, lambda mine: made.extend(mine) or shards.make(mine))
    assert made == [1] and shards.path(0).stat().st_mtime_ns == before
    assert content(shards) == [0, 1, 4, 9, 16, 25, 36]
    assert make_missing(shards, state, shards.make) is None


def test_damaged_shards_and_leftovers_go(tmp_path, capsys):
    shards, state = Squares(tmp_path, 9, 3), PartialState(cpu=True)
    remove_unfit(shards, state)
    shards.make([0, 1, 2])
    shards.path(0).write_bytes(shards.path(0).read_bytes()[:-1])
    shards.path(2).write_bytes(b"")
    (tmp_path / "000001.safetensors.demo_diffusion-x1234567.partial").mkdir()
    remove_unfit(shards, state)
    assert shards.missing() == [0, 2] and [path.name for path in tmp_path.iterdir()] == ["000001.safetensors"]
    assert "000000.safetensors is damaged; it is made again" in capsys.readouterr().out


def test_each_process_checks_its_share(tmp_path):
    shards = Squares(tmp_path, 4, 1)
    shards.make([0, 1, 2, 3])
    for shard in range(4):
        shards.path(shard).write_bytes(b"")
    remove_unfit(shards, Process(1, 2))
    assert shards.missing() == [1, 3]


def test_processes_share_the_work_and_the_first_waits_for_all(tmp_path, monkeypatch):
    shards, shares = Squares(tmp_path, 5, 1), {}
    monkeypatch.setattr(shards_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(shards_module, "broadcast_object_list", lambda lists: [[0, 2, 3, 4]])  # what rank 0 lists
    shards.make([1])

    def run(index: int) -> None:
        def make(mine: list[int]) -> None:
            time.sleep(0.2 * index)
            shares[index] = mine
            shards.make(mine)

        make_missing(shards, Process(index, 2), make)

    other = threading.Thread(target=run, args=[1])
    other.start()
    run(0)
    assert shards.missing() == []  # though the other process was slower
    other.join()
    assert shares == {0: [0, 3], 1: [2, 4]} and content(shards) == [0, 1, 4, 9, 16]


def test_an_interrupted_shard_is_missing(tmp_path, monkeypatch):
    shards = Squares(tmp_path, 2, 1)

    def fail(tensors, metadata):
        raise OSError("disk full")

    monkeypatch.setattr(shards_module, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        shards.make([0])
    assert shards.missing() == [0, 1] and list(tmp_path.iterdir()) == []
