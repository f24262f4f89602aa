"""MM-GF: graph filters of the interactions and of every modality, without training.

Roh, Kim, Park, Shin: "Training-free Graph Filtering via Multimodal Feature Refinement for Extremely
Fast Multimodal Recommendation", 2025, arXiv 2503.04406 version 1, with linear filters.

Legend: U users, I items, d width of a modality.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.closed_form import ClosedFormTask, gram
from mmssl.models.item_weights import ItemWeights
from mmssl.models.modalities import modalities_of

if TYPE_CHECKING:
    from mmssl.data.dataset import FeatureArray, InteractionDataset

WEIGHTS = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""What is tried on validation for the weight of a modality."""


def refined_features(features: FeatureArray, alpha: float) -> Tensor:
    """Scale features robustly, shift them to be positive and normalize them asymmetrically.

    ``Y = (X - median) / IQR`` by column, ``Z = Y - min Y``, ``D_row^-alpha Z D_col^(alpha - 1)``
    with D the row and column sums of Z. The row of an item without content stays zero.

    Args:
        features: (I, d).
        alpha: Exponent of the row sums.

    Returns:
        (I, d) float64.
    """
    known = features.any(1)
    if not known.any():
        return torch.zeros(features.shape, dtype=torch.float64)
    rows = features[known].astype(np.float64)
    low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    width = np.where(high > low, high - low, 1.0)
    scaled = (rows - middle) / width
    positive = torch.zeros(features.shape, dtype=torch.float64)
    positive[torch.from_numpy(known)] = torch.from_numpy(scaled - scaled.min(initial=0.0))
    return _power(positive.sum(1), -alpha)[:, None] * positive * _power(positive.sum(0), alpha - 1)


def filtered_interactions(graph: InteractionGraph, alpha: float) -> InteractionGraph:
    """Return ``D_U^-alpha R D_I^(alpha - 1)`` as a graph.

    Args:
        graph: A binary graph.
        alpha: Exponent of the users' degrees.
    """
    user, item = graph.ui.row_of_edge(), graph.index.col.long()
    of_user, of_item = graph.index.rowptr.diff().double(), graph.index.colptr.diff().double()
    value = of_user[user].pow(-alpha) * of_item[item].pow(alpha - 1)
    return graph.with_value(value.float())


class MMGFTask(ClosedFormTask):
    """``W = P + sum_m w_m P_m`` with P the similarities of items, each number to a power.

    Raises:
        InputError: No features, more items than a dense matrix is held for, or a weight of a
            modality that the data set lacks.
    """

    dense = "mmgf"

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        super().prepare(dataset)
        names = modalities_of(dataset, "model mmgf")
        for name in self.config.mmgf.modality_weights:
            if name not in names:
                have = ", ".join(names)
                raise InputError(f"mmgf.modality_weights: expected {have}, got {name!r:.60}")
        self._features = {name: dataset.features[name] for name in names}

    def embed(self) -> ItemWeights:
        """Add the modalities one after the other; one without a weight gets its best."""
        settings = self.config.mmgf
        products = gram(filtered_interactions(self.graph, settings.alpha), torch.float32)
        scorer = ItemWeights(self.graph, products.pow_(settings.power))
        for name, features in self._features.items():
            refined = refined_features(features, settings.alpha).float().to(self.device)
            content = (refined @ refined.T).pow_(settings.power)  # (I, I)
            before = scorer.weight
            assert isinstance(before, Tensor)

            def fit(
                weight: float, before: Tensor = before, content: Tensor = content
            ) -> ItemWeights:
                return ItemWeights(self.graph, before.add(content, alpha=weight))

            given = settings.modality_weights.get(name)
            if given is None:
                scorer = self.best_of(f"mmgf.modality_weights.{name}", WEIGHTS, fit)
            else:
                scorer = fit(given)
        return scorer


def _power(sums: Tensor, exponent: float) -> Tensor:
    """Return a power of sums, 0 for sums of 0."""
    return sums.pow(exponent).masked_fill(sums == 0, 0)
