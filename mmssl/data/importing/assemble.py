"""Numbers checked rows: one interaction per user and item, one index per id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.dataset import IntArray, InteractionDataset, Interactions
from mmssl.data.importing.cells import natural_order
from mmssl.data.importing.roles import column_name
from mmssl.data.importing.rows import Rows, one_per_pair
from mmssl.data.importing.table import Column, TableFile
from mmssl.data.log import InteractionLog
from mmssl.data.manifest import Source, SplitInfo
from mmssl.errors import InputError

KEEP = ("last", "first")


class IdMap(NamedTuple):
    """A numbering that comes with the source."""

    size: int
    names: tuple[str, ...] | None
    """The id of each number, None where the source names no ids."""


def joined(parts: Sequence[Rows]) -> Rows:
    """Concatenate the rows of several files."""
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    arrays: dict[str, Any] = {}
    for name in ("rating", "time", "label"):
        found = [getattr(part, name) for part in parts]
        if any(values is None for values in found) != all(values is None for values in found):
            raise InputError(f"expected a {name} in every file or in none, got it in some")
        arrays[name] = None if found[0] is None else np.concatenate(found)
    if len({part.dated for part in parts}) > 1:
        raise InputError("expected dates in every file or numbers in every file, got both")
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return Rows(
        user=_joined_columns([part.user for part in parts]),
        item=_joined_columns([part.item for part in parts]),
        **arrays,
        rows_read=sum(part.rows_read for part in parts),
        dropped=dropped,
        notes=notes,
        dated=parts[0].dated,
    )


def _joined_columns(columns: Sequence[Column]) -> Column:
    number: dict[str, int] = {}
    codes = []
    for column in columns:
        merged = [number.setdefault(value, len(number)) for value in column.values]
        codes.append(np.array(merged, dtype=np.int64)[column.codes])
    return Column(np.concatenate(codes), list(number))


class Numbered(NamedTuple):
    """A log and how its rows became it."""

    log: InteractionLog
    label: IntArray | None
    """Split label of each interaction."""
    dropped: dict[str, int]
    """Number of rows left out, by reason."""


def number_rows(
    name: str,
    rows: Rows,
    *,
    keep: str = "last",
    min_rating: float | None = None,
    users: IdMap | None = None,
    items: IdMap | None = None,
) -> Numbered:
    """Make a log of rows.

    Of the rows with the same user and item, the first or the last is kept, by time or, without
    times, by the order in the file. Then rows rated too low are left out. Then the users and items
    that still have an interaction are numbered by id
    (:func:`~mmssl.data.importing.rows.natural_order`).

    Args:
        name: Name of the log.
        rows: The rows that were read.
        keep: ``first`` or ``last``.
        min_rating: Lowest rating of an interaction; needs ratings.
        users: A numbering of users to keep; the user ids of the rows are its numbers.
        items: A numbering of items to keep, likewise.

    Raises:
        InputError: ``min_rating`` without ratings, or no row is left.
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


def split_by_label(
    log: InteractionLog, label: IntArray, split: SplitInfo | None = None
) -> InteractionDataset:
    """Make a data set of a log and its labels (E,): 0 train, 1 validation, 2 test."""
    train, val, test = (
        Interactions(log.user[label == part], log.item[label == part]) for part in range(3)
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
        split=split or SplitInfo(),
    )


def _numbers(column: Column, given: IdMap | None) -> IntArray:
    if given is not None:
        return np.array(list(map(int, column.values)), dtype=np.int64)[column.codes]
    order = natural_order(column.values)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return rank[column.codes]


def _compact(ids: IntArray, column: Column, given: IdMap | None) -> tuple[IntArray, IdMap]:
    """Return numbers without gaps and their ids; a given numbering stays as it is."""
    if given is not None:
        return ids, given
    used = np.flatnonzero(np.bincount(ids))
    order = natural_order(column.values)
    names = tuple(column.values[code] for code in order[used].tolist())
    number = np.zeros(int(used[-1]) + 1, dtype=np.int64)
    number[used] = np.arange(used.size)
    return number[ids], IdMap(int(used.size), names)


def with_items(
    log: InteractionLog, titles: tuple[str, ...] | None, columns: Mapping[str, tuple[str, ...]]
) -> InteractionLog:
    """Return the log with the titles and other columns of its items."""
    return InteractionLog(**{**vars(log), "item_titles": titles, "item_columns": dict(columns)})


def describe_source(
    layout: str,
    file: TableFile,
    positions: Mapping[str, int | None],
    rows: Rows,
    numbered: Numbered,
    other_files: Mapping[str, str],
) -> Source:
    """Record where a log comes from, for ``dataset.toml``.

    Args:
        layout: Name of the layout.
        file: The file of interactions, or the first of them.
        positions: Field of :class:`~mmssl.data.importing.rows.Rows` -> position of its column.
        rows: The rows that were read.
        numbered: What became of them.
        other_files: Name -> SHA-256 of the other files.
    """
    return Source(
        format=layout,
        files={file.path.name: file.sha256, **other_files},
        columns={role: column_name(file, at) for role, at in positions.items() if at is not None},
        rows_read=rows.rows_read,
        rows_kept=numbered.log.num_edges,
        dropped=numbered.dropped,
    )
