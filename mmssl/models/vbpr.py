"""VBPR: matrix factorization with a second factor that comes from the item features.

He, McAuley: "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback", AAAI 2016, arXiv
1510.01784. The paper has one visual modality; several are concatenated.

Legend: U users, I items, D embedding dim, d total width of the features, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl import ops
from mmssl.models.configs import VBPRConfig
from mmssl.models.embeddings import Embeddings
from mmssl.models.modalities import modalities_of
from mmssl.ops import Triples
from mmssl.ops.product import product
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class VBPR(nn.Module):
    """``score = b_i + p_u . q_i + t_u . (E f_i) + b . f_i`` (equation 4).

    The paper's global offset and user offset change no ranking and are left out. The score is the
    dot product of ``[p_u, t_u, 1]`` and ``[q_i, E f_i, b_i + b . f_i]``, 2 D + 1 columns.

    Args:
        num_users: U.
        features: (I, d) features of all modalities side by side.
        embedding_dim: D of p, q and of t, E f.
    """

    def __init__(self, num_users: int, features: Tensor, *, embedding_dim: int = 64) -> None:
        super().__init__()
        num_items, width = features.shape
        self.register_buffer("features", features, persistent=False)
        self.user_embedding = nn.Parameter(torch.empty(num_users, 2 * embedding_dim))  # p, t
        self.item_embedding = nn.Parameter(torch.empty(num_items, embedding_dim))
        self.item_offset = nn.Parameter(torch.zeros(num_items, 1))
        # E and b, which give D + 1 columns.
        self.projection = nn.Parameter(torch.empty(width, embedding_dim + 1))
        for table in (self.user_embedding, self.item_embedding, self.projection):
            nn.init.xavier_uniform_(table)

    def forward(self, user: Tensor | None = None, item: Tensor | None = None) -> Embeddings:
        """Compute the vectors of users (U, 2 D + 1) and items (I, 2 D + 1).

        Args:
            user: (n,) int64, which users; None means all.
            item: (m,) int64, which items; None means all.
        """
        rows = slice(None) if item is None else item
        users = self.user_embedding if user is None else self.user_embedding[user]
        features = self.get_buffer("features")[rows].to(self.projection.dtype)
        visual = product(features, self.projection)  # (m, D + 1)
        offset = self.item_offset[rows] + visual[:, -1:]
        return Embeddings(
            torch.cat((users, users.new_ones(users.shape[0], 1)), 1),
            torch.cat((self.item_embedding[rows], visual[:, :-1], offset), 1),
        )


class VBPRTask(PairwiseTask[VBPR, VBPRConfig]):
    """BPR plus ``reg / (2 B)`` times the squares of the batch's vectors, projected features too."""

    section = "vbpr"
    terms = ("bpr", "l2")

    def build(self, dataset: InteractionDataset) -> VBPR:
        """See the base class."""
        names = modalities_of(dataset, "model vbpr")
        features = torch.cat([torch.from_numpy(dataset.features[name]) for name in names], 1)
        width = self.config.model.embedding_dim
        return VBPR(dataset.num_users, features, embedding_dim=width)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        count = batch.user.numel()
        user, item = self.model(batch.user, torch.cat((batch.pos_item, batch.neg_item)))
        each = torch.arange(count, device=self.device)
        bpr, squares = ops.bpr_loss(user, item, each, each, count + each, with_l2=True)
        # The last column of every user is the constant 1.
        return {"bpr": bpr, "l2": self.settings.reg * 0.5 * (squares - count) / count}
