"""The small parts of a training step: sampling, the batch's edges, BPR with L2, modality graphs.

``python benchmarks/bench_step_parts.py [--smoke]`` prints a table: median and quartiles over turns,
in each of which every peer is warmed up once and then timed several times. Agreement is checked
first. Besides the reference and torch.compile of it there are the loop of the released code for the
sampler (written anew) and a general sort for the graphs. The limit of BPR is the time to make the
two gradient tables and clear them. ``MMSSL_DATA=folder`` takes the real graphs. ``pytest
benchmarks --benchmark-only`` times the same functions one by one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads  # noqa: E402
from mmssl import indexing, ops  # noqa: E402
from mmssl.config import load_config  # noqa: E402
from mmssl.graph import InteractionGraph  # noqa: E402
from mmssl.ops.reference import (  # noqa: E402
    bpr_loss_reference,
    triples_from_draws_reference,
)
from mmssl.ops.similarity import batch_edges  # noqa: E402

D = 64
BATCH = 1024
MODALITIES = 2
GRAPHS = ("tiktok", "baby", "sports")
Job = Callable[[], object]


class Part(NamedTuple):
    """Peers of one part of the step; "native" is ours."""

    peers: dict[str, Job]
    same: tuple[str, ...]  # peers whose result must equal that of "native"
    limit: Job | None = None


def with_backend(backend: str, job: Job) -> Job:
    def call() -> object:
        with ops.backend(backend):
            return job()

    return call


def in_plain_torch(job: Job) -> Job:
    def call() -> object:
        with mock.patch.object(indexing, "_host_for", lambda array: None):
            return job()

    return call


def sampling(graph: InteractionGraph) -> Part:
    def draw() -> object:
        return ops.sample_bpr(graph, BATCH, torch.Generator().manual_seed(0))

    uniform = torch.rand(3, BATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _ = graph.trainable_users, graph.negative_rank_key
    compiled = torch.compile(lambda draws: triples_from_draws_reference(graph, draws))
    items = {
        int(user): graph.index.col[graph.index.rowptr[user] : graph.index.rowptr[user + 1]].tolist()
        for user in graph.trainable_users
    }
    users = list(items)

    def loop() -> object:
        triples = []
        for user in random.sample(users, BATCH):
            own = items[user]
            negative = random.randrange(graph.num_items)
            while negative in own:
                negative = random.randrange(graph.num_items)
            triples.append((user, random.choice(own), negative))
        return torch.tensor(triples).T

    return Part(
        {
            "native": with_backend("native", draw),
            "reference": with_backend("reference", draw),
            "compiled": lambda: compiled(uniform),
            "Python loop": loop,
        },
        ("reference", "compiled"),
    )


def bpr(graph: InteractionGraph) -> Part:
    generator = torch.Generator().manual_seed(0)
    user_emb, item_emb = (
        torch.randn(n, D, generator=generator).mul_(0.1).requires_grad_()
        for n in (graph.num_users, graph.num_items)
    )
    batch = ops.sample_bpr(graph, BATCH, generator)

    def both(function: Callable[..., tuple[Tensor, Tensor]]) -> Job:
        def call() -> tuple[Tensor, ...]:
            loss, squares = function(user_emb, item_emb, *batch, with_l2=True)
            grads = torch.autograd.grad(loss + 1e-5 * squares, (user_emb, item_emb))
            return loss.detach(), squares.detach(), *grads

        return call

    def cleared() -> tuple[Tensor, Tensor]:
        return torch.zeros_like(user_emb), torch.zeros_like(item_emb)

    return Part(
        {
            "native": with_backend("native", both(ops.bpr_loss)),
            "reference": both(bpr_loss_reference),
            "compiled": both(torch.compile(bpr_loss_reference)),
        },
        ("reference", "compiled"),
        cleared,
    )


def edges(graph: InteractionGraph) -> Part:
    users = ops.sample_bpr(graph, BATCH, torch.Generator().manual_seed(0)).user

    def gather() -> tuple[Tensor, ...]:
        found = batch_edges(graph.ui, users)
        return found.position, found.item, found.view.t_col, found.view.t_rowptr

    return Part({"native": gather, "reference": in_plain_torch(gather)}, ("reference",))


def rebuild(graph: InteractionGraph, k: int) -> Part:
    """All users seen, random items: the least that a cache can help."""
    generator = torch.Generator().manual_seed(0)
    step = max(1, graph.num_items // k)  # distinct items: a random start, then equal steps
    start = torch.randint(
        graph.num_items, (MODALITIES, graph.num_users, 1), generator=generator, dtype=torch.int32
    )
    lists = (start + step * torch.randperm(k, generator=generator).int()) % graph.num_items
    user = torch.arange(graph.num_users).repeat_interleave(k)
    shape = (graph.num_users, graph.num_items)

    def learn() -> list[Tensor]:
        return [t for learned in graph.with_lists(lists) for t in learned.index[:4]]

    def sort() -> list[Tensor]:
        graphs = (InteractionGraph.from_edges(user, table.flatten(), *shape) for table in lists)
        return [t for learned in graphs for t in learned.index[:4]]

    return Part(
        {"native": learn, "reference": in_plain_torch(learn), "from_edges": sort},
        ("reference", "from_edges"),
    )


def parts(name: str) -> dict[str, Part]:
    graph = workloads.load(name).graph
    k = load_config("paper", preset=name).structure.edges_per_user(graph.num_items)
    return {
        f"sample_bpr, B = {BATCH}": sampling(graph),
        f"batch_edges, B = {BATCH}": edges(graph),
        f"bpr_loss + L2, B = {BATCH}": bpr(graph),
        f"{MODALITIES} modality graphs, k = {k}": rebuild(graph, k),
    }


def measure(name: str, part: Part, turns: int, calls: int) -> None:
    own = part.peers["native"]()
    for peer in part.same:
        for got, want in zip(part.peers[peer](), own, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    jobs = dict(part.peers) | ({} if part.limit is None else {"limit": part.limit})
    times: dict[str, list[float]] = {peer: [] for peer in jobs}
    for _ in range(turns):
        for peer, job in jobs.items():
            job()
            for _ in range(calls):
                start = time.perf_counter()
                job()
                times[peer].append(1e3 * (time.perf_counter() - start))
    native = statistics.median(times["native"])
    for peer, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        print(f"{name:32s} {peer:12s} {middle:9.3f} ({low:.3f}-{high:.3f}) {middle / native:6.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the smallest graph, two turns")
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), metavar="NAME")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, D = {D}, float32; ms")
    for graph in ("tiktok",) if options.smoke else options.graphs:
        print(graph)
        for name, part in parts(graph).items():
            slow = "graphs" in name
            measure(name, part, 2 if options.smoke or slow else 7, 3 if slow else 9)


@pytest.mark.parametrize("graph", ["tiktok"])
@pytest.mark.parametrize("number", range(4), ids=["sample", "edges", "bpr", "graphs"])
def test_speed(benchmark, number, graph):
    benchmark(list(parts(graph).values())[number].peers["native"])


if __name__ == "__main__":
    main()
