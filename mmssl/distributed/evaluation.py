"""Evaluation of embeddings that are divided over processes.

Users stay where they are; the items of every process travel to all others, one block after the
other, and the best items of the blocks are merged.

Legend: U' users and I' items of this process, D embedding dim, K the longest list ranked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Partition, within
from mmssl.evaluation.evaluator import Evaluator, Split
from mmssl.graph import GraphView, InteractionGraph
from mmssl.indexing import pointers
from mmssl.models.embeddings import Embeddings
from mmssl.models.scorer import Scorer, check_values

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset, Interactions

# The lists of these users are in memory while the items travel once: 200 MB for lists of 50.
_BLOCK_USERS = 1 << 18


class OwnUsers(NamedTuple):
    """The held-out interactions of this process's users, counted from its first one."""

    num_users: int
    num_items: int
    val: Interactions
    test: Interactions


class ShardedEvaluator(Evaluator):
    """An evaluator of :class:`mmssl.models.embeddings.Embeddings` with the rows of this process.

    Args:
        dataset: This process's part of the data set.
        split: "val" or "test".
        own: (U', I) train edges of this process's users, counted from its first one.
        partition: Which process holds which user and item.
        group: The processes, all of which call :meth:`evaluate` together.
    """

    def __init__(
        self,
        dataset: InteractionDataset,
        split: Split,
        own: InteractionGraph,
        partition: Partition,
        group: Processes,
    ) -> None:
        first = partition.own_users.start
        held_out = OwnUsers(
            own.num_users,
            dataset.num_items,
            *(_counted_from(first, edges) for edges in (dataset.val, dataset.test)),
        )
        super().__init__(held_out, split, own, group=group)
        self._processes = group
        self._partition = partition
        count = torch.tensor([self.users.numel()], dtype=torch.int64)
        self._num_evaluated = int(group.sum(count.clone()))
        blocks = [-(-int(count) // _BLOCK_USERS) if rank == group.rank else 0
                  for rank in range(group.size)]  # fmt: skip
        self._rounds = int(group.sum(torch.tensor(blocks)).max())

    def evaluate(self, scorer: Scorer | Tensor, item_emb: Tensor | None = None) -> dict[str, float]:
        """Compute the mean metrics over the users of all processes; see the base class.

        Args:
            scorer: Embeddings of the users (U', D) and items (I', D) of this process.
            item_emb: The items, if ``scorer`` is the table of the users.
        """
        if isinstance(scorer, Tensor):
            assert item_emb is not None
            scorer = Embeddings(scorer, item_emb)
        assert isinstance(scorer, Embeddings)
        scorer.check(self._view.num_rows, self._partition.items.count(self._partition.rank))
        check_values(scorer.tensors(), self.users.device)
        total = self._processes.sum(self._total(self._lists(scorer)))
        return dict(zip(self.keys, (total / self._num_evaluated).tolist(), strict=True))

    @torch.no_grad()
    def _lists(self, embeddings: Embeddings) -> Iterator[tuple[int, Tensor]]:
        """Yield (first index into `users`, (B, K) ranked items) for each block of users."""
        for number in range(self._rounds):
            start = number * _BLOCK_USERS
            users = self.users[start : start + _BLOCK_USERS]
            yield start, self._best(embeddings, users)

    def _best(self, embeddings: Embeddings, users: Tensor) -> Tensor:
        k, ranges = self.list_length, self._partition.items
        scores = embeddings.user.new_empty(users.numel(), 0)
        items = users.new_empty(users.numel(), 0)
        for owner in range(self._processes.size):
            block = embeddings.item
            if owner != self._processes.rank:
                block = block.new_empty(ranges.count(owner), block.shape[1])
            block = block.contiguous()
            self._processes.broadcast(block, owner)
            view = _columns(self._view, ranges.of(owner))
            found, place = ops.masked_topk(embeddings.user, block, k, users=users, exclude=view)
            place = torch.where(place >= 0, place + ranges.of(owner).start, place)
            scores, items = torch.cat([scores, found], 1), torch.cat([items, place], 1)
            # Blocks come in the order of their ids and the sort is stable: ties by smaller id.
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores, items = scores[:, :k], items.gather(1, order)[:, :k]
        return items


def _counted_from(first: int, edges: Interactions) -> Interactions:
    user, item = (np.array(ids, dtype=np.int64) for ids in edges)  # they may be mapped
    return edges._replace(user=user - first, item=item)


def _columns(view: GraphView, columns: slice) -> GraphView:
    """Return some columns of a view as a view for ``masked_topk``, which reads no transpose."""
    mine = within(view.col, columns)
    count = torch.zeros(view.nnz + 1, dtype=torch.int64, device=view.device)
    torch.cumsum(mine, 0, out=count[1:])
    return GraphView(
        rowptr=count[view.rowptr],
        col=view.col[mine] - columns.start,
        t_rowptr=pointers(view.col[:0], columns.stop - columns.start),
        t_col=view.col[:0],
    )
