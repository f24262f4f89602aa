"""Full-ranking evaluation against the released one (benchmarks/peers) and a dense torch ranking.

``python benchmarks/bench_evaluate.py [--smoke] [--data tiktok baby ml1m gowalla] [--json F]``
checks that all give the same metrics for seeded embeddings, then times them in turns. The released
evaluation takes minutes on the larger sets, so it ranks some of the users, and a quarter of those,
and the line through the two times (its pool costs something once) is extended to all users.
``MMSSL_DATA=folder`` takes the real sets.

Legend: U users, I items, D embedding dim, T users with a test item.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure, workloads
from benchmarks.measure import Timing
from benchmarks.peers import ReleasedEvaluation
from benchmarks.peers.evaluation import NAMES
from mmssl.data.dataset import Interactions
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.ops.reference import edges_of_rows

D = 64
K = 50
BLOCK_ELEMENTS = 1 << 24  # of a block of scores in the dense torch ranking: 64 MB


def embeddings(test: Interactions, num_users: int, num_items: int) -> tuple[Tensor, Tensor]:
    """Seeded (U, D) and (I, D), users pulled towards their test items so that there are hits."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randn(num_users, D, generator=generator)
    item = torch.randn(num_items, D, generator=generator)
    wanted = item[torch.from_numpy(test.item)]
    return user.index_add(0, torch.from_numpy(test.user), wanted, alpha=0.25), item


def torch_topk(user: Tensor, item: Tensor, users: Tensor, graph: InteractionGraph) -> Tensor:
    """(T, K) items by matmul, mask and topk: what one writes without an op."""
    lists, block = [], max(1, BLOCK_ELEMENTS // len(item))
    for start in range(0, users.numel(), block):
        ids = users[start : start + block]
        score = user[ids] @ item.T
        score[edges_of_rows(graph.ui, ids)] = -torch.inf
        lists.append(score.topk(min(K, len(item)), dim=1).indices)
    return torch.cat(lists)


def released(graph: InteractionGraph, test: Interactions, workers: int) -> ReleasedEvaluation:
    """The released evaluation of the test lists."""
    rowptr = graph.index.rowptr.numpy()
    train = [row.tolist() for row in np.split(graph.index.col.numpy(), rowptr[1:-1])]
    users, first = np.unique(test.user, return_index=True)
    lists = [row.tolist() for row in np.split(test.item, first[1:])]
    relevant = dict(zip(users.tolist(), lists, strict=True))
    return ReleasedEvaluation(train, relevant, graph.num_items, workers=workers)


def check_agreement(
    name: str, got: dict[str, float], expected: dict[str, float], users: int
) -> None:
    """The metrics of two evaluations; one pair of items may swap, their scores being one ulp."""
    for key, value in expected.items():
        error = abs(got[key] - value)
        assert error <= 1.0 / users, f"{name}: {key} is {got[key]}, expected {value}"


def time_released(
    peer: ReleasedEvaluation, user: Tensor, item: Tensor, some: list[int], count: int, rounds: int
) -> Timing:
    """Seconds of ``count`` users from those of ``some`` of them."""
    if len(some) == count:
        return measure.take_turns({"all": lambda: peer.evaluate(user, item)}, rounds)["all"]
    few = some[::4]
    jobs: dict[str, measure.Job] = {
        "some": lambda: peer.evaluate(user, item, some),
        "few": lambda: peer.evaluate(user, item, few),
    }
    times = measure.take_turns(jobs, rounds)
    per_user = (times["some"].median - times["few"].median) / (len(some) - len(few))
    rest = (count - len(some)) * per_user
    measured = times["some"]
    return Timing(*(seconds + rest for seconds in measured[:3]), measured.runs)


def run(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Agreement, then times, on one set."""
    workload = workloads.load(data)
    graph = workload.graph
    held_out = workloads.held_out(data, graph)
    user, item = embeddings(held_out.test, graph.num_users, graph.num_items)
    ours = Evaluator(held_out, "test", graph, metrics=("recall", "ndcg", *NAMES[1:]))
    everyone = ours.users.tolist()
    some = everyone[:: max(1, len(everyone) // options.users)][: options.users]
    peers = {workers: released(graph, held_out.test, workers) for workers in options.workers}
    print(
        f"\n{workload.name}: {len(everyone)} users with a test item, {graph.num_items} items, "
        f"D = {D}"
    )

    per_user = ours.per_user(user, item)
    position = torch.searchsorted(ours.users, torch.tensor(some))
    means = dict(zip(ours.keys, per_user[position].mean(0).tolist(), strict=True))
    checked = {key: means[key] for key in means if not key.startswith("ndcg@")}
    for workers, peer in peers.items():
        check_agreement(f"released, {workers}", peer.evaluate(user, item, some), checked, len(some))
    dense = ours.evaluate_lists(torch_topk(user, item, ours.users, graph))
    check_agreement("torch", dense, ours.evaluate(user, item), len(everyone))
    print(f"agreement on {len(some)} users, {len(checked)} metrics: ndcg@20 {means['ndcg@20']:.4f}")

    jobs: dict[str, measure.Job] = {
        "mmssl": lambda: ours.evaluate(user, item),
        "torch matmul + mask + topk": lambda: ours.evaluate_lists(
            torch_topk(user, item, ours.users, graph)
        ),
    }
    rows = measure.take_turns(jobs, options.rounds, warmup=1)
    for workers, peer in peers.items():
        name = f"released, {workers} process{'es' if workers > 1 else ''}"
        rows[name] = time_released(peer, user, item, some, len(everyone), options.peer_rounds)
    if len(some) < len(everyone):
        print(f"released: measured on {len(some)} users, extended to {len(everyone)}")
    print(f"{'':28s} {'median, s':>10s} {'quartiles':>17s} {'users/s':>9s} {'times ours':>10s}")
    for name, timing in rows.items():
        quartiles = f"{timing.low:.3f}-{timing.high:.3f}"
        print(
            f"{name:28s} {timing.median:10.3f} {quartiles:>17s} "
            f"{len(everyone) / timing.median:9.0f} {timing.median / rows['mmssl'].median:9.1f}x"
        )
    return {
        "data": workload.name,
        "users": len(everyone),
        "users_of_the_released": len(some),
        "seconds": {name: timing._asdict() for name, timing in rows.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny set, seconds")
    default = ["tiktok", "baby", "ml1m", "gowalla"]
    parser.add_argument("--data", nargs="+", default=default, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=1000, help="that the released one ranks")
    parser.add_argument("--peer-rounds", type=int, default=1, help="of the released evaluation")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.data, options.rounds, options.users = ["smoke"], 2, 100
    print(measure.heading())
    results = [run(data, options) for data in options.data]
    measure.write_json(options.json, results=results, d=D)


if __name__ == "__main__":
    main()
