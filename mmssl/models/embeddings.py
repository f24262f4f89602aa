"""The type that every model's forward pass returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Embeddings(NamedTuple):
    """Vectors of every user and item; scores are their dot products."""

    user: Tensor  # (U, D)
    item: Tensor  # (I, D)
