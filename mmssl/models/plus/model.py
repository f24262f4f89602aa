"""The forward pass of `plus`: a graph convolution of IDs that the item graphs have smoothed.

Legend: U users, I items, D embedding dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from mmssl.distributed.sharded_graph import ShardedView, multiply
from mmssl.errors import InputError
from mmssl.graph import GraphView
from mmssl.models.embeddings import Embeddings
from mmssl.models.lightgcn import TrainGraph, light_convolution


class PlusViews(NamedTuple):
    """What a forward pass computes."""

    final: Embeddings
    interaction: Embeddings | None
    """From the IDs alone; None unless asked for."""
    modality: Embeddings | None
    """From the neighborhoods in the item graph alone; None unless asked for."""


class Plus(nn.Module):
    """``(user, item) = mean_l S^l [E_user; E_item + w A E_item]`` with A the item graph.

    S is the symmetrically normalized interaction graph. The neighborhoods are added in front of the
    convolution, so that users receive them too: a user with five train items is described by the
    items similar to those as well. The convolution is linear, so that the two terms are views that
    add up to the final embeddings.

    Args:
        graph: The train graph, normalization "sym".
        item_graph: (I, I) row-normalized view, or None without modalities.
        embedding_dim: D.
        num_layers: Number of layers of the convolution; 0 is matrix factorization.
        item_weight: w.

    Raises:
        InputError: A graph of another normalization.
    """

    def __init__(
        self,
        graph: TrainGraph,
        item_graph: GraphView | ShardedView | None,
        *,
        embedding_dim: int = 64,
        num_layers: int = 2,
        item_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if graph.normalization != "sym":
            raise InputError(f"graph: expected normalization 'sym', got {graph.normalization!r}")
        self.graph = graph
        self.item_graph = item_graph
        self.num_layers = num_layers
        self.item_weight = item_weight
        self.user_embedding = nn.Parameter(torch.empty(graph.num_users, embedding_dim))
        self.item_embedding = nn.Parameter(torch.empty(graph.num_items, embedding_dim))
        for table in (self.user_embedding, self.item_embedding):
            nn.init.xavier_uniform_(table)

    def forward(self, graph: TrainGraph | None = None, *, views: bool = False) -> PlusViews:
        """Compute the embeddings of every user (U, D) and item (I, D).

        Args:
            graph: What to propagate over; None means the whole train graph.
            views: Whether to return the two views as well, at the cost of a second convolution.
        """
        graph = self.graph if graph is None else graph
        user, item = self.user_embedding, self.item_embedding
        if self.item_graph is None:
            return PlusViews(light_convolution(graph, user, item, self.num_layers), None, None)
        neighborhood = self.item_weight * multiply(self.item_graph, item)  # (I, D)
        if not views:
            final = light_convolution(graph, user, item + neighborhood, self.num_layers)
            return PlusViews(final, None, None)
        nothing = torch.zeros_like(user)
        first = light_convolution(graph, user, item, self.num_layers)
        second = light_convolution(graph, nothing, neighborhood, self.num_layers)
        final = Embeddings(first.user + second.user, first.item + second.item)
        return PlusViews(final, first, second)
