"""Ranking metrics of top-K lists: pure, vectorized functions in float64.

Legend: B users, K width of the ranked lists, k the cutoff of a metric ("recall@20": k = 20).

Every function takes a `RankedHits` and a cutoff and returns one value per user, (B,) float64. If
the cutoff exceeds K, the list ends at K. Metrics are undefined for users without relevant items:
the functions return 0 and the evaluator excludes these users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.errors import InputError


class RankedHits(NamedTuple):
    """Relevance of the items in B ranked lists, best item first."""

    hits: Tensor
    """(B, K) bool, True if the item at this rank is relevant; False for padding."""
    list_length: Tensor
    """(B,) int64 number of items in the list without padding, at most K."""
    num_relevant: Tensor
    """(B,) int64 number of relevant items of the user, retrieved or not."""


def _discount(width: int, device: torch.device) -> Tensor:
    """Compute the DCG discounts 1 / log2(rank + 1) of ranks 1 .. width, (width,) float64."""
    return torch.arange(2, width + 2, dtype=torch.float64, device=device).log2().reciprocal()


def _count(ranked: RankedHits, k: int) -> Tensor:
    return ranked.hits[:, :k].sum(dim=1, dtype=torch.float64)


def recall(ranked: RankedHits, k: int) -> Tensor:
    """Compute the share of relevant items in the first k: hits / |relevant|, (B,)."""
    return _count(ranked, k) / ranked.num_relevant.clamp(min=1)


def precision(ranked: RankedHits, k: int) -> Tensor:
    """Compute the share of the first k ranks with a relevant item: hits / k, (B,).

    As in trec_eval's P_k, the denominator is k even if the list is shorter.
    """
    return _count(ranked, k) / k


def precision_released(ranked: RankedHits, k: int) -> Tensor:
    """Compute precision as the released MMSSL code does: hits / min(k, length of list), (B,).

    Equals `precision` for users with at least k items to rank.
    """
    return _count(ranked, k) / ranked.list_length.clamp(min=1, max=k)


def hit(ranked: RankedHits, k: int) -> Tensor:
    """Return 1 if any of the first k items is relevant, else 0, (B,)."""
    return ranked.hits[:, :k].any(dim=1).double()


def ndcg(ranked: RankedHits, k: int) -> Tensor:
    """Compute the normalized discounted cumulative gain with binary gains, (B,).

    DCG = sum over ranks r <= k of hit_r / log2(r + 1), divided by the DCG of a list that starts
    with min(k, |relevant|) relevant items (Jarvelin and Kekalainen, "Cumulated gain-based
    evaluation of IR techniques", TOIS 2002).
    """
    hits = ranked.hits[:, :k].double()
    # The ideal list has min(k, |relevant|) hits even if the real list is shorter.
    discount = _discount(k, hits.device)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])  # (k + 1,) by number of hits
    best = ideal[ranked.num_relevant.clamp(max=k)]
    return (hits @ discount[: hits.shape[1]]) / best.clamp(min=1.0)


def ndcg_released(ranked: RankedHits, k: int) -> Tensor:
    """Compute NDCG as the released MMSSL code does, (B,); never lower than `ndcg`.

    The ideal list consists of the *retrieved* items (all K ranks) with hits first, cut at k, so
    relevant items that were not retrieved do not reduce the value. Use it only to compare with
    numbers of the released code (github.com/HKUDS/MMSSL, utility/metrics.py, ndcg_at_k).
    """
    hits = ranked.hits[:, :k].double()
    discount = _discount(hits.shape[1], hits.device)
    ideal = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    retrieved = ranked.hits.sum(dim=1).clamp(max=hits.shape[1])
    return (hits @ discount) / ideal[retrieved].clamp(min=1.0)


def average_precision(ranked: RankedHits, k: int) -> Tensor:
    """Compute the average precision, (B,), whose mean over users is MAP@k.

    The sum over ranks r <= k of hit_r * precision@r is divided by min(k, |relevant|), so that a
    perfect list scores 1 for every k. RecBole and Kaggle use the same definition of MAP@k;
    trec_eval's map_cut divides by |relevant|.
    """
    hits = ranked.hits[:, :k].double()
    rank = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    total = (hits * hits.cumsum(dim=1) / rank).sum(dim=1)
    return total / ranked.num_relevant.clamp(min=1, max=k)


def reciprocal_rank(ranked: RankedHits, k: int) -> Tensor:
    """Compute 1 / rank of the first relevant item, 0 beyond rank k; (B,), whose mean is MRR@k."""
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
"""Metric name, as in "recall@20", -> function."""

STANDARD: tuple[str, ...] = ("recall", "precision", "ndcg", "hit", "map", "mrr")
"""Metrics that are reported for every run."""

RELEASED: tuple[str, ...] = ("precision_released", "ndcg_released")
"""Metrics as the released code defines them, for comparison with its numbers."""


def compute(ranked: RankedHits, names: tuple[str, ...], ks: tuple[int, ...]) -> Tensor:
    """Compute several metrics at several cutoffs for each user.

    Args:
        ranked: Ranked lists of B users.
        names: Names of the metrics, keys of `METRICS`.
        ks: Cutoffs, each at least 1.

    Returns:
        (B, len(names) * len(ks)) float64, with columns in the order of ``keys(names, ks)``.
    """
    # Every metric of a list without a hit is 0, and most lists of a large catalog have none.
    some = ranked.hits.any(dim=1).nonzero().squeeze(1)
    part = RankedHits(*(t.index_select(0, some) for t in ranked))
    found = torch.stack([METRICS[name](part, k) for name in names for k in ks], dim=1)
    return found.new_zeros(ranked.hits.shape[0], found.shape[1]).index_copy(0, some, found)


def keys(names: tuple[str, ...], ks: tuple[int, ...]) -> tuple[str, ...]:
    """Return the column names of `compute`: "recall@10", "recall@20", ...

    Raises:
        InputError: A name is not in `METRICS`, or a cutoff is not a positive integer.
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
