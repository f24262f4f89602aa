"""SGL: LightGCN with a contrast of two graphs from which edges were dropped.

Wu, Wang, Feng, He, Chen, Lian, Xie: "Self-supervised Graph Learning for Recommendation", SIGIR
2021, arXiv 2010.10783, variant ED (edge dropout), equations 7 and 9 to 12.

Legend: U users, I items, D embedding dim, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl import ops
from mmssl.models.configs import SGLConfig
from mmssl.models.lightgcn import LightGCN, light_convolution, propagated_bpr_with_l2
from mmssl.models.pruning import prune
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class SGLTask(PairwiseTask[LightGCN, SGLConfig]):
    """BPR and L2 as LightGCN, plus InfoNCE between the embeddings over two subgraphs.

    The users and the positive items of the batch are the anchors; all other users, or items, are
    their negatives.
    """

    section = "sgl"
    terms = ("bpr", "l2", "contrast")

    def build(self, dataset: InteractionDataset) -> LightGCN:
        """See the base class."""
        width, layers = self.config.model.embedding_dim, self.settings.num_layers
        return LightGCN(self.graph, embedding_dim=width, num_layers=layers).xavier()

    def draw_epoch(self) -> None:
        """Draw the order of the edges and the two subgraphs."""
        super().draw_epoch()
        equal = torch.ones(self.graph.nnz, dtype=torch.float64, device=self.device)
        rate, generator = self.settings.dropout, self.generator
        self.subgraphs = [prune(self.graph, equal, rate, generator) for _ in range(2)]

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        settings, ego = self.settings, self.model.ego()
        first, second = (
            light_convolution(graph, *ego, settings.num_layers) for graph in self.subgraphs
        )
        tau, anchors = settings.contrast_temperature, (batch.user, batch.pos_item)
        both = [
            ops.info_nce(one[ids], other, tau, target=ids, intra_view=False)
            for one, other, ids in zip(first, second, anchors, strict=True)
        ]
        losses = propagated_bpr_with_l2(self.graph, ego, batch, settings.num_layers, settings.reg)
        return {**losses, "contrast": settings.contrast_weight * torch.stack(both).sum()}
