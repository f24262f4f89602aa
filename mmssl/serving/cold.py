"""Vectors for items without train interactions, predicted from their features.

Such items are only negatives during training, so their learned vectors are meaningless. They are
replaced by a linear map from features to final item vectors, fitted by ridge regression on the
items that have interactions. ``benchmarks/bench_cold.py`` compares the map with alternatives.

Legend: I items, D embedding dim, F total width of all modalities, N requested items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError

# Candidate ridge penalties, relative to the mean square of the features.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
MIN_ITEMS = 5
_HELD_OUT = 5  # every fifth warm item is held out to select the penalty
_EPS = 1e-6


class FeatureMap(NamedTuple):
    """Linear map from features to item vectors: ``normalized features @ weight + bias``."""

    modalities: tuple[str, ...]
    """Names of the modalities, in the order of the rows of ``weight``."""
    widths: tuple[int, ...]
    """Width d_m of each modality."""
    weight: Tensor
    """(F, D) weight."""
    bias: Tensor
    """(D,) bias."""
    penalty: float
    """Relative ridge penalty with the lowest error on the held-out items."""
    explained: float
    """Share of the variance of the held-out items' vectors that the map explains."""

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Predict item vectors.

        Args:
            features: Modality -> (N, d_m), for every modality of the map.

        Returns:
            (N, D) item vectors.

        Raises:
            InputError: A modality is missing or has another width, or a value is not finite.
        """
        return _side_by_side(features, self.modalities, self.widths) @ self.weight + self.bias


def fit_feature_map(features: Mapping[str, Tensor], item_emb: Tensor, weight: Tensor) -> FeatureMap:
    """Fit the map on the items with positive weight, which are those with train interactions.

    One fifth of these items is held out to select the ridge penalty; the final map is fitted on
    all of them.

    Args:
        features: Modality -> (I, d_m).
        item_emb: (I, D) final item vectors.
        weight: (I,) weight of each item in the fit, 0 for items without train interactions.

    Raises:
        InputError: There is no modality, the numbers of rows differ, or too few items have positive
            weight.
    """
    modalities = tuple(features)
    if not modalities:
        raise InputError("features: expected at least one modality, got none")
    widths = tuple(features[name].shape[1] for name in modalities)
    warm = (weight > 0).nonzero().squeeze(1)
    if warm.numel() < MIN_ITEMS:
        raise InputError(
            f"features: expected at least {MIN_ITEMS} items with train interactions to fit on, "
            f"got {warm.numel()}"
        )
    x = _side_by_side({m: features[m][warm] for m in modalities}, modalities, widths).double()
    x = torch.nn.functional.pad(x, (0, 1), value=1.0)  # constant column for the bias
    y, weight = item_emb[warm].double(), weight[warm].double()[:, None]
    held_out = torch.arange(warm.numel()) % _HELD_OUT == 0
    moments = [
        (x[part].T @ (weight[part] * x[part]), x[part].T @ (weight[part] * y[part]))
        for part in (~held_out, held_out)
    ]
    truth, w = y[held_out], weight[held_out]
    error = [
        float((w * (x[held_out] @ _solve(*moments[0], penalty) - truth).square()).sum())
        for penalty in _PENALTIES
    ]
    least = min(error)
    penalty = _PENALTIES[error.index(least)]
    spread = float((w * (truth - (w * truth).sum(0) / w.sum()).square()).sum())
    solution = _solve(moments[0][0] + moments[1][0], moments[0][1] + moments[1][1], penalty).float()
    return FeatureMap(
        modalities,
        widths,
        solution[:-1].contiguous(),
        solution[-1].contiguous(),
        penalty,
        1 - least / spread if spread > 0 else 0.0,
    )


def _solve(square: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """Solve the ridge regression from its weighted moments, (F + 1, D); the bias is unpenalized."""
    width = square.shape[0] - 1
    diagonal = square.diagonal()[:-1]
    ridge = square.new_full((width + 1,), penalty * float(diagonal.mean()))
    ridge[-1] = 0.0
    ridge += _EPS * float(square.diagonal().mean())  # stay positive definite with zero columns
    return torch.cholesky_solve(cross, torch.linalg.cholesky(square + torch.diag(ridge)))


def _side_by_side(
    features: Mapping[str, Tensor], modalities: tuple[str, ...], widths: tuple[int, ...]
) -> Tensor:
    """Concatenate modalities to (N, F) float32, with unit rows so that all have equal weight."""
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
                f"features[{name!r}]: expected {parts[0].shape[0]} rows, like {modalities[0]!r}, "
                f"got {rows.shape[0]}"
            )
        parts.append(torch.nn.functional.normalize(rows, eps=_EPS))
    return torch.cat(parts, 1)
