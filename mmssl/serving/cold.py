"""Items without train interactions: their vectors from features alone.

Training never sees such an item as a positive, only as a negative, so its own vector says nothing.
What stands in is a linear map from features to final item vectors, fitted by ridge regression on
the items that have interactions. Which way is best was measured (``benchmarks/bench_cold.py``).

Legend: I items, D embedding dim, F width of all modalities side by side, N items asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError

# Ridge penalties tried, as shares of the mean eigenvalue of the features' covariance.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 5
_EPS = 1e-6


class FeatureMap(NamedTuple):
    """``normalised features @ weight + bias``: an item vector for any item that has features."""

    modalities: tuple[str, ...]
    widths: tuple[int, ...]
    mean: Tensor  # (F,)
    weight: Tensor  # (F, D)
    bias: Tensor  # (D,)
    penalty: float
    """The one of `_PENALTIES` with the least error in cross-validation."""
    explained: float
    """Share of the warm item vectors' variance that is predicted in cross-validation."""

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """(N, D): vectors of items.

        Args:
            features: modality -> (N, d_m), every modality of the map.

        Raises:
            InputError: a modality is missing or has another width, or rows that aren't finite.
        """
        rows = _side_by_side(features, self.modalities, self.widths)
        return (rows - self.mean) @ self.weight + self.bias


def fit_feature_map(features: Mapping[str, Tensor], item_emb: Tensor, degree: Tensor) -> FeatureMap:
    """Fits the map on the items with train interactions, each weighted by the root of their number.

    The penalty is chosen by five-fold cross-validation over the items.

    Args:
        features: modality -> (I, d_m).
        item_emb: (I, D), final item vectors.
        degree: (I,) train interactions of each item.

    Raises:
        InputError: no modality, rows that don't match, or fewer warm items than folds.
    """
    modalities = tuple(features)
    if not modalities:
        raise InputError("features: expected at least one modality, got none")
    widths = tuple(features[name].shape[1] for name in modalities)
    warm = (degree > 0).nonzero().squeeze(1)
    if warm.numel() < _FOLDS:
        raise InputError(
            f"features: expected at least {_FOLDS} items with train interactions to fit on, "
            f"got {warm.numel()}"
        )
    x = _side_by_side({m: features[m][warm] for m in modalities}, modalities, widths).double()
    y, weight = item_emb[warm].double(), degree[warm].double().sqrt()
    fold = torch.arange(warm.numel()) % _FOLDS
    error = torch.zeros(len(_PENALTIES), dtype=torch.float64)
    for held_out in range(_FOLDS):
        rest = fold != held_out
        w = weight[~rest, None]
        for position, fitted in enumerate(_ridge(x[rest], y[rest], weight[rest])):
            mean, matrix, bias = fitted
            error[position] += (w * ((x[~rest] - mean) @ matrix + bias - y[~rest]).square()).sum()
    best = int(error.argmin())
    mean, matrix, bias = list(_ridge(x, y, weight))[best]
    spread = (weight[:, None] * (y - bias).square()).sum()
    return FeatureMap(
        modalities,
        widths,
        mean.float(),
        matrix.float(),
        bias.float(),
        _PENALTIES[best],
        float(1 - error[best] / spread),
    )


def _ridge(x: Tensor, y: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(mean, matrix, bias) for each penalty; one eigendecomposition for all."""
    share = weight / weight.sum()
    mean, bias = share @ x, share @ y
    centred = x - mean
    weighted = centred * share[:, None]
    value, vector = torch.linalg.eigh(centred.T @ weighted)
    projected = vector.T @ (weighted.T @ (y - bias))
    scale = value.clamp(min=0).mean().clamp(min=_EPS)
    return [
        (mean, vector @ (projected / (value.clamp(min=0) + p * scale)[:, None]), bias)
        for p in _PENALTIES
    ]


def _side_by_side(
    features: Mapping[str, Tensor], modalities: tuple[str, ...], widths: tuple[int, ...]
) -> Tensor:
    """(N, F) float32: every modality's rows at unit length, so that none outweighs another."""
    parts: list[Tensor] = []
    for name, width in zip(modalities, widths, strict=True):
        if name not in features:
            have = ", ".join(features) or "none"
            raise InputError(f"features: expected {', '.join(modalities)}, got {have}")
        rows = features[name].float()
        if rows.dim() != 2 or rows.shape[1] != width:
            raise InputError(
                f"features[{name!r}]: expected shape (N, {width}), got {tuple(rows.shape)}"
            )
        if not bool(torch.isfinite(rows).all()):
            raise InputError(f"features[{name!r}]: expected finite values, got NaN or infinity")
        if parts and rows.shape[0] != parts[0].shape[0]:
            raise InputError(
                f"features[{name!r}]: expected {parts[0].shape[0]} rows as {modalities[0]!r}, "
                f"got {rows.shape[0]}"
            )
        parts.append(torch.nn.functional.normalize(rows, eps=_EPS))
    return torch.cat(parts, 1)
