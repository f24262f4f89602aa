"""FREEDOM: LightGCN on a pruned interaction graph plus a frozen item graph of the modalities.

Zhou, Shen: "A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
Recommendation", MM 2023, arXiv 2211.06924. Where the paper leaves a choice, that of the authors'
code in MMRec is taken: the frozen graph has each item as its own neighbor, and the weight of the
images applies to the normalized graphs.

Legend: U users, I items, D embedding dim, M modalities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl import ops
from mmssl.graph import GraphView, InteractionGraph
from mmssl.models.configs import FreedomConfig
from mmssl.models.embeddings import Embeddings
from mmssl.models.item_graph import frozen_item_graph, modality_weights
from mmssl.models.lightgcn import LightGCN, light_convolution
from mmssl.models.modalities import FeatureProjections, modalities_of
from mmssl.models.pruning import EdgePruning
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class Freedom(LightGCN):
    """``user = mean_l S^l E``, ``item = mean_l S^l E + A^n E_item``.

    S is the symmetrically normalized interaction graph, which training prunes, and A the frozen
    item graph. The embeddings are Xavier-uniform.

    Args:
        graph: The train graph, normalization "sym".
        item_graph: A, an (I, I) view.
        projections: Of the features that the loss reads, or None.
        embedding_dim: D.
        num_layers: Layers of the convolution over the interaction graph.
        num_item_layers: n, layers of the convolution over the item graph.

    Raises:
        InputError: As LightGCN.
    """

    def __init__(
        self,
        graph: InteractionGraph,
        item_graph: GraphView,
        projections: FeatureProjections | None,
        *,
        embedding_dim: int = 64,
        num_layers: int = 2,
        num_item_layers: int = 1,
    ) -> None:
        super().__init__(graph, embedding_dim=embedding_dim, num_layers=num_layers)
        self.item_graph = item_graph
        self.projections = projections
        self.num_item_layers = num_item_layers
        for table in self.ego():
            nn.init.xavier_uniform_(table)

    def forward(self) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D)."""
        user, item = light_convolution(self.graph, *self.ego(), self.num_layers)
        return Embeddings(user, item + self.neighborhood())

    def rows(self, graph: InteractionGraph, users: Tensor, items: Tensor) -> Embeddings:
        """Compute some rows of what :meth:`forward` would return for another train graph.

        Args:
            graph: What to propagate over, normalization "sym".
            users: (n,) int64.
            items: (m,) int64.

        Returns:
            (n, D) and (m, D).
        """
        user, item = ops.propagated_rows(graph, *self.ego(), users, items, self.num_layers)
        return Embeddings(user, item + F.embedding(items, self.neighborhood()))

    def neighborhood(self) -> Tensor:
        """Compute ``A^n E_item``, (I, D)."""
        found: Tensor = self.item_embedding
        for _ in range(self.num_item_layers):
            found = ops.spmm(self.item_graph, found)
        return found


class FreedomTask(PairwiseTask[Freedom, FreedomConfig]):
    """BPR on the final embeddings, plus ``reg`` times BPR of the users with projected features."""

    section = "freedom"
    terms = ("bpr", "features")

    def build(self, dataset: InteractionDataset) -> Freedom:
        """See the base class."""
        settings, width = self.settings, self.config.model.embedding_dim
        self.pruning = EdgePruning(self.graph, settings.prune)
        modalities = modalities_of(dataset, "model freedom", lists=True)
        weights = modality_weights(modalities, settings.image_weight)
        item_graph = frozen_item_graph(dataset, weights, settings.num_neighbors)
        projections = None
        if settings.reg > 0:
            modalities_of(dataset, "model freedom with freedom.reg > 0")
            projections = FeatureProjections(dataset.features, width)
        return Freedom(
            self.graph,
            item_graph.to(self.device).ui,
            projections,
            embedding_dim=width,
            num_layers=settings.num_layers,
            num_item_layers=settings.num_item_layers,
        )

    def draw_epoch(self) -> None:
        """Draw the order of the edges, and those that stay in the propagation."""
        super().draw_epoch()
        self.pruned = self.pruning.draw(self.generator)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        users, items = self.model.rows(
            self.pruned, batch.user, torch.cat([batch.pos_item, batch.neg_item])
        )
        count = len(batch.user)
        place = torch.arange(2 * count, device=users.device)
        bpr = ops.bpr_loss(users, items, place[:count], place[:count], place[count:])
        features = bpr.new_zeros(())
        if self.model.projections is not None:
            # BPR depends on f[pos] - f[neg] only: the rows of the batch are enough.
            margins = [
                (users * difference).sum(1)
                for difference in self.model.projections.differences(batch.pos_item, batch.neg_item)
            ]
            features = self.settings.reg * F.softplus(-torch.stack(margins)).mean(1).sum()
        return {"bpr": bpr, "features": features}
