"""``pytest benchmarks --benchmark-only``: what ``mmssl bench`` measures, one function at a time.

The same problems and peers, without turns, limits or memory: for tuning one kernel, with
pytest-benchmark's ``--benchmark-autosave`` and ``--benchmark-compare``. Documents quote
``mmssl bench``.
"""

from __future__ import annotations

import pytest

from benchmarks import (
    bench_evaluate,
    bench_info_nce,
    bench_layers,
    bench_propagate,
    bench_step_parts,
    bench_topk,
    bench_train_step,
    workloads,
)
from benchmarks.harness.problem import Problem
from benchmarks.peers.ops import INFO_NCE, RANKING, SPARSE
from benchmarks.peers.registry import Missing
from mmssl.evaluation import Evaluator

JOBS = ("forward", "full")


def run(benchmark, problem: Problem, peer: str, job: str) -> None:
    """Times a peer, or skips with the reason why it is missing."""
    try:
        work = problem.peers[peer]()
    except Missing as reason:
        pytest.skip(str(reason))
    benchmark(getattr(work, job))


@pytest.mark.parametrize("graph", ["tiktok", "sports"])
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("peer", SPARSE)
def test_propagate(benchmark, peer, job, graph):
    run(benchmark, bench_propagate.problem(graph), peer, job)


@pytest.mark.parametrize("n", [1024, 4096])
@pytest.mark.parametrize("dtype", bench_info_nce.DTYPES["cpu"])
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("peer", INFO_NCE)
def test_info_nce(benchmark, peer, job, dtype, n):
    run(benchmark, bench_info_nce.problem(n, dtype), peer, job)


@pytest.mark.parametrize("k", [20, 1000])
@pytest.mark.parametrize("peer", RANKING)
def test_masked_topk(benchmark, peer, k):
    run(benchmark, bench_topk.problem("tiktok", k), peer, "forward")


@pytest.mark.parametrize("part", bench_step_parts.PARTS)
@pytest.mark.parametrize("peer", ["native", "reference"])
def test_step_part(benchmark, peer, part):
    run(benchmark, bench_step_parts.problem(part), peer, "full")


@pytest.mark.parametrize("layer", bench_layers.LAYERS)
@pytest.mark.parametrize("peer", ["native", "reference"])
def test_layer(benchmark, peer, layer):
    problem = bench_layers.problem(layer, *bench_layers.SIZES[layer])
    run(benchmark, problem, peer, "full")


@pytest.mark.parametrize("name", ["released", "paper", "paper, critic 512"])
def test_step(benchmark, name):
    configuration = bench_train_step.BY_NAME[name]
    benchmark(bench_train_step.runner(configuration, "tiktok", "cpu"))


@pytest.mark.parametrize("data", ["tiktok", "gowalla"])
def test_evaluation(benchmark, data):
    graph = workloads.load(data).graph
    held_out = workloads.held_out(data, graph)
    user, item = bench_evaluate.embeddings(held_out.test, graph.num_users, graph.num_items)
    benchmark(Evaluator(held_out, "test", graph).evaluate, user, item)
