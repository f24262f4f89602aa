"""Full ranking as the released evaluation runs it: dense scores, a Python heap and loops per user.

Legend: U users, I items, D embedding dim.
"""

from __future__ import annotations

import heapq
import math
import multiprocessing
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Metrics = dict[str, list[float]]
NAMES = ("recall", "precision_released", "ndcg_released", "hit")


class ReleasedEvaluation:
    """Ranks the items of every user that has a held-out list.

    Args:
        train_items: U lists of items that are not ranked.
        held_out: user -> items, none empty.
        num_items: I.
        ks: cut-offs.
        workers: 1 ranks in this process; more share the users of a block, as the released code
            does with a pool made for each evaluation.
        block_users: users whose scores are formed at once.
    """

    def __init__(
        self,
        train_items: Sequence[list[int]],
        held_out: dict[int, list[int]],
        num_items: int,
        *,
        ks: tuple[int, ...] = (10, 20, 50),
        workers: int = 1,
        block_users: int = 2048,
    ) -> None:
        self.ks = ks
        self.workers = workers
        self.block_users = block_users
        self._world = (train_items, held_out, num_items, ks)
        self.users = list(held_out)

    def evaluate(
        self, user_emb: Tensor, item_emb: Tensor, users: list[int] | None = None
    ) -> dict[str, float]:
        """Means over the users (all with a held-out list if None) of (U, D) by (I, D) scores."""
        users = self.users if users is None else users
        totals = {name: np.zeros(len(self.ks)) for name in NAMES}
        pool = None
        if self.workers > 1:
            # By fork, so that the workers inherit the lists instead of being sent them.
            context = multiprocessing.get_context("fork")
            pool = context.Pool(self.workers, initializer=_enter, initargs=self._world)
        else:
            _enter(*self._world)
        try:
            for start in range(0, len(users), self.block_users):
                block = users[start : start + self.block_users]
                score = torch.mm(user_emb[block], item_emb.T).cpu().numpy()  # (block, I)
                jobs = zip(block, score, strict=True)
                results = pool.map(_rank_user, jobs) if pool else map(_rank_user, jobs)
                for result in results:
                    for name, values in result.items():
                        totals[name] += np.array(values)
        finally:
            if pool is not None:
                pool.terminate()
                pool.join()
        return {
            f"{name}@{k}": float(total[n] / len(users))
            for name, total in totals.items()
            for n, k in enumerate(self.ks)
        }


_world: tuple[Sequence[list[int]], dict[int, list[int]], int, tuple[int, ...]] | None = None


def _enter(*world: object) -> None:
    """Store the lists that every worker needs."""
    global _world
    _world = world  # type: ignore[assignment]


def _rank_user(job: tuple[int, np.ndarray]) -> Metrics:
    """The metrics of one user from its (I,) scores."""
    assert _world is not None
    user, score = job
    train_items, held_out, num_items, ks = _world
    candidates = list(set(range(num_items)) - set(train_items[user]))
    score_of = {item: score[item] for item in candidates}
    ranked = heapq.nlargest(max(ks), score_of, key=score_of.get)
    relevant = held_out[user]
    hits = [1 if item in relevant else 0 for item in ranked]
    ideal = sorted(hits, reverse=True)
    result: Metrics = {name: [] for name in NAMES}
    for k in ks:
        found = sum(hits[:k])
        best = _dcg(ideal[:k])
        result["recall"].append(found / len(relevant))
        result["precision_released"].append(found / max(len(hits[:k]), 1))
        result["ndcg_released"].append(_dcg(hits[:k]) / best if best else 0.0)
        result["hit"].append(1.0 if found else 0.0)
    return result


def _dcg(hits: list[int]) -> float:
    return sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
