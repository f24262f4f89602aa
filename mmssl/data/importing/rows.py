"""Turns raw cells into interactions: checks ids, parses numbers and times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import MAX_ID, IntArray
from mmssl.data.importing.table import Column, Fault, RawTable, TableFile
from mmssl.errors import InputError

BoolArray = npt.NDArray[np.bool_]
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:\.(\d{1,9}))?)? ?(Z|UTC|[+-]\d\d:?\d\d)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = 1_000_000


class Rows(NamedTuple):
    """The usable rows of a log, in the order of the file."""

    user: Column  # (N,)
    item: Column  # (N,)
    rating: npt.NDArray[np.float64] | None = None  # (N,)
    time: npt.NDArray[np.generic] | None = None  # (N,) int64 or float64
    label: IntArray | None = None  # (N,) 0 train, 1 validation, 2 test
    rows_read: int = 0
    dropped: Mapping[str, int] = {}
    """Number of rows left out, by reason."""


class _Checked(NamedTuple):
    values: npt.NDArray[np.generic] | None
    """The parsed values of the column; None for ids, which stay text."""
    bad: BoolArray
    """Which values can't be used."""
    reason: str
    """What rows with a bad value are counted under."""
    expected: str
    """For the message."""


def usable_rows(
    file: TableFile,
    positions: Mapping[str, int | None],
    *,
    skip_bad: bool = False,
    numbered: bool = False,
) -> Rows:
    """Read the columns of a log and check every cell.

    Args:
        file: The table of the log.
        positions: Field of :class:`Rows` -> position of its column; None for one that is missing.
        skip_bad: Leave out rows that can't be used, instead of stopping at the first.
        numbered: Ids are numbers from 0, which a table or the rows of features refer to.

    Raises:
        InputError: A row can't be used (the first one is named) unless ``skip_bad``; or no row is
            left.
    """
    wanted = {role: position for role, position in positions.items() if position is not None}
    checks = _CHECKS | ({"user": _check_number, "item": _check_number} if numbered else {})
    table = file.read(list(wanted.values()))
    checked = [checks[role](column) for role, column in zip(wanted, table.columns, strict=True)]
    bad, dropped, faults = _collect(table, checked)
    if faults and not skip_bad:
        raise InputError(f"{file.path}: {describe(file.unit, faults[0], sum(dropped.values()))}")
    read: dict[str, Any] = {}
    for role, column, check in zip(wanted, table.columns, checked, strict=True):
        kept = column if bad is None else _without(column, bad)
        if check.values is None:
            read[role] = kept
        else:
            read[role] = check.values[column.codes if bad is None else column.codes[~bad]]
    rows = Rows(**read, rows_read=table.locations.size + len(table.faults), dropped=dropped)
    if not rows.user.codes.size:
        raise InputError(
            f"{file.path}: expected at least one usable row, got none of {rows.rows_read}"
        )
    return rows


def _without(column: Column, bad: BoolArray) -> Column:
    """Return the column without some rows, and without the values that only they have."""
    used, codes = np.unique(column.codes[~bad], return_inverse=True)
    return Column(codes.astype(np.int64), [column.values[code] for code in used.tolist()])


def describe(unit: str, fault: Fault, total: int) -> str:
    """Describe a bad row, and how to leave it and the other ``total`` - 1 out."""
    them = f"it and {total - 1} more" if total > 1 else "it"
    return f"{unit} {fault.location}: {fault.message} (--bad-rows skip leaves {them} out)"


def _collect(
    table: RawTable, checked: Sequence[_Checked]
) -> tuple[BoolArray | None, dict[str, int], list[Fault]]:
    """Return which rows are bad, their number by reason, and the faults in order."""
    bad = np.zeros(table.locations.size, dtype=np.bool_)
    faults = list(table.faults)
    dropped: dict[str, int] = {}
    for fault in faults:
        dropped[fault.reason] = dropped.get(fault.reason, 0) + 1
    for column, check in zip(table.columns, checked, strict=True):
        if not check.bad.any():
            continue
        rows = np.flatnonzero(check.bad[column.codes] & ~bad)
        bad[rows] = True
        if rows.size:
            dropped[check.reason] = int(rows.size)
        for row in rows[:5].tolist():
            got = column.values[column.codes[row]]
            message = f"expected {check.expected}, got {f'{got!r:.60}' if got else 'nothing'}"
            faults.append(Fault(int(table.locations[row]), check.reason, message))
    faults.sort(key=lambda fault: fault.location)
    return (bad if bad.any() else None), dropped, faults


def _check_users(column: Column) -> _Checked:
    return _checked_ids(column, "user", "a user id of one line without tabs")


def _check_items(column: Column) -> _Checked:
    return _checked_ids(column, "item", "an item id of one line without tabs")


def _checked_ids(column: Column, role: str, expected: str) -> _Checked:
    bad = np.fromiter(map(_is_no_id, column.values), np.bool_, len(column.values))
    return _Checked(None, bad, f"{role} id empty or not one line", expected)


def _check_number(column: Column) -> _Checked:
    bad = [not is_plain_integer(text) or int(text) >= MAX_ID for text in column.values]
    expected = f"an id that is a number in 0 .. {MAX_ID - 1}"
    return _Checked(None, np.array(bad, dtype=np.bool_), "id not a number", expected)


def _is_no_id(text: str) -> bool:
    return not text.strip() or "\t" in text or "\n" in text or "\r" in text


def _check_labels(column: Column) -> _Checked:
    values = numbers(column.values)
    bad = ~np.isin(values, (0, 1, 2))
    whole = np.where(bad, 0, values).astype(np.int64)
    return _Checked(whole, bad, "split label not 0, 1 or 2", "a split label 0, 1 or 2")


def _check_ratings(column: Column) -> _Checked:
    values = numbers(column.values)
    return _Checked(values, ~np.isfinite(values), "rating not a finite number", "a finite rating")


def numbers(texts: Iterable[str]) -> npt.NDArray[np.float64]:
    """Parse decimal numbers; NaN for all else, including what only Python's float() accepts."""
    full = _NUMBER.fullmatch
    return np.array([float(text) if full(text) else np.nan for text in texts], dtype=np.float64)


def check_times(column: Column) -> _Checked:
    """Parse times: integers stay, other numbers become float64, ISO 8601 microseconds since 1970.

    The kind follows from the first row, and ISO times without a zone are UTC.
    """
    used = np.bincount(column.codes, minlength=len(column.values)) > 0
    first = next((text for text, kept in zip(column.values, used, strict=True) if kept), "")
    reason = "time not a number or ISO 8601"
    if _ISO.fullmatch(first):
        moments = [_microseconds(text) for text in column.values]
        bad = np.array([moment is None for moment in moments], dtype=np.bool_)
        values = np.array([moment or 0 for moment in moments], dtype=np.int64)
        return _Checked(values, bad, reason, "a time like 2024-03-01 12:30:00")
    expected = "a time, a number as in the first row"
    if all(map(_INTEGER.fullmatch, column.values)):
        whole = np.array(list(map(int, column.values)), dtype=np.int64)
        return _Checked(whole, np.zeros(whole.size, np.bool_), reason, expected)
    values_ = numbers(column.values)
    return _Checked(values_, ~np.isfinite(values_), reason, expected)


_CHECKS = {
    "user": _check_users,
    "item": _check_items,
    "rating": _check_ratings,
    "time": check_times,
    "label": _check_labels,
}


def _microseconds(text: str) -> int | None:
    found = _ISO.fullmatch(text)
    if not found:
        return None
    day, minute, second, fraction, zone = found.groups()
    zone = "+00:00" if zone in (None, "Z", "UTC") else zone
    if ":" not in zone:
        zone = f"{zone[:3]}:{zone[3:]}"
    clock = f"{minute or '00:00'}{second or ':00'}.{(fraction or '')[:6]:0<6}"
    try:
        passed = datetime.fromisoformat(f"{day}T{clock}{zone}") - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (passed.days * 86_400 + passed.seconds) * MICROSECOND + passed.microseconds


def natural_order(values: Sequence[str]) -> IntArray:
    """Return the order of distinct ids: by value if all are integers, else by code point.

    The numbering then depends on the set of ids, not on the order of the rows.
    """
    if all(map(is_plain_integer, values)):
        return np.argsort(np.array(list(map(int, values)), dtype=np.int64), kind="stable")
    return np.array(sorted(range(len(values)), key=values.__getitem__), dtype=np.int64)


def is_plain_integer(text: str) -> bool:
    """Return whether a text is a non-negative integer without leading zeros or a sign."""
    return (
        text.isascii() and text.isdecimal() and len(text) <= 18 and (text[0] != "0" or text == "0")
    )


def one_per_pair(key: IntArray, time: npt.NDArray[np.generic] | None, keep: str) -> IntArray:
    """Return the rows to keep, sorted by key: the first or last row of each key.

    Args:
        key: (N,) number of each pair of a user and an item.
        time: (N,) times that order the rows of a key, None for the order of the file.
        keep: ``first`` or ``last``.
    """
    # lexsort is stable: rows with the same key and time stay in the order of the file.
    order = np.argsort(key, kind="stable") if time is None else np.lexsort((time, key))
    step = np.flatnonzero(np.diff(key[order])) + 1
    if keep == "first":
        return order[np.concatenate(([0], step))] if key.size else order
    return order[np.concatenate((step - 1, [key.size - 1]))] if key.size else order
