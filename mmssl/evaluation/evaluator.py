"""Full-ranking evaluation of a model on a held-out split.

Legend: U users, I items, D embedding dim, T users with a non-empty held-out list, B users of a
block, K the longest list ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from mmssl.distributed.group import SINGLE, Group
from mmssl.errors import InputError
from mmssl.evaluation import metrics as M
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.scorer import Scorer, check_values

if TYPE_CHECKING:
    from mmssl.data.dataset import Interactions

Split = Literal["val", "test"]


class HeldOut(Protocol):
    """What evaluation needs of a data set, as a data set has it."""

    @property
    def num_users(self) -> int:
        """U."""

    @property
    def num_items(self) -> int:
        """I."""

    @property
    def val(self) -> Interactions:
        """Relevant items for the selection of a model."""

    @property
    def test(self) -> Interactions:
        """Relevant items for the final evaluation."""


# The scores of all these users are never materialized. The block only limits the memory of the
# ranked lists and hits (26 MB for lists of 50 int64 items).
_BLOCK_USERS = 1 << 16


class Evaluator:
    """Full-ranking evaluator of a held-out split.

    It follows the protocol of the released MMSSL code and of LightGCN: the user's train items are
    excluded, ties are broken by smaller item id, and metrics are averaged over the users whose
    held-out list is not empty. Held-out items of the other split are *not* excluded.

    Example:
        >>> evaluator = Evaluator(dataset, "val", graph)
        >>> evaluator.evaluate(user_emb, item_emb)["recall@20"]
    """

    def __init__(
        self,
        dataset: HeldOut,
        split: Split,
        graph: InteractionGraph,
        *,
        ks: tuple[int, ...] = (10, 20, 50),
        metrics: tuple[str, ...] = M.STANDARD,
        group: Group = SINGLE,
    ) -> None:
        """Prepare the relevant items of a split.

        Args:
            dataset: Data set whose ``val`` or ``test`` interactions are the relevant items.
            split: Split to evaluate, "val" or "test".
            graph: The *train* graph, whose edges are excluded from the ranking. Evaluation runs on
                its device, on which the scores must be.
            ks: Cutoffs of the metrics.
            metrics: Names of metrics, keys of `mmssl.evaluation.METRICS`.
            group: The processes that share the users of :meth:`evaluate`; all of them get the
                metrics of all users.

        Raises:
            InputError: The split, a metric or a cutoff is invalid, the graph has other numbers of
                users or items than the data set, or the split is empty.
        """
        if split not in ("val", "test"):
            raise InputError(f"split: expected 'val' or 'test', got {split!r}")
        expected = (dataset.num_users, dataset.num_items)
        got = (graph.num_users, graph.num_items)
        if got != expected:
            raise InputError(f"graph: expected (users, items) = {expected}, got {got}")
        self.ks = tuple(ks)
        self.metrics = tuple(metrics)
        self.keys = M.keys(self.metrics, self.ks)
        self.split = split
        self.group = group
        self._view = graph.ui
        self._num_items = dataset.num_items

        interactions = dataset.val if split == "val" else dataset.test
        user = torch.as_tensor(interactions.user, dtype=torch.int64)
        item = torch.as_tensor(interactions.item, dtype=torch.int64)
        # A process of a group may have none.
        if int(group.sum(torch.tensor(user.numel()))) == 0:
            raise InputError(f"split {split!r}: expected at least one interaction, got none")
        # A sorted array of user * I + item, in which a binary search finds relevant items.
        self._relevant = (user * dataset.num_items + item).sort().values.to(graph.device)
        users, counts = torch.unique(user, return_counts=True)
        self.users = users.to(graph.device)  # (T,) int64, ascending
        self._num_relevant = counts.to(graph.device)  # (T,) int64

    @property
    def list_length(self) -> int:
        """Length K of the ranked lists: the largest cutoff, at most the number of items."""
        return min(max(self.ks), self._num_items)

    def evaluate(self, scorer: Scorer | Tensor, item_emb: Tensor | None = None) -> dict[str, float]:
        """Compute the mean metrics of a model's rankings.

        ``evaluate(user_emb, item_emb)`` stands for ``evaluate(Embeddings(user_emb, item_emb))``.

        Args:
            scorer: What ranks items, on the graph's device; or (U, D) floating-point user
                embeddings.
            item_emb: (I, D) item embeddings, with the dtype and device of the user embeddings.

        Returns:
            One number per metric and cutoff, e.g. ``{"recall@10": ..., "recall@20": ...}``.

        Raises:
            InputError: A tensor has the wrong shape or device, or contains NaN or infinity, which
                leaves the ranking undefined.
        """
        part = self.group.part(self.users.numel())
        total = self._total(self._rank(self._checked(scorer, item_emb), part))
        return self._mean(self.group.sum(total))

    def per_user(self, scorer: Scorer | Tensor, item_emb: Tensor | None = None) -> Tensor:
        """Compute the metrics of each user, for paired tests between models.

        Args:
            scorer: As in `evaluate`.
            item_emb: As in `evaluate`.

        Returns:
            (T, len(keys)) float64; row t belongs to user ``users[t]`` and columns are `keys`.

        Raises:
            InputError: As `evaluate`.
        """
        lists = self._rank(self._checked(scorer, item_emb), slice(0, self.users.numel()))
        return torch.cat([self._score(*block) for block in lists])

    def evaluate_lists(self, items: Tensor) -> dict[str, float]:
        """Compute the mean metrics of given lists, for recommenders outside this package.

        Args:
            items: (T, K) int64 ranked items of each of `users`, best first, unique and without
                train items; short lists are padded with -1.

        Returns:
            One number per metric and cutoff.

        Raises:
            InputError: ``items`` has the wrong shape or contains an id out of range.
        """
        if items.dim() != 2 or items.shape[0] != self.users.numel():
            raise InputError(
                f"items: expected shape ({self.users.numel()}, K), got {tuple(items.shape)}"
            )
        if items.numel() and (int(items.max()) >= self._num_items or int(items.min()) < -1):
            raise InputError(
                f"items: expected ids in [0, {self._num_items}) or -1, "
                f"got {int(items.min())} to {int(items.max())}"
            )
        items = items.to(self.users.device)
        blocks = range(0, self.users.numel(), _BLOCK_USERS)
        lists = ((start, items[start : start + _BLOCK_USERS]) for start in blocks)
        return self._mean(self._total(lists))

    @torch.no_grad()
    def _rank(self, scorer: Scorer, part: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield (first index into `users`, (B, K) ranked items) for each block of a part."""
        for start in range(part.start, part.stop, _BLOCK_USERS):
            users = self.users[start : min(start + _BLOCK_USERS, part.stop)]
            _, items = scorer.best(users, self.list_length, self._view)
            yield start, items

    def _score(self, start: int, items: Tensor) -> Tensor:
        """Compute (B, len(keys)) float64 metrics of the lists of users[start : start + B]."""
        users = self.users[start : start + items.shape[0], None]
        real = items >= 0
        key = users * self._num_items + items
        position = torch.searchsorted(self._relevant, key).clamp(max=self._relevant.numel() - 1)
        # `real` is required: padding (-1) has the same key as the previous user's last item.
        hits = (self._relevant[position] == key) & real
        ranked = M.RankedHits(
            hits=hits,
            list_length=real.sum(dim=1),
            num_relevant=self._num_relevant[start : start + items.shape[0]],
        )
        return M.compute(ranked, self.metrics, self.ks)

    def _total(self, lists: Iterable[tuple[int, Tensor]]) -> Tensor:
        """Sum the metrics (len(keys),) over users."""
        total = torch.zeros(len(self.keys), dtype=torch.float64, device=self.users.device)
        for start, items in lists:
            total += self._score(start, items).sum(dim=0)
        return total

    def _mean(self, total: Tensor) -> dict[str, float]:
        return dict(zip(self.keys, (total / self.users.numel()).tolist(), strict=True))

    def _checked(self, scorer: Scorer | Tensor, item_emb: Tensor | None) -> Scorer:
        if isinstance(scorer, Tensor):
            if not isinstance(item_emb, Tensor):
                raise InputError(f"item_emb: expected a tensor, got {type(item_emb).__name__}")
            scorer = Embeddings(scorer, item_emb)
        scorer.check(self._view.num_rows, self._num_items)
        check_values(scorer.tensors(), self.users.device)
        return scorer
