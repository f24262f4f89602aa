"""What lists show of the catalogue: coverage, concentration, popularity. Pure functions of lists.

Legend: B users, K width of the lists, I items. Lists are (B, K) int64 item ids, best first, -1
behind the end of a short one; ``degree`` is (I,) train interactions per item.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = 0.2
"""Share of the items that are called popular; the others are the tail."""


def counts(lists: Tensor, num_items: int) -> Tensor:
    """How often each item is listed, (I,) int64."""
    return torch.bincount(lists[lists >= 0].flatten(), minlength=num_items)


def coverage(lists: Tensor, num_items: int) -> float:
    """Share of the items that are in at least one list."""
    return float((counts(lists, num_items) > 0).double().mean())


def gini(lists: Tensor, num_items: int) -> float:
    """Gini index of how often items are listed: 0 all alike, towards 1 a few take all.

    ``sum_i (2 i - I - 1) n_i / (I sum n)`` over the counts n in ascending order, i from 1.
    """
    listed = counts(lists, num_items).double().sort().values
    rank = torch.arange(1, num_items + 1, dtype=torch.float64, device=listed.device)
    total = listed.sum()
    if not total:
        return 0.0
    return float(((2 * rank - num_items - 1) * listed).sum() / (num_items * total))


def average_popularity(lists: Tensor, degree: Tensor) -> float:
    """Train interactions of a listed item: the mean of a list, averaged over the lists."""
    return _mean_of_lists(lists, degree.double())


def tail_share(lists: Tensor, degree: Tensor) -> float:
    """Share of a list outside the `HEAD` most popular items, averaged over the lists.

    Abdollahpouri, Burke, Mobasher: "Managing popularity bias in recommender systems with
    personalized re-ranking" (FLAIRS 2019) call it APLT.
    """
    is_tail = torch.ones(degree.numel(), dtype=torch.float64, device=degree.device)
    is_tail[by_popularity(degree)[: max(1, round(HEAD * degree.numel()))]] = 0
    return _mean_of_lists(lists, is_tail)


def popularity_groups(degree: Tensor, groups: int = 5) -> Tensor:
    """(I,) int64: the group of each item, 0 the most popular.

    Each group holds about the same number of train interactions, so the first has few items and
    the last most of them; items without an interaction are in the last.
    """
    order = by_popularity(degree)
    before = degree[order].cumsum(0) - degree[order]
    group = torch.empty_like(order)
    group[order] = (before * groups // degree.sum().clamp(min=1)).clamp(max=groups - 1)
    return group


def shares(lists: Tensor, group: Tensor, groups: int) -> Tensor:
    """What share of all that is listed falls to each group of items, (groups,) float64."""
    real = group[lists[lists >= 0]]
    listed = torch.bincount(real, minlength=groups).double()
    return listed / listed.sum().clamp(min=1)


def by_popularity(degree: Tensor) -> Tensor:
    """(I,) item ids, most train interactions first, equal ones by smaller id."""
    return degree.sort(descending=True, stable=True).indices


def activity_groups(degree: Tensor, groups: int = 4) -> Tensor:
    """(B,) int64: the group of each user by train interactions, 0 the least active.

    Groups are as equal in size as ties allow: users with equal degree are in one group, and a
    group may therefore be empty.
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
