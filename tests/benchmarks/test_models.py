"""`mmssl bench models`: phases and limits of a step, peers that agree, differ or are missing."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bench_models, model_phases
from benchmarks.peers import lightgcn
from benchmarks.peers.lightgcn import PlainPyTorch
from benchmarks.peers.registry import Missing
from benchmarks.peers.remote import Remote
from benchmarks.report.tables import model_tables
from tests.ops.kernels import needs_compiler, needs_cpu_kernel

BATCH = 200


@needs_compiler
@needs_cpu_kernel
@pytest.mark.parametrize(
    ("model", "phases"),
    [
        ("lightgcn", {"sampling", "propagation", "BPR and L2", "Adam"}),
        ("plus", {"sampling", "propagation", "item graph", "softmax and contrast", "Adam"}),
    ],
)
def test_phases_add_up_to_the_step_and_each_has_a_limit(model, phases):
    case = bench_models.step(model, "smoke", turns=1, batch=BATCH)
    row = case.rows["native"]
    assert row.extra["phases_ms"].keys() == {*phases, model_phases.REST}
    assert sum(row.extra["phases_ms"].values()) == pytest.approx(row.full.median_ms)
    assert case.limit.parts_ms.keys() == phases
    assert all(part > 0 for part in case.limit.parts_ms.values())
    assert case.limit.ms == pytest.approx(sum(case.limit.parts_ms.values()))
    (table,) = model_tables([case])
    assert len(table.rows) == 1 + len(row.extra["phases_ms"])


@needs_compiler
@needs_cpu_kernel
def test_limits_count_every_hop_forward_and_backward():
    task = bench_models.make_task("lightgcn", bench_models.workloads.dataset("smoke"), BATCH)
    task.start_epoch(0, 0)
    parts = model_phases.parts_of(task, lambda: task.step(0))
    (hops,) = (part for part in parts if part.phase == "propagation")
    assert hops.times == 2 * bench_models.LAYERS
    (adam,) = (part for part in parts if part.phase == "Adam")
    assert adam.probe.bytes == 28 * 64 * (task.graph.num_users + task.graph.num_items)


@needs_cpu_kernel
def test_a_peer_that_agrees_is_timed():
    case = bench_models.epoch("smoke", turns=1, peers=["plain PyTorch"], batch=BATCH)
    assert set(case.rows) == {"mmssl", "plain PyTorch"} and not case.missing
    assert case.rows["plain PyTorch"].error < 1e-5


@needs_cpu_kernel
def test_a_peer_with_another_loss_is_not_timed(monkeypatch):
    monkeypatch.setattr(PlainPyTorch, "losses", lambda self: [0.7, 0.7, 0.7])
    case = bench_models.epoch("smoke", turns=1, peers=["plain PyTorch"], batch=BATCH)
    assert set(case.rows) == {"mmssl"}
    assert "disagrees" in case.missing["plain PyTorch"]


def test_negatives_of_the_peers_are_hardly_ever_train_items():
    task = bench_models.make_task("lightgcn", bench_models.workloads.dataset("smoke"), BATCH)
    peer = PlainPyTorch(bench_models.problem_of(task))
    train = set(zip(peer.user, peer.item, strict=True))

    def share(items):
        return sum(pair in train for pair in zip(peer.user, items, strict=True)) / len(peer.user)

    unchecked = share(peer.rng.integers(0, peer.num_items, len(peer.user)))
    assert share(peer.negatives(peer.user)) < 0.5 * unchecked


def test_without_an_environment_a_framework_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_PEERS", str(tmp_path))
    with pytest.raises(Missing, match=r"install\.sh"):
        Remote("lightgcn.py")


def test_a_peer_in_another_process_answers_line_by_line(monkeypatch, tmp_path):
    task = bench_models.make_task("lightgcn", bench_models.workloads.dataset("smoke"), BATCH)
    problem = bench_models.problem_of(task)
    bench_models.np.savez(tmp_path / "problem.npz", **problem)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("MMSSL_PEERS", str(tmp_path))
    remote = Remote("lightgcn.py", "plain PyTorch", str(tmp_path / "problem.npz"))
    try:
        assert remote.ask("losses") == pytest.approx(PlainPyTorch(problem).losses())
        assert remote.ask("epoch") > 0
    finally:
        remote.close()
    with pytest.raises(Missing, match="ended with status"):
        Remote("lightgcn.py", "no peer", str(tmp_path / "problem.npz"))
    assert set(lightgcn.PEERS) == {"plain PyTorch", "torch_geometric"}
