import os

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported: its kernels then run on the CPU

from tests.support.evaluation import lite_reference, random_inception, small_reference, two_sets  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.compiler.reset()  # else models of many tests share one cache of compiled code, whose size is limited


@pytest.fixture(autouse=True)
def new_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)  # else a test would see the settings of another


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()
