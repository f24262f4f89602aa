"""LayerGCN: a graph convolution whose layers are refined by their similarity to layer 0.

Zhou, Lin, Liu, Miao: "Layer-refined Graph Convolutional Networks for Recommendation", ICDE 2023,
arXiv 2207.11088, equations 5 to 9.

Legend: U users, I items, D embedding dim, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.configs import LayerGCNConfig
from mmssl.models.embeddings import Embeddings
from mmssl.models.lightgcn import LightGCN, bpr_with_l2
from mmssl.models.pruning import EdgePruning
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset


# Below it a norm counts as this, as in torch's cosine similarity.
_EPS = 1e-8


class LayerGCN(LightGCN):
    """``sum_(l=1..L) h^l`` with ``h^l = cos(S h^(l-1), e) S h^(l-1)``, row by row, and ``h^0 = e``.

    S is the symmetrically normalized bipartite graph; arguments as LightGCN.
    """

    def forward(self, graph: InteractionGraph | None = None) -> Embeddings:
        """Compute the final embeddings of every user (U, D) and item (I, D).

        Args:
            graph: What to propagate over; None means the whole train graph.
        """
        graph = self.graph if graph is None else graph
        ego = self.ego()
        both, layers = ego, []
        for _ in range(self.num_layers):
            user, item = ops.spmm(graph.ui, both.item), ops.spmm(graph.iu, both.user)
            both = Embeddings(refined(user, ego.user), refined(item, ego.item))
            layers.append(both)
        return Embeddings(*(torch.stack(tables).sum(0) for tables in zip(*layers, strict=True)))


def refined(layer: Tensor, ego: Tensor) -> Tensor:
    """Return ``cos(layer, ego) layer``, row by row (equation 7), (n, D); 0 for a zero row.

    Args:
        layer: (n, D).
        ego: (n, D).
    """
    result: Tensor = _Refined.apply(layer, ego)
    return result


class _Refined(torch.autograd.Function):
    """The gradient written out: autograd of a cosine passes over (n, D) arrays far more often."""

    @staticmethod
    def forward(ctx: Any, layer: Tensor, ego: Tensor) -> Tensor:
        norms = [torch.linalg.vector_norm(rows, dim=1).clamp_min(_EPS) for rows in (layer, ego)]
        cosine = torch.linalg.vecdot(layer, ego) / (norms[0] * norms[1])  # (n,)
        ctx.save_for_backward(layer, ego, *norms, cosine)
        return cosine[:, None] * layer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        layer, ego, layer_norm, ego_norm, cosine = ctx.saved_tensors
        slope = torch.linalg.vecdot(grad, layer)  # (n,), of the cosine
        cross = (slope / (layer_norm * ego_norm))[:, None]
        grad_layer = (cosine[:, None] * grad).addcmul_(ego, cross)
        grad_layer.addcmul_(layer, (-slope * cosine / layer_norm.square())[:, None])
        grad_ego = (cross * layer).addcmul_(ego, (-slope * cosine / ego_norm.square())[:, None])
        return grad_layer, grad_ego


class LayerGCNTask(PairwiseTask[LayerGCN, LayerGCNConfig]):
    """BPR and L2 as LightGCN; in training over a subgraph that is drawn again every epoch."""

    section = "layergcn"
    terms = ("bpr", "l2")

    def build(self, dataset: InteractionDataset) -> LayerGCN:
        """See the base class."""
        self.pruning = EdgePruning(self.graph, self.settings.prune)
        width, layers = self.config.model.embedding_dim, self.settings.num_layers
        return LayerGCN(self.graph, embedding_dim=width, num_layers=layers).xavier()

    def draw_epoch(self) -> None:
        """Draw the order of the edges, and those that stay in the propagation."""
        super().draw_epoch()
        self.pruned = self.pruning.draw(self.generator)

    def losses(self, batch: Triples) -> dict[str, Tensor]:
        """See the base class."""
        final = self.model(self.pruned)
        return bpr_with_l2(final, self.model.ego(), batch, self.settings.reg)
