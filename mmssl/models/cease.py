"""CEASE: EASE whose data are the interactions of the users and the features of the items.

Jeunen, Van Balen, Goethals: "Closed-Form Models for Collaborative Filtering with Side-Information",
RecSys 2020, section 3.1. The paper has binary tags; here each column of the features is a row of
the data, after the mean was taken out and the vector of each item scaled to unit length.

Legend: U users, I items, d width of a modality.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.models.closed_form import ClosedFormTask, gram
from mmssl.models.ease import REGULARIZATIONS, ease_weights
from mmssl.models.item_weights import ItemWeights
from mmssl.models.modalities import centered, modalities_of

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

FEATURE_WEIGHTS = (1.0, 10.0, 100.0, 1000.0)
"""What is tried on validation."""
_FIRST_WEIGHT = 10.0


class CEASETask(ClosedFormTask):
    """Minimize ``|R - R B|^2 + w |T - T B|^2 + reg |B|^2`` over B with a zero diagonal.

    R are the interactions (U, I), T the features of all modalities (d, I). Where both settings are
    selected on validation, ``reg`` comes first, at w = 10.

    Raises:
        InputError: No features, or more items than a dense matrix is held for.
    """

    dense = "cease"

    def prepare(self, dataset: InteractionDataset) -> None:
        """See the base class."""
        super().prepare(dataset)
        modalities_of(dataset, "model cease")  # at least one
        self._features = feature_directions(dataset).to(self.device)  # (I, d)

    def embed(self) -> ItemWeights:
        """See the base class."""
        settings = self.config.cease
        products, features = gram(self.graph), self._features
        weight = _FIRST_WEIGHT if settings.weight == "validation" else settings.weight

        def fit(reg: float, weight: float = weight) -> ItemWeights:
            both = torch.addmm(products, features, features.T, alpha=weight)
            return ItemWeights(self.graph, ease_weights(both, reg))

        scorer = self.select("cease.reg", REGULARIZATIONS, fit)
        if settings.weight != "validation":
            return scorer
        reg = self.selected["cease.reg"] if settings.reg == "validation" else settings.reg
        return self.best_of("cease.weight", FEATURE_WEIGHTS, lambda weight: fit(reg, weight))


def feature_directions(dataset: InteractionDataset) -> Tensor:
    """Return the features of all modalities side by side, (I, d) float64.

    The mean of the items with content is subtracted; the rows of each modality have unit length.
    """
    parts = []
    for _, rows in sorted(dataset.features.items()):
        features = torch.from_numpy(rows)
        parts.append(F.normalize(centered(features.double())) * features.any(1)[:, None])
    return torch.cat(parts, 1)
