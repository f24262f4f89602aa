"""Edge pruning of a divided graph.

Legend: E edges of this process, N processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.distributed.draws import AT_ONCE, uniform
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Partition, Ranges
from mmssl.distributed.sharded_graph import ShardedGraph, edges_of_items
from mmssl.graph import InteractionGraph
from mmssl.models.pruning import degree_weight, race


class ShardedPruning:
    """:class:`mmssl.models.pruning.EdgePruning` of a divided graph: the same edges are drawn.

    Args:
        group: The processes.
        partition: Which process holds which user and item.
        graph: The edges of this process's users, counted from its first one, with all items.
        item_degree: (I,) train users of every item, of all processes.
        rate: Share of the edges to drop, in [0, 1).
        wire: Data type in which rows travel; None means that of the tables.
    """

    def __init__(
        self,
        group: Processes,
        partition: Partition,
        graph: InteractionGraph,
        item_degree: Tensor,
        rate: float,
        wire: torch.dtype | None,
    ) -> None:
        self.group, self.partition, self.wire = group, partition, wire
        self.graph = graph
        self.weight = degree_weight(graph, item_degree)
        counts = group.gather(torch.tensor(graph.nnz)).cumsum(0).tolist()
        self._edges = Ranges((0, *counts))
        self._kept = counts[-1] - int(rate * counts[-1])

    def draw(self, generator: torch.Generator) -> ShardedGraph:
        """Return this process's part of a subgraph. All processes call this together.

        Args:
            generator: In the same state in every process, on the graph's device.
        """
        graph, users = self.graph, self.partition.own_users
        count, own = self._edges.num_rows, self._edges.of(self.group.rank)
        # On a GPU in one piece, as a single process draws them: 8 bytes per train edge.
        draws = uniform(count, own, generator, AT_ONCE if graph.device.type == "cpu" else count)
        key = race(torch.cat([self.weight[:0], *(draw for _, draw in draws)]), self.weight)
        kept = key <= kth_smallest(self.group, key, self._kept)
        edges = graph.ui.row_of_edge()[kept] + users.start, graph.index.col[kept].long()
        return ShardedGraph(
            self.group,
            self.partition,
            edges,
            edges_of_items(self.group, self.partition.items, *edges),
            wire=self.wire,
        )


def kth_smallest(group: Processes, numbers: Tensor, k: int) -> Tensor:
    """Return the k-th smallest number of all processes, the same in each of them.

    By bisection over the bits of the numbers, whose order as integers is that of the numbers.

    Args:
        group: The processes.
        numbers: (E,) float64 >= 0 of this process.
        k: From 1.
    """
    bits = numbers.sort().values.view(torch.int64)
    low, high = 0, 2**63 - 1
    while low < high:
        middle = (low + high) // 2
        bound = torch.tensor(middle, device=bits.device)
        if int(group.sum(torch.searchsorted(bits, bound, right=True))) < k:
            low = middle + 1
        else:
            high = middle
    return torch.tensor(low, device=bits.device).view(torch.float64)
