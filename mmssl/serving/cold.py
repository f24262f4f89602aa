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

# Ridge penalties tried, as shares of the features' mean square.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MIN_ITEMS = 5
_HELD_OUT = 5  # every fifth warm item chooses the penalty
_EPS = 1e-6


class FeatureMap(NamedTuple):
    """``normalised features @ weight + bias``: an item vector for any item that has features."""

    modalities: tuple[str, ...]
    widths: tuple[int, ...]
    weight: Tensor  # (F, D)
    bias: Tensor  # (D,)
    penalty: float
    """The one of `_PENALTIES` with the least error on the items held out."""
    explained: float
    """Share of the variance of the held-out items' vectors that was predicted."""

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """(N, D): vectors of items.

        Args:
            features: modality -> (N, d_m), every modality of the map.

        Raises:
            InputError: a modality is missing or has another width, or rows that aren't finite.
        """
        return _side_by_side(features, self.modalities, self.widths) @ self.weight + self.bias


def fit_feature_map(features: Mapping[str, Tensor], item_emb: Tensor, degree: Tensor) -> FeatureMap:
    """Fits the map on the items with train interactions, each weighted by the root of their number.

    The penalty is the one with the least error on a fifth of them; the map is then fitted on all.

    Args:
        features: modality -> (I, d_m).
        item_emb: (I, D), final item vectors.
        degree: (I,) train interactions of each item.

    Raises:
        InputError: no modality, rows that don't match, or too few items to fit on.
    """
    modalities = tuple(features)
    if not modalities:
        raise InputError("features: expected at least one modality, got none")
    widths = tuple(features[name].shape[1] for name in modalities)
    warm = (degree > 0).nonzero().squeeze(1)
    if warm.numel() < _MIN_ITEMS:
        raise InputError(
            f"features: expected at least {_MIN_ITEMS} items with train interactions to fit on, "
            f"got {warm.numel()}"
        )
    x = _side_by_side({m: features[m][warm] for m in modalities}, modalities, widths).double()
    x = torch.nn.functional.pad(x, (0, 1), value=1.0)  # the constant
    y, weight = item_emb[warm].double(), degree[warm].double().sqrt()[:, None]
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
    """(F + 1, D): ridge regression from its (weighted) moments; the constant isn't penalised."""
    width = square.shape[0] - 1
    diagonal = square.diagonal()[:-1]
    ridge = square.new_full((width + 1,), penalty * float(diagonal.mean()))
    ridge[-1] = 0.0
    ridge += _EPS * float(square.diagonal().mean())  # a column of zeros is no reason to fail
    return torch.cholesky_solve(cross, torch.linalg.cholesky(square + torch.diag(ridge)))


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
