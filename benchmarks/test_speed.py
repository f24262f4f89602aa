"""One function of ``mmssl bench`` at a time, timed by pytest-benchmark, e.g. to tune a kernel.

    pytest benchmarks/test_speed.py --benchmark-only -k "propagate and tiktok and native"

The problems, peers and checks of agreement are the harness's, and so are the callables that are
timed; pytest-benchmark adds its statistics, ``--benchmark-autosave`` and ``--benchmark-compare``.
What the harness adds is missing here: interleaved implementations, limits and memory. Documents
therefore quote ``mmssl bench``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import (
    bench_evaluate,
    bench_info_nce,
    bench_propagate,
    bench_topk,
    bench_train_step,
    suites,
)
from benchmarks.harness.problem import Problem, prepared
from benchmarks.peers.ops import INFO_NCE, RANKING, SPARSE

# Peers by benchmark; the others are compared with the reference alone.
PEERS = {bench_propagate: SPARSE, bench_info_nce: INFO_NCE, bench_topk: RANKING}
STEPS = ("released", "paper", "paper, critic 512")


def op_cases() -> Iterator[Any]:
    """Every problem of the suite ``ops`` with each of its peers."""
    for bench in suites.OPS:
        for make, budget in bench.cases("full", "cpu"):
            options = [f"{key}={value}" for key, value in make.keywords.items() if key != "device"]
            label = "-".join([bench.__name__.split("_", 1)[1], *map(str, make.args), *options])
            names = list(PEERS.get(bench, ("native", "reference")))
            for peer in (
                names if budget.peers is None else {"native": None} | dict.fromkeys(budget.peers)
            ):
                yield pytest.param(make, peer, id=f"{label}-{peer}")


@pytest.mark.parametrize("job", ["forward", "full"])
@pytest.mark.parametrize(("make", "peer"), list(op_cases()))
def test_op(benchmark, make: functools.partial[Problem], peer: str, job: str):
    works, missing, _ = prepared(make(), [peer])
    if peer in missing:
        pytest.skip(missing[peer])
    if job == "forward" and not works[peer].inputs:
        pytest.skip("it has no backward: forward is all of it")
    benchmark(getattr(works[peer], job))


@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark, name: str):
    benchmark(bench_train_step.runner(bench_train_step.BY_NAME[name], "tiktok", "cpu"))


@pytest.mark.parametrize("name", [bench_evaluate.OURS, bench_evaluate.DENSE])
@pytest.mark.parametrize("data", ["tiktok", "gowalla"])
def test_evaluation(benchmark, data: str, name: str):
    benchmark(bench_evaluate.prepare(data, "cpu").works[name].compute)
