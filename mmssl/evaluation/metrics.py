"""Ranking metrics of top-K lists: pure, vectorised, in float64.

Legend: B users, K width of the ranked lists, k the cut-off of a metric ("recall@20": k = 20).

Every function takes a `RankedHits` and a cut-off and returns one value per user, (B,) float64.
A cut-off beyond K is a cut-off at K: the list simply ends. A user without a relevant item has no
defined value; the functions give 0 and the evaluator leaves such users out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError


class RankedHits(NamedTuple):
    """What the metrics need to know of B ranked lists, best item first."""

    hits: Tensor
    """(B, K) bool: is the item at this rank relevant? False behind the end of a short list."""
    list_length: Tensor
    """(B,) int64: how many items the list really holds, at most K."""
    num_relevant: Tensor
    """(B,) int64: how many relevant items the user has, retrieved or not."""


def _discount(width: int, device: torch.device) -> Tensor:
    """DCG's 1 / log2(rank + 1) for the ranks 1..width, (width,) float64."""
    return torch.arange(2, width + 2, dtype=torch.float64, device=device).log2().reciprocal()


def _count(ranked: RankedHits, k: int) -> Tensor:
    return ranked.hits[:, :k].sum(dim=1, dtype=torch.float64)


def recall(ranked: RankedHits, k: int) -> Tensor:
    """Share of the user's relevant items that the first k hold: hits / |relevant|, (B,)."""
    return _count(ranked, k) / ranked.num_relevant.clamp(min=1)


def precision(ranked: RankedHits, k: int) -> Tensor:
    """Share of the k places that hold a relevant item: hits / k, (B,).

    A list shorter than k is not rewarded for being short (as trec_eval's P_k).
    """
    return _count(ranked, k) / k


def precision_released(ranked: RankedHits, k: int) -> Tensor:
    """Precision as the released MMSSL computes it: hits / min(k, length of the list), (B,).

    Equal to `precision` wherever the user has k items left to rank.
    """
    return _count(ranked, k) / ranked.list_length.clamp(min=1, max=k)


def hit(ranked: RankedHits, k: int) -> Tensor:
    """1 if any of the first k items is relevant, else 0, (B,)."""
    return ranked.hits[:, :k].any(dim=1).double()


def ndcg(ranked: RankedHits, k: int) -> Tensor:
    """Normalised discounted cumulative gain with binary gains, (B,).

    DCG = sum over ranks r <= k of hit_r / log2(r + 1), divided by the DCG of a list that starts
    with min(k, |relevant|) relevant items (Jarvelin and Kekalainen, "Cumulated gain-based
    evaluation of IR techniques", TOIS 2002).
    """
    hits = ranked.hits[:, :k].double()
    # The ideal list may be longer than a short real one, so its discounts run to k.
    discount = _discount(k, hits.device)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])  # (k + 1,) by number of hits
    best = ideal[ranked.num_relevant.clamp(max=k)]
    return (hits @ discount[: hits.shape[1]]) / best.clamp(min=1.0)


def ndcg_released(ranked: RankedHits, k: int) -> Tensor:
    """NDCG as the released MMSSL computes it, (B,): larger than `ndcg`, for comparison only.

    The ideal list is the *retrieved* list (all K ranks of it) sorted hits first, then cut at k:
    relevant items that were not retrieved at all do not lower the value
    (github.com/HKUDS/MMSSL, utility/metrics.py, ndcg_at_k).
    """
    hits = ranked.hits[:, :k].double()
    discount = _discount(hits.shape[1], hits.device)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    retrieved = ranked.hits.sum(dim=1).clamp(max=hits.shape[1])
    return (hits @ discount) / ideal[retrieved].clamp(min=1.0)


def average_precision(ranked: RankedHits, k: int) -> Tensor:
    """Average precision, (B,); its mean over users is MAP@k.

    sum over ranks r <= k of hit_r * precision@r, divided by min(k, |relevant|), so that a perfect
    list gives 1 whatever k is (the definition of RecBole and of Kaggle's MAP@k; trec_eval's
    map_cut divides by |relevant|).
    """
    hits = ranked.hits[:, :k].double()
    rank = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    total = (hits * hits.cumsum(dim=1) / rank).sum(dim=1)
    return total / ranked.num_relevant.clamp(min=1, max=k)


def reciprocal_rank(ranked: RankedHits, k: int) -> Tensor:
    """1 / rank of the first relevant item if that is within k, else 0, (B,); its mean is MRR@k."""
    hits = ranked.hits[:, :k].double()
    rank = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    first = (hits.cumsum(dim=1) == 1) & ranked.hits[:, :k]
    return (first / rank).sum(dim=1)


METRICS: dict[str, Callable[[RankedHits, int], Tensor]] = {
    "recall": recall,
    "precision": precision,
    "ndcg": ndcg,
    "hit": hit,
    "map": average_precision,
    "mrr": reciprocal_rank,
    "precision_released": precision_released,
    "ndcg_released": ndcg_released,
}
"""Name as in "recall@20" -> function."""

STANDARD: tuple[str, ...] = ("recall", "precision", "ndcg", "hit", "map", "mrr")
"""What is reported of every run."""

RELEASED: tuple[str, ...] = ("precision_released", "ndcg_released")
"""The released code's own definitions, reported beside the standard ones when comparing."""


def compute(ranked: RankedHits, names: tuple[str, ...], ks: tuple[int, ...]) -> Tensor:
    """Every named metric at every cut-off, per user.

    Args:
        ranked: The lists of B users.
        names: Keys of `METRICS`.
        ks: Cut-offs, each at least 1.

    Returns:
        (B, len(names) * len(ks)) float64, columns in the order of `keys(names, ks)`.
    """
    return torch.stack([METRICS[name](ranked, k) for name in names for k in ks], dim=1)


def keys(names: tuple[str, ...], ks: tuple[int, ...]) -> tuple[str, ...]:
    """The columns of `compute`: "recall@10", "recall@20", ...

    Raises:
        InputError: a name that is not in `METRICS` or a cut-off that is not a positive int.
    """
    for name in names:
        if name not in METRICS:
            raise InputError(f"metrics: expected names among {', '.join(METRICS)}, got {name!r}")
    for k in ks:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InputError(f"ks: expected positive integers, got {k!r}")
    if not names or not ks:
        raise InputError("metrics and ks: expected at least one of each, got none")
    return tuple(f"{name}@{k}" for name in names for k in ks)
