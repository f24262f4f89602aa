"""Checkpoint files: exact, atomic, verified."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from mmssl.errors import InputError
from mmssl.files import atomic_write
from mmssl.training.checkpoint import (
    checkpoint_paths,
    load_checkpoint,
    recover_newest,
    save_checkpoint,
)


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


def numbers(folder) -> dict[str, int]:
    return {p.name: load_checkpoint(p).state["n"] for p in checkpoint_paths(folder / "last.st")}


def test_older_ones_are_kept(tmp_path):
    path = tmp_path / "last.st"
    for n in range(6):
        save_checkpoint(path, {"a": torch.full((3,), n)}, {"n": n}, keep=3)
        assert list(numbers(tmp_path).values()) == list(range(n, max(-1, n - 3), -1))
    assert numbers(tmp_path) == {"last.st": 5, "last.1.st": 4, "last.2.st": 3}
    assert sorted(os.listdir(tmp_path)) == ["last.1.st", "last.2.st", "last.st"]
    save_checkpoint(path, {}, {"n": 6}, keep=1)  # asked for fewer, the others go
    assert numbers(tmp_path) == {"last.st": 6}


@pytest.mark.parametrize("call", ["link", "replace"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_killed_while_the_files_change_their_names(tmp_path, monkeypatch, call, nth):
    """Between any two of the renames a whole checkpoint is there, and later saves go on."""
    path = tmp_path / "last.st"
    for n in range(3):
        save_checkpoint(path, {}, {"n": n}, keep=3)
    calls = iter(range(1, 100))
    real = getattr(os, call)

    class Killed(BaseException):
        pass

    def killed(*arguments):
        if next(calls) == nth:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(os, call, killed)
    try:
        save_checkpoint(path, {}, {"n": 3}, keep=3)
    except Killed:
        pass
    monkeypatch.undo()
    found = recover_newest(path)
    assert found is not None and found[1].state["n"] in (2, 3)
    for n in (4, 5, 6):
        save_checkpoint(path, {}, {"n": n}, keep=3)
    assert numbers(tmp_path) == {"last.st": 6, "last.1.st": 5, "last.2.st": 4}
    assert len(os.listdir(tmp_path)) == 3


def test_file_system_without_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for n in range(4):
        save_checkpoint(tmp_path / "last.st", {}, {"n": n}, keep=2)
    assert numbers(tmp_path) == {"last.st": 3, "last.1.st": 2}


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty])
def test_falls_back_and_says_so(tmp_path, caplog, damage):
    path = tmp_path / "last.st"
    for n in range(3):
        save_checkpoint(path, {"a": torch.arange(9.0)}, {"n": n}, keep=3)
    damage(path)
    found = recover_newest(path)
    assert found is not None
    assert found[0].name == "last.1.st" and found[1].state["n"] == 1
    (record,) = caplog.records
    assert str(path) in record.message and "continuing from last.1.st" in record.message
    assert "\n" not in record.message
    assert (tmp_path / "last.st.damaged").exists()
    # The next save does not push the good one out for the sake of a damaged one.
    save_checkpoint(path, {"a": torch.arange(9.0)}, {"n": 2}, keep=2)
    assert numbers(tmp_path) == {"last.st": 2, "last.1.st": 1}


def test_no_whole_one_is_left(tmp_path):
    path = tmp_path / "last.st"
    assert recover_newest(path) is None
    for n in range(2):
        save_checkpoint(path, {}, {"n": n}, keep=2)
    for name in ("last.st", "last.1.st"):
        truncate(tmp_path / name)
    with pytest.raises(InputError, match=r"no checkpoint is whole: .*last.st.*last.1.st"):
        recover_newest(path)
    assert sorted(os.listdir(tmp_path)) == ["last.1.st", "last.st"]
