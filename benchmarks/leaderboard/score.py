"""The test split of a data set: overall metrics, those of groups, and Recall@20 of every user.

Legend: U users, I items, T users with test items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.leaderboard.records import pack
from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.evaluation import exposure
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.scorer import Scorer

KS = (10, 20)
METRICS = ("recall", "ndcg", "precision", "hit")
_GROUP_METRICS = ("recall", "ndcg")
FEW_EDGES = 5
"""Users with fewer train edges count as sparse."""


class FinalTest:
    """Ranks all items for the test users of a data set.

    The groups are the users with fewer than `FEW_EDGES` train edges (``sparse``), and, with only
    their test items as relevant ones, the items outside the fifth with most train edges (``tail``)
    and those without train edges (``cold``).
    """

    def __init__(self, dataset: InteractionDataset) -> None:
        self.graph = InteractionGraph.from_edges(
            *dataset.train, dataset.num_users, dataset.num_items
        )
        self.overall = Evaluator(dataset, "test", self.graph, ks=KS, metrics=METRICS)
        degree = self.graph.index.colptr.diff()
        head = exposure.by_popularity(degree)[: max(1, round(exposure.HEAD * degree.numel()))]
        in_tail = torch.ones(degree.numel(), dtype=torch.bool)
        in_tail[head] = False
        self.sparse = self.graph.index.rowptr.diff()[self.overall.users] < FEW_EDGES  # (T,)
        self.groups = {
            "tail": self._of_items(dataset, in_tail),
            "cold": self._of_items(dataset, degree == 0),
        }

    def _of_items(self, dataset: InteractionDataset, chosen: Tensor) -> Evaluator | None:
        """Return the evaluator of the users' test items that are ``chosen`` (I,)."""
        user, item = dataset.test
        kept = chosen.numpy()[item]
        if not kept.any():
            return None
        part = replace(dataset, features={}, masks={}, test=Interactions(user[kept], item[kept]))
        return Evaluator(part, "test", self.graph, ks=KS, metrics=_GROUP_METRICS)

    def score(self, scorer: Scorer) -> dict[str, Any]:
        """Return ``test``, ``groups``, ``coverage@20`` and ``users`` of a trained model."""
        every = self.overall.per_user(scorer)  # (T, metrics)
        keys = self.overall.keys
        sparse = every[self.sparse]
        groups: dict[str, Any] = {"sparse": {"users": sparse.shape[0]}}
        if sparse.shape[0]:
            means = zip(keys, sparse.mean(0).tolist(), strict=True)
            groups["sparse"] |= {k: v for k, v in means if k.startswith(_GROUP_METRICS)}
        for name, evaluator in self.groups.items():
            groups[name] = {"users": 0}
            if evaluator is not None:
                groups[name] = {
                    "users": evaluator.users.numel(),
                    **evaluator.evaluate(scorer),
                }
        most = min(max(KS), self.graph.num_items)
        _, lists = scorer.best(self.overall.users, most, self.graph.ui)
        return {
            "test": dict(zip(keys, every.mean(0).tolist(), strict=True)),
            "groups": groups,
            "coverage@20": exposure.coverage(lists, self.graph.num_items),
            "users": pack(np.asarray(every[:, keys.index("recall@20")])),
        }
