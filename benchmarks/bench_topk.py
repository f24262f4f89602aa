"""Full ranking: score, mask and select compared with matmul + mask + topk and similar ways.

The limit is the time of the multiply-adds of all scores. Embeddings are random, whose norms are
nearly the same, or those of LightGCN after some epochs; the op skips scores that norms rule out,
so it may take less than this limit. implicit has no fixed order among equal scores; faiss cannot
leave out items per user and ranks without a mask.
``mmssl bench ops`` runs these cases; ``benchmarks/test_speed.py`` times the same functions.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.harness.clock import Work
from benchmarks.harness.problem import Budget, Problem
from benchmarks.limits import Products
from benchmarks.peers.ops import RANKING, Ranking
from benchmarks.peers.registry import need_bytes

D = 64
MOST_USERS = 4096  # users of a larger graph
WHOLE = ("by hand", "torch.compile")  # form all scores at once
SWAPPED = 1e-3  # share of the items that rounding may swap with a neighbor
EPOCHS = 30  # of LightGCN


@functools.cache
def trained(graph: str, d: int) -> tuple[Tensor, Tensor]:
    """Return the (U, D) and (I, D) embeddings of LightGCN after some epochs."""
    import mmssl

    with tempfile.TemporaryDirectory() as folder:
        run = mmssl.train(
            workloads.dataset(graph),
            "lightgcn",
            out=f"{folder}/run",
            epochs=EPOCHS,
            device="cpu",
            progress=False,
            settings={"model.embedding_dim": d},
        )
        vectors = run.recommender().tables.vectors
    return vectors.user, vectors.item


def problem(
    graph: str = "tiktok",
    k: int = 20,
    device: str = "cpu",
    d: int = D,
    users: int | None = None,
    dtype: str = "float32",
    vectors: str = "random",
) -> Problem:
    """The k best items of the first users, without their train items."""
    workload = workloads.load(graph)
    view = workload.graph.to(device).ui
    if vectors == "LightGCN":
        user, item = trained(graph, d)
    else:
        generator = torch.Generator().manual_seed(0)
        user, item = (
            torch.randn(rows, d, generator=generator) for rows in (view.num_rows, view.num_cols)
        )
    user, item = (x.to(device, getattr(torch, dtype)) for x in (user, item))
    batch, items = min(view.num_rows, users or MOST_USERS), view.num_cols
    ranking = Ranking(user, item, torch.arange(batch, device=device), view, k)

    def make(name: str) -> Work:
        if name in WHOLE:
            need_bytes(8.0 * batch * items, device, "its scores")
        return Work(RANKING[name](ranking))

    arguments = {"graph": graph, "k": k, "device": device, "d": d, "users": users, "dtype": dtype}
    of = "" if vectors == "random" else f", vectors of {vectors}"
    return Problem(
        op=f"masked_topk, k = {k:,}{of}",
        workload=workload.name,
        dtype=dtype,
        device=device,
        sizes={"users": batch, "items": items, "k": k, "d": d},
        peers={name: functools.partial(make, name) for name in RANKING},
        expected=lambda: RANKING["reference"](ranking)(),
        agree=agree,
        tolerance=1e-5,
        probe=Products(
            2.0 * batch * items * d, device, "float32", 4.0 * d * (batch + items) + 12.0 * batch * k
        ),
        again=("bench_topk", arguments | {"vectors": vectors}),
    )


def agree(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Return the worst deviation of a score, relative to the largest; rounding may swap items."""
    differs = float((got[1] != want[1]).float().mean())
    if differs > SWAPPED:
        raise AssertionError(f"{100 * differs:.2f} % of the items differ")
    return float((got[0] - want[0]).abs().max() / want[0][:, 0].abs().max())


def cases(size: str, device: str) -> Iterator[tuple[functools.partial[Problem], Budget]]:
    """What ``mmssl bench ops`` measures, by size."""
    make = functools.partial(problem, device=device)
    if size == "smoke":
        peers = ["reference", "by hand", "implicit", "faiss"]
        yield functools.partial(make, "smoke", users=100), Budget(0, 2, peers=peers)
        return
    for graph in ("tiktok", "sports", "gowalla"):
        for k in (20, 50, 1000):
            users = 9308 if graph == "tiktok" else None
            memory = graph == "sports" and k == 50
            yield functools.partial(make, graph, k, users=users), Budget(0, 3, memory=memory)
    for graph, k in (("tiktok", 20), ("sports", 20), ("sports", 50)):
        users = 9308 if graph == "tiktok" else None
        budget = Budget(0, 3, memory=False)
        yield functools.partial(make, graph, k, users=users, vectors="LightGCN"), budget
    for graph in ("sports", "gowalla"):  # the limit stays that of float32
        budget = Budget(0, 3, peers=["reference"], memory=False)
        yield functools.partial(make, graph, 20, dtype="bfloat16"), budget
    for d in (16, 32, 128, 256):
        budget = Budget(0, 3, peers=["by hand", "faiss"], memory=False)
        yield functools.partial(make, "sports", 50, d=d), budget
