"""XSimGCL: LightGCN with noise in every layer, of which one is contrasted with the mean of all.

Yu, Xia, Chen, Cui, Hung, Yin: "XSimGCL: Towards Extremely Simple Graph Contrastive Learning for
Recommendation", TKDE 2024, arXiv 2209.02544, section 3.3; the noise is that of SimGCL (SIGIR 2022).

Legend: U users, I items, D embedding dim, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import ops
from mmssl.models.configs import XSimGCLConfig
from mmssl.models.embeddings import Embeddings
from mmssl.models.lightgcn import LightGCN, bpr_with_l2
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


class XSimGCL(LightGCN):
    """The mean of layers 1 to L of LightGCN, without layer 0; arguments as LightGCN."""

    def layers(
        self, noise: float = 0.0, generator: torch.Generator | None = None
    ) -> list[Embeddings]:
        """Compute layers 1 to L.

        Args:
            noise: Length of the noise ``sign(h) * noise * r / |r|``, r uniform in [0, 1)^D, that is
                added to every vector h of a layer.
            generator: Draws the noise.
        """
        both, layers = self.ego(), []
        for _ in range(self.num_layers):
            user, item = both
            both = Embeddings(ops.spmm(self.graph.ui, item), ops.spmm(self.graph.iu, user))
            if noise:
                both = Embeddings(*(h + noise * _direction(h, generator) for h in both))
            layers.append(both)
        return layers

    def forward(self) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D), without noise."""
        return mean_of(self.layers())


def _direction(h: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a unit vector in the orthant of each row of h (n, D)."""
    uniform = torch.rand(h.shape, generator=generator, device=h.device, dtype=h.dtype)
    return h.detach().sign() * F.normalize(uniform)


def mean_of(layers: list[Embeddings]) -> Embeddings:
    """Average the embeddings of several layers."""
    return Embeddings(*(torch.stack(tables).mean(0) for tables in zip(*layers, strict=True)))


class XSimGCLTask(PairwiseTask[XSimGCL, XSimGCLConfig]):
    """BPR and L2 as LightGCN, plus InfoNCE between a layer and the final embeddings.

    All three see the noise. The different users and positive items of the batch are contrasted,
    each with the others as negatives.
    """

    section = "xsimgcl"
    terms = ("bpr", "l2", "contrast")

    def build(self, dataset: InteractionDataset) -> XSimGCL:
        """See the base class."""
        width, layers = self.config.model.embedding_dim, self.settings.num_layers
        return XSimGCL(self.graph, embedding_dim=width, num_layers=layers).xavier()

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        settings = self.settings
        layers = self.model.layers(settings.noise, self.generator)
        final, contrasted = mean_of(layers), layers[settings.contrast_layer - 1]
        nodes = (batch.user.unique(), batch.pos_item.unique())
        both = [
            ops.info_nce(one[ids], other[ids], settings.contrast_temperature, intra_view=False)
            for one, other, ids in zip(final, contrasted, nodes, strict=True)
        ]
        losses = bpr_with_l2(final, self.model.ego(), batch, settings.reg)
        return {**losses, "contrast": settings.contrast_weight * torch.stack(both).sum()}
