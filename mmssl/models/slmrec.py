"""SLMRec: LightGCN of the IDs and of every modality, fused, with a contrast between the views.

Tao, Liu, Xia, Wang, Yang, Huang, Chua: "Self-Supervised Learning for Multimedia Recommendation",
IEEE Transactions on Multimedia 2022, doi 10.1109/TMM.2022.3187556, with the task that the authors'
code runs by default: feature fine and coarse spaces (FAC).

Legend: U users, I items, D embedding dim, M modalities, V = M + 1 views, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.configs import SLMRecConfig
from mmssl.models.embeddings import Embeddings
from mmssl.models.lightgcn import light_convolution
from mmssl.models.linear import Linear
from mmssl.models.modalities import FeatureProjections, MultiModalLightGCN, modalities_of
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class Views(NamedTuple):
    """Convolved vectors of every view side by side: that of the IDs, then the modalities."""

    user: Tensor  # (U, V D)
    item: Tensor  # (I, V D)


class SLMRec(MultiModalLightGCN):
    """``user = W_u [h^0_u, ..., h^M_u] + b_u``, items alike.

    ``h^0 = LightGCN(E_user, E_item)`` and ``h^m = LightGCN(E_user, f_m)`` with f_m the projected
    features, whose raw rows have unit length.

    The arguments are those of :class:`mmssl.models.modalities.MultiModalLightGCN`; D is at least 2.
    """

    def __init__(
        self, graph: InteractionGraph, projections: FeatureProjections, **sizes: int
    ) -> None:
        super().__init__(graph, projections, **sizes)
        count, width = len(projections.layers), self.user_embedding.shape[1]
        self.fuse_user = Linear((count + 1) * width, width)
        self.fuse_item = Linear((count + 1) * width, width)
        # The last pair of spaces has half the width.
        widths = [*[width] * (count - 1), width // 2]
        self.coarse = nn.ModuleList([Linear(width, columns) for columns in widths])
        self.fine = nn.ModuleList([Linear(width, columns) for columns in widths])
        for layer in (self.fuse_user, self.fuse_item, *self.coarse, *self.fine):
            nn.init.xavier_uniform_(layer.weight)

    def views(self) -> Views:
        """Compute the vectors of all views."""
        items: list[Tensor] = [self.item_embedding, *self.projections()]
        users: list[Tensor] = [self.user_embedding] * len(items)
        both = light_convolution(
            self.graph, torch.cat(users, 1), torch.cat(items, 1), self.num_layers
        )
        return Views(*both)

    def fuse(self, views: Views) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D)."""
        return Embeddings(self.fuse_user(views.user), self.fuse_item(views.item))

    def forward(self) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D)."""
        return self.fuse(self.views())

    def spaces(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Map the views of items (n, V D) to M pairs of a coarse and a fine space.

        ``x_m = C_m x_(m-1)``, from ``x_0 = h^0``, is to agree with ``F_m h^m``.
        """
        x, *views = rows.split(self.item_embedding.shape[1], 1)
        pairs = []
        for coarse, fine, view in zip(self.coarse, self.fine, views, strict=True):
            x = coarse(x)
            pairs.append((x, fine(view)))
        return pairs


class SLMRecTask(PairwiseTask[SLMRec, SLMRecConfig]):
    """InfoNCE of users and their items within the batch, plus the contrast of the spaces."""

    section = "slmrec"
    terms = ("ranking", "contrast")

    def build_optimizer(self) -> torch.optim.Optimizer:
        """See the base class."""
        lr, weight_decay = self.settings.lr, self.settings.weight_decay
        return torch.optim.Adam(
            self.model.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )

    def build(self, dataset: InteractionDataset) -> SLMRec:
        """See the base class."""
        names = modalities_of(dataset, "model slmrec")
        names.sort(key=lambda name: name != "image")  # the paper's order: visual, acoustic, textual
        features = {name: dataset.features[name] for name in names}
        width = self.config.model.embedding_dim
        return SLMRec(
            self.graph,
            FeatureProjections(features, width, unit=True),
            embedding_dim=width,
            num_layers=self.settings.num_layers,
        )

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        settings, model = self.settings, self.model
        views = model.views()
        rows = Views(views.user[batch.user], views.item[batch.pos_item])
        user, item = model.fuse(rows)
        ranking = ops.info_nce(user, item, settings.temperature, intra_view=False)
        contrast = [
            ops.info_nce(coarse, fine, settings.contrast_temperature, intra_view=False)
            for coarse, fine in model.spaces(rows.item)
        ]
        weighted = settings.contrast_weight * torch.stack(contrast).sum()
        return {"ranking": ranking, "contrast": weighted}
