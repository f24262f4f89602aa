"""Degrees of a graph and its normalized edges.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmssl import _extension
from mmssl.errors import InputError
from mmssl.indexing import GraphIndex, index_of_repeated, rows_of, sum_by, sum_rows

Normalization = Literal["row_sqrt", "sym", "row", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("row_sqrt", "sym", "row", "none")

_SMALLEST, _LARGEST = 1e-30, 1e30  # degrees between these have exact enough float32 scales


class Normalized(NamedTuple):
    """What the two views multiply by: scales of rows and columns, or normalized values."""

    user_scale: Tensor | None = None  # (U,)
    item_scale: Tensor | None = None  # (I,)
    ui_value: Tensor | None = None  # (E,) by user
    iu_value: Tensor | None = None  # (E,) by user


def normalized(
    index: GraphIndex,
    normalization: Normalization,
    value: Tensor | None,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Normalized:
    """Normalize the edges of a graph.

    The scales of a binary graph and of ordinary values stay separate from the values. They are
    multiplied into the values, in float64, if a gradient has to flow through them or if a degree is
    so small or large that its float32 scale would overflow or lose digits, and in a traced call,
    which can't depend on values.

    Raises:
        InputError: the values of a row do not sum to a positive number, other than all being 0. Not
            checked in a traced call.
    """
    if normalization == "none":
        return Normalized(ui_value=value, iu_value=value)
    power = exponent(normalization)
    if scales is not None:
        return Normalized(*scales, value, value)
    if value is None and _extension.on_gpu(index.rowptr):
        both = (index.rowptr, index.colptr)
        return Normalized(*(torch.ops.mmssl.degree_scale(p, power == -0.5) for p in both))
    if value is None:
        user_degree, item_degree = index.rowptr.diff().float(), index.colptr.diff().float()
        return Normalized(_power(user_degree, power), _power(item_degree, power))
    wide = value.double()
    user_degree, item_degree = _sums(index, wide)
    if not torch.compiler.is_compiling():
        _check_degrees(index, normalization, wide.detach(), (user_degree, item_degree))
        degrees = torch.cat([user_degree, item_degree]).detach()
        ordinary = (degrees == 0) | ((degrees >= _SMALLEST) & (degrees <= _LARGEST))
        if not value.requires_grad and bool(ordinary.all()):
            user_scale = _power(user_degree.to(value.dtype), power)
            return Normalized(user_scale, _power(item_degree.to(value.dtype), power), value, value)
    user, item = rows_of(index.rowptr, value.numel()), index.col.long()
    by_user, by_item = _divided(wide, user_degree[user], power), None
    if normalization == "sym":
        by_user = by_item = _divided(by_user, item_degree[item], power)
    else:
        by_item = _divided(wide, item_degree[item], power)
    return Normalized(ui_value=by_user.to(value.dtype), iu_value=by_item.to(value.dtype))


def counted(
    user: Tensor, item: Tensor, num_users: int, num_items: int, normalization: Normalization
) -> tuple[GraphIndex, Tensor, tuple[Tensor, Tensor]]:
    """Build the index of edges, with their numbers as values, and its scales, without a wait.

    See :func:`mmssl.indexing.index_of_repeated`; the degrees need no check, since they are counts.
    """
    index, count = index_of_repeated(user, item, num_users, num_items)
    user_degree, item_degree = (sums.float() for sums in _sums(index, count.double()))
    power = exponent(normalization)
    return index, count, (_power(user_degree, power), _power(item_degree, power))


def degree_scale(degree: Tensor, normalization: Normalization) -> Tensor:
    """Return the (R,) float32 factors of rows with (R,) edges each, 0 for a row without any."""
    return _power(degree.float(), exponent(normalization))


def exponent(normalization: Normalization) -> float:
    """Return the power of a degree that an edge is multiplied by."""
    return -1.0 if normalization == "row" else -0.5


def check_finite(index: GraphIndex, value: Tensor) -> None:
    """Refuse NaN and infinity among (E,) edge values by user, except in a traced call."""
    if value.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = torch.aminmax(value.detach())  # NaN if any value is
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return
    edge = int((~torch.isfinite(value)).nonzero()[0])
    user = int(rows_of(index.rowptr, value.numel())[edge])
    raise InputError(
        f"value: expected finite numbers, got {value[edge].item()} for the edge of user {user} and "
        f"item {int(index.col[edge])}"
    )


def _power(degree: Tensor, power: float) -> Tensor:
    """Return ``degree ** power``, 0 where the degree is 0."""
    return torch.where(degree > 0, degree.clamp_min(_SMALLEST) ** power, 0.0)


def _divided(value: Tensor, degree: Tensor, power: float) -> Tensor:
    """Return ``value * degree ** power`` without overflow; 0 where the degree is 0."""
    positive = torch.where(degree > 0, degree, 1.0)  # no gradient of 1 / 0
    divisor = positive if power == -1.0 else positive.sqrt()
    return torch.where(degree > 0, value / divisor, 0.0)


def _sums(index: GraphIndex, value: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (E,) values by user and by item."""
    return sum_rows(index.rowptr, value), sum_by(index.col, value, index.colptr.numel() - 1)


def _check_degrees(
    index: GraphIndex, normalization: Normalization, value: Tensor, degrees: tuple[Tensor, Tensor]
) -> None:
    """Refuse a row whose values sum to less than 0, to infinity, or to 0 by cancellation."""
    wrong = [~torch.isfinite(degree.detach()) for degree in degrees]
    if value.numel() and bool(value.min() < 0):
        sizes, counts = _sums(index, value.abs()), (index.rowptr.diff(), index.colptr.diff())
        for position, (degree, size, count) in enumerate(zip(degrees, sizes, counts, strict=True)):
            # A sum no larger than its own rounding error is a cancellation.
            rounding = count * torch.finfo(torch.float64).eps * size
            wrong[position] |= (degree <= rounding) & (size > 0)
    for what, rows, degree in zip(("user", "item"), wrong, degrees, strict=True):
        if bool(rows.any()):
            row = int(rows.nonzero()[0])
            raise InputError(
                f"value: expected edge values of {what} {row} with a positive, finite sum, as "
                f"normalization {normalization!r} divides by it, got {degree[row].item():.6g}; "
                "normalization 'none' takes any values"
            )
