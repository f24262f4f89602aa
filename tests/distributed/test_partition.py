"""Ranges, initial values drawn in blocks, and files that several processes write together."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist

from mmssl.config import load_config
from mmssl.distributed import partition
from mmssl.distributed.dataset import read_part
from mmssl.distributed.group import SINGLE, Processes
from mmssl.distributed.partition import Ranges, draw_rows
from mmssl.distributed.storage import ShardedStore, check_file
from mmssl.errors import InputError
from mmssl.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mmssl.training.run import RunDirectory
from mmssl.training.state import prefixed
from mmssl.training.task import create_task

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


@pytest.fixture
def group(tmp_path):
    """One process that behaves as several do."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Processes(sharded=True)
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranges_are_balanced_by_rows_and_edges(size):
    generator = torch.Generator().manual_seed(0)
    degree = (torch.rand(5000, generator=generator) ** -0.7).long()
    ranges = Ranges.balanced(degree, size)
    assert ranges.bounds[0] == 0 and ranges.num_rows == 5000
    parts = [ranges.of(rank) for rank in range(size)]
    assert [p.stop for p in parts[:-1]] == [p.start for p in parts[1:]]
    weights = [float((degree[p] + degree.double().mean()).sum()) for p in parts]
    assert max(weights) - min(weights) <= 2 * (float(degree.max()) + float(degree.double().mean()))


def test_more_processes_than_rows():
    ranges = Ranges.balanced(torch.tensor([3, 1]), 5)
    assert sum(ranges.count(rank) for rank in range(5)) == 2
    assert Ranges.balanced(torch.tensor([0, 0, 0]), 2).num_rows == 3


@pytest.mark.parametrize("rows", [1, 7, 64, 65, 127, 500])
@pytest.mark.parametrize("dim", [1, 3, 16])
def test_drawn_in_blocks_as_in_one_piece(monkeypatch, rows, dim):
    monkeypatch.setattr(partition, "_ROWS_PER_DRAW", 64)
    for fill in (torch.Tensor.normal_, lambda t: t.uniform_(-0.3, 0.3)):
        torch.manual_seed(5)
        whole = torch.empty(rows, dim)
        fill(whole)
        after = torch.rand(1)
        for own in (slice(0, rows), slice(rows // 3, rows // 2), slice(rows // 2, rows)):
            torch.manual_seed(5)
            part = torch.empty(own.stop - own.start, dim)
            draw_rows(rows, dim, own, fill, part)
            assert torch.equal(part, whole[own]) and torch.equal(torch.rand(1), after)


def state():
    return {
        "model.user_embedding": torch.randn(6, 3),
        "optimizer.0.step": torch.tensor(4.0),
        "rng.generator": torch.Generator().get_state(),
        "wide": torch.randn(2, dtype=torch.float64),
        "empty": torch.zeros(0, 2),
    }


def store_in(tmp_path, group) -> ShardedStore:
    run = RunDirectory.__new__(RunDirectory)
    run.path = tmp_path
    users = Ranges((0, 6))
    return ShardedStore(run, group, lambda name: users if name.startswith("model") else None)


@needs_gloo
def test_a_file_written_together_is_that_of_one_process(tmp_path, group):
    store, tensors, progress = store_in(tmp_path, group), state(), {"epoch": 3, "name": "x"}
    path = tmp_path / "last.safetensors"
    store._write(path, tensors, progress, keep=1)
    save_checkpoint(tmp_path / "one.safetensors", tensors, progress)
    for file in (path, tmp_path / "one.safetensors"):
        check_file(file)
        for read in (load_checkpoint, store._read):
            found = read(file)
            assert found.state == progress and found.tensors.keys() == tensors.keys()
            assert all(torch.equal(t, tensors[name]) for name, t in found.tensors.items())
    store._write(path, tensors, progress, keep=2)
    assert (tmp_path / "last.1.safetensors").exists()


@needs_gloo
def test_a_damaged_file_is_found(tmp_path, group):
    store, path = store_in(tmp_path, group), tmp_path / "last.safetensors"
    store._write(path, state(), {}, keep=1)
    whole = path.read_bytes()
    assert isinstance(check_file(path), Checkpoint)
    for damaged in (
        whole[:-1],
        whole[:-9] + b"\x01" + whole[-8:],
        whole[:20],
        b"",
        whole.replace(b"F32", b"F99"),
        (2**60).to_bytes(8, "little") + whole[8:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="last.safetensors: "):
            check_file(path)
    path.unlink()
    with pytest.raises(InputError):
        check_file(path)


@needs_gloo
@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        (
            "released",
            [],
            "structure.schedule: expected 'latest' with .* sharded, .* got 'released'",
        ),
        ("paper", ["critic.gumbel_tau=0.1"], "gumbel_tau, .* no row has to be formed, .* 0.1 and"),
    ],
)
def test_what_needs_all_rows_is_refused(group, tiny_directory, variant, settings, message):
    config = load_config(variant, settings=settings)
    part = read_part(tiny_directory, group)
    with pytest.raises(InputError, match=message):
        create_task("mmssl", part, config, group=group)


@needs_gloo
@pytest.mark.parametrize(
    ("model", "variant"), [("mmssl", "paper"), ("mmssl", "plus"), ("lightgcn", "paper")]
)
def test_every_table_of_a_checkpoint_is_divided(
    group, tiny_dataset, tiny_directory, model, variant
):
    """What has a row per user or item, and only that; the names are those of one process."""
    rows = tiny_dataset.num_users, tiny_dataset.num_items
    config = load_config(variant, settings=["model.embedding_dim=16"])
    states = []
    for some, dataset in ((group, read_part(tiny_directory, group)), (SINGLE, tiny_dataset)):
        task = create_task(model, dataset, config, group=some)
        task.start_epoch(0, 0)
        task.step(0)
        best = {**task.embed().tensors(), **prefixed("parameter", task.parameters())}
        states.append({**task.state(), **best, **prefixed("best", best)})
        if some is group:
            for name, tensor in states[0].items():
                ranges = task.layout(name)
                held = ranges.num_rows if ranges is not None else None
                table = tensor.dim() > 1 and tensor.shape[0] in rows
                assert held == (tensor.shape[0] if table else None), name
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    assert shapes[0] == shapes[1]


@needs_gloo
def test_bytes_sent_are_those_of_the_lists(group):
    """A process alone needs no rows of others, and its own count as not sent."""
    rows = torch.arange(12.0).view(6, 2)
    out = torch.empty_like(rows)
    group.all_to_all(out, rows, [6], [6])
    assert torch.equal(out, rows) and group.sent == 0
    group.sum(torch.zeros(5, dtype=torch.float64))
    assert group.sent == 40
