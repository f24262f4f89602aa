"""GF-CF: a linear and an ideal low-pass filter over the similarity of items, without training.

Shen, Wu, Zhang, Shan, Zhang, Letaief, Li: "How Powerful is Graph Convolution for Recommendation?",
CIKM 2021, arXiv 2108.07567, section 4.

Legend: U users, I items, k kept components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.models.closed_form import ClosedFormTask, gram
from mmssl.models.item_weights import ItemWeights

# More vectors than are kept, and enough steps, for the last kept ones to converge.
_EXTRA_VECTORS = 32
_STEPS = 30


def top_item_components(graph: InteractionGraph, k: int) -> Tensor:
    """Return the right singular vectors (I, k) float64 of the largest singular values.

    Subspace iteration with a final Rayleigh-Ritz step (Halko, Martinsson, Tropp, SIAM Review 2011).
    It is exact up to rounding where k + 32 >= I; where neighboring singular values are close, the
    last vectors may be mixed with the first ones that are left out.

    Args:
        graph: Normalization "sym".
        k: Number of vectors; I if it is larger.
    """
    size = graph.num_items
    count = min(k + _EXTRA_VECTORS, size)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, count, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(start.to(graph.device)).Q  # (I, count)
    for _ in range(_STEPS if count < size else 0):
        basis = torch.linalg.qr(ops.spmm(graph.iu, ops.spmm(graph.ui, basis))).Q
    image = ops.spmm(graph.ui, basis)  # (U, count)
    vectors = torch.linalg.eigh(image.T @ image).eigenvectors  # ascending
    return basis @ vectors[:, -min(k, size) :]


class GFCFTask(ClosedFormTask):
    """``W = S^T S + a D_I^-1/2 V V^T D_I^1/2``, S the normalized interactions, V its components."""

    dense = "gfcf"
    normalization = "sym"

    def embed(self) -> ItemWeights:
        """See the base class."""
        settings = self.config.gfcf
        weight = gram(self.graph, torch.float32)
        if settings.ideal_weight > 0:
            vectors = top_item_components(self.graph, settings.num_components)
            degree = self.graph.index.colptr.diff().double()[:, None]
            scale = degree.rsqrt().masked_fill(degree == 0, 0)
            left, right = vectors * scale, vectors * degree.sqrt()  # (I, k) each
            for items in torch.arange(len(weight), device=self.device).split(1024):
                weight[items] += (settings.ideal_weight * left[items] @ right.T).float()
        return ItemWeights(self.graph, weight)
