"""Models in several processes: the losses, embeddings and metrics of a single one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mmssl.training.checkpoint import load_checkpoint
from tests.distributed.processes import (
    FAST,
    MODELS,
    SHARDED,
    assert_close,
    train,
    train_in_processes,
    write_together,
)

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


alone = cache(train)


def test_two_processes_train_as_one_does(tmp_path):
    for name, got in train_in_processes(2, tmp_path / "two", FAST).items():
        assert_close(got, alone(name), name)


def test_two_processes_divide_users_and_items(tmp_path):
    for name, got in train_in_processes(2, tmp_path / "two", SHARDED, sharded=True).items():
        assert_close(got, alone(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("sharded", [False, True])
def test_other_models_and_numbers_of_processes(tmp_path, size, sharded):
    names = SHARDED if sharded else tuple(MODELS)
    got = train_in_processes(size, tmp_path / "some", names, sharded=sharded)
    for name, arrays in got.items():
        assert_close(arrays, alone(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_the_same_bits_in_every_run(tmp_path, sharded):
    names = SHARDED if sharded else tuple(MODELS)
    first, second = (train_in_processes(2, tmp_path / run, names, sharded=sharded) for run in "ab")
    for name, arrays in first.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, second[name][key], err_msg=f"{name}: {key}")


@pytest.mark.slow
def test_rows_that_travel_in_bfloat16(tmp_path):
    """Half the bytes, and rows that are rounded to 8 bits on their way."""
    name = "lightgcn, bfloat16"
    got = train_in_processes(2, tmp_path / "two", [name], sharded=True)[name]
    exact = alone(name)
    for key in ("embedding.user", "embedding.item"):
        error = np.linalg.norm(got[key] - exact[key]) / np.linalg.norm(exact[key])
        assert 1e-6 < error < 1e-2, (key, error)


def test_a_file_of_two_processes(tmp_path):
    write_together(tmp_path)
    content = load_checkpoint(tmp_path / "last.safetensors")
    assert content.state == {"clock": ""}
    assert torch.equal(content.tensors["rows"], torch.arange(12.0).view(4, 3))
    assert torch.equal(content.tensors["all"], torch.tensor([7.0]))
