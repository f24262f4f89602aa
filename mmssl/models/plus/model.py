"""The forward pass of `plus`: LightGCN, and each item's neighborhood in the item graph.

Legend: U users, I items, D embedding dim.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mmssl import ops
from mmssl.graph import GraphView, InteractionGraph
from mmssl.models.embeddings import Embeddings
from mmssl.models.lightgcn import LightGCN


class PlusViews(NamedTuple):
    """What a forward pass computes; the first two fields are the final embeddings."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    neighborhood: Tensor | None  # (I, D), the item's neighbors in the item graph
    item_ui: Tensor  # (I, D), from interactions alone


class Plus(nn.Module):
    """``user = mean_l S^l E``, ``item = mean_l S^l E + w A E_item`` with A the item graph.

    Args:
        graph: The train graph, normalization "sym".
        item_graph: (I, I) row-normalized view, or None without modalities.
        embedding_dim: D.
        num_layers: Number of propagation layers over the interaction graph.
        item_weight: w.

    Raises:
        InputError: A graph of another normalization, or a size below its minimum.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        item_graph: GraphView | None,
        *,
        embedding_dim: int = 64,
        num_layers: int = 2,
        item_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone = LightGCN(graph, embedding_dim=embedding_dim, num_layers=num_layers)
        self.graph = graph
        self.item_graph = item_graph
        self.item_weight = item_weight
        for table in self.ego():
            nn.init.xavier_uniform_(table)

    def ego(self) -> Embeddings:
        """Return the parameters themselves; L2 regularization applies to these."""
        return self.backbone.ego()

    def forward(self, graph: InteractionGraph | None = None) -> PlusViews:
        """Compute the embeddings of every user and item.

        Args:
            graph: What to propagate over; None means the whole train graph.
        """
        self.backbone.graph = self.graph if graph is None else graph
        user, item_ui = self.backbone()
        if self.item_graph is None:
            return PlusViews(user, item_ui, None, item_ui)
        neighborhood = ops.spmm(self.item_graph, self.ego().item)
        return PlusViews(user, item_ui + self.item_weight * neighborhood, neighborhood, item_ui)
