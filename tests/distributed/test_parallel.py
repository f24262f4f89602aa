"""Models in several processes: the losses, embeddings and metrics of a single one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mmssl.distributed import MODES
from mmssl.distributed.group import SINGLE, Group, Processes
from mmssl.distributed.partition import Ranges
from mmssl.distributed.storage import ShardedStore
from mmssl.training.checkpoint import load_checkpoint
from mmssl.training.run import RunDirectory
from mmssl.training.task import create_task
from tests.conftest import make_dataset
from tests.distributed.processes import (
    ROUNDED,
    RUNS,
    assert_close,
    assert_same_bits,
    configuration,
    part_of,
    train,
    train_together,
)
from tests.processes import run_together

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")

EXACT = [run for run in RUNS if run != ROUNDED]
# Collective calls take long where there are more processes than cores, and these have thousands.
MANY_CALLS = ("paper", "released, latest graphs, float64")
FEW_CALLS = [run for run in EXACT if run[1] not in MANY_CALLS]

alone = cache(train)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes have trained, all models in both modes."""
    return train_together(2, tmp_path_factory.mktemp("two"), RUNS)


@pytest.fixture(scope="module")
def two_others(tmp_path_factory):
    return train_together(2, tmp_path_factory.mktemp("two"), RUNS)


@pytest.fixture(scope="module", params=[1, 4])
def another_number(request, tmp_path_factory):
    return train_together(request.param, tmp_path_factory.mktemp("some"), FEW_CALLS)


@pytest.mark.parametrize("run", EXACT, ids=", ".join)
def test_two_processes_train_as_one_does(two, run):
    assert_close(two[run], alone(run[1]), run[1])


@pytest.mark.slow
@pytest.mark.parametrize("run", FEW_CALLS, ids=", ".join)
def test_another_number_of_processes(another_number, run):
    assert_close(another_number[run], alone(run[1]), run[1])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_paper_in_another_number_of_processes(tmp_path, size):
    runs = [(mode, "paper") for mode in MODES]
    for trained in train_together(size, tmp_path, runs).values():
        assert_close(trained, alone("paper"), "paper")


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=", ".join)
def test_the_same_bits_in_every_run(two, two_others, run):
    assert_same_bits(two_others[run], two[run], run[1])


def test_rows_that_travel_in_bfloat16(two):
    """Half the bytes, and rows that are rounded to 8 bits on their way."""
    got, exact = two[ROUNDED], alone(ROUNDED[1])
    for key in ("embedding.user", "embedding.item"):
        error = np.linalg.norm(got[key] - exact[key]) / np.linalg.norm(exact[key])
        assert 1e-6 < error < 1e-2, (key, error)


def test_a_file_of_two_processes(tmp_path):
    run_together(2, write, tmp_path)
    content = load_checkpoint(tmp_path / "last.safetensors")
    assert content.state == {"clock": ""}
    assert torch.equal(content.tensors["rows"], torch.arange(12.0).view(4, 3))
    assert torch.equal(content.tensors["all"], torch.tensor([7.0]))


def write(folder: Path) -> None:
    """Write a file in two processes whose states have different lengths."""
    group, users = Processes(sharded=True), Ranges((0, 1, 4))
    run = RunDirectory.__new__(RunDirectory)
    run.path = folder
    store = ShardedStore(run, group, lambda name: users if name == "rows" else None)
    tensors = {"rows": torch.arange(12.0).view(4, 3)[users.of(group.rank)]}
    tensors["all"] = torch.tensor([7.0])
    state = {"clock": "0" * 100 * group.rank}
    store._write(folder / "last.safetensors", tensors, state, keep=1)
    read = store._read(folder / "last.safetensors").tensors
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_process_without_users_items_and_held_out_edges(tmp_path):
    run_together(2, train_in_one_of_two, tmp_path)
    torch.testing.assert_close(
        torch.load(tmp_path / "losses.pt"), some_steps(SINGLE), rtol=1e-5, atol=0
    )


def train_in_one_of_two(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ranges, "balanced", lambda degree, size: Ranges((0, 0, degree.numel())))
        losses = some_steps(Processes(sharded=True), folder / "data")
    torch.save(losses, folder / "losses.pt")


def some_steps(group: Group, folder: Path | None = None) -> torch.Tensor:
    model, config = configuration("paper")
    dataset = part_of(make_dataset(30, 12), group, folder)
    task = create_task(model, dataset, config, group=group)
    losses = [task.step(number).double() for number in range(3)]
    metrics = task.evaluator(dataset, "test").evaluate(task.embed())
    return torch.cat([*losses, torch.tensor(list(metrics.values()))])
