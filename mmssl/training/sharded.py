"""Training with users and items divided over processes.

Every process holds the rows of its users and items: of the graph, of the parameters and of the
optimizer's moments. All of them compute the loss of the whole batch, from the batch's rows.

Legend: U users, I items, D embedding dim, n train edges, B batch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.distributed.dataset import DatasetPart
from mmssl.distributed.draws import shuffled, uniform
from mmssl.distributed.evaluation import ShardedEvaluator
from mmssl.distributed.group import SINGLE, Processes
from mmssl.distributed.partition import Ranges, draw_tables, within
from mmssl.distributed.rows import gathered
from mmssl.distributed.sharded_graph import ShardedGraph, edges_of_items
from mmssl.distributed.storage import ShardedStore
from mmssl.evaluation.evaluator import Evaluator, Split
from mmssl.graph import InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.ops import Triples
from mmssl.training.pairwise import (
    NEGATIVES_AT_ONCE,
    PairwiseConfig,
    PairwiseTask,
    some_edges,
)
from mmssl.training.store import Store
from mmssl.training.task import Task

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.training.run import RunDirectory

Model = TypeVar("Model", bound=nn.Module)
Settings = TypeVar("Settings", bound=PairwiseConfig)

# The names of tensors with a row per user or item, in checkpoints and in the exported model. The
# first parameters of a model are the table of users and the table of items.
_TABLES = re.compile(
    r"(best\.)?embedding\.(?P<kind>user|item)"
    r"|(model|parameter|best\.parameter)\.(?P<table>user|item)_embedding"
    r"|optimizer\.(?P<index>[01])\.exp_avg(_sq)?"
)


class ShardedTask(Task):
    """Part of a task that divides its users and items.

    Batches, initial values and losses are those of a single process. ``graph`` has the train edges
    of this process's users, counted from its first one, and ``sharded`` both directions.

    Args:
        dataset: This process's part of the data, see :func:`mmssl.distributed.dataset.read_part`.
        config: The complete configuration.
        device: "cpu" or a CUDA device.
        group: The processes.
    """

    shards: Processes
    users_of_items: Tensor
    """(I,) number of train users of every item, of all processes."""

    def build_graph(self, dataset: InteractionDataset) -> InteractionGraph:
        """Divide the graph; return the train edges of this process's users."""
        assert isinstance(self.group, Processes) and isinstance(dataset, DatasetPart)
        # Towards the base class this process is alone: it computes the loss of the whole batch.
        self.shards, self.group = self.group, SINGLE
        self.partition = dataset.partition
        self.users_of_items = torch.from_numpy(dataset.item_degree).to(self.device)
        # Mapped records are copied here, and int32.
        user, item = (
            torch.from_numpy(np.array(ids, dtype=np.int64)).to(self.device) for ids in dataset.train
        )
        self.sharded = ShardedGraph(
            self.shards,
            self.partition,
            (user, item),
            edges_of_items(self.shards, self.partition.items, user, item),
            normalization=self.normalization,
            wire=torch.bfloat16 if self.config.training.wire == "bfloat16" else None,
        )
        own = self.partition.own_users
        return InteractionGraph.from_edges(
            user - own.start, item, own.stop - own.start, dataset.num_items, normalization="none"
        )

    def evaluator(self, dataset: InteractionDataset, split: Split) -> Evaluator:
        """See the base class."""
        return ShardedEvaluator(dataset, split, self.graph, self.partition, self.shards)

    def store(self, run: RunDirectory) -> Store:
        """See the base class."""
        return ShardedStore(run, self.shards, self.layout)

    def layout(self, name: str) -> Ranges | None:
        """Return which process holds which rows of a tensor; None if each of them has all."""
        found = _TABLES.fullmatch(name)
        if found is None:
            return None
        kind = found["kind"] or found["table"] or ("user", "item")[int(found["index"])]
        return self.partition.users if kind == "user" else self.partition.items

    def user_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return rows (B, D) of a divided table of users, in every process."""
        return gathered(self.shards, table, self.partition.own_users, ids)

    def item_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return rows (B, D) of a divided table of items, in every process."""
        return gathered(self.shards, table, self.partition.own_items, ids)

    def batch_rows(self, tables: Embeddings, batch: Triples) -> tuple[Embeddings, Triples]:
        """Return the rows of a batch as tables of their own, and the batch as places in them.

        Args:
            tables: This process's rows.
            batch: (B,) triples.

        Returns:
            Tables of B users and 2 B items, and (B,) triples.
        """
        count = batch.user.numel()
        place = torch.arange(2 * count, device=self.device)
        rows = Embeddings(
            self.user_rows(tables.user, batch.user),
            self.item_rows(tables.item, torch.cat([batch.pos_item, batch.neg_item])),
        )
        return rows, Triples(place[:count], place[:count], place[count:])


class ShardedPairwiseTask(ShardedTask, PairwiseTask[Model, Settings]):
    """The same for triples of an epoch over all train edges; put it before the task it changes."""

    def initialize(self, user: nn.Parameter, item: nn.Parameter, std: float | None) -> None:
        """Draw both tables as a single process does, from N(0, std^2) or Xavier-uniform."""
        torch.manual_seed(self.config.training.seed)
        draw_tables(self.partition, user, item, std)

    def count_edges(self) -> int:
        """Return n, the number of edges of all processes; see the base class."""
        counts = self.shards.gather(torch.tensor(self.edge_user.numel()))
        self._edges = Ranges((0, *counts.cumsum(0).tolist()))
        # 4 bytes per number, like the other arrays of an epoch.
        self.edge_user, self.edge_item = self.edge_user.int(), self.edge_item.int()
        return some_edges(self._edges.num_rows)

    def draw_epoch(self) -> None:
        """Draw the order of all edges and keep the places of this process's edges in it."""
        own, count = self._edges.of(self.shards.rank), self._edges.num_rows
        narrow = torch.int32 if count < 2**31 else torch.int64
        places, edges = [], []
        for start, order in shuffled(self.shards, count, self.generator):
            place = within(order, own).nonzero().squeeze(1)
            places.append((place + start).to(narrow))
            edges.append((order[place] - own.start).to(narrow))
        self._place, self._edge = torch.cat(places), torch.cat(edges)
        self._negative = self._draw_negatives()

    def _draw_negatives(self) -> Tensor:
        """Return an item that its user lacks for every edge of this process."""
        own, count = self._edges.of(self.shards.rank), self._edges.num_rows
        found = [self.edge_item[:0]]
        for part, draw in uniform(count, own, self.generator, NEGATIVES_AT_ONCE):
            found.append(self.graph.missing_item(self.edge_user[part].long(), draw).int())
        return torch.cat(found)

    def _draw(self, number: int) -> Triples:
        start = number * self.batch_size
        stop = min(start + self.batch_size, self._edges.num_rows)
        bounds = torch.tensor([start, stop], dtype=self._place.dtype, device=self.device)
        first, last = torch.searchsorted(self._place, bounds).tolist()
        place, edge = self._place[first:last].long() - start, self._edge[first:last].long()
        batch = torch.zeros(3, stop - start, dtype=torch.int64, device=self.device)
        batch[0, place] = self.edge_user[edge].long() + self.partition.own_users.start
        batch[1, place] = self.edge_item[edge].long()
        batch[2, place] = self._negative[edge].long()
        return Triples(*self.shards.sum(batch).unbind())
