"""LightGCN: ID embeddings averaged over the layers of a parameter-free graph convolution.

He, Deng, Wang, Li, Zhang, Wang: "LightGCN: Simplifying and Powering Graph Convolution Network for
Recommendation", SIGIR 2020, arXiv 2002.02126, equations 3 to 8.

Legend: U users, I items, D embedding dim, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph


class IdEmbeddings(NamedTuple):
    """Vectors of every user and item of a model without modalities; scores are dot products."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)


class LightGCN(nn.Module):
    """``mean_l S^l [E_user; E_item]`` with S the symmetrically normalised bipartite graph.

    S has only user-item blocks, so a layer is one product per side with the (U, I) matrix
    ``D_u^-1/2 A D_i^-1/2`` and its transpose; the (U + I)^2 matrix never exists.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        num_users: int,
        num_items: int,
        *,
        embedding_dim: int = 64,
        num_layers: int = 3,
    ) -> None:
        """Draws the embeddings from N(0, 0.1^2), as the authors' code does.

        Args:
            graph: The train graph, normalisation "sym".
            num_users: U.
            num_items: I.
            embedding_dim: D.
            num_layers: L; 0 is matrix factorisation.

        Raises:
            InputError: a graph of another size or normalisation, or a size below its minimum.
        """
        super().__init__()
        if graph.normalization != "sym":
            raise InputError(f"graph: expected normalization 'sym', got {graph.normalization!r}")
        if (graph.num_users, graph.num_items) != (num_users, num_items):
            raise InputError(
                f"graph: expected {num_users} users and {num_items} items, "
                f"got {graph.num_users} and {graph.num_items}"
            )
        if embedding_dim < 1:
            raise InputError(f"embedding_dim: expected at least 1, got {embedding_dim}")
        if num_layers < 0:
            raise InputError(f"num_layers: expected at least 0, got {num_layers}")
        self.graph = graph
        self.num_layers = num_layers
        self.user_embedding = nn.Parameter(torch.empty(num_users, embedding_dim))
        self.item_embedding = nn.Parameter(torch.empty(num_items, embedding_dim))
        for table in self.ego():
            nn.init.normal_(table, std=0.1)

    def ego(self) -> IdEmbeddings:
        """The parameters themselves, layer 0; L2 regularisation applies to these."""
        return IdEmbeddings(self.user_embedding, self.item_embedding)

    def forward(self) -> IdEmbeddings:
        """Final embeddings of every user (U, D) and item (I, D)."""
        user, item = self.ego()
        user_sum, item_sum = user, item
        for _ in range(self.num_layers):
            # Both sides read the layer below (equation 3), unlike MMSSL's hops.
            user, item = ops.spmm(self.graph.ui, item), ops.spmm(self.graph.iu, user)
            user_sum, item_sum = user_sum + user, item_sum + item
        scale = 1.0 / (self.num_layers + 1)
        return IdEmbeddings(user_sum * scale, item_sum * scale)
