"""Full-ranking evaluation compared with the released one and with a dense ranking in torch.

All must first give the same metrics for seeded embeddings. The released evaluation takes minutes on
the larger sets, so it is timed on some of the users and on a quarter of those, and the line through
the two times (starting its pool has a fixed cost) is extrapolated to all users. ``mmssl bench
evaluate`` runs these cases; ``benchmarks/test_speed.py`` times ours alone.

Legend: U users, I items, D embedding dim, T users with a test item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.harness import environment
from benchmarks.harness.clock import Work, clock_of, ratios, take_turns
from benchmarks.harness.record import Case, Row, Spread, Timing
from benchmarks.peers.evaluation import NAMES, ReleasedEvaluation
from mmssl.data.dataset import Interactions
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.indexing import row_edges

D = 64
K = 50
BLOCK_ELEMENTS = 1 << 24  # block of scores in the dense torch ranking: 64 MB
OURS = "mmssl"
DENSE = "torch: matmul, mask, topk"


def embeddings(test: Interactions, num_users: int, num_items: int) -> tuple[Tensor, Tensor]:
    """Return seeded (U, D) and (I, D), users pulled towards their test items so that some hit."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randn(num_users, D, generator=generator)
    item = torch.randn(num_items, D, generator=generator)
    wanted = item[torch.from_numpy(test.item)]
    return user.index_add(0, torch.from_numpy(test.user), wanted, alpha=0.25), item


def torch_topk(user: Tensor, item: Tensor, users: Tensor, graph: InteractionGraph) -> Tensor:
    """Return (T, K) items by matmul, mask and topk, as one writes it without an op."""
    lists, block = [], max(1, BLOCK_ELEMENTS // len(item))
    for start in range(0, users.numel(), block):
        ids = users[start : start + block]
        score = user[ids] @ item.T
        score[row_edges(graph.ui.rowptr, graph.ui.col, ids)[:2]] = -torch.inf
        lists.append(score.topk(min(K, len(item)), dim=1).indices)
    return torch.cat(lists)


def released(graph: InteractionGraph, test: Interactions, workers: int) -> ReleasedEvaluation:
    """Return the released evaluation of the test lists."""
    rowptr = graph.index.rowptr.cpu().numpy()
    train = [row.tolist() for row in np.split(graph.index.col.cpu().numpy(), rowptr[1:-1])]
    users, first = np.unique(test.user, return_index=True)
    lists = [row.tolist() for row in np.split(test.item, first[1:])]
    relevant = dict(zip(users.tolist(), lists, strict=True))
    return ReleasedEvaluation(train, relevant, graph.num_items, workers=workers)


def difference(got: dict[str, float], expected: dict[str, float]) -> float:
    """Return the largest difference of two evaluations over the expected metrics."""
    return max(abs(got[key] - value) for key, value in expected.items())


def _check(name: str, error: float, users: int) -> float:
    """Allow one pair of items to swap, since their scores may differ by one ulp."""
    assert error <= 1.0 / users, f"{name}: a metric is off by {error}"
    return error


def time_released(
    peer: ReleasedEvaluation, user: Tensor, item: Tensor, some: list[int], count: int, turns: int
) -> Timing:
    """Return the time for ``count`` users, extrapolated from ``some`` of them."""
    few = some[::4]
    works = {
        "some": Work(lambda: peer.evaluate(user, item, some)),
        "few": Work(lambda: peer.evaluate(user, item, few)),
    }
    found = take_turns(works, clock_of("cpu"), seconds=0, turns=turns, most_calls=1, warm_up=False)
    times = {name: Timing.of([c.full for t in found[name] for c in t]) for name in works}
    per_user = (times["some"].median_ms - times["few"].median_ms) / max(1, len(some) - len(few))
    rest = (count - len(some)) * per_user
    return Timing(*(ms + rest for ms in times["some"][:3]), times["some"].calls)


class Prepared(NamedTuple):
    """A data set with embeddings, and what is timed on it: ours and a dense ranking that agrees."""

    name: str
    graph: InteractionGraph
    test: Interactions
    evaluator: Evaluator
    user: Tensor
    item: Tensor
    works: dict[str, Work]
    error: float


def prepare(data: str, device: str) -> Prepared:
    """Draw embeddings for one data set and check that the two rankings agree."""
    name, graph = workloads.load(data)
    held_out = workloads.held_out(data, graph)
    graph = graph.to(device)
    user, item = embeddings(held_out.test, graph.num_users, graph.num_items)
    user, item = user.to(device), item.to(device)
    ours = Evaluator(held_out, "test", graph, metrics=("recall", "ndcg", *NAMES[1:]))

    def dense() -> dict[str, float]:
        return ours.evaluate_lists(torch_topk(user, item, ours.users, graph))

    works = {OURS: Work(lambda: ours.evaluate(user, item)), DENSE: Work(dense)}
    error = _check(DENSE, difference(dense(), ours.evaluate(user, item)), ours.users.numel())
    return Prepared(name, graph, held_out.test, ours, user, item, works, error)


def measure(
    data: str,
    device: str,
    *,
    users: int = 1000,
    workers: Sequence[int] = (1, 2),
    turns: int = 7,
    peers: Sequence[str] | None = None,
) -> Case:
    """Check agreement, then time, on one data set."""
    name, graph, test, ours, user, item, works, error = prepare(data, device)
    everyone = ours.users.tolist()
    some = everyone[:: max(1, len(everyone) // users)][:users]
    per_user = ours.per_user(user, item)
    position = torch.searchsorted(ours.users, torch.tensor(some, device=device))
    means = dict(zip(ours.keys, per_user[position].mean(0).tolist(), strict=True))
    checked = {key: means[key] for key in means if not key.startswith("ndcg@")}
    found = take_turns(works, clock_of(device), seconds=0, turns=turns, most_calls=3)
    rows = {
        key: Row(
            Timing.of([c.full for t in found[key] for c in t]),
            relative=Spread.of(ratios(found, key, OURS)),
        )
        for key in works
    }
    rows[DENSE].error = error
    for count in workers:
        key = f"released, {count} process{'es' if count > 1 else ''}"
        if peers is not None and key not in peers:
            continue
        peer = released(graph, test, count)
        error = _check(key, difference(peer.evaluate(user, item, some), checked), len(some))
        timing = time_released(peer, user, item, some, len(everyone), turns=1)
        note = f"measured on {len(some)} users, extended to {len(everyone)}"
        ratio = timing.median_ms / rows[OURS].full.median_ms
        rows[key] = Row(timing, relative=Spread.of([ratio]), error=error, note=note)
    sizes = {"users": len(everyone), "items": graph.num_items, "d": D}
    return Case("evaluation", name, "float32", sizes, OURS, rows, commit=environment.commit())


def cases(size: str, device: str, peers: Sequence[str] | None) -> Iterator[Case]:
    """What ``mmssl bench evaluate`` measures, by size."""
    if size == "smoke":
        yield measure("smoke", device, users=100, workers=(1,), turns=2, peers=peers)
        return
    for data in ("tiktok", "baby", "ml1m", "gowalla"):
        yield measure(data, device, peers=peers)
