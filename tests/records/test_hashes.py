"""Digests are saved in results and caches: each must stay what it was."""

import hashlib
import json

import pytest
import torch
from torch import nn

from demo_diffusion.records.hashes import (
    file_hash,
    hash_files,
    is_sealed,
    sealed,
    settings_of,
    state_hash,
    tensor_hash,
    weights_hash,
)

# As the versions before made them.
STATE = "a02ca71ef3e64fa7a7f68bb096ee96eb9dd4b84f893e5137c63cd5240c2565cb"
WEIGHTS = "99c21ce9d95356da9649222360f5ea39352face9f4cbaadff39996b9756630c2"
LATENTS = "70f0afb03cd7c2f8be7d2fd917a705ac0a1b4662aff6b4cf097f87fa49626467"


def network() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for tensor in layers.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) / 8)
    return layers


def test_digests_are_those_of_saved_results():
    tensors = {"b": torch.arange(6).view(2, 3).bfloat16().T, "a": torch.tensor([True]), "none": torch.empty(0, 2)}
    assert state_hash(network()) == STATE
    assert weights_hash(network()) == WEIGHTS
    assert tensor_hash(tensors, prefix='[[3, "damaged"]]') == LATENTS


def test_the_digest_is_that_of_names_and_bytes():
    tensors = {"b": torch.tensor([1.5, 2.0]), "a": torch.tensor(7)}
    parts = {name: name.encode() + tensor.numpy().tobytes() for name, tensor in tensors.items()}
    assert tensor_hash(tensors) == hashlib.sha256(parts["a"] + parts["b"]).hexdigest()
    assert tensor_hash(tensors, is_sorted=False) == hashlib.sha256(parts["b"] + parts["a"]).hexdigest()
    assert tensor_hash(tensors, prefix="x") == hashlib.sha256(b"x" + parts["a"] + parts["b"]).hexdigest()


def test_weights_are_the_same_in_any_dtype():
    halves = network().bfloat16()
    assert weights_hash(halves) == weights_hash(network().bfloat16().float()) != weights_hash(nn.Conv2d(2, 3, 2))
    assert state_hash(halves) != state_hash(network().bfloat16().float())


@pytest.mark.parametrize("change", [lambda t: t + 1, lambda t: t.view(3, 2).T.contiguous(), torch.Tensor.double])
def test_every_change_of_a_tensor_is_seen(change):
    tensor = torch.arange(6.0).view(2, 3)
    assert tensor_hash({"x": change(tensor)}) != tensor_hash({"x": tensor}) != tensor_hash({"y": tensor})


def test_files_are_hashed_one_after_the_other(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 2_000_000)
    expected = hashlib.sha256(b"a" * 2_000_000 + b"b" * 2_000_000).hexdigest()
    assert file_hash(tmp_path / "a", tmp_path / "b") == expected != file_hash(tmp_path / "b", tmp_path / "a")


def test_settings_are_without_the_library_s_own():
    component = type("Component", (), {"config": {"_class_name": "X", "width": 3}})
    assert settings_of(component) == {"width": 3}


def test_files_of_a_folder_are_hashed_by_name(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"not asked for")
    assert hash_files(tmp_path, ["a", "b"]) == {
        name: hashlib.sha256(content).hexdigest() for name, content in (("a", b"abc"), ("b", b""))
    }


RECORD = {"id2label": {10: "cat\ud800", 9: "dog"}, "mean": (0.1, 1e-7), "none": None, "hash": "0" * 64}


def test_a_seal_holds_over_json_and_breaks_with_any_bit():
    text = json.dumps(sealed(RECORD), indent=1)
    assert is_sealed(json.loads(text)) is True and is_sealed(json.loads(json.dumps(RECORD))) is None
    content, read = text.encode(), 0
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            record = json.loads(changed.decode())
        except ValueError:
            continue
        read += 1
        assert is_sealed(record) is False or record == json.loads(text), changed
    assert read > 1000
