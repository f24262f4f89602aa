"""EASE: a linear item-to-item model without self-weights, in closed form.

Steck: "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, arXiv 1905.03375.

Legend: U users, I items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.models.closed_form import ClosedFormTask, gram
from mmssl.models.item_weights import ItemWeights

REGULARIZATIONS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""What is tried on validation."""


def ease_weights(gram: Tensor, reg: float) -> Tensor:
    """Minimize ``|X - X B|^2 + reg |B|^2`` over B with a zero diagonal (equations 4 and 8).

    With ``P = (X^T X + reg I)^-1``, ``B[i, j] = -P[i, j] / P[j, j]`` for i != j.

    Args:
        gram: (I, I) float64, ``X^T X``; its memory is reused, so that its values are lost.
        reg: > 0.

    Returns:
        (I, I) float32.
    """
    gram.diagonal().add_(reg)
    torch.linalg.cholesky(gram, out=gram)
    torch.cholesky_inverse(gram, out=gram)
    gram /= -gram.diagonal().clone()
    return gram.float().fill_diagonal_(0)


class EASETask(ClosedFormTask):
    """EASE on the train interactions."""

    dense = "ease"

    def embed(self) -> ItemWeights:
        """See the base class."""
        products = gram(self.graph)

        def fit(reg: float) -> ItemWeights:
            return ItemWeights(self.graph, ease_weights(products.clone(), reg))

        return self.select("ease.reg", REGULARIZATIONS, fit)
