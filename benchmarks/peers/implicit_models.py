"""Matrix factorization in implicit: BPR by SGD on single triples, and alternating least squares.

Neither minimizes what ours does, so that losses can't agree; :meth:`check` shows that it learns.

Legend: n train edges, k batches of B triples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking

Array = npt.NDArray[Any]
EPOCHS = 60  # before check() looks; on Baby its BPR needs 50 to pass log 2


class Implicit(ABC):
    """The library's own settings, with the width of ours.

    Args:
        problem: ``user`` and ``item`` (n,) train edges, ``batches`` (k, 3, B), ``user_table`` and
            ``item_table``, whose shape is taken.
    """

    def __init__(self, problem: Mapping[str, Array]) -> None:
        users, (items, width) = len(problem["user_table"]), problem["item_table"].shape
        edges = (np.ones(len(problem["user"]), np.float32), (problem["user"], problem["item"]))
        self.interactions = scipy.sparse.csr_matrix(edges, (users, items))
        self.batches = problem["batches"]
        self.model = self.create(width, torch.get_num_threads())

    @abstractmethod
    def create(self, factors: int, num_threads: int) -> Any:
        """Return the model, one iteration a fit."""

    def check(self) -> list[float]:
        """Return the mean BPR of the given triples after some epochs; untrained it is log 2."""
        for _ in range(EPOCHS):
            self.run()
        users, pos, neg = self.batches.transpose(1, 0, 2).reshape(3, -1)
        user, item = self.model.user_factors, self.model.item_factors
        margin = (user[users] * (item[pos] - item[neg])).sum(1)
        return [float(np.logaddexp(0, -margin).mean())]

    def run(self) -> None:
        """Pass once over the train edges, from where the last pass ended."""
        self.model.fit(self.interactions, show_progress=False)


class BPR(Implicit):
    """As many triples as there are train edges."""

    def create(self, factors: int, num_threads: int) -> Any:
        """See the base class."""
        return BayesianPersonalizedRanking(
            factors=factors, iterations=1, num_threads=num_threads, random_state=0
        )


class ALS(Implicit):
    """Solves for all users, then for all items."""

    def create(self, factors: int, num_threads: int) -> Any:
        """See the base class."""
        return AlternatingLeastSquares(
            factors=factors, iterations=1, num_threads=num_threads, random_state=0
        )
