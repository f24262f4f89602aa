"""Checkpoint files: exact, atomic, verified."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from mmssl.errors import InputError
from mmssl.training.checkpoint import atomic_write, load_checkpoint, save_checkpoint


def test_round_trip(tmp_path):
    tensors = {
        "float": torch.randn(3, 4),
        "bf16": torch.randn(5).bfloat16(),
        "transposed": torch.randn(3, 4).T,
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "empty, stride 0": torch.zeros((), dtype=torch.int32).expand(0),
        "bool": torch.tensor([True, False]),
        "state": torch.get_rng_state(),
    }
    state = {"epoch": 3, "history": [{"loss": 0.1 + 0.2}], "name": "ü"}
    save_checkpoint(tmp_path / "c.safetensors", tensors, state)
    got = load_checkpoint(tmp_path / "c.safetensors")
    assert got.state == state
    assert got.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)
    assert os.listdir(tmp_path) == ["c.safetensors"]


@pytest.mark.parametrize("position", [0, 20, -1])
def test_damage_is_found(tmp_path, position):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(100.0)}, {"x": 1})
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(InputError, match=str(path)):
        load_checkpoint(path)


def test_truncation_is_found(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(100.0)}, {"x": 1})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a safetensors file"):
        load_checkpoint(path)


def test_equal_content_is_equal_bytes(tmp_path):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, {"y": torch.ones(3), "x": torch.zeros(2)}, {"z": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_foreign_file(tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(InputError, match="not a file of this package"):
        load_checkpoint(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match="No space left on device"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
