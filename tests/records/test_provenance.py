import json
import shlex
import sys

import torch
from accelerate import PartialState

from demo_diffusion.records.provenance import PACKAGES, provenance


def test_a_result_says_what_made_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", "a folder"])
    made_by = json.loads(json.dumps(provenance(PartialState(cpu=True))))
    assert shlex.split(made_by["command"]) == sys.argv and made_by["num_processes"] == 1
    assert made_by["device"] == "cpu" and set(made_by["packages"]) == set(PACKAGES)
    assert torch.__version__.startswith(made_by["packages"]["torch"])
