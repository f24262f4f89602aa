"""Full ranking: score, mask and select against matmul + mask + topk and its relatives.

``python benchmarks/bench_topk.py [--smoke]`` prints a table: medians and quartiles of rounds in
which the peers take turns, each with one call that is not timed and some that are, so that no peer
starts in caches that another has filled; and the share of the limit, which is the time of the
scores' multiply-adds alone at the rate of benchmarks/probes.py. ``MMSSL_DATA=folder`` takes the
real graphs; embeddings are drawn. Neither implicit nor faiss does the same job: implicit keeps no
order among equal scores, faiss can't leave out items per user (it ranks without any mask here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads  # noqa: E402
from benchmarks.probes import fma_gflop_s  # noqa: E402
from mmssl import ops  # noqa: E402
from mmssl.graph import GraphView  # noqa: E402
from mmssl.ops.reference import edges_of_rows  # noqa: E402

D = 64
CALLS = 3  # timed ones per turn
MOST_USERS = 4096  # of the larger graphs
MOST_SCORES = 1 << 28  # what "whole" may form at once: 1 GB
UNMASKED = ("faiss",)


class Problem(NamedTuple):
    """Rank all items for some users."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    users: Tensor  # (B,)
    view: GraphView  # (U, I)
    k: int


Lists = tuple[Tensor, Tensor]
Ranking = Callable[[], Lists]


class NotHere(Exception):
    """Why a peer is left out."""


def native(p: Problem) -> Ranking:
    def rank() -> Lists:
        with ops.backend("native"):
            return ops.masked_topk(p.user, p.item, p.k, users=p.users, exclude=p.view)

    return rank


def reference(p: Problem) -> Ranking:
    def rank() -> Lists:
        with ops.backend("reference"):
            return ops.masked_topk(p.user, p.item, p.k, users=p.users, exclude=p.view)

    return rank


def _score_mask_select(user: Tensor, item: Tensor, row: Tensor, col: Tensor, k: int) -> Lists:
    score = user @ item.T
    score[row, col] = -torch.inf
    return tuple(score.topk(k, dim=1))


def _whole_edges(p: Problem) -> Lists:
    if p.users.numel() * p.item.shape[0] > MOST_SCORES:
        raise NotHere(f"its scores would exceed {4 * MOST_SCORES >> 30} GB")
    return edges_of_rows(p.view, p.users)


def whole(p: Problem) -> Ranking:
    """What one writes by hand: one matrix of scores; the edges are looked up in every call."""
    _whole_edges(p)

    def rank() -> Lists:
        row, col = edges_of_rows(p.view, p.users)
        return _score_mask_select(p.user[p.users], p.item, row, col, p.k)

    return rank


def compiled(p: Problem) -> Ranking:
    """The same under torch.compile, with the edges looked up beforehand."""
    row, col = _whole_edges(p)
    function = torch.compile(_score_mask_select, dynamic=False)
    return lambda: function(p.user[p.users], p.item, row, col, p.k)


def implicit(p: Problem) -> Ranking:
    try:
        import scipy.sparse
        from implicit.cpu.topk import topk
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise NotHere(str(error)) from None
    shape = (p.view.num_rows, p.view.num_cols)
    ones = torch.ones(p.view.nnz).numpy()
    matrix = scipy.sparse.csr_matrix((ones, p.view.col.numpy(), p.view.rowptr.numpy()), shape=shape)
    own = matrix[p.users.numpy()]
    item, query = p.item.numpy(), p.user[p.users].numpy()

    def rank() -> Lists:
        with threadpool_limits(1, "blas"):  # it calls BLAS from threads of its own
            found, score = topk(item, query, p.k, filter_query_items=own, num_threads=threads)
        return torch.from_numpy(score), torch.from_numpy(found).long()

    threads = torch.get_num_threads()
    return rank


def faiss(p: Problem) -> Ranking:
    try:
        import faiss
    except ImportError as error:
        raise NotHere(str(error)) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(D)
    index.add(p.item.numpy())
    query = p.user[p.users].numpy()

    def rank() -> Lists:
        score, found = index.search(query, p.k)
        return torch.from_numpy(score), torch.from_numpy(found)

    return rank


PEERS: dict[str, Callable[[Problem], Ranking]] = {
    "native": native,
    "reference": reference,
    "whole": whole,
    "torch.compile": compiled,
    "implicit": implicit,
    "faiss": faiss,
}


def check(name: str, got: Lists, want: Lists, p: Problem) -> None:
    """The same scores; the same items but where rounding swaps neighbours."""
    atol = 1e-5 * float(want[0][:, 0].abs().max())
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=atol, msg=f"{name}: other scores")
    differs = float((got[1] != want[1]).float().mean())
    if differs > 1e-3:
        raise AssertionError(f"{name}: {100 * differs:.2f} % of the items differ")


def measure(name: str, k: int, rounds: int, most_users: int) -> dict[str, object]:
    workload = workloads.load(name)
    view = workload.graph.ui
    generator = torch.Generator().manual_seed(0)
    user, item = (
        torch.randn(rows, D, generator=generator) for rows in (view.num_rows, view.num_cols)
    )
    batch = min(view.num_rows, most_users)
    p = Problem(user, item, torch.arange(batch), view, k)
    peers, left_out = {}, {}
    for peer, make in PEERS.items():
        try:
            peers[peer] = make(p)
        except NotHere as reason:
            left_out[peer] = str(reason)
    expected = peers["reference"]()
    for peer, rank in peers.items():
        if peer not in UNMASKED:
            check(peer, rank(), expected, p)
    times: dict[str, list[float]] = {peer: [] for peer in peers}
    rates = []
    for _ in range(rounds):
        rates.append(fma_gflop_s(torch.get_num_threads()))
        for peer, rank in peers.items():
            rank()
            for _ in range(CALLS):
                start = time.perf_counter()
                rank()
                times[peer].append(time.perf_counter() - start)
    gflop = 2e-9 * batch * view.num_cols * D
    limit = gflop / statistics.median(rates)
    own = statistics.median(times["native"])
    rows = {}
    for peer, seconds in times.items():
        middle, quartiles = statistics.median(seconds), statistics.quantiles(seconds, n=4)
        rows[peer] = {
            "ms": 1e3 * middle,
            "quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "times_native": middle / own,
            "share_of_limit": limit / middle,
        }
        print(
            f"{workload.name:12s} {batch:6d} {k:5d} {peer:14s} {1e3 * middle:9.2f}"
            f" ({1e3 * quartiles[0]:.2f}-{1e3 * quartiles[2]:.2f})"
            f" {middle / own:6.1f}x {100 * limit / middle:5.0f} %"
        )
    for peer, reason in left_out.items():
        print(f"{workload.name:12s} {batch:6d} {k:5d} {peer:14s} left out: {reason}")
    return {
        "name": workload.name,
        "users": batch,
        "items": view.num_cols,
        "k": k,
        "fma_gflop_s": statistics.median(rates),
        "limit_ms": 1e3 * limit,
        "peers": rows,
        "left_out": left_out,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="500 users of TikTok, one round")
    parser.add_argument("--graphs", nargs="+", default=["tiktok", "sports", "gowalla"])
    parser.add_argument("--ks", nargs="+", type=int, default=[20, 50, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here (joins a file's own)")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, D = {D}, float32")
    print(f"{'graph':12s} {'users':>6s} {'k':>5s} {'peer':14s} {'ms':>9s}")
    results = []
    for name in ["tiktok"] if options.smoke else options.graphs:
        for k in [20] if options.smoke else options.ks:
            most = 500 if options.smoke else 1 << 30 if name == "tiktok" else MOST_USERS
            results.append(measure(name, k, 1 if options.smoke else options.rounds, most))
    if options.json:
        if options.json.exists():
            measured = {(r["name"], r["k"]) for r in results}
            old = json.loads(options.json.read_text())["rankings"]
            results = [r for r in old if (r["name"], r["k"]) not in measured] + results
        environment = {"torch": torch.__version__, "threads": threads, "d": D}
        text = json.dumps({"environment": environment, "rankings": results}, indent=1)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
