"""Model, critic and learned graphs of MMSSL with the rows of one process.

Legend: U users, I items, U' and I' those of this process, B batch, D embedding dim, M modalities,
k edges per user, h width of the critic's first layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmssl import ops
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Ranges, draw_rows, draw_tables, within
from mmssl.distributed.rows import copied, summed
from mmssl.distributed.sharded_graph import ShardedGraph, edges_of_items
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl.config import CriticConfig, ModelConfig, StructureConfig
from mmssl.models.mmssl.critic import Critic
from mmssl.models.mmssl.model import MMSSL, MultiModalEmbeddings
from mmssl.models.mmssl.rows import FactoredRows, Rows, multiply
from mmssl.models.mmssl.structure import LatestStructure
from mmssl.ops.masked_similarity import BatchEdges


class ShardedMMSSL(MMSSL):
    """:class:`mmssl.models.mmssl.model.MMSSL` of the rows of this process."""

    def __init__(
        self, graph: ShardedGraph, features: Mapping[str, Tensor], config: ModelConfig
    ) -> None:
        self.sharded = graph
        super().__init__(graph, features, config)  # type: ignore[arg-type]
        self.first_item = graph.partition.own_items.start

    def _draw_tables(self) -> None:
        tables = self.user_embedding, self.item_embedding
        draw_tables(self.sharded.partition, *tables, std=None)

    def _to_users(self, item: Tensor) -> Tensor:
        return self.sharded.ui.multiply(item)

    def _to_items(self, user: Tensor) -> Tensor:
        return self.sharded.iu.multiply(user)

    def _over(
        self, graphs: Sequence[InteractionGraph | ShardedGraph]
    ) -> tuple[list[Tensor], list[Tensor]]:
        learned = [graph for graph in graphs if isinstance(graph, ShardedGraph)]
        return (
            [graph.ui.multiply(self.item_embedding) for graph in learned],
            [graph.iu.multiply(self.user_embedding) for graph in learned],
        )


class ShardedCritic(Critic):
    """:class:`mmssl.models.mmssl.critic.Critic` whose first layer is divided by items.

    Its output is one sum over the processes of (M B, h) numbers; each of them computes what follows
    for the whole batch.
    """

    def __init__(self, group: Processes, items: Ranges, config: CriticConfig) -> None:
        self.shards, self.items = group, items
        super().__init__(items.num_rows, config)

    def _num_rows(self, num_items: int) -> int:
        return self.items.count(self.shards.rank)

    def _draw_weight(self, std: float) -> None:
        rows, own = self.items.num_rows, self.items.of(self.shards.rank)
        width = self.weight.shape[1]
        draw_rows(rows, width, own, lambda block: block.normal_(std=std), self.weight.data)

    def pre_activation(self, blocks: Sequence[Rows], weight: Tensor) -> Tensor:
        """See the base class; the blocks and the weight have the items of this process."""
        factored = [block for block in blocks if isinstance(block, FactoredRows)]
        own = [block._replace(left=copied(self.shards, block.left)) for block in factored]
        # Not in bfloat16, which processes on CPUs can't add.
        total = summed(self.shards, multiply(own, weight).to(self.bias.dtype))
        return (total + self.bias).to(weight.dtype)

    def in_one_pass(self, weight: Tensor) -> bool:
        """See the base class; autograd knows what is a sum over the processes."""
        return False

    def squared_norms(self, delta: Tensor, weight: Tensor) -> Tensor:
        """See the base class."""
        return summed(self.shards, super().squared_norms(copied(self.shards, delta), weight))


class ShardedStructure(LatestStructure):
    """:class:`mmssl.models.mmssl.structure.LatestStructure` with the lists of own users."""

    graph: ShardedGraph  # type: ignore[assignment]

    def __init__(
        self,
        group: Processes,
        graph: ShardedGraph,
        num_modalities: int,
        config: StructureConfig,
    ) -> None:
        self.shards = group
        super().__init__(graph, num_modalities, config)  # type: ignore[arg-type]

    def _count_items(self) -> int:
        return self.graph.partition.items.num_rows

    def collect(self, users: Tensor, views: MultiModalEmbeddings, edges: BatchEdges) -> None:
        """Collect the highest scores of a batch over the items of all processes.

        Args:
            users: (B,) int64, of all users.
            views: ``user_feature`` of the batch (M, B, D) and ``item_feature`` (M, I', D).
            edges: The batch's edges to own items, which are not collected.
        """
        partition = self.graph.partition
        pairs = zip(views.user_feature, views.item_feature, strict=True)
        best = [ops.masked_topk(*pair, self.k, exclude=edges.view) for pair in pairs]
        score, place = (torch.stack(parts) for parts in zip(*best, strict=True))  # (M, B, k)
        place = torch.where(place >= 0, place + partition.own_items.start, place)
        # By process and so by id: the sort is stable, which puts the smaller of ties first.
        scores, items = (
            self.shards.gather(part).permute(1, 2, 0, 3).flatten(2) for part in (score, place)
        )
        order = scores.sort(dim=2, descending=True, stable=True).indices[:, :, : self.k]
        found = items.gather(2, order)
        own = partition.own_users
        mine = within(users, own).nonzero().squeeze(1)
        self.latest[:, users[mine] - own.start] = found[:, mine].int()
        self.count_step()

    def _build(self, lists: Tensor) -> list[ShardedGraph]:  # type: ignore[override]
        """Build this process's part of the graphs of all lists (M, U', k)."""
        graph, partition = self.graph, self.graph.partition
        first = partition.own_users.start
        user, item = graph.ui.edges()
        of_item, by_user = graph.iu.edges()
        of_item = of_item + partition.own_items.start
        listed = torch.zeros(
            len(lists), partition.users.num_rows, dtype=torch.uint8, device=graph.device
        )
        listed[:, partition.own_users] = (lists >= 0).any(2)
        self.shards.sum(listed)
        graphs = []
        for table, has_list in zip(lists, listed == 1, strict=True):
            row, slot = (table >= 0).nonzero(as_tuple=True)
            column = table[row, slot].long()
            # A user without a list keeps the interactions.
            rest, other = ~has_list[user + first], ~has_list[by_user]
            arrived = edges_of_items(self.shards, partition.items, row + first, column)
            of_users = torch.cat([row, user[rest]]) + first, torch.cat([column, item[rest]])
            of_items = (
                torch.cat([arrived[0], by_user[other]]),
                torch.cat([arrived[1], of_item[other]]),
            )
            wire = graph.ui.exchange.wire
            edges = of_users, of_items
            graphs.append(ShardedGraph(self.shards, partition, *edges, graph.normalization, wire))
        return graphs
