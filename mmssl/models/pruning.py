"""Degree-sensitive edge pruning of the interaction graph.

Zhou, Shen: "A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
Recommendation", MM 2023, arXiv 2211.06924, section 3.2.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.graph import InteractionGraph


class EdgePruning:
    """Draws subgraphs in which an edge stays with a probability that falls with its degrees.

    ``E - floor(rate E)`` edges are drawn without replacement with weights ``(d_u d_i)^-1/2``: edges
    of popular items and active users carry least information.

    Args:
        graph: A binary graph.
        rate: Share of the edges to drop, in [0, 1).
    """

    def __init__(self, graph: InteractionGraph, rate: float) -> None:
        self.graph = graph
        self.rate = rate
        self.weight = degree_weight(graph, graph.index.colptr.diff())
        self.drawn = graph

    def draw(self, generator: torch.Generator) -> InteractionGraph:
        """Return a subgraph, normalized by its own degrees; at rate 0 the graph itself.

        All have the same number of edges, and each overwrites the arrays of the one before, so that
        a step that was recorded reads the new one.

        Args:
            generator: On the graph's device.
        """
        if self.rate == 0:
            return self.graph
        drawn = prune(self.graph, self.weight, self.rate, generator)
        if self.drawn is self.graph:
            self.drawn = drawn
        else:
            self.drawn.ui.overwrite(drawn.ui)
            self.drawn.iu.overwrite(drawn.iu)
        return self.drawn


def degree_weight(graph: InteractionGraph, item_degree: Tensor) -> Tensor:
    """Return ``(d_u d_i)^-1/2`` of every edge, (E,) float64 in the order of ``graph.ui``.

    Args:
        graph: A graph with all edges of its users.
        item_degree: (I,) users of every item.
    """
    user_degree = graph.index.rowptr.diff()[graph.ui.row_of_edge()].double()
    return (user_degree * item_degree[graph.index.col.long()].double()).rsqrt()


def race(uniform: Tensor, weight: Tensor) -> Tensor:
    """Return times of which the smallest are a draw without replacement, (E,).

    Args:
        uniform: (E,) float64 in [0, 1).
        weight: (E,) > 0, to which the probabilities are proportional.
    """
    return -torch.log1p(-uniform) / weight


def prune(
    graph: InteractionGraph, weight: Tensor, rate: float, generator: torch.Generator
) -> InteractionGraph:
    """Keep ``E - floor(rate E)`` edges, drawn without replacement in proportion to ``weight``.

    The sample is that of successive draws, by the exponential race of Efraimidis and Spirakis
    (Information Processing Letters 2006); torch.multinomial is limited to 2^24 edges.

    Args:
        graph: A binary graph.
        weight: (E,) > 0, in the order of ``graph.ui``.
        rate: Share of the edges to drop, in [0, 1).
        generator: On the graph's device.
    """
    count = graph.nnz - int(rate * graph.nnz)
    uniform = torch.rand(graph.nnz, generator=generator, device=graph.device, dtype=torch.float64)
    times = race(uniform, weight)
    kept = times.topk(count, largest=False, sorted=False).indices  # the graph sorts them
    return InteractionGraph.from_edges(
        graph.ui.row_of_edge()[kept],
        graph.index.col.long()[kept],
        graph.num_users,
        graph.num_items,
        normalization=graph.normalization,
    )
