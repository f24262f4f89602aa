"""What the multi-modal baselines do with the item features of a data set.

Legend: I items, D embedding dim, M modalities, d_m width of modality m.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models.lightgcn import LightGCN
from mmssl.models.linear import Linear, project
from mmssl.ops.product import product

if TYPE_CHECKING:
    from mmssl.data.dataset import FeatureArray, InteractionDataset


def modalities_of(dataset: InteractionDataset, model: str, *, lists: bool = False) -> list[str]:
    """Return the sorted names of the modalities that a model can use, at least one.

    Args:
        dataset: The data.
        model: Its name, for the error message.
        lists: Whether a neighbor list stands for features.

    Raises:
        InputError: The data set has no such modality.
    """
    names = {*dataset.features, *(dataset.neighbors if lists else ())}
    if not names:
        expected = "item features (NAME_feat.npy)"
        if lists:
            expected += " or neighbor lists (NAME_knn.npz)"
        got = "neighbor lists only" if dataset.neighbors else "no modality"
        raise InputError(
            f"data set {dataset.name}: {model} expects {expected}, got {got}; mmssl features "
            "computes them, and --variant plus or --model lightgcn needs none"
        )
    return sorted(names)


def centered(features: Tensor) -> Tensor:
    """Subtract the mean of the items with content, those whose row is not zero, from (I, d)."""
    known = features.any(1)
    return features - features[known].mean(0) if known.any() else features


class FeatureProjections(nn.Module):
    """A linear map of the raw features of every modality, ``f_m = X_m W_m + b_m``.

    Weights are Xavier-uniform. The features are constants and not part of the state, unless they
    are trained.

    Args:
        features: Modality name -> (I, d_m) raw features.
        width: D.
        unit: Whether rows are scaled to unit length first.
        trained: Whether the features are parameters in float32, which start as given.
    """

    def __init__(
        self,
        features: Mapping[str, FeatureArray],
        width: int,
        *,
        unit: bool = False,
        trained: bool = False,
    ) -> None:
        super().__init__()
        # Indexed by position: a modality may have any name, including those of module attributes.
        self.layers = nn.ModuleList()
        for position, rows in enumerate(features.values()):
            raw = torch.from_numpy(rows)
            if unit:
                raw = F.normalize(raw.float())
            if trained:
                self.register_parameter(f"raw_{position}", nn.Parameter(raw.float().clone()))
            else:
                self.register_buffer(f"raw_{position}", raw, persistent=False)
            layer = Linear(rows.shape[1], width)
            nn.init.xavier_uniform_(layer.weight)
            self.layers.append(layer)

    def forward(self, item: Tensor | None = None) -> list[Tensor]:
        """Compute M matrices (n, D), in the order of the modalities.

        Args:
            item: (n,) int64, which items; None means all.
        """
        return [
            project(cast(Linear, layer), getattr(self, f"raw_{position}"), item)
            for position, layer in enumerate(self.layers)
        ]

    def differences(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Compute M matrices ``f_m[first] - f_m[second]``, (n, D) each.

        The features are subtracted before they are multiplied by W_m, and the bias cancels.

        Args:
            first: (n,) int64, items.
            second: (n,) int64, items.
        """
        found = []
        for position, layer in enumerate(self.layers):
            raw, weight = getattr(self, f"raw_{position}"), cast(Linear, layer).weight
            # index_select copies whole rows, four times faster than raw[first].
            rows, others = (raw.index_select(0, ids).to(weight.dtype) for ids in (first, second))
            found.append(product(rows - others, weight.T))
        return found


class MultiModalLightGCN(LightGCN):
    """LightGCN whose embeddings are Xavier-uniform, with projections of the features.

    Args:
        graph: The train graph, normalization "sym".
        projections: Of the features of M modalities.
        sizes: ``embedding_dim`` and ``num_layers`` of LightGCN.

    Raises:
        InputError: As LightGCN.
    """

    def __init__(
        self, graph: InteractionGraph, projections: FeatureProjections, **sizes: int
    ) -> None:
        super().__init__(graph, **sizes)
        self.projections = projections
        for table in self.ego():
            nn.init.xavier_uniform_(table)
