"""Numbers checked rows: one interaction per user and item, one index per id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import without_gaps
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


def joined(parts: Iterable[Rows]) -> Rows:
    """Concatenate the rows of several files."""
    whole = Joining()
    for part in parts:
        whole.add(part)
    return whole.rows()


class Joining:
    """Rows of files that are read one after the other; the texts that files share are kept once."""

    def __init__(self) -> None:
        self._first: Rows | None = None
        self._several = False
        self._user, self._item = _Joined(), _Joined()
        self._arrays: dict[str, list[Any]] = {"rating": [], "time": [], "label": []}
        self._dropped: dict[str, int] = {}
        self._notes: dict[str, None] = {}
        self._rows_read = 0
        self._dated: set[bool | None] = set()

    def add(self, part: Rows) -> None:
        """Add the rows of a file."""
        if self._first is None and not self._several:
            self._first = part  # nothing is copied of a single file
            return
        self._several = True
        if self._first is not None:
            first, self._first = self._first, None
            self._add(first)
        self._add(part)

    def _add(self, part: Rows) -> None:
        self._user.add(part.user)
        self._item.add(part.item)
        for name, found in self._arrays.items():
            found.append(getattr(part, name))
        for reason, count in part.dropped.items():
            self._dropped[reason] = self._dropped.get(reason, 0) + count
        self._notes.update(dict.fromkeys(part.notes))
        self._rows_read += part.rows_read
        self._dated.add(part.dated)

    def rows(self) -> Rows:
        """Return all rows; once.

        Raises:
            InputError: The files differ in their columns, or in how times are written.
        """
        if self._first is not None:
            return self._first
        whole: dict[str, Any] = {}
        for name, found in self._arrays.items():
            missing = [values is None for values in found]
            if any(missing) != all(missing):
                raise InputError(f"expected a {name} in every file or in none, got it in some")
            whole[name] = None if missing[0] else np.concatenate(found)
            found.clear()
        if len(self._dated) > 1:
            raise InputError("expected dates in every file or numbers in every file, got both")
        return Rows(
            user=self._user.column(),
            item=self._item.column(),
            **whole,
            rows_read=self._rows_read,
            dropped=self._dropped,
            notes=tuple(self._notes),
            dated=self._dated.pop(),
        )


class _Joined:
    """A column of several files, each of which numbers its values in its own way."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._codes: list[npt.NDArray[np.int32]] = []

    def add(self, column: Column) -> None:
        number = self._number
        merged = [number.setdefault(value, len(number)) for value in column.values]
        self._codes.append(np.array(merged, dtype=np.int32)[column.codes])

    def column(self) -> Column:
        return Column(np.concatenate(self._codes), list(self._number))


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
    orders = _order(rows.user, users), _order(rows.item, items)
    user = _numbers(rows.user, orders[0], users)
    item = _numbers(rows.item, orders[1], items)
    kept = one_per_pair(user, item, rows.time, keep)
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
    user, user_map = _compact(user[kept], rows.user, orders[0], users)
    item, item_map = _compact(item[kept], rows.item, orders[1], items)
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
        Interactions(*(ids[label == part].astype(np.int64) for ids in (log.user, log.item)))
        for part in range(3)
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


def _order(column: Column, given: IdMap | None) -> IntArray:
    """Return the values in the order of their numbers; given numbers are the values themselves."""
    if given is not None:
        return np.array(list(map(int, column.values)), dtype=np.int64)
    return natural_order(column.values)


def _numbers(column: Column, order: IntArray, given: IdMap | None) -> npt.NDArray[np.int32]:
    if given is not None:
        return order.astype(np.int32)[column.codes]
    rank = np.empty(order.size, dtype=np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    return rank[column.codes]


def _compact(
    ids: npt.NDArray[np.int32], column: Column, order: IntArray, given: IdMap | None
) -> tuple[npt.NDArray[np.int32], IdMap]:
    """Return numbers without gaps and their ids; a given numbering stays as it is."""
    if given is not None:
        return ids, given
    used, number = without_gaps(ids, order.size)
    names = tuple(column.values[code] for code in order[used].tolist())
    return number, IdMap(int(used.size), names)


def with_items(
    log: InteractionLog,
    titles: tuple[str, ...] | None,
    columns: Mapping[str, tuple[str, ...]],
    ids: tuple[str, ...] | None = None,
) -> InteractionLog:
    """Return the log with the titles and other columns of its items.

    Args:
        log: The log.
        titles: (I,) titles.
        columns: Name -> (I,) cells.
        ids: (I,) ids, the first of which are those of the log's items; None if there are no others.
    """
    fields = {**vars(log), "item_titles": titles, "item_columns": dict(columns)}
    if ids is not None and len(ids) > log.num_items:
        fields.update(item_ids=ids, num_items=len(ids))
    return InteractionLog(**fields)


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
