"""EASE in NumPy, as its paper writes it: invert the regularized Gram matrix, divide by columns.

Legend: U users, I items, n train edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

Array = npt.NDArray[Any]


class EASE:
    """Float64, as ours.

    Args:
        problem: ``user`` and ``item`` (n,) train edges, ``num_users``, ``num_items``, ``reg``, and
            ``entries`` (2, k), the places of the weights of :meth:`check`.
    """

    def __init__(self, problem: Mapping[str, Array]) -> None:
        edges = (np.ones(len(problem["user"])), (problem["user"], problem["item"]))
        size = (int(problem["num_users"]), int(problem["num_items"]))
        self.interactions = scipy.sparse.csr_matrix(edges, size)
        self.reg, self.entries = float(problem["reg"]), problem["entries"]

    def check(self) -> list[float]:
        """Return some weights between items."""
        found: list[float] = self.weights()[tuple(self.entries)].tolist()
        return found

    def run(self) -> None:
        """Compute all weights from the interactions."""
        self.weights()

    def weights(self) -> Array:
        """Return B (I, I) with a zero diagonal (Steck, WWW 2019, equation 8)."""
        gram = (self.interactions.T @ self.interactions).toarray()
        diagonal = np.diag_indices_from(gram)
        gram[diagonal] += self.reg
        inverse = np.linalg.inv(gram)
        weights: Array = inverse / -np.diag(inverse)
        weights[diagonal] = 0
        return weights
