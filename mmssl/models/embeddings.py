"""What a model's forward pass returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Embeddings(NamedTuple):
    """Vectors of every user and item; scores are dot products of ``user`` and ``item``."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
    user_feature: Tensor  # (M, U, D) modality features propagated to the users
    item_feature: Tensor  # (M, I, D) and back to the items
    user_modality: Tensor  # (M, U, D) ID embeddings seen through each modality's graph
    item_modality: Tensor  # (M, I, D)

    def detach(self) -> Embeddings:
        """The same vectors without gradient history."""
        return Embeddings(*(tensor.detach() for tensor in self))
