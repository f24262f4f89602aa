"""From checked rows to numbered interactions: one per user and item, ids with a place each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.dataset import IntArray, InteractionDataset, Interactions
from mmssl.data.importing.rows import Rows, natural_order, one_per_pair
from mmssl.data.importing.table import Column
from mmssl.data.log import InteractionLog
from mmssl.errors import InputError

KEEP = ("last", "first")


class IdMap(NamedTuple):
    """A numbering that the source has already: names[n] is the id of number n, None without any."""

    size: int
    names: tuple[str, ...] | None


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several files, one after the other."""
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    arrays: dict[str, Any] = {}
    for name in ("rating", "time", "label"):
        found = [getattr(part, name) for part in parts]
        arrays[name] = None if any(values is None for values in found) else np.concatenate(found)
    return Rows(
        user=_joined_columns([part.user for part in parts]),
        item=_joined_columns([part.item for part in parts]),
        **arrays,
        rows_read=sum(part.rows_read for part in parts),
        dropped=dropped,
    )


def _joined_columns(columns: Sequence[Column]) -> Column:
    number: dict[str, int] = {}
    codes = []
    for column in columns:
        place = [number.setdefault(value, len(number)) for value in column.values]
        codes.append(np.array(place, dtype=np.int64)[column.codes])
    return Column(np.concatenate(codes), list(number))


class Numbered(NamedTuple):
    """A log, the split label of each of its interactions, and what was left out on the way."""

    log: InteractionLog
    label: IntArray | None
    dropped: dict[str, int]


def number_rows(
    name: str,
    rows: Rows,
    *,
    keep: str = "last",
    min_rating: float | None = None,
    users: IdMap | None = None,
    items: IdMap | None = None,
) -> Numbered:
    """Makes a log of rows.

    Of the rows with one user and one item, the first or the last is kept, by time and else by place
    in the file; then those rated too low are left out; then users and items are numbered by id
    (:func:`~mmssl.data.importing.rows.natural_order`), those without an interaction left out.

    Args:
        name: Of the log.
        rows: What was read.
        keep: ``first`` or ``last``.
        min_rating: Lowest rating of an interaction; needs ratings.
        users: A numbering to keep; the rows' ids are its numbers.
        items: The same.

    Raises:
        InputError: ``min_rating`` without ratings, or nothing is left.
    """
    if min_rating is not None and rows.rating is None:
        raise InputError("a minimum rating needs a column of ratings (--rating-col), got none")
    user, item = _numbers(rows.user, users), _numbers(rows.item, items)
    kept = one_per_pair(user * (int(item.max()) + 1) + item, rows.time, keep)
    dropped = dict(rows.dropped)
    if kept.size < user.size:
        dropped[f"repeated, the {keep} one kept"] = int(user.size - kept.size)
    if min_rating is not None and rows.rating is not None:
        liked = rows.rating[kept] >= min_rating
        if not liked.all():
            dropped[f"rated below {min_rating:g}"] = int((~liked).sum())
        kept = kept[liked]
    if not kept.size:
        raise InputError(f"{name}: expected interactions rated {min_rating:g} or more, got none")
    user, user_map = _compact(user[kept], rows.user, users)
    item, item_map = _compact(item[kept], rows.item, items)
    log = InteractionLog(
        name=name,
        num_users=user_map.size,
        num_items=item_map.size,
        user=user,
        item=item,
        rating=None if rows.rating is None else rows.rating[kept],
        time=None if rows.time is None else rows.time[kept],
        user_ids=user_map.names,
        item_ids=item_map.names,
    )
    return Numbered(log, None if rows.label is None else rows.label[kept], dropped)


def split_by_label(log: InteractionLog, label: IntArray) -> InteractionDataset:
    """The data set whose splits the labels (E,) are: 0 train, 1 validation, 2 test."""
    train, val, test = (
        Interactions(log.user[label == split], log.item[label == split]) for split in range(3)
    )
    return InteractionDataset(
        name=log.name,
        num_users=log.num_users,
        num_items=log.num_items,
        train=train,
        val=val,
        test=test,
        user_ids=log.user_ids,
        item_ids=log.item_ids,
        item_titles=log.item_titles,
        item_columns=log.item_columns,
    )


def _numbers(column: Column, told: IdMap | None) -> IntArray:
    if told is not None:
        return np.array(list(map(int, column.values)), dtype=np.int64)[column.codes]
    order = natural_order(column.values)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return rank[column.codes]


def _compact(ids: IntArray, column: Column, told: IdMap | None) -> tuple[IntArray, IdMap]:
    """Numbers without gaps and what they stand for; a numbering that was told stays."""
    if told is not None:
        return ids, told
    used = np.flatnonzero(np.bincount(ids))
    order = natural_order(column.values)
    names = tuple(column.values[place] for place in order[used].tolist())
    place = np.zeros(int(used[-1]) + 1, dtype=np.int64)
    place[used] = np.arange(used.size)
    return place[ids], IdMap(int(used.size), names)


def with_items(
    log: InteractionLog, titles: tuple[str, ...] | None, columns: Mapping[str, tuple[str, ...]]
) -> InteractionLog:
    """The log with what is known of its items in words."""
    return InteractionLog(**{**vars(log), "item_titles": titles, "item_columns": dict(columns)})
