"""BM3: LightGCN trained without negatives, by agreement with perturbed copies of itself.

Zhou, Zhou, Liu, Zeng, Miao, Wang, You, Jiang: "Bootstrap Latent Representations for Multi-modal
Recommendation", WWW 2023, arXiv 2207.05969. Where the paper and the authors' code (MMRec) differ,
the code is followed: the L2 term has norms and not their squares, the terms of the modalities have
a weight, and the features are parameters, which start as given.

Legend: U users, I items, D embedding dim, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.graph import InteractionGraph
from mmssl.models.configs import BM3Config
from mmssl.models.embeddings import Embeddings
from mmssl.models.linear import Linear
from mmssl.models.modalities import FeatureProjections, MultiModalLightGCN, modalities_of
from mmssl.ops import Triples
from mmssl.ops.keep_mask import dropout
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class BM3(MultiModalLightGCN):
    """``P(h_u) . P(h_i)`` with h of LightGCN, ``h_i`` plus the item's ID embedding, P linear.

    The arguments are those of :class:`mmssl.models.modalities.MultiModalLightGCN`.
    """

    def __init__(
        self, graph: InteractionGraph, projections: FeatureProjections, **sizes: int
    ) -> None:
        super().__init__(graph, projections, **sizes)
        width = self.user_embedding.shape[1]
        self.predictor = Linear(width, width)
        nn.init.xavier_uniform_(self.predictor.weight)

    def latent(self) -> Embeddings:
        """Compute h, in front of the predictor: user (U, D), item (I, D)."""
        user, item = super().forward()
        return Embeddings(user, item + self.item_embedding)

    def forward(self) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D)."""
        user, item = self.latent()
        return Embeddings(self.predictor(user), self.predictor(item))


class BM3Task(PairwiseTask[BM3, BM3Config]):
    """Distances ``1 - cos(P(x), dropout(y))``, where no gradient flows to y.

    "graph" has (x, y) = (h_u, h_i) and (h_i, h_u) for each train edge of the batch, "modalities",
    with ``modality_weight``, (f_m, h_i) and (f_m, f_m) for each modality, f_m its projected
    features; each is a mean over the batch. "l2" is ``reg (||h_U|| + ||h_I||) / I``.
    """

    section = "bm3"
    terms = ("graph", "modalities", "l2")

    def build(self, dataset: InteractionDataset) -> BM3:
        """See the base class."""
        modalities_of(dataset, "model bm3")
        width = self.config.model.embedding_dim
        projections = FeatureProjections(dataset.features, width, trained=True)
        layers = self.settings.num_layers
        return BM3(self.graph, projections, embedding_dim=width, num_layers=layers)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        settings, model = self.settings, self.model
        users, items = model.latent()
        user, item = users[batch.user], items[batch.pos_item]  # (B, D)
        features = model.projections(batch.pos_item)  # M times (B, D)
        user_target, item_target = self._target(user), self._target(item)
        graph = self._distance(user, item_target) + self._distance(item, user_target)
        modalities = [self._distance(f, item_target, self._target(f)) for f in features]
        return {
            "graph": graph,
            "modalities": settings.modality_weight * torch.stack(modalities).sum(),
            "l2": settings.reg * (users.norm() + items.norm()) / items.shape[0],
        }

    def _target(self, rows: Tensor) -> Tensor:
        return dropout(rows.detach(), self.settings.dropout)

    def _distance(self, online: Tensor, *targets: Tensor) -> Tensor:
        """Sum over the targets, (B, D) each, of the mean over the rows of 1 - cos(P(x), y)."""
        directions = torch.stack([F.normalize(target) for target in targets]).sum(0)
        cosines = (F.normalize(self.model.predictor(online)) * directions).sum(1)  # (B,)
        return len(targets) - cosines.mean()
