"""Catalog coverage, concentration and popularity of recommended lists, as pure functions.

Legend: B users, K width of the lists, I items. Lists are (B, K) int64 item ids, best first and
padded with -1; ``degree`` is the (I,) number of train interactions per item.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = 0.2
"""Share of the items that count as popular; the others form the tail."""


def counts(lists: Tensor, num_items: int) -> Tensor:
    """Count how often each item is listed, (I,) int64."""
    return torch.bincount(lists[lists >= 0].flatten(), minlength=num_items)


def coverage(lists: Tensor, num_items: int) -> float:
    """Compute the share of items that occur in at least one list."""
    return float((counts(lists, num_items) > 0).double().mean())


def gini(lists: Tensor, num_items: int) -> float:
    """Compute the Gini index of the item counts, from 0 (all equal) toward 1 (few items dominate).

    ``sum_i (2 i - I - 1) n_i / (I sum n)`` for counts n in ascending order, with i from 1.
    """
    listed = counts(lists, num_items).double().sort().values
    rank = torch.arange(1, num_items + 1, dtype=torch.float64, device=listed.device)
    total = listed.sum()
    if not total:
        return 0.0
    return float(((2 * rank - num_items - 1) * listed).sum() / (num_items * total))


def average_popularity(lists: Tensor, degree: Tensor) -> float:
    """Compute the mean number of train interactions of a list's items, averaged over lists."""
    return _mean_of_lists(lists, degree.double())


def tail_share(lists: Tensor, degree: Tensor) -> float:
    """Compute the share of a list outside the `HEAD` most popular items, averaged over lists.

    This is APLT of Abdollahpouri, Burke and Mobasher, "Managing popularity bias in recommender
    systems with personalized re-ranking", FLAIRS 2019.
    """
    is_tail = torch.ones(degree.numel(), dtype=torch.float64, device=degree.device)
    is_tail[by_popularity(degree)[: max(1, round(HEAD * degree.numel()))]] = 0
    return _mean_of_lists(lists, is_tail)


def popularity_groups(degree: Tensor, groups: int = 5) -> Tensor:
    """Assign items to groups by popularity, (I,) int64, with group 0 the most popular.

    Groups have about the same number of train interactions, so the first contains few items and
    the last most of them, including items without interactions.
    """
    order = by_popularity(degree)
    before = degree[order].cumsum(0) - degree[order]
    group = torch.empty_like(order)
    group[order] = (before * groups // degree.sum().clamp(min=1)).clamp(max=groups - 1)
    return group


def shares(lists: Tensor, group: Tensor, groups: int) -> Tensor:
    """Compute the share of listed items that belong to each group, (groups,) float64."""
    real = group[lists[lists >= 0]]
    listed = torch.bincount(real, minlength=groups).double()
    return listed / listed.sum().clamp(min=1)


def by_popularity(degree: Tensor) -> Tensor:
    """Sort item ids by descending number of train interactions, ties by smaller id; (I,) int64."""
    return degree.sort(descending=True, stable=True).indices


def activity_groups(degree: Tensor, groups: int = 4) -> Tensor:
    """Assign users to groups by train interactions, (B,) int64, with group 0 the least active.

    Groups have similar sizes, but users with equal degree share a group, so groups may be empty.
    """
    ascending = degree.sort().values
    first = torch.arange(1, groups, device=degree.device) * degree.numel() // groups
    return torch.searchsorted(ascending[first].contiguous(), degree.contiguous(), right=True)


def _mean_of_lists(lists: Tensor, value: Tensor) -> float:
    real = lists >= 0
    length = real.sum(1)
    kept = length > 0
    if not bool(kept.any()):
        return 0.0
    total = (value[lists.clamp(min=0)] * real).sum(1)
    return float((total[kept] / length[kept]).mean())
