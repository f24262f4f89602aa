"""Models in several processes: the losses, embeddings and metrics of a single one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch.distributed as dist

from tests.distributed.processes import FAST, MODELS, assert_close, train, train_in_processes

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


alone = cache(train)


def test_two_processes_train_as_one_does(tmp_path):
    for name, got in train_in_processes(2, tmp_path / "two", FAST).items():
        assert_close(got, alone(name), name)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_other_models_and_numbers_of_processes(tmp_path, size):
    for name, got in train_in_processes(size, tmp_path / "some", list(MODELS)).items():
        assert_close(got, alone(name), name)


@pytest.mark.slow
def test_the_same_bits_in_every_run(tmp_path):
    first, second = (train_in_processes(2, tmp_path / run, list(MODELS)) for run in "ab")
    for name, arrays in first.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, second[name][key], err_msg=f"{name}: {key}")
