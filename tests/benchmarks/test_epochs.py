"""`mmssl bench models`: peers that agree, differ, are missing, or run in another process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import bench_epochs, bench_models, workloads
from benchmarks.peers import ease, freedom
from benchmarks.peers.lightgcn import PlainPyTorch
from benchmarks.peers.registry import Missing
from benchmarks.peers.remote import ROOT, Remote
from benchmarks.peers.serve import FREEDOM, OWN, PEERS, Spec
from tests.ops.kernels import needs_cpu_kernel

BATCH = 200


@pytest.fixture(scope="module")
def problem():
    task = bench_models.make_task("lightgcn", workloads.dataset("smoke"), BATCH)
    return bench_epochs.problem_of(task)


@needs_cpu_kernel
@pytest.mark.parametrize("model", ["lightgcn", "bprmf"])
def test_a_peer_that_agrees_is_timed(model):
    case = bench_epochs.epoch(model, "smoke", turns=1, peers=["plain PyTorch"], batch=BATCH)
    assert set(case.rows) == {"mmssl", "plain PyTorch"} and not case.missing
    assert case.rows["plain PyTorch"].error < 1e-5


@needs_cpu_kernel
def test_a_peer_with_another_loss_is_not_timed(monkeypatch):
    monkeypatch.setattr(PlainPyTorch, "check", lambda self: [0.7, 0.7, 0.7])
    case = bench_epochs.epoch("lightgcn", "smoke", turns=1, peers=["plain PyTorch"], batch=BATCH)
    assert set(case.rows) == {"mmssl"}
    assert "disagrees" in case.missing["plain PyTorch"]


@needs_cpu_kernel
@pytest.mark.parametrize("validation", [False, True])
def test_freedom_agrees_by_hand_and_as_mmrec_computes(monkeypatch, validation):
    inside = {name: spec._replace(inside=True) for name, spec in FREEDOM.items()}
    name = f"epoch {'and validation ' if validation else ''}of freedom"
    monkeypatch.setitem(PEERS, name, inside)
    case = bench_epochs.epoch("freedom", "smoke", turns=1, batch=BATCH, validation=validation)
    assert case.op == name and set(case.rows) == {"mmssl", *FREEDOM} and not case.missing
    assert all(case.rows[peer].error < 1e-5 for peer in FREEDOM)


def test_metrics_of_the_validation_against_loops():
    hits = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool).repeat(13, 1)[:, :50]
    counts = [60, 3, 1]
    found = freedom.metrics(hits, counts)
    for k in freedom.CUTOFFS:
        recall, ndcg = [], []
        for row, count in zip(hits, counts, strict=True):
            recall.append(sum(row[:k]) / count)
            gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(row[:k]))
            ndcg.append(gain / sum(1 / np.log2(rank + 2) for rank in range(min(k, count))))
        assert found[f"recall@{k}"] == pytest.approx(np.mean(recall))
        assert found[f"ndcg@{k}"] == pytest.approx(np.mean(ndcg))


def test_edges_of_freedom_are_pruned_by_degree(problem):
    user, item = problem["user"], problem["item"]
    arrays = {
        "prune": 0.8, "kept": np.stack([user, item]), "item_graph": np.array([[0], [1]]),
        "item_value": np.ones(1, np.float32),
    }  # fmt: skip
    peer = freedom.PlainPyTorch({**problem, **arrays})
    count = len(user) - int(0.8 * len(user))
    degree = np.bincount(user)[user] * np.bincount(item)[item]
    drawn = []
    for _ in range(5):
        peer.draw_edges()
        row, col = peer.matrix.to_sparse_coo().indices().numpy()
        kept = row < peer.num_users
        assert kept.sum() == count
        drawn.append(np.log(np.bincount(user)[row[kept]]).mean())
    assert np.mean(drawn) < np.log(np.bincount(user)[user]).mean()
    assert peer.weight_of_edge.numpy() == pytest.approx(degree**-0.5)


@pytest.mark.parametrize("result", [[float("nan")], [0.7], [0.1, 0.7]])
def test_a_peer_that_computes_something_else_has_to_learn(result):
    spec = Spec("module", "Name", "package", other="another loss")
    assert bench_epochs._checked(spec, [0.69], []) is None
    with pytest.raises(Missing, match="does not learn"):
        bench_epochs._checked(spec, result, [])


@needs_cpu_kernel
def test_the_weights_of_ease_agree():
    case = bench_epochs.fit("smoke", turns=1)
    assert set(case.rows) == {"mmssl", "NumPy"} and case.rows["NumPy"].error < 1e-5


def test_ease_in_numpy_is_its_formula():
    problem = {"user": [0, 0, 1], "item": [0, 1, 1], "num_users": 2, "num_items": 3, "reg": 1.0}
    weights = ease.EASE({**problem, "entries": np.array([[0, 1], [1, 2]])}).weights()
    dense = np.array([[1.0, 1, 0], [0, 1, 0]])
    inverse = np.linalg.inv(dense.T @ dense + np.eye(3))
    want = [[0 if i == j else -inverse[i, j] / inverse[j, j] for j in range(3)] for i in range(3)]
    assert weights == pytest.approx(np.array(want))


def test_negatives_of_the_peers_are_hardly_ever_train_items(problem):
    peer = PlainPyTorch(problem)
    train = set(zip(peer.user, peer.item, strict=True))

    def share(items):
        return sum(pair in train for pair in zip(peer.user, items, strict=True)) / len(peer.user)

    unchecked = share(peer.rng.integers(0, peer.num_items, len(peer.user)))
    assert share(peer.negatives(peer.user)) < 0.5 * unchecked


@needs_cpu_kernel
def test_without_an_environment_a_framework_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_PEERS", str(tmp_path))
    case = bench_epochs.epoch("lightgcn", "smoke", turns=1, peers=["RecBole"], batch=BATCH)
    assert set(case.rows) == {"mmssl"}
    assert case.missing["RecBole"] == "no environment 'recbole'; run sh benchmarks/peers/install.sh"


def test_a_peer_in_another_process_answers_line_by_line(monkeypatch, problem, tmp_path):
    path = tmp_path / "problem.npz"
    np.savez(path, **problem)
    python = tmp_path / "frameworks" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("MMSSL_PEERS", str(tmp_path))
    elsewhere = PEERS["epoch of lightgcn"]["plain PyTorch"]._replace(environment="frameworks")
    monkeypatch.setitem(PEERS["epoch of lightgcn"], "plain PyTorch", elsewhere)
    remote = Remote("epoch of lightgcn", "plain PyTorch", path)
    try:
        assert remote.ask("check") == pytest.approx(PlainPyTorch(problem).check())
        assert remote.ask("run") > 0
        assert remote.version == f"torch {torch.__version__}"
    finally:
        remote.close()
    with pytest.raises(Missing, match="ended with status"):
        Remote("epoch of lightgcn", "plain PyTorch", tmp_path / "none.npz")


def test_peers_of_other_environments_import_no_mmssl():
    """They run where it is not installed."""
    modules = ", ".join(f"benchmarks.peers.{name}" for name in ("serve", "freedom", "ease"))
    code = f"import sys, {modules}; sys.exit('mmssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_peer_is_where_the_table_says():
    script = (ROOT / "benchmarks" / "peers" / "install.sh").read_text()
    for spec in (spec for specs in PEERS.values() for spec in specs.values()):
        source = (ROOT / "benchmarks" / "peers" / f"{spec.module}.py").read_text()
        assert f"class {spec.cls}" in source
        assert spec.environment == OWN or f"\nenvironment {spec.environment} " in script


@pytest.mark.slow
@pytest.mark.skipif("MMSSL_PEERS" not in os.environ, reason="no environments of the frameworks")
@pytest.mark.parametrize("model", ["lightgcn", "bprmf"])
def test_the_frameworks_agree(model):
    case = bench_epochs.epoch(model, "smoke", turns=1, batch=BATCH)
    assert not case.missing
    assert set(case.rows) == {"mmssl", *PEERS[f"epoch of {model}"]}
