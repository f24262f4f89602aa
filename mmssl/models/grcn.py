"""GRCN: a graph convolution of the IDs over edges that the modalities weigh.

Wei, Wang, Nie, He, Chua: "Graph-Refined Convolutional Network for Multimedia Recommendation with
Implicit Feedback", MM 2020, arXiv 2008.10031, with the integration by confidence, pruning and the
concatenation of the authors' code.

Legend: U users, I items, E train edges, D embedding dim, M modalities, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.configs import GRCNConfig
from mmssl.models.edges import cosine_softmax, edge_products
from mmssl.models.embeddings import Embeddings
from mmssl.models.modalities import FeatureProjections, modalities_of
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class Content(NamedTuple):
    """What the refining layer of one modality computes."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    to_user: Tensor  # (E,) attention of users to their items
    to_item: Tensor  # (E,) attention of items to their users


class GRCN(nn.Module):
    """``[x_0 + x_1 + x_2, content of every modality]`` of users and items.

    A user has a preference p per modality, an item the features ``f = LeakyReLU(X W + b)``; both
    have unit length. ``p <- p + sum_i a_ui f_i``, with the attention a the softmax of p . f over
    the user's items, refines the preferences ``num_routings`` times. The attention with the last p
    is taken in both directions; the content is p, or f, plus the weighted sum of the neighbors.
    The weight of an edge in the convolution of the IDs is the maximum over the modalities of the
    attention times the confidence of the neighbor in that modality, and 0 if that is negative.

    Args:
        graph: The train graph, normalization "none".
        projections: Of the features of M modalities.
        embedding_dim: D.
        num_layers: Layers of the convolution of the IDs.
        num_routings: Refinements of the preferences.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        projections: FeatureProjections,
        *,
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_routings: int = 0,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.projections = projections
        self.num_layers = num_layers
        self.num_routings = num_routings
        count, users, items = len(projections.layers), graph.num_users, graph.num_items
        self.user_embedding = nn.Parameter(torch.empty(users, embedding_dim))
        self.item_embedding = nn.Parameter(torch.empty(items, embedding_dim))
        self.preferences = nn.ParameterList(
            [torch.empty(users, embedding_dim) for _ in range(count)]
        )
        self.user_confidence = nn.Parameter(torch.empty(users, count))
        self.item_confidence = nn.Parameter(torch.empty(items, count))
        for table in (self.user_embedding, self.item_embedding, *self.preferences):
            nn.init.xavier_normal_(table)
        for table in (self.user_confidence, self.item_confidence):
            nn.init.normal_(table, std=(2 / (users + items + count)) ** 0.5)

    def forward(self) -> Embeddings:
        """Compute user (U, (M + 1) D) and item (I, (M + 1) D)."""
        features = [F.normalize(F.leaky_relu(rows)) for rows in self.projections()]
        contents = [self._content(*pair) for pair in zip(self.preferences, features, strict=True)]
        user_of_edge, item_of_edge = self.graph.ui.row_of_edge(), self.graph.index.col.long()
        to_user = torch.stack([content.to_user for content in contents], 1)  # (E, M)
        to_item = torch.stack([content.to_item for content in contents], 1)
        weight_to_user = (to_user * self.item_confidence[item_of_edge]).amax(1).relu()  # (E,)
        weight_to_item = (to_item * self.user_confidence[user_of_edge]).amax(1).relu()
        ui = self.graph.with_value(weight_to_user).ui
        iu = self.graph.with_value(weight_to_item).iu
        user, item = F.normalize(self.user_embedding), F.normalize(self.item_embedding)
        users, items = [user], [item]
        for _ in range(self.num_layers):
            user, item = ops.spmm(ui, item), ops.spmm(iu, user)
            users.append(user)
            items.append(item)
        return Embeddings(
            torch.cat([torch.stack(users).sum(0), *(content.user for content in contents)], 1),
            torch.cat([torch.stack(items).sum(0), *(content.item for content in contents)], 1),
        )

    def _content(self, preference: Tensor, features: Tensor) -> Content:
        graph, user = self.graph, F.normalize(preference)
        user_of_edge, item_of_edge = graph.ui.row_of_edge(), graph.index.col.long()
        for _ in range(self.num_routings):
            attention = cosine_softmax(
                edge_products(graph, user, features), user_of_edge, graph.num_users
            )
            user = F.normalize(user + ops.spmm(graph.with_value(attention).ui, features))
        cosine = edge_products(graph, user, features)
        to_user = cosine_softmax(cosine, user_of_edge, graph.num_users)
        to_item = cosine_softmax(cosine, item_of_edge, graph.num_items)
        return Content(
            user + ops.spmm(graph.with_value(to_user).ui, features),
            features + ops.spmm(graph.with_value(to_item).iu, user),
            to_user,
            to_item,
        )


class GRCNTask(PairwiseTask[GRCN, GRCNConfig]):
    """BPR plus ``reg`` times mean squares of the batch's ID embeddings and preferences."""

    section = "grcn"
    normalization = "none"
    terms = ("bpr", "l2")

    def build(self, dataset: InteractionDataset) -> GRCN:
        """See the base class."""
        modalities_of(dataset, "model grcn")
        settings, width = self.settings, self.config.model.embedding_dim
        # A graph that can take values need not sort again, see InteractionGraph.with_value.
        graph = self.graph.with_value(torch.ones(self.graph.nnz, device=self.device))
        return GRCN(
            graph,
            FeatureProjections(dataset.features, width),
            embedding_dim=width,
            num_layers=settings.num_layers,
            num_routings=settings.num_routings,
        )

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        model = self.model
        user, item = model()
        bpr = ops.bpr_loss(user, item, *batch)
        items = torch.cat((batch.pos_item, batch.neg_item))
        squares = [model.user_embedding[batch.user], model.item_embedding[items]]
        squares += [preference[batch.user] for preference in model.preferences]
        means = torch.stack([rows.square().mean() for rows in squares])
        return {"bpr": bpr, "l2": self.settings.reg * means.sum()}
